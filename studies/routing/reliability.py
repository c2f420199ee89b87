"""How honest the scores of each exit are, before and after calibration.

Source: Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR
Workshops 2020 (D-ECE, here over the confidence alone).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.calibrate import METHODS, calibrated, fit_calibrators, outcomes
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP
from studies.plots import EXIT_COLOURS, RECORDED_COLOUR, TEXT_WIDTH_IN

BINS = 20
SURE = 0.3  # Küppers et al. look at detections from this score on; most recorded ones are far below
MIN_COUNT = 10  # a bin with fewer detections says nothing about a share


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, list[float]]:
    """Equal-width bins of the score: mean score, share right and count of those that are not empty."""
    at = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(at, minlength=bins)
    filled = count > 0
    score, share = (np.bincount(at, weights=v, minlength=bins)[filled] / count[filled] for v in (scores, right))
    return {"score": score.tolist(), "right": share.tolist(), "count": count[filled].tolist()}


def d_ece(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Detection expected calibration error over the confidence alone, in [0, 1].

    Every recorded detection counts, from the score floor of the records on.

    Source: Küppers et al. 2020, equation 5 with bins of the confidence.
    """
    table = {key: np.array(values) for key, values in reliability(scores, right, bins).items()}
    if not len(scores):
        return 0.0
    return float((table["count"] * abs(table["score"] - table["right"])).sum() / len(scores))


def compare(
    fitted_on: ExitRecords,
    evaluator: RoutedAP,
    other: ExitRecords,
    other_evaluator: RoutedAP,
    mixes: Sequence[np.ndarray],
) -> dict[str, dict]:
    """Every method fitted on one split and measured on another.

    Args:
        fitted_on, evaluator: ``calibrate`` and its match flags, scores as recorded.
        other, other_evaluator: ``test`` and its match flags, scores as recorded.
        mixes: routings of ``other``; the AP of the mix is their mean.

    Returns:
        For each method ``exits`` (reliability bins, ``d_ece`` over all detections and over the
        ``sure`` ones that score :data:`SURE` and more, ``AP`` of each exit) and ``AP_mix``.
    """
    report = {}
    for method in METHODS:
        calibrators = fit_calibrators(fitted_on, evaluator, method)
        measured = other_evaluator.rescored(calibrated(other, calibrators))
        exits = {}
        for index, name in enumerate(other.exit_names):
            scores, right = outcomes(measured, index)
            sure = scores >= SURE
            exits[name] = reliability(scores, right) | {
                "d_ece": d_ece(scores, right),
                "d_ece_sure": d_ece(scores[sure], right[sure]),
                "sure": int(sure.sum()),
                "AP": measured.of_exit(index),
            }
        report[method] = {"exits": exits, "AP_mix": float(np.mean([measured.ap(mix) for mix in mixes]))}
    return report


def reliability_diagrams(before: Mapping[str, Mapping], after: Mapping[str, Mapping]) -> Figure:
    """Share of right detections against their score, an exit a column, before and after.

    Bins with fewer than :data:`MIN_COUNT` detections are left out of the upper row.

    Args:
        before, after: exit to ``score``, ``right``, ``count`` (bins) and ``d_ece``.
    """
    names = list(before)
    figure, axes = plt.subplots(
        2, len(names), figsize=(TEXT_WIDTH_IN, 4.2), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    for column, name in enumerate(names):
        top, bottom = axes[0, column], axes[1, column]
        top.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
        for table, colour, marker, label in (
            (before[name], RECORDED_COLOUR, "s", "raw score"),
            (after[name], EXIT_COLOURS[name], "o", "calibrated"),
        ):
            score, right, count = (np.array(table[key]) for key in ("score", "right", "count"))
            shown = count >= MIN_COUNT
            top.plot(score[shown], right[shown], color=colour, marker=marker, markersize=3.5, label=label)
            bottom.plot(score, count, color=colour, marker=marker, markersize=3)
        top.set_title(f"{name}: D-ECE {before[name]['d_ece']:.3f} → {after[name]['d_ece']:.3f}", fontsize=8)
        top.legend(loc="upper left", fontsize=7)
        top.set_xlim(0, 1)
        top.set_ylim(0, 1)
        bottom.axhline(MIN_COUNT, color="0.7", linewidth=0.8, linestyle=":")
        bottom.set_yscale("log")
        bottom.set_xlabel("score")
    axes[0, 0].set_ylabel("share right at IoU 0.5")
    axes[1, 0].set_ylabel("detections")
    return figure
