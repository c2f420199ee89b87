"""Detection losses: a class term and a box term over matched default boxes."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from eelib.anchors import decode, encode
from eelib.matching import match_iou
from eelib.model import ExitOutput


def match_batch(output: ExitOutput, targets: list[dict], iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Match every image of a batch.

    Returns:
        ``matched_idxs`` (B, A) int64, and ``matched_boxes`` (P, 4): the object of each
        positive, in the order of ``matched_idxs >= 0``.
    """
    matched = [match_iou(t["boxes"], output.default_boxes, iou_threshold) for t in targets]
    boxes = [t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)]
    return torch.stack(matched), torch.cat(boxes)


def detection_loss(
    output: ExitOutput,
    targets: list[dict],
    *,
    iou_threshold: float = 0.5,
    classification: str = "quality_focal",
    box: str = "giou",
) -> dict[str, Tensor]:
    """Loss of one exit.

    Args:
        output: raw output of the exit for a batch.
        targets: one dict an image with ``boxes`` (G, 4) xyxy in pixels of the input.
        iou_threshold: of the matching, in (0, 1].
        classification: ``"hard_negative"`` (SSD, 3:1 mining) or ``"quality_focal"`` (the
            target of a positive is the IoU that its box reaches: Li et al., "Generalized
            Focal Loss", NeurIPS 2020, equation 4).
        box: ``"smooth_l1"`` on encoded offsets (SSD) or ``"giou"`` on decoded boxes
            (Rezatofighi et al., CVPR 2019).

    Returns:
        ``classification`` and ``bbox_regression``, scalars, summed over boxes and divided by
        the number of positives (at least 1, so an empty batch is defined).
    """
    matched, boxes = match_batch(output, targets, iou_threshold)
    positive = matched >= 0  # (B, A)
    count = positive.sum().clamp(min=1)
    defaults = output.default_boxes.expand(len(targets), -1, -1)[positive]  # (P, 4)
    regression = output.bbox_regression[positive]
    decoded = decode(regression, defaults)
    if box == "giou":
        box_loss = 2.0 * generalized_box_iou_loss(decoded, boxes, reduction="sum")
    else:
        box_loss = F.smooth_l1_loss(regression, encode(boxes, defaults), reduction="sum")
    if classification == "quality_focal":
        quality = torch.zeros_like(matched, dtype=output.cls_logits.dtype)
        quality[positive] = paired_iou(decoded.detach(), boxes)
        class_loss = quality_focal_loss(output.cls_logits, quality)
    else:
        class_loss = hard_negative_loss(output.cls_logits, positive)
    return {"classification": class_loss / count, "bbox_regression": box_loss / count}


def distillation_loss(
    student: ExitOutput, teacher: ExitOutput, positive: Tensor, temperature: float = 2.0
) -> dict[str, Tensor]:
    """How far a student is from its teacher on the same default boxes.

    Args:
        student, teacher: outputs of a batch; the teacher's carry no gradient.
        positive: bool (B, A), boxes that are matched to an object.
        temperature: divides both logits; at least 1 softens them.

    Returns:
        ``distilled_classification``, the KL divergence of the class distributions from the teacher's
        times the square of the temperature, over all boxes; ``distilled_bbox_regression``, smooth L1 of
        the offsets over positives. Both are sums divided by the number of positives (at least 1).

    Raises:
        ValueError: student and teacher have other default boxes.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2; on detectors
    Chen et al., "Learning Efficient Object Detection Models", NeurIPS 2017, section 3.
    """
    if student.cls_logits.shape != teacher.cls_logits.shape:
        shapes = tuple(student.cls_logits.shape), tuple(teacher.cls_logits.shape)
        raise ValueError(f"student and teacher differ in default boxes: cls_logits {shapes[0]} and {shapes[1]}")
    count = positive.sum().clamp(min=1)
    ours, theirs = ((o.cls_logits / temperature).log_softmax(-1) for o in (student, teacher))
    divergence = temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)
    boxes = F.smooth_l1_loss(student.bbox_regression[positive], teacher.bbox_regression[positive], reduction="sum")
    return {"distilled_classification": divergence / count, "distilled_bbox_regression": boxes / count}


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (P, 4) with boxes (P, 4), pair by pair; xyxy."""
    lt, rb = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    overlap = (rb - lt).clamp(min=0).prod(1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area_a + area_b - overlap).clamp(min=1e-6)


def quality_focal_loss(cls_logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the quality focal loss of logits (B, A, 2) against qualities (B, A) in [0, 1]."""
    # softmax over (background, chair) is the sigmoid of the difference of the two logits
    logit = cls_logits[..., 1] - cls_logits[..., 0]
    modulation = (quality - logit.detach().sigmoid()).abs().square()
    return (modulation * F.binary_cross_entropy_with_logits(logit, quality, reduction="none")).sum()


def hard_negative_loss(cls_logits: Tensor, positive: Tensor, ratio: int = 3) -> Tensor:
    """SSD's class loss: all positives and the ``ratio`` times as many worst negatives of each image.

    Args:
        cls_logits: (B, A, 2).
        positive: bool (B, A).

    Returns:
        The sum of the cross-entropies. Source: SSD, section 2.2, "Hard negative mining".
    """
    loss = F.cross_entropy(cls_logits.flatten(0, 1), positive.flatten().long(), reduction="none").view_as(positive)
    ranks = loss.detach().masked_fill(positive, float("-inf")).argsort(1, descending=True).argsort(1)
    negative = ranks < ratio * positive.sum(1, keepdim=True)
    return loss[positive].sum() + loss[negative].sum()
