import json

import pytest
import torch

from eelib.checkpoints import TrainingError, save_checkpoint
from eelib.coco import SHOWROOM
from eelib.config import ConfigError, parse
from eelib.evaluate import file_sha256
from eelib.model import EarlyExitSSDLite
from eelib.records import RecordsError
from eelib.release import choose, find_released, read_manifest, release, retire, stages_of, stages_table
from studies.routing.breakdown import compare_detectors


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
    state["config"]["model"]["start"] = "checkpoints/first.pth"
    release(save_checkpoint(path, state), "second.pth", tmp_path, limit=2)
    manifest = read_manifest(tmp_path)
    assert manifest.keys() == {"first.pth", "second.pth"}
    assert [stage["start_sha256"] for stage in manifest["second.pth"]["stages"]] == [first["sha256"]]
    stages = stages_of("second.pth", tmp_path)
    assert [stage["start_sha256"] for stage in stages] == [None, first["sha256"]]
    assert [stage["config"]["model"]["start"] for stage in stages] == [None, "checkpoints/first.pth"]
    state["config"]["model"]["start"] = None  # other weights take the first's name: the second keeps its history
    state["history"] = state["history"] * 3
    release(save_checkpoint(path, state), "first.pth", tmp_path, limit=2)
    assert stages_of("second.pth", tmp_path) == stages
    assert [stage["epochs"] for stage in stages_of("first.pth", tmp_path)] == [3]


def test_a_manifest_that_repeats_the_stages_of_the_start_is_read(tmp_path, trained):
    path, state = trained
    release(path, "first.pth", tmp_path, limit=2)
    state["config"]["model"]["start"] = "checkpoints/first.pth"
    release(save_checkpoint(path, state), "second.pth", tmp_path, limit=2)
    manifest = read_manifest(tmp_path)
    stages = manifest["second.pth"]["stages"] = stages_of("second.pth", tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert stages_of("second.pth", tmp_path) == stages


def test_stages_lead_back_over_weights_that_were_never_released(tmp_path, trained):
    _, state = trained
    origin = save_checkpoint(tmp_path / "start.pth", {"model": state["model"], "origin": "a graph"})
    state["config"]["model"]["start"] = str(origin)
    first = save_checkpoint(tmp_path / "1" / "released.pth", state)
    state["config"]["model"]["start"] = str(first)
    state["history"] = state["history"] * 2
    release(save_checkpoint(tmp_path / "2" / "released.pth", state), "b.pth", tmp_path, limit=2)
    stages = stages_of("b.pth", tmp_path)
    assert [stage["config"]["model"]["start"] for stage in stages] == [str(origin), str(first)]
    assert [(s["epochs"], s["start_sha256"], s.get("origin")) for s in stages] == [
        (1, file_sha256(origin), "a graph"), (2, file_sha256(first), None)
    ]  # fmt: skip
    assert stages_table("b.pth", tmp_path)["start"].tolist() == ["a graph", str(first)]


def test_bad_sources_change_nothing(tmp_path, trained):
    path, state = trained
    with pytest.raises(TrainingError, match="no such checkpoint"):
        release(tmp_path / "none.pth", "a.pth", tmp_path)
    del state["config"]
    with pytest.raises(ConfigError, match="has no 'config'"):
        release(save_checkpoint(path, state), "a.pth", tmp_path)
    assert not (tmp_path / "a.pth").exists() and read_manifest(tmp_path) == {}
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(TrainingError, match=r"manifest.json: not valid JSON"):
        read_manifest(tmp_path)


def test_the_stages_are_a_table(tmp_path, trained):
    path, _ = trained
    release(path, "first.pth", tmp_path, limit=2)
    table = stages_table("first.pth", tmp_path)
    assert table.iloc[0].to_dict() == {
        "epochs": 1, "planned": 50, "sides in px": "320", "class loss": "quality_focal", "mask loss": 0.0,
        "batch": 32, "learning rate": "0.002", "start": "nothing",
    }  # fmt: skip
    assert len(stages_table("baseline.pth")) == 2  # the released ones can be read, too
    with pytest.raises(TrainingError, match="no entry 'none.pth'; expected one of"):
        stages_table("none.pth", tmp_path)


def test_the_best_on_val_is_chosen_whatever_test_says(tmp_path):
    manifest = {}
    for name, on_val, on_test in (("frozen.pth", (0.1, 0.3), 0.9), ("joint.pth", (0.2, 0.31), 0.1)):
        history = [{"exit1_AP": 0.0, "full_AP": 0.0}, {"exit1_AP": on_val[0], "full_AP": on_val[1]}]
        save_checkpoint(tmp_path / name, {"model": {}, "config": {}, "history": history})
        manifest[name] = {"test": {"exit1": {"AP": on_test}, "full": {"AP": on_test}}}
    manifest["baseline.pth"] = {"test": {"full": {"AP": 0.5}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    joint = (tmp_path / "joint.pth").read_bytes()
    with pytest.raises(TrainingError, match="none.pth: not released; expected one of frozen.pth"):
        choose("exits.pth", ["frozen.pth", "none.pth"], tmp_path)
    with pytest.raises(TrainingError, match="baseline.pth: has other exits than frozen.pth; expected exit1, full"):
        choose("exits.pth", ["frozen.pth", "baseline.pth"], tmp_path)
    entry = choose("exits.pth", ["frozen.pth", "joint.pth"], tmp_path)
    assert entry["chosen"]["from"] == "joint.pth"
    assert entry["chosen"]["val_mean_AP"] == pytest.approx({"frozen.pth": 0.2, "joint.pth": 0.255})
    assert (tmp_path / "exits.pth").read_bytes() == joint and not (tmp_path / "joint.pth").exists()
    manifest = read_manifest(tmp_path)
    assert manifest.keys() == {"frozen.pth", "baseline.pth", "exits.pth"} and manifest["exits.pth"] == entry
    save_checkpoint(tmp_path / "frozen.pth", {"model": {}, "config": {}, "history": [{"epoch": 1}]})
    with pytest.raises(TrainingError, match="frozen.pth: was not measured on val"):
        choose("exits.pth", ["exits.pth", "frozen.pth"], tmp_path)


def test_a_retired_detector_is_still_found_and_compared(tmp_path):
    torch.manual_seed(0)
    config = parse({"name": "t"}).model_dump(mode="json")
    for name in ("frozen.pth", "joint.pth"):
        state = {"model": EarlyExitSSDLite().state_dict(), "config": config, "history": [{"exit1_AP": 0.1}]}
        release(save_checkpoint(tmp_path / "run.pth", state), name, tmp_path, limit=3)
    choose("exits.pth", ["joint.pth"], tmp_path)
    paths = {"frozen": tmp_path / "frozen.pth", "joint": tmp_path / "joint.pth", "none": tmp_path / "none.pth"}
    assert find_released(paths, SHOWROOM) == {"frozen": tmp_path / "frozen.pth", "joint": tmp_path / "exits.pth"}

    def compare():
        found, baseline = find_released(paths, SHOWROOM), tmp_path / "exits.pth"
        return compare_detectors(found, baseline, SHOWROOM, tmp_path / "cache", resamples=3, limit=3)

    before = compare()
    kept = retire("frozen.pth", tmp_path, limit=6)  # of more images than are compared
    assert not (tmp_path / "frozen.pth").exists() and kept == tmp_path / "matches" / "frozen.npz"
    assert set(find_released(paths, SHOWROOM)) == {"frozen", "joint"} and compare() == before
    with pytest.raises(TrainingError, match="frozen.pth: no such checkpoint"):
        retire("frozen.pth", tmp_path)
    with pytest.raises(TrainingError, match="none.pth: not released; expected one of"):
        retire("none.pth", tmp_path)
    manifest = read_manifest(tmp_path)
    manifest["frozen.pth"]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RecordsError, match="match flags of another checkpoint"):
        find_released(paths, SHOWROOM)
    kept.write_bytes(b"PK")
    with pytest.raises(RecordsError, match="frozen.npz: not match flags"):
        find_released(paths, SHOWROOM)
    kept.unlink()
    with pytest.raises(RecordsError, match="frozen.npz: no such match flags"):
        find_released(paths, SHOWROOM)
