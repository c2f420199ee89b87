"""The architecture and the loss of the record, each defect a switch.

Three branches on 20 x 20 maps of one truncated trunk: exit1 after 80 channels, exit2 after
112, "full" after the expansion of block 13. Restated from the record's sections A.3 and A.5;
parameter counts are held by a test.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eelib.anchors import decode, encode
from eelib.confidence import confidence, probability_of_maps
from eelib.config import PhaseConfig
from eelib.losses import hard_negative_loss
from eelib.matching import match_iou, match_random
from eelib.model import CUTS, EXIT_NAMES, EarlyExitSSDLite, flatten_predictions

BOXES_PER_CELL = 6
# Square sizes that the record's inference script assumes; training knew no prior boxes at all.
PRIOR_SIZES_PX = (40, 60, 80, 100, 120, 140)
CHANNELS = {"exit1": (80, 128), "exit2": (112, 224), "full": (672, 512)}


class ExitMaps(NamedTuple):
    """Raw maps of a branch: ``cls`` (B, 12, H, W), ``box`` (B, 24, H, W)."""

    cls: Tensor
    box: Tensor


def prior_boxes(grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """Six squares at each cell, xyxy pixels, (H * W * 6, 4); for the repaired switches."""
    rows, columns = grid_hw
    cy = (torch.arange(rows) + 0.5) * size_hw[0] / rows
    cx = (torch.arange(columns) + 0.5) * size_hw[1] / columns
    grid_y, grid_x = torch.meshgrid(cy, cx, indexing="ij")
    centres = torch.stack((grid_x, grid_y), -1).reshape(-1, 1, 2)
    half = torch.tensor(PRIOR_SIZES_PX).reshape(-1, 1) / 2
    return torch.cat((centres - half, centres + half), -1).reshape(-1, 4)  # (H*W, 6, 4) -> (A, 4)


def _conv(channels_in: int, channels_out: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class RecordedBranch(nn.Module):
    """One exit of the record: trunk (context) and two 1 x 1 heads.

    Args:
        channels_in: channels of the trunk at the cut.
        channels: width of the branch.
    """

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.trunk = nn.Sequential(
            _conv(channels_in, channels),
            _conv(channels, channels, 3, groups=channels),
            _conv(channels, channels),
            _SqueezeExcitation(channels),
            _conv(channels, channels, 3, groups=channels),
            _conv(channels, channels),
        )
        self.cls_logits = nn.Conv2d(channels, BOXES_PER_CELL * 2, 1)
        self.bbox_regression = nn.Conv2d(channels, BOXES_PER_CELL * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[ExitMaps, Tensor]:
        """Features to the branch's maps and its context."""
        context = self.trunk(features)
        return ExitMaps(self.cls_logits(context), self.bbox_regression(context)), context


class RecordedExits(nn.Module):
    """The three branches, their contexts and their temperatures, without the trunk below them.

    Kept apart from the trunk, so that a frozen trunk's maps are computed once and cached.

    Args:
        temperatures: start values for exit1, exit2, full.
        context_recomputed: run a branch's trunk again for its context (defect 14).
    """

    def __init__(self, temperatures: tuple[float, ...] = (1.5, 1.5, 1.0), context_recomputed: bool = False):
        super().__init__()
        self.branches = nn.ModuleDict({name: RecordedBranch(*CHANNELS[name]) for name in EXIT_NAMES})
        self.projections = nn.ModuleDict({"exit2": nn.Conv2d(128, 112, 1), "full": nn.Conv2d(224, 672, 1)})
        self.temperatures = nn.Parameter(torch.tensor(temperatures))
        self.context_recomputed = context_recomputed

    def exits(self, maps: Iterator[Tensor]) -> Iterator[ExitMaps]:
        """Branches one at a time.

        Args:
            maps: the trunk's maps (B, 80 | 112 | 672, H, W) in order, consumed lazily.
        """
        context = None
        for name, features in zip(EXIT_NAMES, maps, strict=True):
            if context is not None:
                features = features + self.projections[name](context)
            output, context = self.branches[name](features)
            if self.context_recomputed and name != "full":
                context = self.branches[name].trunk(features)
            yield output

    def forward(self, maps: list[Tensor]) -> list[ExitMaps]:
        """All three branches."""
        return list(self.exits(iter(maps)))


class RecordedDetector(nn.Module):
    """The record's detector: a trunk of SSDLite that ends at 672 channels, and the three branches.

    Args:
        config: ``model``, ``data.normalise`` and ``temperature`` are used.
    """

    def __init__(self, config: PhaseConfig):
        super().__init__()
        weights = None if config.model.weights == "none" else config.model.weights
        self.backbone = EarlyExitSSDLite(early=False, weights=weights).backbone.features[0]
        self.heads = RecordedExits(config.temperature.start, config.model.context_recomputed)
        self.normalise = config.data.normalise
        self.backbone.requires_grad_(config.model.train_trunk)
        self.heads.temperatures.requires_grad_(config.temperature.from_routing)
        if config.model.context_projection == "frozen":
            self.heads.projections.requires_grad_(False)

    def trunk_maps(self, images: Tensor) -> Iterator[Tensor]:
        """The trunk's three maps, each computed only when it is asked for."""
        features = (images - 0.5) / 0.5 if self.normalise else images
        children, start = list(self.backbone.children()), 0
        for stop in (*(cut for cut, _ in CUTS.values()), len(children)):
            for child in children[start:stop]:
                features = child(features)
            start = stop
            yield features

    def exits(self, images: Tensor) -> Iterator[ExitMaps]:
        """Exits one at a time from images (B, 3, H, W) in [0, 1]."""
        return self.heads.exits(self.trunk_maps(images))

    def forward(self, images: Tensor) -> list[ExitMaps]:
        """All three exits."""
        return list(self.exits(images))


def class_rows(cls: Tensor, layout: str) -> Tensor:
    """Rows of the class loss from a map (B, 12, H, W): (B, H * W * 6, 2).

    ``"permuted"`` pairs the two channels of a box; ``"column_pairs"`` views without a permute,
    so a row is two neighbouring columns of one channel (defects 1 and 2).
    """
    if layout == "permuted":
        return flatten_predictions([cls], 2)
    return cls.contiguous().view(len(cls), -1, 2)


def decoded_boxes(box: Tensor, targets_boxes: str, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (B, A, 4) in pixels as the training meant them: raw corners, or offsets to the squares."""
    rows = flatten_predictions([box], 4)
    return rows if targets_boxes == "pixels" else decode(rows, prior_boxes(tuple(box.shape[-2:]), size_hw))


def _kl(teacher_rows: Tensor, student_rows: Tensor) -> Tensor:
    log_student = student_rows.flatten(0, 1).log_softmax(-1)
    return F.kl_div(log_student, teacher_rows.detach().flatten(0, 1).softmax(-1), reduction="batchmean")


def assign(targets: list[dict], grid_hw: tuple[int, int], config: PhaseConfig, generator: torch.Generator) -> Tensor:
    """``matched_idxs`` (B, A) of a batch by the configured assignment; one draw serves all exits."""
    priors = prior_boxes(grid_hw, (320, 320))
    match config.targets.assignment:
        case "random":
            matched = [match_random(len(t["boxes"]), len(priors), generator) for t in targets]
        case "background":
            matched = [torch.full((len(priors),), -1) for _ in targets]
        case _:
            matched = [match_iou(t["boxes"], priors, config.targets.iou_threshold) for t in targets]
    return torch.stack(matched)


def _detection_terms(maps: ExitMaps, matched: Tensor, targets: list[dict], config: PhaseConfig) -> Tensor:
    positive = matched >= 0
    rows = class_rows(maps.cls, config.targets.class_layout)
    if config.loss.classification == "hard_negative":
        class_loss = hard_negative_loss(rows, positive) / positive.sum().clamp(min=1)
    else:
        class_loss = F.cross_entropy(rows.flatten(0, 1), positive.flatten().long())
    boxes = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
    if config.targets.boxes == "encoded":
        priors = prior_boxes(tuple(maps.box.shape[-2:]), (320, 320)).expand(len(targets), -1, -1)
        boxes = encode(boxes, priors[positive])
    regression = flatten_predictions([maps.box], 4)[positive]
    return class_loss, F.smooth_l1_loss(regression, boxes, reduction="sum") / positive.sum().clamp(min=1)


def exit_weights(config: PhaseConfig, epoch: float) -> tuple[float, ...]:
    """Weights of the three exits at a (fractional) epoch, moving linearly over ``ramp_epochs``."""
    end, start = config.loss.exit_weights, config.loss.exit_weights_start
    if start is None or epoch >= config.loss.ramp_epochs:
        return end
    return tuple(a + (b - a) * epoch / config.loss.ramp_epochs for a, b in zip(start, end, strict=True))


def recorded_loss(
    outputs: list[ExitMaps],
    targets: list[dict],
    temperatures: Tensor,
    config: PhaseConfig,
    epoch: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The record's loss of a batch.

    Args:
        outputs: maps of exit1, exit2, full.
        targets: ``boxes`` (G, 4) an image.
        temperatures: (3,), divide the logits in the confidence and nowhere else.
        config: ``targets``, ``loss`` and ``confidence`` are used.
        epoch: fractional, for the ramp of the exit weights.
        generator: draws the random positives.

    Returns:
        The total, and its parts: loss of each exit, ``cascade``, ``order``, and mean and
        spread over the batch of each exit's confidence.

    Source: the record, section A.5.
    """
    loss, share = config.loss, config.loss.teacher
    matched = assign(targets, tuple(outputs[0].cls.shape[-2:]), config, generator)
    rows = [class_rows(o.cls, config.targets.class_layout) for o in outputs]
    boxes = [flatten_predictions([o.box], 4) for o in outputs]
    losses, divergences = [], []
    for k, output in enumerate(outputs):
        class_loss, box_loss = _detection_terms(output, matched, targets, config)
        if k == 2 or not share:
            losses.append(class_loss + box_loss)
            continue
        divergences.append(_kl(rows[k + 1], rows[k]))
        follow = F.smooth_l1_loss(boxes[k], boxes[k + 1].detach())
        losses.append((1 - share) * (class_loss + box_loss) + share * (divergences[-1] + follow))
    c = [
        confidence(probability_of_maps(o.cls, t), config.confidence) for o, t in zip(outputs, temperatures, strict=True)
    ]
    order = (c[0].mean() - c[1].mean()).clamp(min=0) + (c[1].mean() - c[2].mean()).clamp(min=0)
    cascade = 0.5 * sum(divergences) if divergences else torch.zeros(())
    total = sum(w * part for w, part in zip(exit_weights(config, epoch), losses, strict=True))
    total = total + loss.cascade * cascade + loss.confidence_order * order
    parts = {f"loss_{name}": float(part.detach()) for name, part in zip(EXIT_NAMES, losses, strict=True)}
    parts |= {"loss_cascade": float(cascade.detach()), "loss_order": float(order.detach())}
    parts |= {f"confidence_{name}": float(v.detach().mean()) for name, v in zip(EXIT_NAMES, c, strict=True)}
    parts |= {f"confidence_std_{name}": float(v.detach().std()) for name, v in zip(EXIT_NAMES, c, strict=True)}
    return total, {"loss": float(total.detach()), **parts}
