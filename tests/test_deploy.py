"""The exported graphs compute what the model computes."""

import json

import numpy as np
import onnx
import pytest
import torch

from eelib.__main__ import main
from eelib.anchors import default_boxes
from eelib.checkpoints import load_released, save_checkpoint
from eelib.coco import open_root
from eelib.config import ROOT
from eelib.data import DetectionDataset, as_input
from eelib.deploy.export import Decoder, build_stages, export
from eelib.deploy.runtime import EarlyExitSession, forced
from eelib.model import EarlyExitSSDLite, ExitOutput, flatten_predictions, postprocess

CHECKPOINT = ROOT / "checkpoints" / "exits.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    export(CHECKPOINT, path)
    return path


@pytest.fixture(scope="module")
def images():
    dataset = DetectionDataset("val", size=320, limit=32)
    return as_input(torch.stack([dataset[i][0] for i in range(32)]))


@pytest.fixture(scope="module")
def expected(images):
    """Detections of the PyTorch model by exit."""
    model = load_released(CHECKPOINT).eval()
    with torch.inference_mode():
        return {output.name: postprocess(output, (320, 320)) for output in model.exits(images)}


def assert_same(mine, theirs):
    """Equal detections to 1e-4 of a score and of the image's side.

    Detections whose scores are equal to a float's last digits may change places, so each box
    must have its counterpart and places are compared by score alone.
    """
    np.testing.assert_allclose(mine.scores, theirs.scores.numpy(), atol=1e-4, rtol=0)
    distance = np.abs(mine.boxes_xyxy[:, None] - theirs.boxes.numpy()).max(-1) / 320  # (N, N)
    distance += np.abs(mine.scores[:, None] - theirs.scores.numpy())
    assert distance.min(0).max(initial=0) < 1e-4 and distance.min(1).max(initial=0) < 1e-4


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("name", ["exit1", "exit2", "full"])
def test_detections_are_the_models(folder, images, expected, name, batch):
    session = EarlyExitSession(folder)
    array = np.ascontiguousarray(images.numpy())
    found = [d for first in range(0, 32, batch) for d in session.detect(array[first : first + batch], forced(name))]
    assert sum(len(d.scores) for d in found) > 500
    for mine, theirs in zip(found, expected[name], strict=True):
        assert mine.exit_name == name
        assert_same(mine, theirs)


def test_whole_graphs_agree_with_the_stages(folder, images):
    session = EarlyExitSession(folder)
    array = np.ascontiguousarray(images[:3].numpy())
    every = session.graph(session.manifest["monolithic"]).run(None, {"features": array})
    plain = session.graph(session.manifest["plain"]).run(None, {"features": array})
    for mine, theirs in zip(every[-2:], plain, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3, rtol=1e-4)
    for name, scores, boxes in zip(session.exits, every[::2], every[1::2], strict=True):
        for row, found in enumerate(session.detect(array, forced(name))):
            whole = session.suppress(boxes[row], scores[row], name)
            np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5)


def test_manifest_and_graphs(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [stage["exit"] for stage in manifest["stages"]] == ["exit1", "exit2", "full"]
    assert manifest["opset"] == 18 and manifest["dynamic_batch"] is True
    assert manifest["categories"] == [{"id": 62, "name": "chair"}]
    assert manifest["policy"]["thresholds"].keys() == {"exit1", "exit2"}
    for entry in [*manifest["stages"], manifest["plain"], manifest["monolithic"]]:
        model = onnx.load(folder / entry["file"])
        onnx.checker.check_model(model, full_check=True)
        assert [value.name for value in model.graph.output] == entry["outputs"]
        assert model.opset_import[0].version == 18
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"BatchNormalization", "Softmax", "Transpose", "Loop", "Shape"}, operators
        for value in [*model.graph.input, *model.graph.output]:
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@torch.no_grad()
def test_decoder_by_hand():
    """One map of one cell of 320 px, two boxes: centre 160, sizes from the scales 0.5 and sqrt(0.5)."""
    classes, offsets = torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(1, 8, 1)
    classes.weight.zero_(), offsets.weight.zero_()
    classes.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 3.0]))
    offsets.bias.copy_(torch.tensor([10.0, 0, 0, 0, 0, 0, 0, 5 * np.log(2)]))
    decoder = Decoder([torch.nn.Sequential(classes)], [torch.nn.Sequential(offsets)], [(1, 1)], (0.5, 1.0), ((),))
    scores, boxes = decoder([torch.zeros(1, 1, 1, 1)])
    side = 320 * 0.5**0.5
    torch.testing.assert_close(scores, torch.tensor([[0.5, 1 / (1 + np.exp(-2))]]).float())
    # the first is shifted by its own width, the second is twice as high
    wanted = [[240, 80, 400, 240], [160 - side / 2, 160 - side, 160 + side / 2, 160 + side]]
    torch.testing.assert_close(boxes[0].T, torch.tensor(wanted), atol=1e-3, rtol=0)


@torch.no_grad()
def test_wild_offsets_stay_finite_and_equal():
    torch.manual_seed(0)
    classes, offsets = torch.nn.Conv2d(2, 12, 1), torch.nn.Conv2d(2, 24, 1)
    offsets.weight.mul_(1e4)
    grids, scales, ratios = [(3, 3)], (0.2, 0.4), ((1.5, 2.2),)
    values = torch.randn(2, 2, 3, 3)
    decoder = Decoder([torch.nn.Sequential(classes)], [torch.nn.Sequential(offsets)], grids, scales, ratios)
    scores, boxes = decoder([values])
    raw = ExitOutput(
        "x", flatten_predictions([classes(values)], 2), flatten_predictions([offsets(values)], 4),
        default_boxes(grids, scales, ratios, (320, 320)),
    )  # fmt: skip
    assert boxes.isfinite().all()
    theirs = postprocess(raw, (320, 320), nms_threshold=1.0)
    for row in range(2):
        order = scores[row].argsort(descending=True)
        torch.testing.assert_close(boxes[row, :, order].T.clamp(0, 320), theirs[row].boxes, atol=0.1, rtol=1e-4)


def test_a_detector_without_exits_has_one_stage(tmp_path):
    source = open_root(ROOT / "tests" / "fixtures" / "coco", "couch")
    manifest = export(ROOT / "checkpoints" / "baseline.pth", tmp_path, source)
    assert EarlyExitSession(tmp_path).exits == ("full",)
    assert manifest["categories"] == [{"id": 63, "name": "couch"}]


@torch.no_grad()
def test_export_leaves_the_model_alone():
    torch.manual_seed(0)
    model = EarlyExitSSDLite().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    build_stages(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def _saved(tmp_path, change):
    state = torch.load(CHECKPOINT, weights_only=True)
    change(state)
    return save_checkpoint(tmp_path / "changed.pth", state)


def test_bad_checkpoints(tmp_path, capsys):
    untrained = save_checkpoint(tmp_path / "new.pth", {"model": EarlyExitSSDLite().state_dict(), "config": {}})
    foreign = save_checkpoint(tmp_path / "foreign.pth", {"model": {"layer.weight": torch.zeros(1)}})
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")

    def spoil(state):
        state["model"]["early.exit1.context.0.1.0.weight"][0] = float("nan")

    cases = {
        untrained: "have never seen an image",
        foreign: "checkpoint of another architecture; it lacks key",
        tmp_path / "text.pth": "not a checkpoint",
        tmp_path / "empty.pth": "not a checkpoint",
        tmp_path / "none.pth": "no such checkpoint",
        _saved(tmp_path, spoil): "'early.exit1.context.0.1.0.weight' holds values that are not finite",
    }
    for path, message in cases.items():
        assert main(["export", "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_configuration_is_refused(tmp_path, capsys):
    path = _saved(tmp_path, lambda state: state.pop("config"))
    assert main(["export", "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "expected a mapping" in capsys.readouterr().err


def test_export_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["export", "--out", str(tmp_path / "file")]) == 2
    assert "not a folder" in capsys.readouterr().err
