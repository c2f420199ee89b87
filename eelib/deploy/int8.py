"""Static int8 quantisation of an export's stages, per channel, calibrated on ``calibrate``.

Convolutions of trunk and heads become int8. The last convolution of each predictor and the
decoding stay in float: their outputs are pixels, and 256 steps over an image are too coarse. So do
the trunk's first two layers, whose error every later one inherits. An activation's range leaves
out the tails beyond a percentile: a few outliers would stretch it until most values share few steps.
"""

import contextlib
import io
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from eelib.coco import Source, open_source
from eelib.config import saved_config
from eelib.data import DetectionDataset, as_input
from eelib.deploy.export import install, named_by_hash, new_graphs
from eelib.deploy.manifest import MANIFEST, Manifest, Stage, read_manifest
from eelib.deploy.runners import open_graph
from eelib.timing import part_of

PERCENTILE = 99.9  # of an activation's values inside its range; chosen on val among 99.5 to 99.999
FIRST_LAYERS = ("/trunk/layers/layers.0/", "/trunk/layers/layers.1/")  # of the stage that reads pixels


def kept_in_float(graph: onnx.GraphProto, reads_pixels: bool) -> list[str]:
    """Names of the nodes that are not quantised: the decoding, each predictor's last convolution, the first layers."""
    # a joint predictor's output is cut into classes and boxes before the decoding
    decode = [node for node in graph.node if part_of(node.name) == "decode" or node.op_type in ("Slice", "Split")]
    inputs = {name for node in decode for name in node.input}
    last = [node for node in graph.node if node.op_type == "Conv" and inputs & set(node.output)]
    first = [node for node in graph.node if reads_pixels and node.name.startswith(FIRST_LAYERS)]
    return [node.name for node in [*decode, *last, *first]]


def described(images: int) -> dict:
    """How stages were quantised: what the manifest holds as ``int8``."""
    return {"split": "calibrate", "images": images, "percentile": PERCENTILE, "in_float": list(FIRST_LAYERS)}


def quantise(folder: Path | str, count: int = 64, source: Source | None = None) -> Manifest:
    """Write an int8 graph beside each stage and beside the plain detector, and list them in the manifest.

    Args:
        folder: of ``eelib export``.
        count: images of ``calibrate``, drawn with seed 0, which give the ranges of the activations.
        source: data set of the images; by default the one of the checkpoint's configuration.

    Returns:
        The manifest.

    Raises:
        DataError: the data set is not there.
        DeploymentError: no valid export.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    source = source or open_source(saved_config({"config": manifest.config}, folder / MANIFEST).data)
    dataset = DetectionDataset("calibrate", source, manifest.input.size, limit=count)
    images = np.ascontiguousarray(as_input(torch.stack([dataset[i][0] for i in range(len(dataset))])).numpy())
    with new_graphs(folder) as built:

        def quantised(stage: Stage, name: str, features: np.ndarray) -> Stage:
            path = built / f"{name}_int8.onnx"
            _quantise_graph(folder / stage.file, path, features, reads_pixels=features is images)
            return Stage(**named_by_hash(path, stage.outputs), exit=stage.exit)

        features, stages = images, []
        for stage in manifest.stages:
            stages.append(quantised(stage, stage.exit, features))
            if "next_features" in stage.outputs:
                run = open_graph(folder, stage).run
                features = np.concatenate([run(["next_features"], {"features": f[None]})[0] for f in features])
        plain = stages[-1] if len(stages) == 1 else quantised(manifest.plain, "plain", images)
        how = described(len(dataset))
        replace(manifest, stages_int8=tuple(stages), plain_int8=plain, int8=how).write(built)
        return install(built, folder)


def _quantise_graph(source: Path, target: Path, features: np.ndarray, reads_pixels: bool) -> None:
    inputs = ({"features": image[None]} for image in features)
    reader = SimpleNamespace(get_next=lambda: next(inputs, None))  # all that is asked of one here
    with tempfile.TemporaryDirectory() as scratch:
        # onnx refuses a path that is not UTF-8
        given, inferred, made = (Path(scratch) / f"{name}.onnx" for name in ("given", "inferred", "made"))
        shutil.copyfile(source, given)
        logging.disable(logging.WARNING)  # advice on preprocessing, once a call
        try:
            quant_pre_process(given, inferred, skip_optimization=True, skip_symbolic_shape=True)
            kept = kept_in_float(onnx.load(inferred).graph, reads_pixels)
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of its histograms
                quantize_static(
                    inferred, made, reader, per_channel=True, weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8, nodes_to_exclude=kept,
                    calibrate_method=CalibrationMethod.Percentile, extra_options={"CalibPercentile": PERCENTILE},
                )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        shutil.copyfile(made, target)
