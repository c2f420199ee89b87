"""From an exit's boxes to one number in [0, 1]: the rules of the record and a sound default.

All rules take ``p``, the chair probability of each box after the temperature, shape (B, A),
and return one confidence an image, shape (B,). ``m`` is max(p, 1 - p).
"""

import torch
from torch import Tensor

from eelib.config import ConfidenceConfig
from eelib.model import flatten_predictions


def chair_probability(cls_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Chair probability of each box from logits (B, A, 2), background first: (B, A)."""
    return (cls_logits / temperature).softmax(-1)[..., 1]


def probability_of_maps(cls_maps: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Chair probability from a class map (B, K * 2, H, W), channel pairs permuted: (B, H * W * K)."""
    return chair_probability(flatten_predictions([cls_maps], 2), temperature)


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


def confidence(p: Tensor, rule: ConfidenceConfig) -> Tensor:
    """Confidence of each image by the configured rule, shape (B,)."""
    if rule.rule == "counted":
        return counted(p, rule)
    return {"top_score": top_score, "mean_max": mean_max, "entropy": entropy}[rule.rule](p)
