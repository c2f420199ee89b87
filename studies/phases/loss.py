"""The loss of the record, each defect a switch: thresholds of an epoch, exit rates, and the terms of a batch.

Restated from the record's sections A.5 and B.1 to B.9.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from eelib.anchors import BACKGROUND, encode, match_iou
from eelib.deploy.evidence import first_exit
from eelib.heads import flatten_predictions
from eelib.losses import hard_negative_loss, paired_iou, quality_focal_loss
from studies.phases.confidence import chair_probability, confidence
from studies.phases.config import EXIT_NAMES, LossConfig, PhaseConfig, ThresholdConfig
from studies.phases.detector import ExitMaps, decoded_boxes, prior_boxes

ZERO_BOX_WEIGHT = 0.1  # of the full exit's boxes against zero


def scheduled_thresholds(rule: ThresholdConfig, epoch: int, epochs: int) -> tuple[float, float]:
    """Thresholds in force during an epoch (from 0), for ``kind`` fixed and schedule.

    A schedule that divides by E instead of E - 1 misses its end (defect 37): 0.44 for 0.45.
    """
    if rule.kind != "schedule":
        return rule.exit1, rule.exit2
    share = min(1.0, epoch / max(1, epochs - (rule.schedule_end == "reached")))
    return (rule.exit1 + share * (rule.exit1_end - rule.exit1), rule.exit2 + share * (rule.exit2_end - rule.exit2))


def first_exit_of_groups(confidences: Tensor, thresholds: Sequence[float], group: int = 1) -> Tensor:
    """Exit index of each image, int64 (N,): the first whose confidence (N, 3) reaches its threshold, else the last.

    ``group`` images share one decision, made on their mean confidence; 4 is the record's batch (defect 17).
    """
    means = [chunk.mean(0, keepdim=True).expand_as(chunk) for chunk in confidences.split(group)]
    return torch.from_numpy(first_exit(torch.cat(means).numpy(), thresholds))


def match_random(num_objects: int, num_defaults: int, generator: torch.Generator) -> Tensor:
    """The record's assignment: random boxes are positive, objects are dealt out in turn.

    ``matched_idxs``, int64, (A,) for A default boxes, with min(10 G, 120) positives for G objects; the record draws
    them anew every step. It is the defect that keeps every recorded phase from localising anything.

    Source: the record, section A.5.
    """
    matched_idxs = torch.full((num_defaults,), BACKGROUND)
    positives = min(10 * num_objects, 120, num_defaults)
    if positives:
        chosen = torch.randperm(num_defaults, generator=generator)[:positives]
        matched_idxs[chosen] = torch.arange(positives) % num_objects
    return matched_idxs


def exit_rates(c1: Tensor, c2: Tensor, thresholds: Sequence[Tensor | float], kind: str, **options) -> list[Tensor]:
    """Share of a batch of confidences (B,) that would leave at exit1 and at exit2.

    Args:
        thresholds: two values; parameters receive a gradient from ``"soft"`` and ``"gumbel"`` only.
        kind: ``"hard"`` compares, ``"soft"`` takes sigmoid(slope (c - threshold)), ``"gumbel"``
            draws a hard decision with a straight-through gradient; logits are plus and minus
            slope (c - threshold), so P(exit) = sigmoid(2 slope (c - threshold)) at any temperature.
        options: ``slope``, and ``temperature`` and ``generator``, which act for ``"gumbel"`` alone.

    Source: the record, sections B.5 to B.7. Jang et al., "Categorical Reparameterization with
    Gumbel-Softmax", ICLR 2017, section 2.2.
    """
    leaves = [_decision(c, t, kind, **options) for c, t in zip((c1, c2), thresholds, strict=True)]
    return [leaves[0].mean(), ((1 - leaves[0]) * leaves[1]).mean()]


def _decision(c: Tensor, threshold: Tensor | float, kind: str, slope=10.0, temperature=1.0, generator=None) -> Tensor:
    if kind == "hard":
        return (c >= threshold).to(c.dtype)
    margin = slope * (c - threshold)
    if kind == "soft":
        return margin.sigmoid()
    uniform = torch.rand((2, len(c)), generator=generator).clamp(1e-9, 1 - 1e-7)
    noise = -(-uniform.log()).log().to(c.device)
    soft = ((2 * margin + noise[0] - noise[1]) / temperature).sigmoid()
    return (soft >= 0.5).to(c.dtype) + soft - soft.detach()


def distribution_loss(rates: Sequence[Tensor | float], loss: LossConfig) -> Tensor | float:
    """Squared distance of two exit rates from ``exit_targets``: 0.1525 when nobody leaves early."""
    return sum((rate - target) ** 2 for rate, target in zip(rates, loss.exit_targets, strict=True))


def slope_at(loss: LossConfig, epoch: float, epochs: int) -> float:
    """Slope of the soft decisions, moving linearly over the epochs (defect 24: it never did)."""
    first, last = loss.exit_slope
    return first + (last - first) * min(1.0, epoch / max(1, epochs - 1))


def class_rows(cls: Sequence[Tensor], layout: str, index: str = "cell_major") -> Tensor:
    """Rows of the class loss from maps (B, 12, H, W), one a level: (B, sum of H * W * 6, 2).

    Args:
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
    start = 2 * torch.arange(cells, device=cls.device)
    cell = start % cells + (start >= cells) * (1 - cells % 2)
    return pairs[:, :, cell.argsort()].transpose(1, 2).reshape(batch, -1, 2)


def assign(targets: list[dict], priors: Tensor, config: PhaseConfig, generator: torch.Generator) -> Tensor:
    """``matched_idxs`` (B, A) of a batch with default boxes (A, 4), xyxy pixels; one draw serves all exits."""
    match config.targets.assignment:
        case "random":
            matched = [match_random(len(t["boxes"]), len(priors), generator) for t in targets]
        case "background":
            matched = [torch.full((len(priors),), -1) for _ in targets]
        case _:
            matched = [match_iou(t["boxes"], priors, config.targets.iou_threshold) for t in targets]
    return torch.stack(matched)


def _kl(teacher_rows: Tensor, student_rows: Tensor) -> Tensor:
    log_student = student_rows.flatten(0, 1).log_softmax(-1)
    return F.kl_div(log_student, teacher_rows.detach().flatten(0, 1).softmax(-1), reduction="batchmean")


def _class_term(maps: ExitMaps, rows: Tensor, positive: Tensor, boxes: Tensor, config: PhaseConfig) -> Tensor:
    kind = config.loss.classification
    if kind == "mean":
        return F.cross_entropy(rows.flatten(0, 1), positive.flatten().long())
    count = positive.sum().clamp(min=1)
    if kind == "hard_negative":
        return hard_negative_loss(rows, positive, positive[..., None].float()) / count
    quality = rows.new_zeros(positive.shape)
    reached = decoded_boxes(maps.output(), config.targets.boxes).detach()[positive]
    quality[positive] = paired_iou(reached, boxes).clamp(0, 1)
    return quality_focal_loss(rows, quality[..., None]) / count


def _box_term(maps: ExitMaps, positive: Tensor, boxes: Tensor, config: PhaseConfig) -> Tensor:
    count = positive.sum().clamp(min=1)
    if config.loss.box == "giou":
        predicted = decoded_boxes(maps.output(), config.targets.boxes)[positive]
        return 2.0 * generalized_box_iou_loss(predicted, boxes, reduction="sum") / count
    if config.targets.boxes == "encoded":
        priors = prior_boxes(maps.grids_hw).to(boxes.device).expand(len(positive), -1, -1)
        boxes = encode(boxes, priors[positive])
    return F.smooth_l1_loss(flatten_predictions(maps.box, 4)[positive], boxes, reduction="sum") / count


def early_weight(config: PhaseConfig, epoch: float) -> float:
    """Factor on every term of the early exits at a (fractional) epoch, 1 without a warm-up."""
    factors = config.loss.early_weight_by_epoch
    return factors[min(int(epoch), len(factors) - 1)] if factors else 1.0


def exit_weights(config: PhaseConfig, epoch: float) -> tuple[float, float, float]:
    """Weights of the three exits at a (fractional) epoch, moving linearly over ``ramp_epochs``."""
    loss, factor = config.loss, early_weight(config, epoch)
    start = loss.exit_weights_start or loss.exit_weights
    share = 1.0 if epoch >= loss.ramp_epochs else epoch / loss.ramp_epochs
    a1, a2 = (factor * (s + (e - s) * share) for s, e in zip(start[:2], loss.exit_weights[:2], strict=True))
    full = start[2] + (loss.exit_weights[2] - start[2]) * share * factor
    return a1, a2, max(full, loss.full_weight_floor)


def _exit_losses(
    outputs: list[ExitMaps], positive: Tensor, matched_boxes: Tensor, config: PhaseConfig
) -> tuple[list[Tensor], Tensor]:
    """Loss of each exit, and the mean divergence from the next deeper one (the cascade term).

    ``positive`` is bool (B, A), ``matched_boxes`` (P, 4) is the object of each positive, in their order.
    """
    share, layout = config.loss.teacher, config.targets
    rows = [class_rows(o.cls, layout.class_layout, layout.class_index) for o in outputs]
    boxes = [flatten_predictions(o.box, 4) for o in outputs]
    losses, divergences = [], []
    for k, output in enumerate(outputs):
        class_loss = _class_term(output, rows[k], positive, matched_boxes, config)
        # phase 1.1 pulls the full exit's boxes to zero
        towards, weight = (boxes[k + 1].detach(), 1.0) if k < 2 else (torch.zeros_like(boxes[k]), ZERO_BOX_WEIGHT)
        follow = weight * F.smooth_l1_loss(boxes[k], towards)
        no_truth = layout.boxes == "zero_or_teacher"
        box_loss = follow if no_truth else _box_term(output, positive, matched_boxes, config)
        if k < 2:
            divergences.append(_kl(rows[k + 1], rows[k]))
            class_loss = (1 - share) * class_loss + share * divergences[-1]
            box_loss = box_loss if no_truth else (1 - share) * box_loss + share * follow
        losses.append(class_loss + box_loss)
    return losses, 0.5 * sum(divergences)


def _order(c: list[Tensor]) -> Tensor:
    # A term joins only when it is violated: the record's temperatures keep a gradient of None otherwise, and stay.
    violated = [gap for gap in (c[0].mean() - c[1].mean(), c[1].mean() - c[2].mean()) if gap > 0]
    return sum(violated) if violated else c[0].new_zeros(())


def recorded_loss(
    outputs: list[ExitMaps], targets: list[dict], temperatures: Sequence[Tensor], thresholds: Sequence[Tensor | float],
    config: PhaseConfig, epoch: float, generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The record's loss of a batch.

    Args:
        outputs: maps of exit1, exit2, full.
        targets: ``boxes`` (G, 4) an image, xyxy pixels, in the processor's memory: what is drawn at random is drawn
            there, so that it is the same on every device.
        temperatures: three, divide the logits in the confidence and nowhere else.
        thresholds: of exit1 and exit2; parameters where they are trained.
        epoch: fractional, for the weights and the slope.
        generator: draws the random positives and the Gumbel noise.

    Returns:
        The total, and its parts: loss of each exit, ``cascade``, ``order``, ``distribution``; mean and spread over the
        batch of each exit's confidence; hard and soft exit rates, and under ``rate_`` those in the loss; detached
        scalars.

    Source: the record, sections A.5 and B.
    """
    loss = config.loss
    matched, device = assign(targets, prior_boxes(outputs[0].grids_hw), config, generator), outputs[0].cls[0].device
    matched_boxes = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
    losses, cascade = _exit_losses(outputs, (matched >= 0).to(device), matched_boxes.to(device), config)
    p = [chair_probability(flatten_predictions(o.cls, 2), t) for o, t in zip(outputs, temperatures, strict=True)]
    c = [confidence(values, config.confidence) for values in p]
    order, slope = _order(c), slope_at(loss, epoch, config.optim.epochs)
    options = {"slope": slope, "temperature": loss.gumbel_temperature, "generator": generator}
    decided_on = [v.detach() for v in c[:2]] if loss.rates_detached else c[:2]
    rates = exit_rates(*decided_on, thresholds, loss.exit_rates, **options)
    distribution = distribution_loss(rates, loss)
    total = sum(w * part for w, part in zip(exit_weights(config, epoch), losses, strict=True))
    terms = ((loss.cascade, cascade), (loss.confidence_order, order), (loss.exit_distribution, distribution))
    for weight, term in terms:
        if weight:  # a term without a gradient is a constant of the value
            total = total + early_weight(config, epoch) * weight * (term if term.requires_grad else float(term))
    parts = {"loss": total} | {f"loss_{name}": part for name, part in zip(EXIT_NAMES, losses, strict=True)}
    parts |= {"loss_cascade": cascade, "loss_order": order, "loss_distribution": distribution}
    parts |= _state(c, p, temperatures, thresholds, rates, slope)
    return total, {name: torch.as_tensor(part, device=device).detach() for name, part in parts.items()}


@torch.no_grad()
def _state(c, p, temperatures, thresholds, rates, slope) -> dict[str, Tensor | float]:
    parts = {}
    for name, values, probabilities, temperature in zip(EXIT_NAMES, c, p, temperatures, strict=True):
        parts[f"confidence_{name}"] = values.mean()
        parts[f"confidence_std_{name}"] = values.std(correction=min(1, len(values) - 1))
        parts[f"probability_{name}"] = probabilities.mean()
        parts[f"temperature_mean_{name}"] = temperature
    hard, soft = (exit_rates(*c[:2], thresholds, kind, slope=slope) for kind in ("hard", "soft"))
    for k, name in enumerate(EXIT_NAMES[:2]):
        parts[f"rate_hard_{name}"], parts[f"rate_soft_{name}"] = hard[k], soft[k]
        parts[f"rate_{name}"], parts[f"threshold_{name}"] = rates[k], thresholds[k]
        parts[f"logistic_{name}"] = (2 * slope * (c[k] - thresholds[k])).sigmoid().mean()
    return parts
