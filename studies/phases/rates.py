"""Thresholds of an epoch, and the exit rates that the record's routing losses are made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eelib.config import LossConfig, ThresholdConfig
from eelib.deploy.evidence import first_exit


def scheduled_thresholds(rule: ThresholdConfig, epoch: int, epochs: int) -> tuple[float, float]:
    """Thresholds in force during an epoch (from 0), for ``kind`` fixed and schedule.

    A schedule that divides by E instead of E - 1 misses its end (defect 37): 0.44 for 0.45.
    """
    if rule.kind != "schedule":
        return rule.exit1, rule.exit2
    share = min(1.0, epoch / max(1, epochs - (rule.schedule_end == "reached")))
    return (rule.exit1 + share * (rule.exit1_end - rule.exit1), rule.exit2 + share * (rule.exit2_end - rule.exit2))


def first_exit_of_groups(confidences: Tensor, thresholds: Sequence[float], group: int = 1) -> Tensor:
    """Exit index of each image, int64 (N,): the first whose confidence reaches its threshold, else the last.

    Args:
        confidences: (N, 2 or more), one column an exit in order.
        thresholds: of exit1 and exit2.
        group: images that share one decision, made on their mean confidence. 4 is the record's batch (defect 17).
    """
    means = [chunk.mean(0, keepdim=True).expand_as(chunk) for chunk in confidences.split(group)]
    return torch.from_numpy(first_exit(torch.cat(means).numpy(), thresholds))


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
