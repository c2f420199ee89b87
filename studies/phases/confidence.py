"""From an exit's boxes to one number in [0, 1]: the rules of the record and a sound default.

All rules take ``p``, the chair probability of each box after the temperature, shape (B, A),
and return one confidence an image, shape (B,). ``m`` is max(p, 1 - p).
"""

import torch
from torch import Tensor

from studies.phases.config import ConfidenceConfig


def chair_probability(cls_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Chair probability of each box from logits (B, A, 2), background first: (B, A)."""
    return (cls_logits / temperature).softmax(-1)[..., 1]


def top_score(p: Tensor) -> Tensor:
    """The best box's probability: it does not fall when an image holds few chairs."""
    return p.amax(1)


def mean_max(p: Tensor) -> Tensor:
    """Mean of max(p, 1 - p), never below 0.5: phases 1.7 and the lost 1.1 run (defect 22)."""
    return torch.maximum(p, 1 - p).mean(1)


def entropy(p: Tensor) -> Tensor:
    """Mean of 1 - H2(p), the binary entropy in bits: phase 1.1 on record."""
    q = p.clamp(1e-7, 1 - 1e-7)
    return (1 + (q * q.log2() + (1 - q) * (1 - q).log2())).mean(1)


def counted(p: Tensor, rule: ConfidenceConfig) -> Tensor:
    """Mean score of the boxes above a cut, with factors for their count: phases 1.2 to 1.6.

    With S the boxes above ``cut`` and n their number: at ``min_count`` and more the value is
    0.8 mean_S(p) + 0.2 mean_S(m) times a factor that rises to 1 over ``count_bonus[1]`` boxes;
    for fewer, ``penalty_few`` times 0.6 mean_S(p) + 0.4 mean_S(m); for none, ``penalty_none``
    times mean(m). The jumps at the cut are defect 32.

    Source: the record, sections B.2 to B.4.
    """
    m = torch.maximum(p, 1 - p)
    chosen = (p > rule.cut).to(p.dtype)
    count = chosen.sum(1)
    mean_p = (p * chosen).sum(1) / count.clamp(min=1)
    mean_m = (m * chosen).sum(1) / count.clamp(min=1)
    start, boxes = rule.count_bonus
    factor = (start + (1 - start) * (count - rule.min_count) / boxes).clamp(max=1)
    enough = factor * (0.8 * mean_p + 0.2 * mean_m)
    few = rule.penalty_few * (0.6 * mean_p + 0.4 * mean_m)
    value = torch.where(count >= rule.min_count, enough, few)
    return torch.where(count > 0, value, rule.penalty_none * m.mean(1))


def split_max(p: Tensor) -> Tensor:
    """0.7 of the chair boxes' mean m and 0.3 of the background boxes' mean m: the lost run of phase 1.1.

    Where one kind is empty the other's mean stands alone; the record's NaN for an image without
    background (defect 46) is not repeated.
    """
    m, chair = torch.maximum(p, 1 - p), p > 0.5
    chairs = (m * chair).sum(1) / chair.sum(1).clamp(min=1)
    background = (m * ~chair).sum(1) / (~chair).sum(1).clamp(min=1)
    mixed = torch.where(chair.all(1), chairs, 0.7 * chairs + 0.3 * background)
    return torch.where(chair.any(1), mixed, background)


def count_gate(p: Tensor, rule: ConfidenceConfig) -> Tensor:
    """Factor in [0, 1] for the number of boxes above ``cut``, shape (B,).

    ``hard_count`` is an indicator and ``sigmoid_of_count`` a sigmoid of a hard count: neither
    passes a gradient to the count (defects 30 and 31). ``soft_count`` does.

    Source: the record, sections B.8 and B.9.
    """
    count = (p > rule.cut).sum(1).to(p.dtype)
    match rule.gate:
        case "none":
            return torch.ones_like(count)
        case "hard_count":
            return (count >= rule.min_count).to(p.dtype)
        case "soft_count":
            count = (rule.soft_count_slope * (p - rule.cut)).sigmoid().sum(1)
    return (rule.gate_slope * (count - rule.min_count)).sigmoid()


def gated_mean(p: Tensor, rule: ConfidenceConfig) -> Tensor:
    """Mean of p over all boxes times a gate: phases 1.8 and 1.9. On a good detector it is near 0 (defect 33)."""
    return p.mean(1) * count_gate(p, rule)


def confidence(p: Tensor, rule: ConfidenceConfig) -> Tensor:
    """Confidence of each image by the configured rule, shape (B,)."""
    if rule.rule in ("counted", "gated_mean"):
        return {"counted": counted, "gated_mean": gated_mean}[rule.rule](p, rule)
    return {"top_score": top_score, "mean_max": mean_max, "split_max": split_max, "entropy": entropy}[rule.rule](p)
