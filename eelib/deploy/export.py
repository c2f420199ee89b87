"""Export: one ONNX graph a stage, for :mod:`eelib.deploy.runtime`, and whole-model graphs to compare with.

What a graph computes is the model's, arranged for speed: the two class logits become one (their
difference, through a sigmoid), coder weights and default box sizes are folded into the last
convolutions, and boxes leave as planes (B, 4, A), so that decoding is five operations without a
transpose. Batch norm is folded into the convolutions by the exporter.
"""

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from eelib.anchors import CODER_WEIGHTS, MAX_LOG_SCALE, default_boxes
from eelib.checkpoints import TrainingError, load_checkpoint, load_released
from eelib.coco import Source, open_source
from eelib.config import saved_config
from eelib.deploy.runtime import FORMAT, MANIFEST, DeploymentError
from eelib.evaluate import versions
from eelib.files import file_sha256, write_atomic
from eelib.model import SIZE, EarlyExitSSDLite

OPSET = 18
POSTPROCESS = {"score_threshold": 0.001, "nms_threshold": 0.55, "topk": 300}


def _with_weights(predictor: nn.Sequential, weight: Tensor, bias: Tensor) -> nn.Sequential:
    """A predictor whose last 1x1 convolution has other weights; the rest is shared."""
    convolution = nn.Conv2d(weight.shape[1], len(weight), 1)
    convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
    return nn.Sequential(*list(predictor)[:-1], convolution)


def _one_logit(predictor: nn.Sequential) -> nn.Sequential:
    """Outputs (K, 2) background and chair become K differences: softmax of two is a sigmoid of that."""
    weight = predictor[-1].weight.unflatten(0, (-1, 2))  # (K, 2, C, 1, 1)
    bias = predictor[-1].bias.unflatten(0, (-1, 2))
    return _with_weights(predictor, weight[:, 1] - weight[:, 0], bias[:, 1] - bias[:, 0])


def _in_pixels(predictor: nn.Sequential, sizes_wh: Tensor) -> nn.Sequential:
    """Outputs (K, 4) offsets become planes: K x 2 centre shifts in pixels, K x 2 logs of half sizes."""
    factor = torch.cat((sizes_wh, torch.ones_like(sizes_wh)), 1) / torch.tensor(CODER_WEIGHTS)  # (K, 4)
    shift = torch.cat((torch.zeros_like(sizes_wh), (sizes_wh / 2).log()), 1)
    weight = predictor[-1].weight.unflatten(0, (-1, 4)) * factor[..., None, None, None]
    bias = predictor[-1].bias.unflatten(0, (-1, 4)) * factor + shift
    return _with_weights(predictor, weight.transpose(0, 1).flatten(0, 1), bias.t().flatten())


class _Separate(nn.Module):
    """A class and a box predictor."""

    def __init__(self, class_head: nn.Sequential, box_head: nn.Sequential):
        super().__init__()
        self.class_head, self.box_head = class_head, box_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.class_head(x), self.box_head(x)


class _Joint(nn.Module):
    """Two predictors that are one 1x1 convolution each, run as one."""

    def __init__(self, class_head: nn.Sequential, box_head: nn.Sequential):
        super().__init__()
        weight = torch.cat((class_head[-1].weight, box_head[-1].weight))
        bias = torch.cat((class_head[-1].bias, box_head[-1].bias))
        self.both = _with_weights(nn.Sequential(class_head[-1]), weight, bias)
        self.classes = class_head[-1].out_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.both(x)
        return both[:, : self.classes], both[:, self.classes :]


def _split(predictor: nn.Sequential, class_channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The last convolution of a shared predictor as a class and a box predictor."""
    last = nn.Sequential(predictor[-1])
    weight, bias = predictor[-1].weight, predictor[-1].bias
    return (
        _with_weights(last, weight[:class_channels], bias[:class_channels]),
        _with_weights(last, weight[class_channels:], bias[class_channels:]),
    )


class Decoder(nn.Module):
    """Heads of an exit and the decoding of their maps, with every constant folded in.

    Args:
        class_heads, box_heads: one predictor a map; where each is a lone convolution, the two run as one.
        grids: (height, width) of each map in cells.
        scales, aspect_ratios: of the default boxes, as for :func:`eelib.anchors.default_boxes`.
        size: side of the network input in pixels.
    """

    def __init__(self, class_heads, box_heads, grids, scales, aspect_ratios, size=SIZE):
        super().__init__()
        defaults = default_boxes(grids, scales, aspect_ratios, (size, size))
        self.boxes = [head[-1].out_channels // 4 for head in box_heads]
        self.cells = [height * width for height, width in grids]
        self.predictors = nn.ModuleList()
        centres, caps = [], []
        counts = [k * cells for k, cells in zip(self.boxes, self.cells, strict=True)]
        maps = zip(class_heads, box_heads, self.boxes, defaults.split(counts), strict=True)
        for class_head, box_head, k, boxes in maps:
            boxes = boxes.view(-1, k, 4)  # (H * W, K, 4)
            sizes_wh = boxes[0, :, 2:] - boxes[0, :, :2]  # the same in every cell
            kind = _Joint if len(class_head) == len(box_head) == 1 else _Separate
            self.predictors.append(kind(_one_logit(class_head), _in_pixels(box_head, sizes_wh)))
            centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (H * W, K, 2)
            centres.append(centre.permute(2, 1, 0).reshape(2, -1))  # (2, K * H * W)
            cap = (sizes_wh / 2).log().t() + MAX_LOG_SCALE  # (2, K)
            caps.append(cap[..., None].expand(-1, -1, len(boxes)).reshape(2, -1))
        self.register_buffer("centres", torch.cat(centres, 1)[None])  # (1, 2, A)
        self.register_buffer("caps", torch.cat(caps, 1)[None])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Feature maps to scores (B, A) and boxes (B, 4, A): planes x1, y1, x2, y2 in pixels."""
        logits, offsets = [], []
        for values, k, cells, predictor in zip(maps, self.boxes, self.cells, self.predictors, strict=True):
            classes, boxes = predictor(values)
            logits.append(classes.reshape(-1, k * cells))
            offsets.append(boxes.reshape(-1, 4, k * cells))  # (B, 4, K * H * W)
        scores, raw = torch.cat(logits, 1).sigmoid(), torch.cat(offsets, 2)
        centre = raw[:, :2] + self.centres
        half = torch.minimum(raw[:, 2:], self.caps).exp()
        return scores, torch.cat((centre - half, centre + half), 1)


class Trunk(nn.Module):
    """Children ``start:stop`` of the trunk's first part; the first stage normalises.

    The model's (x - 0.5) / 0.5 is a subtraction here; the factor 2 goes into the first convolution,
    exactly, as it is a power of two. The subtraction cannot: padding is zero after it.
    """

    def __init__(self, model: EarlyExitSSDLite, start: int, stop: int | None):
        super().__init__()
        self.first = start == 0
        layers = list(model.backbone.features[0].children())[start:stop]
        if self.first:
            layers[0] = copy.deepcopy(layers[0])
            layers[0][0].weight.mul_(2)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images or features to features."""
        return self.layers(x - 0.5 if self.first else x)


class ExitStage(nn.Module):
    """A trunk segment and its early exit: features in, scores, boxes and features out."""

    def __init__(self, model: EarlyExitSSDLite, name: str, start: int):
        super().__init__()
        stop, head = model.cuts[name], model.early[name]
        self.trunk, self.context, self.down = Trunk(model, start, stop), head.context, head.down
        grids = head(model.segment(torch.zeros(1, 3, model.size, model.size), 0, stop))[2]
        n = len(grids)
        self.shared = nn.ModuleList(predictor[:-1] for predictor in head.predictors)
        heads = zip(*(_split(predictor, head.class_channels) for predictor in head.predictors), strict=True)
        self.decoder = Decoder(*heads, grids, model.scales[: n + 1], model.aspect_ratios[:n], model.size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the last cut to scores, boxes and the next features."""
        features = self.trunk(x)
        maps = [self.context(features)]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps = [shared(m) for shared, m in zip(self.shared, maps, strict=True)]
        return *self.decoder(maps), features


class FullStage(nn.Module):
    """The rest of the trunk from child ``start`` and SSDLite's own heads; from 0 the plain detector."""

    def __init__(self, model: EarlyExitSSDLite, start: int):
        super().__init__()
        self.trunk = Trunk(model, start, None)
        self.second, self.extra = model.backbone.features[1], model.backbone.extra
        maps = model.pyramid(model.segment(torch.zeros(1, 3, model.size, model.size), 0, None))
        grids, n = [tuple(m.shape[-2:]) for m in maps], len(maps)
        class_heads = model.head.classification_head.module_list
        box_heads = model.head.regression_head.module_list
        shapes = grids, model.scales[: n + 1], model.aspect_ratios[:n], model.size
        self.decoder = Decoder(class_heads, box_heads, *shapes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the last cut to scores and boxes."""
        features = self.trunk(x)
        maps = [features, self.second(features)]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return self.decoder(maps)


class Monolith(nn.Module):
    """All stages in one graph, every exit computed: what the stages save is measured against it."""

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images to scores and boxes of every exit in turn."""
        outputs = []
        for stage in self.stages:
            scores, boxes, *x = stage(x if isinstance(x, Tensor) else x[0])
            outputs += [scores, boxes]
        return tuple(outputs)


def build_stages(model: EarlyExitSSDLite) -> dict[str, nn.Module]:
    """The stages of a model in the order in which they run, by exit name."""
    stages, start = {}, 0
    for name in model.early:
        stages[name] = ExitStage(model, name, start)
        start = model.cuts[name]
    return stages | {"full": FullStage(model, start)}


def _check_trained(model: nn.Module, path: Path | str) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.running_mean.any():
            raise TrainingError(f"{path}: untrained weights; the statistics of '{name}' have never seen an image")
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise TrainingError(f"{path}: '{name}' holds values that are not finite")


def write_graph(module: nn.Module, example: Tensor, outputs: Sequence[str], folder: Path, name: str) -> dict:
    """Export a module with a dynamic batch; returns its entry of the manifest."""
    path = folder / f"{name}.onnx"
    names = ["features", *outputs]
    with warnings.catch_warnings():
        # torch's newer exporter gives a graph of the same speed, in 8 s a stage instead of 0.4 s,
        # and with one dependency more.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval().requires_grad_(False), (example,), str(path), dynamo=False, opset_version=OPSET,
            input_names=names[:1], output_names=names[1:], dynamic_axes={key: {0: "batch"} for key in names},
        )  # fmt: skip
    return {"file": path.name, "sha256": file_sha256(path), "outputs": list(outputs)}


def _write_suppression(folder: Path) -> dict:
    """A graph that holds one NonMaxSuppression: candidates (1, N, 4), best first, to indices kept."""
    constants = {
        "most": np.array([POSTPROCESS["topk"]], np.int64),
        "iou": np.array([POSTPROCESS["nms_threshold"]], np.float32),
    }
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "candidates", 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, "candidates"])
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, ["detections", 3])
    # the operator's corners may come in either order, so x first is as good as y first
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *constants], ["kept"])
    graph = helper.make_graph(
        [node], "suppression", [boxes, scores], [kept], [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    path = folder / "suppression.onnx"
    onnx.save(model, path)
    return {"file": path.name, "sha256": file_sha256(path), "outputs": ["kept"]}


@torch.no_grad()
def export(checkpoint: Path | str, out: Path | str, source: Source | None = None) -> dict:
    """Write the graphs of a released detector and their manifest.

    Args:
        checkpoint: a file of :func:`eelib.checkpoints.save_checkpoint`, with or without early exits.
        out: folder, created; graphs of an earlier export are replaced.
        source: data set whose categories the manifest names; by default the one of the checkpoint's configuration.

    Returns:
        The manifest.

    Raises:
        TrainingError: no checkpoint, one of another architecture, or untrained weights.
        ConfigError: the checkpoint has no valid configuration.
        DataError: the data set is not there.
        DeploymentError: ``out`` is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DeploymentError(f"{out}: output is not a folder")
    model = load_released(checkpoint).eval()
    _check_trained(model, checkpoint)
    settings = saved_config(load_checkpoint(checkpoint), checkpoint)
    categories = (source or open_source(settings.data)).category_rows()
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # an interrupted export must not look whole
    stages, start, entries = build_stages(model), 0, []
    image = torch.rand(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    for name, stage in stages.items():
        example = model.segment(image, 0, start) if start else image
        outputs = ["scores", "boxes"] + ["next_features"] * (name != "full")
        entries.append({"exit": name} | write_graph(stage, example, outputs, out, f"stage_{name}"))
        start = model.cuts.get(name)
    every = [f"{kind}_{name}" for name in stages for kind in ("scores", "boxes")]
    manifest = {
        "format": FORMAT,
        "opset": OPSET,
        "dynamic_batch": True,
        "input": {"size": model.size, "channels": "RGB", "range": [0, 1], "dtype": "float32"},
        "stages": entries,
        "suppression": _write_suppression(out),
        "monolithic": write_graph(Monolith(list(stages.values())), image, every, out, "monolithic"),
        "plain": write_graph(FullStage(model, 0), image, ["scores", "boxes"], out, "plain"),
        "postprocess": POSTPROCESS,
        "policy": {"name": model.exit_names[-1]},  # without a router every image takes the whole path
        "categories": categories,
        "checkpoint_sha256": file_sha256(checkpoint),
        "config": settings.model_dump(mode="json"),
        "versions": versions(),
    }
    write_atomic(out / MANIFEST, lambda file: file.write((json.dumps(manifest, indent=2) + "\n").encode()))
    return manifest
