"""What files hold is checked before it is believed: one line that names the file, whatever is in it."""

import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from detectors import random_detector, room
from PIL import Image
from synthetic import noisy

from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.config import ConfigError, saved_config
from eelib.deploy.manifest import DeploymentError
from eelib.deploy.runtime import Session
from eelib.files import LONGEST, InputError, file_sha256, one_line, read_json, refuse_bomb, shorten
from eelib.hub import HubError, path_of
from eelib.preprocess import read_image, read_sizes
from eelib.records import RecordsError, load_records, save_records
from eelib.routed_ap import RoutedAP
from eelib.routers import PolicyError, read_times
from studies import tables
from studies.metrics import current_metrics


def test_every_message_is_one_line_of_bounded_length():
    assert str(InputError("a\nb\x1b[31m")) == "a; b\\x1b[31m" and one_line("a: é") == "a: é"
    assert len(str(InputError("x" * 10**6))) == LONGEST and str(InputError("x" * 10**6)).endswith("x...")
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value, text in (
        ("a" * 10**6, "'" + "a" * 76 + "..."), (list(range(21)), "list of 21"),
        (10**5000, "int that is too long to show"), (deep, "list that is too long to show"), (3, "3"),
    ):  # fmt: skip
        assert shorten(value) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON (Expecting property name"),
        (b"", "not valid JSON (Expecting value"),
        (b"\xff\xfe{\x00", "not UTF-8 text (invalid start byte at byte 0)"),
        (b"[" * 10**5, "not valid JSON (nested too deeply)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
        (b"[1]", "expected an object of JSON, got list"),
        (b" " * (64 * 2**20 + 1), "larger than 67,108,864 bytes"),
    ],
)
def test_what_is_no_json_object_is_told(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    for read in (lambda path: read_json(path, HubError), current_metrics):
        with pytest.raises(InputError) as error:
            read(tmp_path / "a.json")
        assert str(error.value).startswith(f"{tmp_path / 'a.json'}: {message}")
    with pytest.raises(HubError, match="cannot be read .Is a directory"):
        read_json(tmp_path, HubError)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_an_archive_that_unpacks_to_too_much_is_refused_before(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("counts.npy", bytes(80 * 2**20))
    for read in (
        lambda: load_records(path, "data", "weights"),
        lambda: RoutedAP.load(path, "data", "weights"),
        lambda: load_checkpoint(path),
    ):
        with pytest.raises(InputError, match="bomb.npz: .* bytes that unpack to 83,886,080; expected less than"):
            read()
    refuse_bomb(tmp_path / "none", 2, InputError)  # whoever opens it says that there is none


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


def spoilt(tmp_path, **changes):
    """A checkpoint of a small detector with changes of its weights or beside them."""
    model = random_detector(cuts=(5,), full=False)
    state = {"model": model.state_dict(), "plan": model.plan, "config": {"name": "t"}}
    for key, value in changes.items():
        state[key] = value(state[key])
    return save_checkpoint(tmp_path / "w.pth", state)


WEIGHT = "backbone.features.0.0.0.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda model: model | {3: torch.zeros(1)}}, "weight 3 is no plain tensor"),
        ({"model": lambda model: model | {WEIGHT: 3}}, f"weight '{WEIGHT}' is no plain tensor"),
        ({"model": lambda model: model | {WEIGHT: model[WEIGHT].to_sparse()}}, "is no plain tensor"),
        ({"model": lambda model: model | {WEIGHT: model[WEIGHT].to("meta")}}, "is no plain tensor"),
        ({"model": lambda model: model | {WEIGHT: torch.zeros(1).expand(2**30, 3, 3, 3)}}, "is no plain tensor"),
        ({"model": lambda model: model | {WEIGHT: model[WEIGHT] * torch.nan}}, "holds values that are not finite"),
        ({"model": lambda model: model | {WEIGHT: model[WEIGHT].long()}}, "another shape or type for key"),
        ({"model": lambda model: model | {WEIGHT: model[WEIGHT][0]}}, "another"),
        ({"plan": lambda plan: [plan]}, "key 'plan' is .*expected size, maps, cuts and classes"),
        ({"plan": lambda plan: plan | {"size": 10**9}}, "key 'plan' is"),
        ({"plan": lambda plan: plan | {"cuts": {"exit1": 99}}}, "key 'plan' is"),
        ({"plan": lambda plan: plan | {"classes": ["a"] * 10**5}}, "key 'plan' is"),
        ({"plan": lambda plan: plan | {"classes": [1]}}, "key 'plan' is"),
    ],
)
def test_a_checkpoint_holds_finite_tensors_of_a_detector(tmp_path, changes, message):
    with pytest.raises(TrainingError, match=message) as error:
        load_released(spoilt(tmp_path, **changes))
    assert str(error.value).startswith(f"{tmp_path / 'w.pth'}: ")


def test_a_sound_checkpoint_is_read_in_half_precision_too(tmp_path):
    half = {"model": lambda model: {k: v.half() if v.is_floating_point() else v for k, v in model.items()}}
    assert load_released(spoilt(tmp_path, **half)).exit_names == ("exit1",)


def test_no_advice_to_load_unsafely_is_quoted(tmp_path, capsys):
    for name, content in (("a.pth", pickle.dumps({"model": Runs()})), ("b.pth", b"\x80\x02garbage")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError, match=f"{name}: not a checkpoint") as error:
            load_checkpoint(tmp_path / name)
        assert "weights_only" not in str(error.value) and "trust" not in str(error.value)
    torch.save({"model": {"a": Runs()}}, tmp_path / "c.pth")
    with pytest.raises(TrainingError, match="c.pth: not a checkpoint .damaged, or more than tensors and plain values"):
        load_checkpoint(tmp_path / "c.pth")
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "config", [{"phase": "2.6"}, {"phase": 3, "model": {}, "data": {}, "loss": 1}, {"name": 1}, []]
)
def test_a_configuration_in_a_checkpoint_is_read_or_told(config):
    with pytest.raises(ConfigError, match="^w.pth: "):
        saved_config({"config": config}, "w.pth")


def test_released_weights_are_those_of_the_manifest(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "a.pth").write_bytes(b"weights")
    manifest, entry = folder / "manifest.json", {"a.pth": {"sha256": file_sha256(folder / "a.pth")}}
    manifest.write_text(json.dumps(entry))
    monkeypatch.chdir(tmp_path)
    assert path_of("a") == path_of(folder / "a.pth") == folder / "a.pth"
    (folder / "a.pth").write_bytes(b"weightz")
    for given in ("a", "checkpoints/a.pth", folder / "a.pth"):
        with pytest.raises(HubError, match="a.pth: not the weights that .*json describes; their SHA-256 differs"):
            path_of(given)
    for content in ([], {"a.pth": 3}, {"a.pth": {}}, {"../a.pth": {"sha256": "x"}}):
        manifest.write_text(json.dumps(content))
        with pytest.raises(HubError, match="manifest.json: "):
            path_of("a")


def test_records_and_flags_are_checked(tmp_path):
    coco, records = noisy(6)
    RoutedAP(records, coco).save(tmp_path / "f.npz", "data", "weights")
    save_records(records, tmp_path / "r.npz")
    values = dict(np.load(tmp_path / "f.npz"))
    assert RoutedAP.load(tmp_path / "f.npz", "data", "weights").images == 6
    for key, value in {
        "score": values["score"] + 2, "image": values["image"] + 100, "counts": values["counts"][:1],
        "matched": values["matched"][:3], "positives": values["positives"][:1], "class": values["class"] + 1,
        "exit_names": np.array(["a", "a", "a"]), "image_ids": np.zeros(6, int),
    }.items():  # fmt: skip
        np.savez(tmp_path / "bad.npz", **values | {key: value})
        with pytest.raises(RecordsError, match="bad.npz: not match flags"):
            RoutedAP.load(tmp_path / "bad.npz", "data", "weights")
    for content in (b"", b"PK\x03\x04", (tmp_path / "f.npz").read_bytes()[:-100]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(RecordsError, match="bad.npz: not match flags"):
            RoutedAP.load(tmp_path / "bad.npz", "data", "weights")


@pytest.mark.parametrize("value", ["0.5", None, True, -1, float("nan"), float("inf"), [1], 10**400])
def test_times_are_numbers(tmp_path, value):
    times, weights = tmp_path / "t.json", tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    content = {"checkpoint_sha256": file_sha256(weights), "exits": {"full": {"ratio": value, "passed_ratio": 0}}}
    times.write_text(json.dumps(content))
    with pytest.raises(PolicyError, match="t.json: a time in exits is"):
        read_times(times, ("full",), weights)
    content["exits"]["full"]["ratio"] = 1
    times.write_text(json.dumps(content))
    assert read_times(times, ("full",), weights).exits == (1,)


KINDS = (("TIFF", "RGB"), ("TIFF", "L"), ("TIFF", "I;16"), ("JPEG", "L"), ("PNG", "RGB"))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_the_head_tells_the_size_that_decoding_gives(tmp_path, kind, mode, orientation):
    image, path = Image.fromarray(room(1)[0]).resize((48, 40)), tmp_path / "a.img"
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, kind, exif=exif)
    turned = np.rot90(np.asarray(read_image(path)), {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    if kind == "TIFF" and mode != "I;16":
        np.testing.assert_array_equal(turned, image.convert("RGB"))
    upright, stored = read_sizes(path)
    assert upright == read_image(path).size == ((40, 48) if orientation > 4 else (48, 40)) and stored == (48, 40)


def test_graphs_that_compute_something_else_are_refused(exported, tmp_path):
    """The manifest's hash fits, as it does where somebody exported with another program."""
    import onnx

    listed = json.loads((exported("plain") / "manifest.json").read_text())
    source = exported("plain") / listed["plain"]["file"]

    def refusal(change, entry="plain"):
        model = onnx.load(source)
        change(model.graph)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for path in exported("plain").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        content = json.loads(json.dumps(listed))
        (folder / "new.onnx").write_bytes(model.SerializeToString())
        spoilt = [content["plain"], *content["stages"]] if entry == "plain" else [content[entry]]
        for graph in spoilt:
            graph |= {"file": "new.onnx", "sha256": file_sha256(folder / "new.onnx")}
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(DeploymentError) as error:
            Session(folder).detect([room(1)[0], room(2)[0]])
        assert str(error.value).startswith(str(folder / "new.onnx"))
        return str(error.value)

    def doubled(graph):
        graph.node.append(onnx.helper.make_node("Add", [graph.output[0].name] * 2, ["twice"]))
        graph.output[0].name = "twice"

    assert "output 'boxes' is None" in refusal(lambda graph: graph.output.pop())
    assert "output 'scores' is" in refusal(lambda graph: graph.output.reverse())
    assert "refuses the graph" in refusal(lambda graph: setattr(graph.node[0], "op_type", "None"))
    assert "refuses the graph" in refusal(lambda graph: setattr(graph.input[0], "name", "other"))
    assert "refuses the graph" in refusal(lambda graph: None, "suppression")


def test_cells_of_tables_stay_cells(tmp_path):
    frame = pd.DataFrame({"a|b": ["x|y\nz", "<script>", "=1+2", "-"], "n": [-0.5, 1.0, 2.0, 3.0]})
    tables.write(frame, "t", tmp_path)
    lines = tables.markdown(frame).splitlines()
    assert lines[0] == "| a\\|b | n |" and lines[2] == "| x\\|y z | -0.500 |" and lines[3].startswith("| &lt;script>")
    assert "'=1+2,2.0\n'-,3.0" in (tmp_path / "tables" / "t.csv").read_text()
