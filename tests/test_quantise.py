import numpy as np
import onnx
import pytest

from eelib.__main__ import main
from eelib.config import ROOT
from eelib.data import SHOWROOM, DataError
from eelib.deploy import export as deploy
from eelib.deploy.int8 import quantise
from eelib.deploy.runtime import DeploymentError, EarlyExitSession, forced
from eelib.preprocess import read_image, to_input


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    deploy.export(ROOT / "checkpoints" / "exits.pth", path)
    with pytest.raises(DeploymentError, match="no 'stages_int8': export again, with --int8"):
        EarlyExitSession(path, stages="stages_int8")
    quantise(path, count=2)
    return path


def test_int8_detects_nearly_what_float_does(folder):
    images = np.stack([to_input(read_image(f), 320) for f in sorted((SHOWROOM / "val").glob("*.jpg"))[:12]])
    whole, small = EarlyExitSession(folder), EarlyExitSession(folder, stages="stages_int8")
    assert small.exits == whole.exits
    for name in whole.exits:
        pairs = list(zip(whole.detect(images, forced(name)), small.detect(images, forced(name)), strict=True))
        # a single score may move more; `eelib compress` measures what that costs in AP
        assert np.mean([abs(a.scores[0] - b.scores[0]) for a, b in pairs]) < 0.15
        assert all(len(b.scores) > 0 and np.isfinite(b.boxes_xyxy).all() for _, b in pairs)


def test_convolutions_are_int8_and_pixels_are_not(folder):
    for entry in EarlyExitSession(folder).manifest["stages_int8"]:
        graph = onnx.load(folder / entry["file"]).graph
        restored = {name for n in graph.node if n.op_type == "DequantizeLinear" for name in n.output}
        convolutions = [n for n in graph.node if n.op_type == "Conv"]
        quantised = [n for n in convolutions if n.input[1] in restored]  # its weights are stored in int8
        predictors = [n for n in convolutions if n.name.startswith("/decoder/predictors")]
        joint = [n for n in predictors if "/both/" in n.name]  # the last convolution of classes and boxes together
        last = 4 if joint else 12  # one a map of an early exit, two a map of the full one
        assert last == len(joint) + (len(predictors) - len(joint)) / 2
        first = 3 if entry["exit"] == "exit1" else 0  # of the stage that reads pixels
        assert len(convolutions) - len(quantised) == last + first
        (boxes,) = (n for n in graph.node if "boxes" in n.output)
        assert boxes.op_type == "Concat"
        assert (folder / entry["file"]).stat().st_size < 0.6 * (folder / f"stage_{entry['exit']}.onnx").stat().st_size


def test_test_is_refused(folder):
    with pytest.raises(DataError, match="nothing is calibrated on 'test'"):
        quantise(folder, split="test")


def test_no_export(tmp_path):
    with pytest.raises(DeploymentError, match="no such manifest"):
        quantise(tmp_path)


def test_detect_in_int8(folder, tmp_path):
    image = sorted((SHOWROOM / "val").glob("*.jpg"))[0]
    argv = ["detect", str(image), "--export", str(folder), "--int8", "--out", str(tmp_path / "r.json")]
    assert main(argv) == 0
