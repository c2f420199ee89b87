"""What the exported graphs compute: the model's stages, arranged for speed.

The logits of K classes and of the background become K differences, through a sigmoid; coder weights and default box
sizes are folded into the last convolutions; boxes leave as planes (B, 4, A) and scores as (B, K, A), so that decoding
is five operations without a transpose. Batch norm is folded into the convolutions by the exporter.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eelib.anchors import CODER_WEIGHTS, MAX_LOG_SCALE, default_boxes
from eelib.heads import BlankGate
from eelib.model import SIZE, EarlyExitSSDLite, raw_evidence


def _with_weights(predictor: nn.Sequential, weight: Tensor, bias: Tensor) -> nn.Sequential:
    """A predictor whose last 1x1 convolution has other weights; the rest is shared."""
    convolution = nn.Conv2d(weight.shape[1], len(weight), 1)
    convolution.weight, convolution.bias = nn.Parameter(weight), nn.Parameter(bias)
    return nn.Sequential(*list(predictor)[:-1], convolution)


def _against_background(predictor: nn.Sequential, columns: int) -> nn.Sequential:
    """Outputs (k, K + 1) of k boxes a cell, background first, become planes (K, k) of differences to the background."""
    weight = predictor[-1].weight.unflatten(0, (-1, columns)).transpose(0, 1)  # (K + 1, k, C, 1, 1)
    bias = predictor[-1].bias.unflatten(0, (-1, columns)).t()
    return _with_weights(predictor, (weight[1:] - weight[:1]).flatten(0, 1), (bias[1:] - bias[:1]).flatten())


def _in_pixels(predictor: nn.Sequential, sizes_wh: Tensor) -> nn.Sequential:
    """Outputs (k, 4) offsets become planes: k x 2 centre shifts in pixels, k x 2 logs of half sizes."""
    factor = torch.cat((sizes_wh, torch.ones_like(sizes_wh)), 1) / torch.tensor(CODER_WEIGHTS)  # (k, 4)
    shift = torch.cat((torch.zeros_like(sizes_wh), (sizes_wh / 2).log()), 1)
    weight = predictor[-1].weight.unflatten(0, (-1, 4)) * factor[..., None, None, None]
    bias = predictor[-1].bias.unflatten(0, (-1, 4)) * factor + shift
    return _with_weights(predictor, weight.transpose(0, 1).flatten(0, 1), bias.t().flatten())


class _Predictor(nn.Module):
    """A class and a box predictor; where each is a lone 1x1 convolution, the two run as one."""

    def __init__(self, class_head: nn.Sequential, box_head: nn.Sequential):
        super().__init__()
        self.joint, self.classes = len(class_head) == len(box_head) == 1, class_head[-1].out_channels
        if self.joint:
            weight = torch.cat((class_head[-1].weight, box_head[-1].weight))
            bias = torch.cat((class_head[-1].bias, box_head[-1].bias))
            self.both = _with_weights(class_head, weight, bias)
        else:
            self.class_head, self.box_head = class_head, box_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.joint:
            return self.class_head(x), self.box_head(x)
        both = self.both(x)
        return both[:, : self.classes], both[:, self.classes :]


def _split(predictor: nn.Sequential, class_channels: int) -> list[nn.Sequential]:
    """The last convolution of a shared predictor as a class and a box predictor."""
    last = predictor[-1]
    channels = class_channels, last.out_channels - class_channels
    weights = zip(last.weight.split(channels), last.bias.split(channels), strict=True)
    return [_with_weights(nn.Sequential(last), weight, bias) for weight, bias in weights]


class Decoder(nn.Module):
    """Heads of an exit and the decoding of their maps.

    Args:
        class_heads, box_heads: one predictor a map; where each is a lone convolution, the two run as one.
        grids: (height, width) of each map in cells.
        scales, aspect_ratios: of the default boxes, as for :func:`eelib.anchors.default_boxes`; those of maps that
            are not there are left aside.
        size: side of the network input in pixels.
        evidence: whether the raw evidence is computed, too: where an image may go on.
    """

    def __init__(self, class_heads, box_heads, grids, scales, aspect_ratios, size=SIZE, evidence=False):
        super().__init__()
        defaults = default_boxes(grids, scales[: len(grids) + 1], aspect_ratios[: len(grids)], (size, size))
        self.evidence, self.boxes = evidence, [head[-1].out_channels // 4 for head in box_heads]
        self.cells = [height * width for height, width in grids]
        self.classes = class_heads[0][-1].out_channels // self.boxes[0] - 1
        self.predictors = nn.ModuleList()
        centres, caps = [], []
        counts = [k * cells for k, cells in zip(self.boxes, self.cells, strict=True)]
        maps = zip(class_heads, box_heads, self.boxes, defaults.split(counts), strict=True)
        for class_head, box_head, k, boxes in maps:
            boxes = boxes.view(-1, k, 4)  # (H * W, k, 4)
            sizes_wh = boxes[0, :, 2:] - boxes[0, :, :2]  # the same in every cell
            class_head = _against_background(class_head, self.classes + 1)
            self.predictors.append(_Predictor(class_head, _in_pixels(box_head, sizes_wh)))
            centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (H * W, k, 2)
            centres.append(centre.permute(2, 1, 0).reshape(2, -1))  # (2, k * H * W)
            cap = (sizes_wh / 2).log().t() + MAX_LOG_SCALE  # (2, k)
            caps.append(cap[..., None].expand(-1, -1, len(boxes)).reshape(2, -1))
        self.register_buffer("centres", torch.cat(centres, 1)[None])  # (1, 2, A)
        self.register_buffer("caps", torch.cat(caps, 1)[None])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Feature maps to scores (B, K, A), boxes (B, 4, A) as planes x1, y1, x2, y2, and raw evidence (B, F)."""
        logits, offsets = [], []
        for values, k, cells, predictor in zip(maps, self.boxes, self.cells, self.predictors, strict=True):
            classes, boxes = predictor(values)
            logits.append(classes.reshape(-1, self.classes, k * cells))  # (B, K, k * H * W)
            offsets.append(boxes.reshape(-1, 4, k * cells))  # (B, 4, k * H * W)
        scores, raw = torch.cat(logits, 2).sigmoid(), torch.cat(offsets, 2)
        centre = raw[:, :2] + self.centres
        half = torch.minimum(raw[:, 2:], self.caps).exp()
        boxes = torch.cat((centre - half, centre + half), 1)
        return (scores, boxes, raw_evidence(scores, self.classes)) if self.evidence else (scores, boxes)


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
        return self.layers(x - 0.5 if self.first else x)


class ExitStage(nn.Module):
    """A trunk segment, which is empty where a gate stands at the same cut, and its exit: features to :attr:`outputs`.

    Args:
        last: no image goes on: neither evidence nor features come out.
    """

    def __init__(self, model: EarlyExitSSDLite, name: str, start: int, last: bool = False):
        super().__init__()
        stop, head = model.cuts[name], model.early[name]
        self.trunk, self.context, self.down = Trunk(model, start, stop), head.context, head.down
        grids = head(model.segment(torch.zeros(1, 3, model.size, model.size), 0, stop))[2]
        self.shared = nn.ModuleList(predictor[:-1] for predictor in head.predictors)
        heads = zip(*(_split(predictor, head.class_channels) for predictor in head.predictors), strict=True)
        self.decoder = Decoder(*heads, grids, model.scales, model.aspect_ratios, model.size, evidence=not last)
        self.passes = not last and start != stop
        self.outputs = ("scores", "boxes") + ("evidence",) * (not last) + ("next_features",) * self.passes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(x)
        maps = [self.context(features)]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps = [shared(m) for shared, m in zip(self.shared, maps, strict=True)]
        return self.decoder(maps) + (features,) * self.passes


class _Holds(nn.Module):
    """The end of a gate: pooled maps to the probability that the image holds an object, (B,)."""

    def __init__(self, gate: BlankGate):
        super().__init__()
        self.gate = gate

    def forward(self, maps: Tensor) -> Tensor:
        return self.gate.decide(maps).sigmoid()


class GateStage(nn.Module):
    """A trunk segment and its blank gate: features in, probability of an object (B,) and features out."""

    outputs = ("holds_object", "next_features")

    def __init__(self, model: EarlyExitSSDLite, cut: int, start: int):
        super().__init__()
        gate = model.blank[str(cut)]
        self.trunk, self.features, self.decoder = Trunk(model, start, cut), gate.features, _Holds(gate)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(x)
        return self.decoder(self.features(features)), features


class FullStage(nn.Module):
    """The rest of the trunk from child ``start`` and SSDLite's own heads; from 0 the plain detector."""

    outputs = ("scores", "boxes")

    def __init__(self, model: EarlyExitSSDLite, start: int):
        super().__init__()
        self.trunk = Trunk(model, start, None)
        self.second, self.extra = model.backbone.features[1], model.backbone.extra
        maps = model.pyramid(model.segment(torch.zeros(1, 3, model.size, model.size), 0, None))
        grids = [tuple(m.shape[-2:]) for m in maps]
        class_heads = model.head.classification_head.module_list
        box_heads = model.head.regression_head.module_list
        self.decoder = Decoder(class_heads, box_heads, grids, model.scales, model.aspect_ratios, model.size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.trunk(x)
        maps = [features, self.second(features)]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return self.decoder(maps)


class Monolith(nn.Module):
    """Scores and boxes of every exit in turn, by one graph: what the stages save is measured against it."""

    def __init__(self, stages: Sequence[nn.Module]):
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        answers = []
        for stage in self.stages:
            named = dict(zip(stage.outputs, stage(x), strict=True))
            answers += [named[key] for key in ("scores", "boxes") if key in named]
            x = named.get("next_features", x)
        return tuple(answers)


def build_stages(model: EarlyExitSSDLite) -> dict[str, nn.Module]:
    """The stages of a model in the order in which they run, by the name of their exit or gate."""
    stages, start = {}, 0
    for name, cut in model.stages.items():
        if name == "full":
            stages[name] = FullStage(model, start)
        elif name in model.early:
            stages[name] = ExitStage(model, name, start, last=name == model.exit_names[-1])
        else:
            stages[name] = GateStage(model, cut, start)
        start = cut
    return stages
