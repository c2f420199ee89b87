import json

import pytest
import torch

from eelib.checkpoints import TrainingError, save_checkpoint
from eelib.coco import SHOWROOM
from eelib.config import ConfigError, parse
from eelib.data import split_sha256
from eelib.evaluate import file_sha256
from eelib.hub import HubError, read_manifest
from eelib.model import EarlyExitSSDLite
from eelib.records import RecordsError
from eelib.release import release
from eelib.routed_ap import RoutedAP
from studies.released import find_released, stages_table


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    config = parse({"name": "t", "model": {"exits": []}}).model_dump(mode="json")
    state = {"model": EarlyExitSSDLite(()).state_dict(), "config": config, "history": [{"epoch": 1}]}
    return save_checkpoint(tmp_path / "run" / "released.pth", state), state


def test_the_manifest_says_what_was_released(tmp_path, trained):
    path, state = trained
    release(path, "first.pth", tmp_path, limit=2)
    first = read_manifest(tmp_path)["first.pth"]
    assert first["sha256"] == first["checkpoint_sha256"] == file_sha256(tmp_path / "first.pth")
    assert first["split"] == "test" and first["images"] == 2 and first["test"].keys() == {"full"}
    assert first["looks"] == 1
    state["config"]["model"]["start"] = "checkpoints/first.pth"
    release(save_checkpoint(path, state), "second.pth", tmp_path, limit=2)
    manifest = read_manifest(tmp_path)
    assert manifest.keys() == {"first.pth", "second.pth"}
    stages = manifest["second.pth"]["stages"]
    assert [stage["start_sha256"] for stage in stages] == [None, first["sha256"]]
    assert [stage["config"]["model"]["start"] for stage in stages] == [None, "checkpoints/first.pth"]
    state["config"]["model"]["start"] = None  # other weights take the first's name: the second keeps its history
    state["history"] = state["history"] * 3
    assert release(save_checkpoint(path, state), "first.pth", tmp_path, limit=2)["looks"] == 2
    manifest = read_manifest(tmp_path)
    assert manifest["second.pth"]["stages"] == stages
    assert [stage["epochs"] for stage in manifest["first.pth"]["stages"]] == [3]


def test_test_is_read_at_the_size_of_the_detector(tmp_path):
    torch.manual_seed(0)
    model = EarlyExitSSDLite()
    model.size = 96
    config = parse({"name": "t", "data": {"size": 96}}).model_dump(mode="json")
    state = {"model": model.state_dict(), "plan": model.plan, "config": config}
    entry = release(save_checkpoint(tmp_path / "run.pth", state), "small.pth", tmp_path, limit=2)
    flags = RoutedAP.load(tmp_path / entry["matches"], split_sha256("test", SHOWROOM), entry["sha256"])
    assert flags.exit_names == ("exit1", "exit2", "full") and flags.images == 2
    for k, name in enumerate(flags.exit_names):
        assert flags.of_exit(k) == pytest.approx(entry["test"][name]["AP"])


def test_stages_lead_back_over_weights_that_were_never_released(tmp_path, trained):
    _, state = trained
    origin = save_checkpoint(tmp_path / "start.pth", {"model": state["model"], "origin": "a graph"})
    state["config"]["model"]["start"] = str(origin)
    first = save_checkpoint(tmp_path / "1" / "released.pth", state)
    state["config"]["model"]["start"] = str(first)
    state["history"] = state["history"] * 2
    release(save_checkpoint(tmp_path / "2" / "released.pth", state), "b.pth", tmp_path, limit=2)
    stages = read_manifest(tmp_path)["b.pth"]["stages"]
    assert [stage["config"]["model"]["start"] for stage in stages] == [str(origin), str(first)]
    assert [(s["epochs"], s["start_sha256"], s.get("origin")) for s in stages] == [
        (1, file_sha256(origin), "a graph"), (2, file_sha256(first), None)
    ]  # fmt: skip
    assert stages_table("b.pth", tmp_path)["start"].tolist() == ["a graph", str(first)]


@pytest.mark.parametrize("name", ["a.pt", "../a.pth", ".a.pth", "/a.pth", ""])
def test_a_name_is_a_file_name(name, tmp_path, trained):
    with pytest.raises(TrainingError, match="expected a file name that ends in .pth"):
        release(trained[0], name, tmp_path)


def test_what_is_too_large_leaves_what_has_its_name(tmp_path, trained, monkeypatch):
    path, state = trained
    release(path, "a.pth", tmp_path, limit=2)
    before = (tmp_path / "a.pth").read_bytes(), read_manifest(tmp_path)
    monkeypatch.setattr("eelib.release.LARGEST_BYTES", len(before[0]) - 1)
    with pytest.raises(TrainingError, match="released weights must stay under 16 MiB"):
        release(path, "a.pth", tmp_path, limit=2)
    assert ((tmp_path / "a.pth").read_bytes(), read_manifest(tmp_path)) == before


def test_bad_sources_change_nothing(tmp_path, trained):
    path, state = trained
    with pytest.raises(TrainingError, match="no such checkpoint"):
        release(tmp_path / "none.pth", "a.pth", tmp_path)
    broken = {key: value.clone() for key, value in state["model"].items()}
    next(value for value in broken.values() if value.is_floating_point()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="holds values that are not finite"):
        release(save_checkpoint(path, state | {"model": broken}), "a.pth", tmp_path)
    del state["config"]
    with pytest.raises(ConfigError, match="has no 'config'"):
        release(save_checkpoint(path, state), "a.pth", tmp_path)
    assert not (tmp_path / "a.pth").exists() and read_manifest(tmp_path) == {}
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(HubError, match=r"manifest.json: not valid JSON"):
        read_manifest(tmp_path)


def test_the_stages_are_a_table(tmp_path, trained):
    path, _ = trained
    release(path, "first.pth", tmp_path, limit=2)
    table = stages_table("first.pth", tmp_path)
    assert table.iloc[0].to_dict() == {
        "epochs": 1, "planned": 50, "sides in px": "320", "class loss": "quality_focal", "mask loss": 0.0,
        "batch": 32, "learning rate": "0.002", "start": "nothing",
    }  # fmt: skip
    for name in ("baseline.pth", "phases_start.pth"):  # the released ones can be read, too; the last is of version 0.1
        assert len(stages_table(name)) == 2
    with pytest.raises(TrainingError, match="no entry 'none.pth'; expected one of"):
        stages_table("none.pth", tmp_path)


def test_flags_stand_for_weights_that_are_gone(tmp_path, trained):
    path, _ = trained
    release(path, "a.pth", tmp_path, limit=2)
    release(path, "b.pth", tmp_path, limit=2)
    paths = {name: tmp_path / f"{name}.pth" for name in ("a", "b", "none")}
    assert find_released(paths, SHOWROOM) == {"a": paths["a"], "b": paths["b"]}
    paths["a"].unlink()
    assert find_released(paths, SHOWROOM)["a"].images == 2
    manifest = read_manifest(tmp_path)
    manifest["a.pth"]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordsError, match="match flags of another checkpoint"):
        find_released(paths, SHOWROOM)
    (tmp_path / "matches" / "a.npz").unlink()
    with pytest.raises(RecordsError, match="a.npz: no such match flags"):
        find_released(paths, SHOWROOM)
