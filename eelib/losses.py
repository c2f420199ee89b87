"""Detection losses: a class term and a box term over matched default boxes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from eelib.anchors import decode, encode
from eelib.matching import match_iou
from eelib.model import EXIT_NAMES, ExitOutput


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
    student: ExitOutput, teacher: ExitOutput, targets: list[dict], *, iou_threshold: float = 0.5
) -> dict[str, Tensor]:
    """What full knows of an exit's positives, as a loss of the exit; nothing flows back into full.

    The exit's maps are the first of full's, so their default boxes are the same and are
    compared position by position. Boxes follow full only where it is nearer to the object.

    Args:
        student: raw output of an exit for a batch.
        teacher: raw output of full for the same batch.
        targets: one dict an image with ``boxes`` (G, 4) xyxy in pixels of the input.
        iou_threshold: of the matching, in (0, 1].

    Returns:
        ``distilled_classes``, the KL divergence of the chair probability from full's, and
        ``distilled_boxes``, GIoU against full's decoded boxes, scalars divided by the number of
        positives as in :func:`detection_loss`; 0 where the exit equals full.

    Raises:
        ValueError: the default boxes of the exit are not the first ones of full.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2, at
    temperature 1; the bound of the box term: Chen et al., "Learning Efficient Object Detection
    Models with Knowledge Distillation", NeurIPS 2017, section 3.3.
    """
    a = len(student.default_boxes)
    if not torch.equal(student.default_boxes, teacher.default_boxes[:a]):
        raise ValueError(f"distillation: the {a} default boxes of {student.name} are not the first of {teacher.name}")
    matched, boxes = match_batch(student, targets, iou_threshold)
    positive = matched >= 0  # (B, A)
    count = positive.sum().clamp(min=1)
    defaults = student.default_boxes.expand(len(targets), -1, -1)[positive]  # (P, 4)
    own = decode(student.bbox_regression[positive], defaults)
    known = decode(teacher.bbox_regression[:, :a].detach()[positive], defaults)
    nearer = paired_iou(known, boxes) > paired_iou(own.detach(), boxes)
    box_loss = 2.0 * generalized_box_iou_loss(own[nearer], known[nearer], reduction="sum")
    logit, known_logit = (_chair_logit(o.cls_logits[:, :a][positive]) for o in (student, teacher))
    target = known_logit.detach().sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(known_logit.detach(), target, reduction="sum")
    return {"distilled_classes": (cross_entropy - entropy) / count, "distilled_boxes": box_loss / count}


def _chair_logit(cls_logits: Tensor) -> Tensor:
    # softmax over (background, chair) is the sigmoid of the difference of the two logits
    return cls_logits[..., 1] - cls_logits[..., 0]


def joint_loss(
    outputs: Sequence[ExitOutput],
    targets: list[dict],
    exit_weights: Sequence[float],
    *,
    teacher: ExitOutput | None = None,
    distillation: float = 1.0,
    iou_threshold: float = 0.5,
    **kinds: str,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum over the exits of their losses.

    Args:
        outputs: of the exits that learn.
        targets, iou_threshold: as in :func:`detection_loss`.
        exit_weights: of exit1, exit2 and full.
        teacher: output of full that the other exits learn from as well; None for no distillation.
        distillation: weight of that.
        kinds: ``classification`` and ``box`` of :func:`detection_loss`.

    Returns:
        The sum, and every part before its weight as ``<exit>_<part>``.
    """
    weights = dict(zip(EXIT_NAMES, exit_weights, strict=True))
    total, parts = torch.zeros(()), {}
    for output in outputs:
        losses = detection_loss(output, targets, iou_threshold=iou_threshold, **kinds)
        known = {}
        if teacher is not None and output.name != teacher.name:
            known = distillation_loss(output, teacher, targets, iou_threshold=iou_threshold)
        total = total + weights[output.name] * (sum(losses.values()) + distillation * sum(known.values()))
        parts |= {f"{output.name}_{name}": float(v.detach()) for name, v in (losses | known).items()}
    return total, parts


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (P, 4) with boxes (P, 4), pair by pair; xyxy."""
    lt, rb = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    overlap = (rb - lt).clamp(min=0).prod(1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return overlap / (area_a + area_b - overlap).clamp(min=1e-6)


def quality_focal_loss(cls_logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the quality focal loss of logits (B, A, 2) against qualities (B, A) in [0, 1]."""
    logit = _chair_logit(cls_logits)
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
