"""Static int8 quantisation of an export's stages, per channel, calibrated on ``calibrate``.

Convolutions of trunk and heads become int8. The last convolution of each predictor and the
decoding stay in float: their outputs are pixels, and 256 steps over an image are too coarse.
"""

import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from eelib.config import parse
from eelib.data import DataError, DetectionDataset, as_input, build_transform
from eelib.evaluate import file_sha256
from eelib.files import write_atomic
from eelib.latency import part_of
from eelib.runtime import MANIFEST, EarlyExitSession
from eelib.sources import Source, open_source


class _Reader(CalibrationDataReader):
    """Features of one stage, an image at a time."""

    def __init__(self, features: np.ndarray):
        self.features = iter(features)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input of the graph; None after the last."""
        image = next(self.features, None)
        return None if image is None else {"features": image[None]}


def kept_in_float(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that are not quantised: the decoding, and each predictor's last convolution."""
    # a joint predictor's output is cut into classes and boxes before the decoding
    decode = [node for node in graph.node if part_of(node.name) == "decode" or node.op_type in ("Slice", "Split")]
    inputs = {name for node in decode for name in node.input}
    last = [node for node in graph.node if node.op_type == "Conv" and inputs & set(node.output)]
    return [node.name for node in [*decode, *last]]


def quantise(folder: Path | str, split: str = "calibrate", count: int = 64, source: Source | None = None) -> dict:
    """Write an int8 graph beside each stage and list them in the manifest as ``stages_int8``.

    Args:
        folder: of ``eelib export``.
        split: whose images give the ranges of the activations; ``test`` is refused.
        count: images, drawn with seed 0.
        source: data set of the images; by default the one of the checkpoint's configuration.

    Returns:
        The manifest.

    Raises:
        DataError: ``split`` is ``test``, or the data set is not there.
        DeploymentError: no valid export.
    """
    if split == "test":
        raise DataError("split: nothing is calibrated on 'test'; use 'calibrate'")
    folder = Path(folder)
    session = EarlyExitSession(folder)
    source = source or open_source(parse(session.manifest["config"], str(folder / MANIFEST)).data)
    dataset = DetectionDataset(split, source, build_transform(session.size), limit=count)
    features = np.ascontiguousarray(as_input(torch.stack([dataset[i][0] for i in range(len(dataset))])).numpy())
    entries = []
    for entry in session.manifest["stages"]:
        path = folder / entry["file"].replace("stage_", "int8_")
        _quantise_stage(folder / entry["file"], path, features)
        entries.append({"exit": entry["exit"], "file": path.name, "sha256": file_sha256(path)})
        if entry["exit"] != session.exits[-1]:
            stage = session.graph(entry)
            features = np.concatenate([stage.run(["next_features"], {"features": f[None]})[0] for f in features])
    manifest = session.manifest | {"stages_int8": entries, "int8": {"split": split, "images": len(dataset)}}
    write_atomic(folder / MANIFEST, lambda file: file.write((json.dumps(manifest, indent=2) + "\n").encode()))
    return manifest


def _quantise_stage(source: Path, target: Path, features: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        inferred = Path(scratch) / "inferred.onnx"
        logging.disable(logging.WARNING)  # advice on preprocessing, once a call
        try:
            quant_pre_process(source, inferred, skip_optimization=True, skip_symbolic_shape=True)
            quantize_static(
                inferred, target, _Reader(features), per_channel=True, weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8, nodes_to_exclude=kept_in_float(onnx.load(inferred).graph),
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
