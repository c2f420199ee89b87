"""Which default box answers for which object: SSD's matching, and the record's assignment beside it."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1


def match_iou(boxes_xyxy: Tensor, defaults_xyxy: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """SSD's matching: IoU above a threshold, and a forced best default box for each object.

    Args:
        boxes_xyxy: objects of one image in pixels, shape (G, 4); G may be 0.
        defaults_xyxy: default boxes in pixels, shape (A, 4).
        iou_threshold: a default box at or above it is positive, in (0, 1].

    Returns:
        ``matched_idxs``, int64, shape (A,): index of the object, or ``BACKGROUND``.

    Source: SSD, section 2.2, "Matching strategy". Without the forced match a small object
    between two cells would have no positive at all.
    """
    if not len(boxes_xyxy):
        return torch.full((len(defaults_xyxy),), BACKGROUND, device=defaults_xyxy.device)
    iou = box_iou(boxes_xyxy, defaults_xyxy)  # (G, A)
    best_iou, matched_idxs = iou.max(dim=0)
    matched_idxs[best_iou < iou_threshold] = BACKGROUND
    matched_idxs[iou.argmax(dim=1)] = torch.arange(len(boxes_xyxy), device=iou.device)
    return matched_idxs


def match_random(num_objects: int, num_defaults: int, generator: torch.Generator) -> Tensor:
    """The record's assignment: random boxes are positive, objects are dealt out in turn.

    Args:
        num_objects: G, objects in the image, at least 0.
        num_defaults: A, boxes of the exit.
        generator: source of the draw; the record redraws it every step.

    Returns:
        ``matched_idxs``, int64, shape (A,), with min(10 G, 120) positives.

    Source: the record, section A.5. Kept as an executable switch: it is the defect that
    keeps every recorded phase from localising anything.
    """
    matched_idxs = torch.full((num_defaults,), BACKGROUND)
    positives = min(10 * num_objects, 120, num_defaults)
    if positives:
        chosen = torch.randperm(num_defaults, generator=generator)[:positives]
        matched_idxs[chosen] = torch.arange(positives) % num_objects
    return matched_idxs


def matching_quality(boxes_xyxy: Tensor, defaults_xyxy: Tensor, matched_idxs: Tensor) -> dict[str, float]:
    """How well an assignment serves one image.

    Args:
        boxes_xyxy: objects, shape (G, 4), G at least 1.
        defaults_xyxy: default boxes, shape (A, 4).
        matched_idxs: an assignment, shape (A,).

    Returns:
        ``objects``; ``reached``: objects with a positive of IoU 0.5 or more; ``positives``;
        ``iou_sum``: IoU of each positive with its object, summed.
    """
    positive = torch.where(matched_idxs >= 0)[0]
    iou = box_iou(boxes_xyxy, defaults_xyxy)[matched_idxs[positive], positive]
    return {
        "objects": len(boxes_xyxy),
        "reached": len(matched_idxs[positive][iou >= 0.5].unique()),
        "positives": len(positive),
        "iou_sum": float(iou.sum()),
    }
