"""Which exit an image takes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eelib.config import LossConfig, ThresholdConfig


def route(confidences: Tensor, thresholds: Sequence[float], group: int = 1) -> Tensor:
    """First exit whose confidence reaches its threshold; the last one takes the rest.

    Args:
        confidences: (N, E - 1 or more), one column an exit in order.
        thresholds: E - 1 values, one for each exit but the last.
        group: images that share one decision, made on their mean confidence. 1 decides for
            each image; 4 is the record's batch (defect 17).

    Returns:
        Exit index of each image, int64, shape (N,).

    Raises:
        ValueError: a confidence is NaN, or ``group`` is below 1.
    """
    if confidences.isnan().any():
        image, exit_ = confidences.isnan().nonzero()[0].tolist()
        raise ValueError(f"confidence of image {image} at exit {exit_ + 1} is NaN")
    if group < 1:
        raise ValueError(f"group: {group} images cannot share a decision; expected 1 or more")
    if group > 1:
        means = [chunk.mean(0, keepdim=True).expand_as(chunk) for chunk in confidences.split(group)]
        confidences = torch.cat(means)
    chosen = torch.full((len(confidences),), len(thresholds))
    for index in reversed(range(len(thresholds))):
        chosen[confidences[:, index] >= thresholds[index]] = index
    return chosen


def exit_shares(chosen: Tensor, exits: int = 3) -> list[float]:
    """Share of the images at each exit."""
    return (torch.bincount(chosen, minlength=exits) / max(1, len(chosen))).tolist()


def scheduled_thresholds(rule: ThresholdConfig, epoch: int, epochs: int) -> tuple[float, float]:
    """Thresholds in force during an epoch (from 0), for ``kind`` fixed and schedule.

    A schedule that divides by E instead of E - 1 misses its end (defect 37): 0.44 for 0.45.
    """
    if rule.kind != "schedule":
        return rule.exit1, rule.exit2
    share = min(1.0, epoch / max(1, epochs - (rule.schedule_end == "reached")))
    return (rule.exit1 + share * (rule.exit1_end - rule.exit1), rule.exit2 + share * (rule.exit2_end - rule.exit2))


def exit_rates(c1: Tensor, c2: Tensor, thresholds: Sequence[Tensor | float], kind: str, **options) -> list[Tensor]:
    """Share of a batch that would leave at exit1 and at exit2.

    Args:
        c1, c2: confidences (B,).
        thresholds: two values; parameters receive a gradient from ``"soft"`` and ``"gumbel"`` only.
        kind: ``"hard"`` compares, ``"soft"`` takes sigmoid(slope (c - threshold)), ``"gumbel"``
            draws a hard decision with a straight-through gradient; logits are plus and minus
            slope (c - threshold), so P(exit) = sigmoid(2 slope (c - threshold)) at any temperature.
        options: ``slope``; for ``"gumbel"`` also ``temperature`` and ``generator``.

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
    noise = -(-uniform.log()).log()
    soft = ((2 * margin + noise[0] - noise[1]) / temperature).sigmoid()
    return (soft >= 0.5).to(c.dtype) + soft - soft.detach()


def distribution_loss(rates: Sequence[Tensor], loss: LossConfig) -> Tensor:
    """Squared distance of two exit rates from ``exit_targets``: 0.1525 when nobody leaves early."""
    return sum((rate - target) ** 2 for rate, target in zip(rates, loss.exit_targets, strict=True))


def slope_at(loss: LossConfig, epoch: float, epochs: int) -> float:
    """Slope of the soft decisions, moving linearly over the epochs (defect 24: it never did)."""
    first, last = loss.exit_slope
    return first + (last - first) * min(1.0, epoch / max(1, epochs - 1))
