"""Which exit an image takes."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
