"""Default boxes, the box coder and the matching of SSD.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 2.2;
layout and rounding follow ``torchvision.models.detection.anchor_utils.DefaultBoxGenerator``,
so that weights trained there decode here (held by a parity test).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

# SSD's variances 0.1 and 0.2, written as the reciprocal weights of torchvision's BoxCoder.
CENTRE_WEIGHT, SIZE_WEIGHT = 10.0, 5.0
CODER_WEIGHTS = (CENTRE_WEIGHT, CENTRE_WEIGHT, SIZE_WEIGHT, SIZE_WEIGHT)
BACKGROUND = -1  # of a default box that answers for no object
# exp() of a regressed size is capped here (R-CNN's convention), so a wild output stays finite.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def default_boxes(
    grid_sizes_hw: Sequence[tuple[int, int]],
    scales: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
    image_size_hw: tuple[int, int],
) -> Tensor:
    """Default boxes of a feature pyramid, cell by cell, map by map.

    Args:
        grid_sizes_hw: height and width of each feature map, finest first.
        scales: box scale of each map as a share of the image, and one more for the last
            map's intermediate scale: ``len(grid_sizes_hw) + 1`` values in (0, 1].
        aspect_ratios: for each map the ratios r > 1; a cell gets boxes of ratio 1 (two
            scales), r and 1/r: ``2 + 2 * len(ratios)`` boxes.
        image_size_hw: size of the network's input in pixels.

    Returns:
        ``boxes_xyxy`` in pixels, float32, shape (A, 4); not clipped to the image.

    Raises:
        ValueError: the three sequences disagree in length.

    Source: SSD, section 2.2, "Choosing scales and aspect ratios for default boxes".
    """
    if len(scales) != len(grid_sizes_hw) + 1 or len(aspect_ratios) != len(grid_sizes_hw):
        raise ValueError(
            f"{len(grid_sizes_hw)} feature maps need {len(grid_sizes_hw) + 1} scales and "
            f"{len(grid_sizes_hw)} lists of aspect ratios; got {len(scales)} and {len(aspect_ratios)}"
        )
    height, width = image_size_hw
    boxes = []
    for k, (rows, columns) in enumerate(grid_sizes_hw):
        between = math.sqrt(scales[k] * scales[k + 1])
        sizes_wh = [(scales[k], scales[k]), (between, between)]
        for ratio in aspect_ratios[k]:
            long, short = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
            sizes_wh += [(long, short), (short, long)]
        wh = torch.tensor(sizes_wh, dtype=torch.float32).clamp(0, 1)  # (K, 2)
        cy = (torch.arange(rows, dtype=torch.float32) + 0.5) / rows
        cx = (torch.arange(columns, dtype=torch.float32) + 0.5) / columns
        grid_y, grid_x = torch.meshgrid(cy, cx, indexing="ij")
        centres = torch.stack((grid_x, grid_y), -1).reshape(-1, 1, 2)  # (H*W, 1, 2)
        corners = torch.cat((centres - 0.5 * wh, centres + 0.5 * wh), -1)  # (H*W, K, 4)
        boxes.append(corners.reshape(-1, 4))
    return torch.cat(boxes) * torch.tensor([width, height, width, height], dtype=torch.float32)


def _centre_form(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return boxes_xyxy[..., :2] + 0.5 * size, size


def encode(boxes_xyxy: Tensor, defaults_xyxy: Tensor) -> Tensor:
    """Offsets (dx, dy, dw, dh) of boxes from their default boxes, scaled by :data:`CODER_WEIGHTS`; all are (..., 4).

    Boxes are in pixels and have positive width and height. Source: SSD, section 2.2, equation 2.
    """
    centre, size = _centre_form(boxes_xyxy)
    default_centre, default_size = _centre_form(defaults_xyxy)
    shift, scale = (centre - default_centre) / default_size, (size / default_size).log()
    return torch.cat((shift * CENTRE_WEIGHT, scale * SIZE_WEIGHT), -1)


def decode(bbox_regression: Tensor, defaults_xyxy: Tensor) -> Tensor:
    """The inverse of :func:`encode`: offsets (..., A, 4) from default boxes (A, 4) to boxes in pixels, not clipped."""
    default_centre, default_size = _centre_form(defaults_xyxy)
    centre = default_centre + bbox_regression[..., :2] / CENTRE_WEIGHT * default_size
    size = default_size * (bbox_regression[..., 2:] / SIZE_WEIGHT).clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat((centre - 0.5 * size, centre + 0.5 * size), -1)


def pairwise_iou(boxes_xyxy: Tensor, defaults_xyxy: Tensor) -> Tensor:
    """IoU in [0, 1] of the objects (B, G, 4) of a batch with every default box (A, 4), in pixels: (B, G, A)."""
    shape = (*boxes_xyxy.shape[:2], len(defaults_xyxy))
    return box_iou(boxes_xyxy.flatten(0, 1), defaults_xyxy).view(shape)


def match(iou: Tensor, valid: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """SSD's matching: IoU above a threshold, and a forced best default box for each object.

    Args:
        iou: of objects and default boxes (B, G, A); G may be 0.
        valid: which of the G are objects, bool (B, G); the rest is padding.
        iou_threshold: a default box at or above it is positive, in (0, 1].

    Returns:
        int64 (B, A): index of the object, or :data:`BACKGROUND`. A default box that is the best of several
        objects answers for the last of them.

    Source: SSD, section 2.2, "Matching strategy". Without the forced match a small object
    between two cells would have no positive at all.
    """
    batch, objects, boxes = iou.shape
    if not objects:
        return torch.full((batch, boxes), BACKGROUND, device=iou.device)
    best_iou, matched_idxs = iou.masked_fill(~valid[..., None], -1.0).max(1)
    matched_idxs = matched_idxs.masked_fill(best_iou < iou_threshold, BACKGROUND)
    # padding is sent to one column more, which is cut off
    best_default = iou.argmax(2).masked_fill(~valid, boxes)
    forced = torch.full((batch, boxes + 1), BACKGROUND, device=iou.device)
    index = torch.arange(objects, device=iou.device).expand(batch, -1)
    forced = forced.scatter_reduce(1, best_default, index, "amax")[:, :boxes]
    return torch.where(forced == BACKGROUND, matched_idxs, forced)


def match_iou(boxes_xyxy: Tensor, defaults_xyxy: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """:func:`match` for the objects (G, 4) of one image; ``matched_idxs`` (A,)."""
    iou = pairwise_iou(boxes_xyxy[None], defaults_xyxy)
    return match(iou, iou.new_ones(iou.shape[:2], dtype=torch.bool), iou_threshold)[0]
