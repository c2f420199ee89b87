"""The architecture of the record, each defect a switch.

Three branches on 20 x 20 maps of one truncated trunk: exit1 after 80 channels, exit2 after
112, "full" after the expansion of block 13. Restated from the record's section A.3;
parameter counts are held by a test. Repaired, each branch has SSDLite's six levels and full
sees the whole trunk.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eelib.anchors import decode, default_boxes
from eelib.config import PhaseConfig
from eelib.model import ASPECT_RATIOS, CUTS, EXIT_NAMES, SCALES, EarlyExitSSDLite, flatten_predictions

BOXES_PER_CELL = 6
# Square sizes that the record's inference script assumes; training knew no prior boxes at all.
PRIOR_SIZES_PX = (40, 60, 80, 100, 120, 140)
CHANNELS = {"exit1": (80, 128), "exit2": (112, 224), "full": (672, 512)}
TAIL = (480, 512, 256, 256, 128)  # channels of SSDLite's levels after the first
LEVEL_CHANNELS = 128  # of a branch's own strided levels


class ExitMaps(NamedTuple):
    """Raw maps of a branch, one a level: ``cls`` (B, 12, H, W) each, ``box`` (B, 24, H, W) each."""

    cls: list[Tensor]
    box: list[Tensor]

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Height and width of each level."""
        return [tuple(m.shape[-2:]) for m in self.cls]


def prior_boxes(grids_hw: Sequence[tuple[int, int]], size_hw: tuple[int, int]) -> Tensor:
    """Six boxes at each cell, xyxy pixels, (A, 4): squares on a single map, SSD's default boxes on a pyramid."""
    if len(grids_hw) > 1:
        levels = len(grids_hw)
        return default_boxes(grids_hw, SCALES[: levels + 1], ASPECT_RATIOS[:levels], size_hw)
    rows, columns = grids_hw[0]
    cy = (torch.arange(rows) + 0.5) * size_hw[0] / rows
    cx = (torch.arange(columns) + 0.5) * size_hw[1] / columns
    grid_y, grid_x = torch.meshgrid(cy, cx, indexing="ij")
    centres = torch.stack((grid_x, grid_y), -1).reshape(-1, 1, 2)
    half = torch.tensor(PRIOR_SIZES_PX).reshape(-1, 1) / 2
    return torch.cat((centres - half, centres + half), -1).reshape(-1, 4)  # (H*W, 6, 4) -> (A, 4)


def _conv(channels_in: int, channels_out: int, kernel: int = 1, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
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
    """The five levels of a pyramid below a branch's 20 x 20 map.

    Args:
        channels: of the branch's map, from which strided convolutions make the levels.
        tail: take SSDLite's tail as the levels instead.
    """

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


def _join(first: tuple[Tensor, Tensor], levels: Levels | None, context: Tensor, tail: Sequence[Tensor]) -> ExitMaps:
    maps = [first, *(levels(context, tail) if levels is not None else ())]
    return ExitMaps([cls for cls, _ in maps], [box for _, box in maps])


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

    def forward(self, features: Tensor, tail: Sequence[Tensor] = ()) -> tuple[ExitMaps, Tensor]:
        """Features, and the trunk's maps below them, to the branch's maps and its context."""
        context = self.trunk(features)
        return _join((self.cls_logits(context), self.bbox_regression(context)), self.levels, context, tail), context


class LightBranch(nn.Module):
    """SSDLite's predictors straight on the map: the full head without defect 13.

    Args:
        channels_in: channels of the trunk at the cut.
        levels: of a pyramid below; None predicts from the one map.
    """

    def __init__(self, channels_in: int, levels: Levels | None = None):
        super().__init__()
        self.predictor, self.levels = Predictor(channels_in), levels

    def forward(self, features: Tensor, tail: Sequence[Tensor] = ()) -> tuple[ExitMaps, Tensor]:
        """Features, and the trunk's maps below them, to the branch's maps and, as the context, the features."""
        return _join(self.predictor(features), self.levels, features, tail), features


class RecordedExits(nn.Module):
    """The three branches, their contexts and their scalars, without the trunk below them.

    Kept apart from the trunk, so that a frozen trunk's maps are computed once and cached.
    Temperatures and thresholds are single parameters each: a scalar that no loss reaches keeps
    its gradient None, and AdamW then leaves it alone, weight decay included.

    Args:
        temperatures: start values for exit1, exit2, full.
        thresholds: start values for exit1, exit2; trained if ``thresholds.kind`` is "parameter".
        temperature_clamp: ``"none"``, ``"forward"`` (no gradient outside, defect 28) or
            ``"parameter"`` (:meth:`project`).
        temperature_bounds: of the clamp.
        thresholds_bounded: :meth:`project` keeps thresholds in [0, 1] (defect 25).
        single_map: each exit predicts from one map (defect 11); False gives it SSDLite's six levels.
        full_truncated: full ends with the trunk's first part (defect 12); False feeds it SSDLite's tail.
        full_head: ``"heavy"`` is the record's branch, ``"light"`` SSDLite's predictors (defect 13).
        context_recomputed: run a branch's trunk again for its context (defect 14).
        context_detached: a deeper loss does not reach the branches before it (defect 16).
    """

    def __init__(
        self,
        temperatures: tuple[float, ...] = (1.5, 1.5, 1.0),
        thresholds: tuple[float, float] = (0.5, 0.5),
        *,
        temperature_clamp: str = "none",
        temperature_bounds: tuple[float, float] = (0.5, 3.0),
        thresholds_bounded: bool = True,
        single_map: bool = True,
        full_truncated: bool = True,
        full_head: str = "heavy",
        context_recomputed: bool = False,
        context_detached: bool = False,
    ):
        super().__init__()
        # without levels of its own to lie on, the tail joins full's one map
        self.tail_joins = single_map and not full_truncated
        self.branches = nn.ModuleDict()
        for name, (channels_in, channels) in CHANNELS.items():
            tail = name == "full" and not full_truncated
            channels_in += TAIL[0] if tail and single_map else 0
            light = name == "full" and full_head == "light"
            levels = None if single_map else Levels(channels_in if light else channels, tail)
            self.branches[name] = (
                LightBranch(channels_in, levels) if light else RecordedBranch(channels_in, channels, levels)
            )
        self.projections = nn.ModuleDict({"exit2": nn.Conv2d(128, 112, 1), "full": nn.Conv2d(224, 672, 1)})
        self.temperatures = _scalars(EXIT_NAMES, temperatures)
        self.thresholds = _scalars(EXIT_NAMES[:2], thresholds)
        self.temperature_clamp, self.temperature_bounds = temperature_clamp, temperature_bounds
        self.thresholds_bounded = thresholds_bounded
        self.context_recomputed, self.context_detached = context_recomputed, context_detached

    def applied_temperatures(self) -> list[Tensor]:
        """Temperatures as the confidence uses them, scalars in the order of the exits."""
        values = list(self.temperatures.values())
        return [t.clamp(*self.temperature_bounds) for t in values] if self.temperature_clamp == "forward" else values

    @torch.no_grad()
    def project(self) -> None:
        """Bring bounded parameters back into their bounds; called after each step."""
        if self.temperature_clamp == "parameter":
            for temperature in self.temperatures.values():
                temperature.clamp_(*self.temperature_bounds)
        if self.thresholds_bounded:
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
                context = context.detach() if self.context_detached else context
                features = features + self.projections[name](context)
            if tail and self.tail_joins:
                features = torch.cat((features, F.interpolate(tail.pop(), features.shape[-2:])), 1)
            output, context = self.branches[name](features, tail)
            yield output  # before the recomputation: an image that leaves here never pays for it
            if self.context_recomputed and name != "full":
                context = self.branches[name].trunk(features)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> list[ExitMaps]:
        """All three branches."""
        return list(self.exits(iter(maps)))


def _scalars(names: tuple[str, ...], values: tuple[float, ...]) -> nn.ParameterDict:
    return nn.ParameterDict({n: nn.Parameter(torch.tensor(float(v))) for n, v in zip(names, values, strict=True)})


class RecordedDetector(nn.Module):
    """The record's detector: the trunk of SSDLite, as far as the switches use it, and the three branches.

    Args:
        config: ``model``, ``data.normalise``, ``temperature`` and ``thresholds`` are used.
    """

    def __init__(self, config: PhaseConfig):
        super().__init__()
        weights = None if config.model.weights == "none" else config.model.weights
        whole = EarlyExitSSDLite((), weights=weights).backbone
        tail = [] if config.model.full_truncated else [whole.features[1], *whole.extra]
        self.backbone = whole.features[0]
        self.backbone_tail = nn.ModuleList(tail[:1] if config.model.single_map else tail)
        self.heads = RecordedExits(
            config.temperature.start,
            (config.thresholds.exit1, config.thresholds.exit2),
            temperature_clamp=config.temperature.clamp,
            temperature_bounds=config.temperature.bounds,
            thresholds_bounded=config.thresholds.bounded,
            single_map=config.model.single_map,
            full_truncated=config.model.full_truncated,
            full_head=config.model.full_head,
            context_recomputed=config.model.context_recomputed,
            context_detached=config.model.context_detached,
        )
        self.normalise = config.data.normalise
        self.backbone.requires_grad_(config.model.train_trunk)
        self.backbone_tail.requires_grad_(config.model.train_trunk)
        self.heads.temperatures.requires_grad_(config.temperature.from_routing)
        self.heads.thresholds.requires_grad_(config.thresholds.kind == "parameter")
        if config.model.context_projection == "frozen":
            self.heads.projections.requires_grad_(False)

    def trunk_maps(self, images: Tensor) -> Iterator[list[Tensor]]:
        """The trunk's maps of each exit, computed only when they are asked for."""
        features = (images - 0.5) / 0.5 if self.normalise else images
        children, start = list(self.backbone.children()), 0
        for stop in (*(cut for cut, _ in CUTS.values()), len(children)):
            for child in children[start:stop]:
                features = child(features)
            start = stop
            maps = [features]
            for block in self.backbone_tail if stop == len(children) else ():
                maps.append(block(maps[-1]))
            yield maps

    def exits(self, images: Tensor) -> Iterator[ExitMaps]:
        """Exits one at a time from images (B, 3, H, W) in [0, 1]."""
        return self.heads.exits(self.trunk_maps(images))

    def forward(self, images: Tensor) -> list[ExitMaps]:
        """All three exits."""
        return list(self.exits(images))


def class_rows(cls: Sequence[Tensor], layout: str, index: str = "cell_major") -> Tensor:
    """Rows of the class loss from maps (B, 12, H, W), one a level: (B, sum of H * W * 6, 2).

    Args:
        cls: raw class maps.
        layout: ``"permuted"`` pairs the two channels of a box; ``"column_pairs"`` views without
            a permute, so a row is two neighbouring columns of one channel (defect 1).
        index: order of the rows. Box rows are cell-major; under ``"channel_major"`` the same
            index is another place for the class (defect 2). The record has both defects.
    """
    return torch.cat([_rows_of_level(level, layout, index) for level in cls], 1)


def _rows_of_level(cls: Tensor, layout: str, index: str) -> Tensor:
    batch, _, height, width = cls.shape
    cells = height * width
    if layout == "permuted":
        rows = flatten_predictions([cls], 2)
        if index == "cell_major":
            return rows
        return rows.view(batch, cells, -1, 2).transpose(1, 2).reshape(batch, -1, 2)  # (B, K, H*W, 2)
    pairs = cls.contiguous().view(batch, -1, cells, 2)  # (B, K, H*W, 2): pairs of both channels of a box
    if index == "channel_major":
        return pairs.flatten(1, 2)
    # each pair goes to one of the two cells that it covers, so that place agrees with the box rows
    start = 2 * torch.arange(cells)
    cell = start % cells + (start >= cells) * (1 - cells % 2)
    return pairs[:, :, cell.argsort()].transpose(1, 2).reshape(batch, -1, 2)


def decoded_boxes(maps: ExitMaps, targets_boxes: str, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (B, A, 4) in pixels as the training meant them: raw corners, or offsets to the prior boxes."""
    rows = flatten_predictions(maps.box, 4)
    return rows if targets_boxes != "encoded" else decode(rows, prior_boxes(maps.grids, size_hw))
