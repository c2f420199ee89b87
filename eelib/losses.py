"""The loss of a detector with exits: matching, a class term and a box term, and what full teaches the exits.

Everything is dense: one table of IoU serves all exits, positives are selected by masks and not by
indexing, so that no step waits for the host and every step has the same shapes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eelib.anchors import BACKGROUND, decode, encode, match, pairwise_iou
from eelib.config import LossConfig
from eelib.model import ExitOutput


class Targets(NamedTuple):
    """The objects of a batch, padded to the same number G in every image.

    ``boxes_xyxy`` (B, G, 4) in pixels of the input; ``labels`` (B, G) int64, 1 to K, 0 where there is no object.
    """

    boxes_xyxy: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """Which rows are objects, bool (B, G)."""
        return self.labels > 0


class Matched(NamedTuple):
    """What each default box is asked for: ``positive`` (B, A), ``boxes_xyxy`` (B, A, 4), ``classes`` (B, A, K) 0 or 1.

    Boxes of negatives are those of some object; nothing may depend on them.
    """

    positive: Tensor
    boxes_xyxy: Tensor
    classes: Tensor


class Criterion:
    """The weighted sum of all exits' losses.

    Each exit's class and box terms are sums over its default boxes divided by the number of positives in
    the batch, at least 1. An early exit can also learn from full (``distillation``).

    Args:
        loss: kinds and weights of the terms.
        exits: names of all exits of the detector, in order.

    Examples:
        >>> import torch
        >>> from eelib.losses import Targets
        >>> targets = Targets(torch.tensor([[[10.0, 20.0, 90.0, 80.0]]]), torch.tensor([[1]]))
        >>> criterion = eelib.Criterion(eelib.Config(name="mine").loss, model.exit_names)
        >>> loss, parts = criterion(list(model.exits(torch.zeros(1, 3, model.size, model.size))), targets)
        >>> loss.shape
        torch.Size([])
    """

    def __init__(self, loss: LossConfig, exits: Sequence[str]):
        self.loss = loss
        self.weights = dict(zip(exits, loss.exit_weights or [1.0] * len(exits), strict=True))

    def __call__(
        self,
        outputs: Sequence[ExitOutput],
        targets: Targets,
        blank_logits: Sequence[Tensor] = (),
        learn: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            outputs: of the exits in order; full's, where it comes last, teaches the others.
            targets: the objects.
            blank_logits: (B,) of each blank gate.
            learn: how many of the outputs learn; None is all. A frozen full teaches and does not learn.

        Returns:
            The sum, and every part before its weight as ``<exit>_<part>``, detached scalars.
        """
        # bf16 has too few digits for boxes and for a sum over thousands of them
        outputs = [
            o._replace(cls_logits=o.cls_logits.float(), bbox_regression=o.bbox_regression.float()) for o in outputs
        ]
        largest = max(outputs, key=lambda output: len(output.default_boxes)).default_boxes
        iou = pairwise_iou(targets.boxes_xyxy, largest)  # (B, G, A) serves all exits
        teacher = outputs[-1] if self.loss.distillation and outputs[-1].name == "full" else None
        total, parts = torch.zeros((), device=iou.device), {}
        for output in outputs[:learn]:
            matched = assign(iou[..., : len(output.default_boxes)], targets, output, self.loss.iou_threshold)
            terms = detection_loss(output, matched, self.loss.classification, self.loss.box)
            taught = {}
            if teacher is not None and output is not teacher:
                taught = distillation_loss(output, teacher, matched)
            weighted = sum(terms.values()) + self.loss.distillation * sum(taught.values())
            total = total + self.weights[output.name] * weighted
            parts |= {f"{output.name}_{name}": value.detach() for name, value in (terms | taught).items()}
        for number, logits in enumerate(blank_logits, 1):
            value = F.binary_cross_entropy_with_logits(logits.float(), targets.valid.any(1).float())
            total = total + self.loss.blank * value
            parts[f"blank{number}"] = value.detach()
        return total, {"loss": total.detach(), **parts}


def assign(iou: Tensor, targets: Targets, output: ExitOutput, iou_threshold: float) -> Matched:
    """Match the default boxes of an exit to the objects of a batch by their IoU (B, G, A)."""
    matched = match(iou, targets.valid, iou_threshold)  # (B, A)
    index = matched.clamp(min=0)
    boxes_xyxy = targets.boxes_xyxy.gather(1, index[..., None].expand(-1, -1, 4))
    labels = targets.labels.gather(1, index).masked_fill(matched == BACKGROUND, 0)
    classes = labels[..., None] == torch.arange(1, output.cls_logits.shape[-1], device=iou.device)
    return Matched(matched != BACKGROUND, boxes_xyxy, classes.to(output.bbox_regression.dtype))


def detection_loss(
    output: ExitOutput, matched: Matched, classification: str = "quality_focal", box: str = "giou"
) -> dict[str, Tensor]:
    """Class and box term of one exit for a batch, scalars divided by the number of positives.

    Args:
        output: raw output of the exit.
        matched: what its default boxes are asked for.
        classification: ``"hard_negative"`` (SSD, 3:1 mining) or ``"quality_focal"`` (the target of a positive is
            the IoU that its box reaches: Li et al., "Generalized Focal Loss", NeurIPS 2020, equation 4).
        box: ``"smooth_l1"`` on encoded offsets (SSD) or ``"giou"`` on decoded boxes (Rezatofighi et al., CVPR 2019).
    """
    positive, boxes = matched.positive, matched.boxes_xyxy
    count = positive.sum().clamp(min=1)
    decoded = decode(output.bbox_regression, output.default_boxes)
    if box == "giou":
        box_loss = 2.0 * _sum_of(positive, giou_loss(decoded, boxes))
    else:
        difference = F.smooth_l1_loss(output.bbox_regression, encode(boxes, output.default_boxes), reduction="none")
        box_loss = _sum_of(positive, difference.sum(-1))
    if classification == "quality_focal":
        reached = paired_iou(decoded.detach(), boxes)
        class_loss = quality_focal_loss(output.cls_logits, reached[..., None] * matched.classes)
    else:
        class_loss = hard_negative_loss(output.cls_logits, positive, matched.classes)
    return {"classification": class_loss / count, "bbox_regression": box_loss / count}


def distillation_loss(student: ExitOutput, teacher: ExitOutput, matched: Matched) -> dict[str, Tensor]:
    """What full knows of an exit's positives, as a loss of the exit; nothing flows back into full.

    The exit's maps are the first of full's, so their default boxes are the same and are
    compared position by position. Boxes follow full only where it is nearer to the object.

    Returns:
        ``distilled_classes``, the KL divergence of the class scores from full's, and
        ``distilled_boxes``, GIoU against full's decoded boxes, scalars divided by the number of
        positives as in :func:`detection_loss`; 0 where the exit equals full.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2, at temperature 1; the
    bound of the box term: Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation",
    NeurIPS 2017, section 3.3.
    """
    boxes_of_exit = student.bbox_regression.shape[1]
    positive, count = matched.positive, matched.positive.sum().clamp(min=1)
    own = decode(student.bbox_regression, student.default_boxes)
    taught = decode(teacher.bbox_regression[:, :boxes_of_exit].detach(), student.default_boxes)
    nearer = paired_iou(taught, matched.boxes_xyxy) > paired_iou(own.detach(), matched.boxes_xyxy)
    box_loss = 2.0 * _sum_of(positive & nearer, giou_loss(own, taught))
    logits = class_logits(student.cls_logits)
    taught_logits = class_logits(teacher.cls_logits[:, :boxes_of_exit]).detach()
    target = taught_logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(taught_logits, target, reduction="none")
    class_loss = _sum_of(positive, (cross_entropy - entropy).sum(-1))
    return {"distilled_classes": class_loss / count, "distilled_boxes": box_loss / count}


def _sum_of(mask: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum()


def class_logits(cls_logits: Tensor) -> Tensor:
    """Logit of each class's score, l_k - l_0: (B, A, K + 1), background first, to (B, A, K)."""
    return cls_logits[..., 1:] - cls_logits[..., :1]


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of xyxy boxes (..., 4), pair by pair."""
    lt, rb = torch.max(a[..., :2], b[..., :2]), torch.min(a[..., 2:], b[..., 2:])
    overlap = _area((rb - lt).clamp(min=0))
    return overlap, _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - overlap


def _area(extent: Tensor) -> Tensor:
    return extent[..., 0] * extent[..., 1]  # the gradient of Tensor.prod counts zeros on the host


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of xyxy boxes (..., 4), pair by pair."""
    overlap, union = _overlap(a, b)
    return overlap / union.clamp(min=1e-6)


def giou_loss(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - generalised IoU of xyxy boxes (..., 4), pair by pair.

    torchvision's selects boxes by indexing, for which a GPU's step would wait.
    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    overlap, union = _overlap(a, b)
    lt, rb = torch.min(a[..., :2], b[..., :2]), torch.max(a[..., 2:], b[..., 2:])
    hull = _area(rb - lt)
    return 1 - overlap / (union + eps) + (hull - union) / (hull + eps)


def quality_focal_loss(cls_logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the quality focal loss of logits (B, A, K + 1) against qualities (B, A, K) in [0, 1]."""
    logits = class_logits(cls_logits)
    modulation = (quality - logits.detach().sigmoid()).abs().square()
    return (modulation * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")).sum()


def hard_negative_loss(cls_logits: Tensor, positive: Tensor, classes: Tensor, ratio: int = 3) -> Tensor:
    """SSD's class loss: cross-entropies of all positives and ``ratio`` times as many worst negatives of each image.

    Their sum, of logits (B, A, K + 1), ``positive`` bool (B, A), and ``classes`` (B, A, K), 1 for that of a positive.
    Source: SSD, section 2.2, "Hard negative mining".
    """
    labels = ((torch.arange(classes.shape[-1], device=classes.device) + 1) * classes).sum(-1).long()
    loss = F.cross_entropy(cls_logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(positive)
    ranks = loss.detach().masked_fill(positive, float("-inf")).argsort(1, descending=True).argsort(1)
    negative = ranks < ratio * positive.sum(1, keepdim=True)
    return _sum_of(positive | negative, loss)
