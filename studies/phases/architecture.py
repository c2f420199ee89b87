"""What the recorded architecture costs and sees: parameters, multiply-adds, receptive field."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eelib.model import CUTS, EXIT_NAMES
from studies.phases.detector import RecordedDetector


def multiply_adds(detector: RecordedDetector, size: int = 320) -> list[float]:
    """Millions of multiply-adds of one image (3, size, size) that leaves at each exit."""
    image, found = torch.zeros(1, 3, size, size), []
    detector.eval()
    with torch.no_grad():
        for stop in range(len(EXIT_NAMES)):
            with FlopCounterMode(display=False) as counter:
                exits = detector.exits(image)
                for _ in range(stop + 1):
                    next(exits)
            found.append(counter.get_total_flops() / 2e6)  # a multiply-add counts as two operations
    return found


def convolutions(modules: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """(kernel, stride) of every convolution wider than one pixel, in order, dilation included."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return [
        ((c.kernel_size[0] - 1) * c.dilation[0] + 1, c.stride[0])
        for c in layers
        if c.kernel_size[0] > 1 or c.stride[0] > 1
    ]


def receptive_field(layers: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Receptive field and stride, in pixels, of a chain of (kernel, stride).

    Squeeze-excitation is left out: it sees the image through one mean a channel, which carries no place.
    """
    field, stride = 1, 1
    for kernel, step in layers:
        field += (kernel - 1) * stride
        stride *= step
    return field, stride


def receptive_fields(detector: RecordedDetector) -> list[int]:
    """Receptive field of each exit in pixels: the wider of the trunk's path and the context's, then the branch."""
    children, fields = list(detector.backbone.children()), []
    start, trunk, context = 0, [], 0
    for name, stop in zip(EXIT_NAMES, (*(cut for cut, _ in CUTS.values()), len(children)), strict=True):
        trunk += convolutions(children[start:stop])
        field, stride = receptive_field(trunk)
        branch = convolutions([detector.heads.branches[name].trunk])
        context = max(field, context) + sum(kernel - 1 for kernel, _ in branch) * stride
        fields.append(context)
        start = stop
    return fields


def table(detector: RecordedDetector) -> pd.DataFrame:
    """A row an exit: parameters of the trunk up to its cut and of its branch, cost, receptive field."""
    count = [sum(p.numel() for p in child.parameters()) for child in detector.backbone.children()]
    stops = (*(cut for cut, _ in CUTS.values()), len(count))
    return pd.DataFrame({
        "exit": EXIT_NAMES,
        "trunk parameters": [sum(count[:stop]) for stop in stops],
        "branch parameters": [sum(p.numel() for p in detector.heads.branches[n].parameters()) for n in EXIT_NAMES],
        "million multiply-adds": multiply_adds(detector),
        "receptive field, px": receptive_fields(detector),
    })  # fmt: skip


def indistinguishable_pairs(cls_map: Tensor) -> int:
    """Column pairs of a map (B, C, H, W) that are equal in every channel at the middle row.

    On a constant image these are the pairs that a loss over column pairs can never solve.
    """
    row = cls_map[0, :, cls_map.shape[2] // 2]  # (C, W)
    pairs = row.reshape(len(row), -1, 2)  # (C, W / 2, 2)
    return int(((pairs[..., 0] - pairs[..., 1]).abs().amax(0) <= 1e-12 * row.abs().max()).sum())
