"""The architecture of the record, each defect a switch.

Three branches on 20 x 20 maps of one truncated trunk: exit1 after 80 channels, exit2 after 112, "full" after the
expansion of block 13. Restated from the record's section A.3; parameter counts are held by a test. Repaired, each
branch has SSDLite's six levels and full sees the whole trunk.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from eelib.anchors import decode, default_boxes
from eelib.detections import Detections
from eelib.heads import flatten_predictions
from eelib.model import ASPECT_RATIOS, CUTS, SCALES, SIZE, EarlyExitSSDLite, ExitOutput, class_scores, keep_best
from studies.phases.confidence import chair_probability
from studies.phases.config import EXIT_NAMES, ModelConfig, PhaseConfig, TemperatureConfig, ThresholdConfig

SIZE_HW = (SIZE, SIZE)
GRIDS_HW = tuple((n, n) for n in (20, 10, 5, 3, 2, 1))  # of SSDLite's levels; the record has the first alone
BOXES_PER_CELL = 6
NMS_THRESHOLD = 0.45  # of the record's inference script
# Square sizes that the record's inference script assumes; training knew no prior boxes at all.
PRIOR_SIZES_PX = (40, 60, 80, 100, 120, 140)
CHANNELS = {"exit1": (80, 128), "exit2": (112, 224), "full": (672, 512)}
TAIL = (480, 512, 256, 256, 128)  # channels of SSDLite's levels after the first
LEVEL_CHANNELS = 128  # of a branch's own strided levels


class ExitMaps(NamedTuple):
    """Raw maps of a branch, one per level: ``cls`` (B, 12, H, W) each, ``box`` (B, 24, H, W) each.

    The loss reads them as they are: which numbers of a map form a row is what defects 1 and 2 are about.
    """

    name: str
    cls: list[Tensor]
    box: list[Tensor]

    @property
    def grids_hw(self) -> list[tuple[int, int]]:
        """Height and width of each level."""
        return [tuple(level.shape[-2:]) for level in self.cls]

    def output(self) -> ExitOutput:
        """What everybody but the loss reads; where the training asked for corners (defect 6), the rows are corners."""
        boxes = flatten_predictions(self.box, 4)
        priors = prior_boxes(self.grids_hw).to(boxes.device)
        return ExitOutput(self.name, flatten_predictions(self.cls, 2), boxes, priors)


def prior_boxes(grids_hw: Sequence[tuple[int, int]]) -> Tensor:
    """Six boxes at each cell, xyxy pixels, (A, 4): squares on a single map, SSD's default boxes on a pyramid."""
    if len(grids_hw) > 1:
        levels = len(grids_hw)
        return default_boxes(grids_hw, SCALES[: levels + 1], ASPECT_RATIOS[:levels], SIZE_HW)
    ((rows, columns),) = grids_hw
    cy = (torch.arange(rows) + 0.5) * SIZE_HW[0] / rows
    cx = (torch.arange(columns) + 0.5) * SIZE_HW[1] / columns
    grid_y, grid_x = torch.meshgrid(cy, cx, indexing="ij")
    centres = torch.stack((grid_x, grid_y), -1).reshape(-1, 1, 2)
    half = torch.tensor(PRIOR_SIZES_PX).reshape(-1, 1) / 2
    return torch.cat((centres - half, centres + half), -1).reshape(-1, 4)  # (H*W, 6, 4) -> (A, 4)


def _conv(channels_in: int, channels_out: int, kernel: int = 1, groups: int = 1, stride: int = 1) -> nn.Sequential:
    layers = {"groups": groups, "activation_layer": nn.ReLU6, "inplace": False}
    return Conv2dNormActivation(channels_in, channels_out, kernel, stride, **layers)


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Predictor(nn.Module):
    """SSDLite's predictors of one level: a depthwise 3 x 3 and a 1 x 1 for classes, the same for boxes."""

    def __init__(self, channels: int):
        super().__init__()
        for name, values in (("cls_logits", 2), ("bbox_regression", 4)):
            depthwise = _conv(channels, channels, 3, groups=channels)
            setattr(self, name, nn.Sequential(depthwise, nn.Conv2d(channels, BOXES_PER_CELL * values, 1)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, H, W) to class and box map."""
        return self.cls_logits(features), self.bbox_regression(features)


class Levels(nn.Module):
    """The five levels below a branch's 20 x 20 map: SSDLite's ``tail``, or strided convolutions of its ``channels``."""

    def __init__(self, channels: int, tail: bool):
        super().__init__()
        widths = TAIL if tail else (LEVEL_CHANNELS,) * len(TAIL)
        above = (channels, *widths[:-1])
        self.down = nn.ModuleList() if tail else nn.ModuleList(map(_strided, above, widths))
        self.predictors = nn.ModuleList(map(Predictor, widths))

    def forward(self, context: Tensor, tail: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The branch's map and SSDLite's tail, if there is one, to class and box maps of the levels."""
        maps = list(tail)
        for down in self.down:
            maps.append(down(maps[-1] if maps else context))
        return [predictor(m) for predictor, m in zip(self.predictors, maps, strict=True)]


def _strided(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels_in, channels_in, 3, channels_in, stride=2), _conv(channels_in, channels_out))


class RecordedBranch(nn.Module):
    """One exit of the record: trunk (context) and two 1 x 1 heads.

    Args:
        channels_in: channels of the trunk at the cut.
        channels: width of the branch.
        levels: of a pyramid below; None is the record's single map (defect 11).
    """

    def __init__(self, channels_in: int, channels: int, levels: Levels | None = None):
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
        self.levels = levels
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, tail: Sequence[Tensor] = ()) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Features, and the trunk's maps below them, to the maps of each level and the branch's context."""
        context = self.trunk(features)
        maps = [(self.cls_logits(context), self.bbox_regression(context))]
        return maps + (self.levels(context, tail) if self.levels else []), context


class LightBranch(nn.Module):
    """SSDLite's predictors straight on the trunk's map, and on the levels below it: the full head without defect 13."""

    def __init__(self, channels_in: int, levels: Levels | None = None):
        super().__init__()
        self.predictor, self.levels = Predictor(channels_in), levels

    def forward(self, features: Tensor, tail: Sequence[Tensor] = ()) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Features, and the trunk's maps below them, to the maps of each level and, as the context, the features."""
        levels = self.levels(features, tail) if self.levels else []
        return [self.predictor(features), *levels], features


class RecordedExits(nn.Module):
    """The three branches, their contexts and their scalars, without the trunk below them, whose maps may be cached.

    Temperatures and thresholds are single parameters each: a scalar that no loss reaches keeps its gradient None, and
    AdamW then leaves it alone, weight decay included.

    Args:
        model: the switches of the branches (defects 11 to 14 and 16).
        temperature: start values of exit1, exit2 and full, and how they are bounded: not at all, in the forward
            pass, which leaves no gradient outside (defect 28), or as parameters by :meth:`project`.
        thresholds: start values of exit1 and exit2; :meth:`project` holds bounded ones in [0, 1] (defect 25).
    """

    def __init__(self, model: ModelConfig, temperature: TemperatureConfig, thresholds: ThresholdConfig):
        super().__init__()
        self.switches, self.temperature, self.bounded = model, temperature, thresholds.bounded
        # without levels of its own to lie on, the tail joins full's one map
        self.tail_joins = model.single_map and not model.full_truncated
        self.branches = nn.ModuleDict()
        for name, (channels_in, channels) in CHANNELS.items():
            tail = name == "full" and not model.full_truncated
            channels_in += TAIL[0] if tail and model.single_map else 0
            light = name == "full" and model.full_head == "light"
            levels = None if model.single_map else Levels(channels_in if light else channels, tail)
            branch = LightBranch(channels_in, levels) if light else RecordedBranch(channels_in, channels, levels)
            self.branches[name] = branch
        self.projections = nn.ModuleDict({"exit2": nn.Conv2d(128, 112, 1), "full": nn.Conv2d(224, 672, 1)})
        self.temperatures = _scalars(EXIT_NAMES, temperature.start)
        self.thresholds = _scalars(EXIT_NAMES[:2], (thresholds.exit1, thresholds.exit2))

    def applied_temperatures(self) -> list[Tensor]:
        """Temperatures as the confidence uses them, scalars in the order of the exits."""
        values = list(self.temperatures.values())
        return [t.clamp(*self.temperature.bounds) for t in values] if self.temperature.clamp == "forward" else values

    @torch.no_grad()
    def project(self) -> None:
        """Bring bounded parameters back into their bounds; called after each step."""
        if self.temperature.clamp == "parameter":
            for temperature in self.temperatures.values():
                temperature.clamp_(*self.temperature.bounds)
        if self.bounded:
            for threshold in self.thresholds.values():
                threshold.clamp_(0.0, 1.0)

    def exits(self, maps: Iterator[Sequence[Tensor]]) -> Iterator[ExitMaps]:
        """Branches one at a time.

        Args:
            maps: for each exit the trunk's map (B, 80 | 112 | 672, H, W) and, for full, those
                of SSDLite's tail below it; consumed lazily.
        """
        context = None
        for name, (features, *tail) in zip(EXIT_NAMES, maps, strict=True):
            if context is not None:
                context = context.detach() if self.switches.context_detached else context
                features = features + self.projections[name](context)
            if tail and self.tail_joins:
                features = torch.cat((features, F.interpolate(tail.pop(), features.shape[-2:])), 1)
            levels, context = self.branches[name](features, tail)
            # before the recomputation: an image that leaves here never pays for it
            yield ExitMaps(name, *map(list, zip(*levels, strict=True)))
            if self.switches.context_recomputed and name != "full":
                context = self.branches[name].trunk(features)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> list[ExitMaps]:
        """All three branches."""
        return list(self.exits(iter(maps)))


def _scalars(names: tuple[str, ...], values: tuple[float, ...]) -> nn.ParameterDict:
    return nn.ParameterDict({n: nn.Parameter(torch.tensor(float(v))) for n, v in zip(names, values, strict=True)})


class RecordedDetector(nn.Module):
    """The record's detector: the trunk of SSDLite, as far as the switches use it, and the three branches.

    Its exits are the library's :class:`eelib.model.ExitOutput`, so that recording, routing and AP are the library's,
    too; :meth:`forward` gives the raw maps that the loss reads.

    Args:
        config: ``model``, ``data.normalise``, ``targets.boxes``, ``temperature`` and ``thresholds`` are used.
    """

    exit_names, size = EXIT_NAMES, SIZE

    def __init__(self, config: PhaseConfig):
        super().__init__()
        weights = None if config.model.weights == "none" else config.model.weights
        ssdlite = EarlyExitSSDLite((), weights=weights).backbone
        tail = [] if config.model.full_truncated else [ssdlite.features[1], *ssdlite.extra]
        self.backbone = ssdlite.features[0]
        self.backbone_tail = nn.ModuleList(tail[:1] if config.model.single_map else tail)
        self.heads = RecordedExits(config.model, config.temperature, config.thresholds)
        self.boxes = config.targets.boxes
        self.normalise = config.data.normalise
        self.backbone.requires_grad_(config.model.train_trunk)
        self.backbone_tail.requires_grad_(config.model.train_trunk)
        self.heads.temperatures.requires_grad_(config.temperature.from_routing)
        self.heads.thresholds.requires_grad_(config.thresholds.kind == "parameter")
        self.heads.projections.requires_grad_(config.model.context_projection == "trained")

    def trunk_maps(self, images: Tensor) -> Iterator[list[Tensor]]:
        """The trunk's maps of each exit, computed only when they are asked for."""
        features = (images - 0.5) / 0.5 if self.normalise else images
        children, start = list(self.backbone.children()), 0
        for stop in (*CUTS, len(children)):
            for child in children[start:stop]:
                features = child(features)
            start = stop
            maps = [features]
            for block in self.backbone_tail if stop == len(children) else ():
                maps.append(block(maps[-1]))
            yield maps

    def exits(self, images: Tensor) -> Iterator[ExitOutput]:
        """Exits one at a time from images (B, 3, H, W) in [0, 1]."""
        return (maps.output() for maps in self.heads.exits(self.trunk_maps(images)))

    def forward(self, images: Tensor) -> list[ExitMaps]:
        """Raw maps of all three exits, for the loss."""
        return list(self.heads.exits(self.trunk_maps(images)))

    def probability(self, output: ExitOutput) -> Tensor:
        """Chair probability of each box at an exit with the exit's temperature, (B, A)."""
        temperatures = self.heads.applied_temperatures()
        return chair_probability(output.cls_logits, temperatures[EXIT_NAMES.index(output.name)])

    def postprocess(self, output: ExitOutput, size_hw: tuple[int, int]) -> list[Detections]:
        """Detections of each image, ranked without temperature, as the record's script does."""
        boxes, scores = decoded_boxes(output, self.boxes), class_scores(output.cls_logits)
        kept = keep_best(output.name, boxes, scores, size_hw, nms_threshold=NMS_THRESHOLD)
        # a raw box may end before it begins: it covers nothing, and still counts as a detection
        for image in kept:
            np.maximum(image.boxes_xyxy[:, :2], image.boxes_xyxy[:, 2:], out=image.boxes_xyxy[:, 2:])
        return kept


def decoded_boxes(output: ExitOutput, boxes: str) -> Tensor:
    """Boxes (B, A, 4) in pixels as ``targets.boxes`` meant them: raw corners, or offsets to the prior boxes."""
    return decode(output.bbox_regression, output.default_boxes) if boxes == "encoded" else output.bbox_regression
