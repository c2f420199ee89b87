"""Int8: every stage has its graph, convolutions are quantised, pixels are not."""

import numpy as np
import onnx
import pytest

from eelib.checkpoints import load_checkpoint, save_checkpoint
from eelib.coco import open_root
from eelib.config import ConfigError
from eelib.data import DataError
from eelib.deploy.export import export
from eelib.deploy.int8 import quantise
from eelib.deploy.manifest import DeploymentError, read_manifest
from eelib.deploy.runtime import Session


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint, rooms):
    path = tmp_path_factory.mktemp("int8")
    export(checkpoint("gates"), path)
    quantise(path, count=8, source=open_root(rooms))
    return path


@pytest.mark.slow
def test_int8_detects_nearly_what_float_does(folder, looks):
    whole, small = Session(folder), Session(folder, int8=True)
    assert (small.exits, small.gates) == (whole.exits, whole.gates) and "int8" in small.describe()
    features = looks
    for stage, other in zip(whole.stages, small.stages, strict=True):
        outputs = dict(zip(stage.outputs, whole._run(stage)(features), strict=True))
        of_int8 = dict(zip(other.outputs, small._run(other)(features), strict=True))
        for name in outputs.keys() & {"scores", "boxes", "holds_object"}:
            # what is lost costs AP, which the studies measure; weights that were never trained lose more
            assert np.corrcoef(outputs[name].ravel(), of_int8[name].ravel())[0, 1] > 0.6, (stage.exit, name)
        features = outputs.get("next_features", features)
    for name in ("blank1", "blank2"):
        assert {d.exit_name for d in small.detect_batch(looks, small.at_exit(name))} == {name}
    assert {d.exit_name for d in small.detect_batch(looks)} == {"full"}


def test_convolutions_are_int8_and_pixels_are_not(folder):
    manifest = read_manifest(folder)
    assert [stage.exit for stage in manifest.stages_int8] == [stage.exit for stage in manifest.stages]
    assert manifest.int8["split"] == "calibrate" and manifest.int8["images"] == 8
    for stage, small in zip(manifest.stages, manifest.stages_int8, strict=True):
        graph = onnx.load(folder / small.file).graph
        assert [value.name for value in graph.output] == list(stage.outputs)
        restored = {name for n in graph.node if n.op_type == "DequantizeLinear" for name in n.output}
        convolutions = [n for n in graph.node if n.op_type == "Conv"]
        quantised = [n for n in convolutions if n.input[1] in restored]  # its weights are stored in int8
        # in float: one predictor a map of an early exit, two a map of the full one, and the layers that read pixels
        predictors = {"full": 12, "exit1": 4, "exit2": 4}.get(stage.exit, 0)
        first = 3 if stage is manifest.stages[0] else 0
        assert len(convolutions) - len(quantised) == predictors + first
        if not stage.gate:
            assert (folder / small.file).stat().st_size < 0.65 * (folder / stage.file).stat().st_size
            (boxes,) = (n for n in graph.node if "boxes" in n.output)
            assert boxes.op_type == "Concat"


@pytest.mark.slow
def test_an_export_quantises_at_once_and_keeps_no_old_graph(tmp_path, checkpoint, rooms):
    manifest = export(checkpoint("plain"), tmp_path, source=rooms, int8=True)
    assert (
        manifest.plain_int8 == manifest.stages_int8[0] and Session(tmp_path, int8=True).stages == manifest.stages_int8
    )
    assert {path.name for path in tmp_path.iterdir()} == manifest.files | {"manifest.json"}
    again = export(checkpoint("plain"), tmp_path)
    assert not again.stages_int8 and {path.name for path in tmp_path.iterdir()} == again.files | {"manifest.json"}


@pytest.mark.slow
def test_images_to_calibrate_on_are_needed(tmp_path, checkpoint):
    with pytest.raises(DeploymentError, match="no such manifest"):
        quantise(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint has no 'config'"):  # whose data set would be taken
        export(checkpoint("plain"), tmp_path / "out", int8=True)
    state = load_checkpoint(checkpoint("plain")) | {"config": {"name": "x", "data": {"root": "nowhere"}}}
    with pytest.raises(DataError, match="nowhere"):
        export(save_checkpoint(tmp_path / "w.pth", state), tmp_path / "out", int8=True)
    assert not (tmp_path / "out").exists()
