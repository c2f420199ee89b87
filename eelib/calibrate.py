"""Scores that can be mixed: after calibration 0.7 means the same at every exit.

Detections of different exits are pooled in one AP, so an exit that overstates its scores
pushes another exit's right boxes down the list. Each exit's scores are mapped, after
suppression, to the share of right detections (IoU 0.5) seen on ``calibrate``.

Source: Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR
Workshops 2020 (D-ECE, here over the confidence alone); Zadrozny and Elkan, KDD 2002
(isotonic); Platt, 1999 (logistic).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP

METHODS = ("isotonic", "platt", "none")
BINS = 20
SURE = 0.3  # Küppers et al. look at detections from this score on; most recorded ones are far below


class CalibrationError(ValueError):
    """Nothing can be fitted here; the message names the split and what was expected."""


Calibrator = Callable[[np.ndarray], np.ndarray]


def refuse_test(split: str, what: str) -> None:
    """:class:`CalibrationError` for ``test``: nothing is ever tuned on it."""
    if split == "test":
        raise CalibrationError(f"{what} on 'test': nothing is ever tuned on test; use 'calibrate' or 'val'")


def pool_adjacent_violators(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic regression of ``right`` (0 or 1) on ``scores``.

    Returns:
        Mean score and mean of ``right`` of each block, both rising: (K,), (K,).
    """
    value, group = np.unique(scores, return_inverse=True)
    weight = np.bincount(group).astype(float)
    blocks: list[list[float]] = []  # [weight, sum of scores, sum of right]
    for w, s, r in zip(weight, value * weight, np.bincount(group, weights=right), strict=True):
        blocks.append([w, s, r])
        while len(blocks) > 1 and blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    table = np.array(blocks)
    return table[:, 1] / table[:, 0], table[:, 2] / table[:, 0]


def isotonic(scores: np.ndarray, right: np.ndarray) -> Calibrator:
    """A rising map through the centres of the isotonic blocks and the corners (0, 0), (1, 1).

    Straight lines between the centres, and a share of the score where they are level, keep
    the order of scores inside a block, which AP needs.
    """
    x, y = pool_adjacent_violators(scores, right)
    inside = (x > 0) & (x < 1)
    x, y = np.concatenate(([0.0], x[inside], [1.0])), np.concatenate(([0.0], y[inside], [1.0]))
    return lambda values: (1 - 1e-5) * np.interp(values, x, y) + 1e-5 * values  # told apart in float32, too


def logit(scores: np.ndarray) -> np.ndarray:
    """Log odds of scores, held finite."""
    q = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(q / (1 - q))


def platt(scores: np.ndarray, right: np.ndarray, steps: int = 50) -> Calibrator:
    """A logistic map of the logit of the score, by Newton's method with Platt's soft targets.

    Its slope is held above 0.01: a map that falls would turn an exit's ranking around.
    """
    positives = right.sum()
    target = np.where(right > 0, (positives + 1) / (positives + 2), 1 / (len(right) - positives + 2))
    design = np.stack((logit(scores), np.ones(len(scores))), 1)  # (D, 2)
    beta = np.array([1.0, 0.0])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (p - target) + 1e-6 * beta
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        beta = beta - step * min(1.0, 2.0 / max(abs(step).max(), 1e-12))
        if abs(step).max() < 1e-8:
            break
    slope, shift = max(beta[0], 0.01), beta[1]
    return lambda values: 1 / (1 + np.exp(-(slope * logit(values) + shift)))


def fit_temperature(scores: np.ndarray, right: np.ndarray, clamp: tuple[float, float]) -> float:
    """Temperature of least negative log-likelihood inside a clamp, by golden section on log T."""
    values = logit(scores)

    def loss(log_t: float) -> float:
        z = values / np.exp(log_t)
        return float((np.logaddexp(0, z) - right * z).mean())

    low, high = np.log(clamp[0]), np.log(clamp[1])
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))


def outcomes(evaluator: RoutedAP, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one exit's detections and whether each is right at IoU 0.5: (D,), (D,) of 0 and 1."""
    rows = (evaluator.exit == index) & ~evaluator.ignored[0]
    return evaluator.score[rows], evaluator.matched[0][rows].astype(float)


def fit_calibrators(records: ExitRecords, evaluator: RoutedAP, method: str = "isotonic") -> list[Calibrator]:
    """One calibrator an exit.

    Args:
        records: of ``calibrate`` (or ``val``).
        evaluator: their match flags.
        method: ``isotonic``, ``platt``, or ``none`` for the scores as they are.

    Raises:
        CalibrationError: the split is ``test``, is empty or holds no object; unknown method.
    """
    refuse_test(records.split, "calibrating")
    if method not in METHODS:
        raise CalibrationError(f"calibration: {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if not len(records) or not evaluator.positives.sum():
        raise CalibrationError(f"calibrating on '{records.split}': {len(records)} images hold no object to learn from")
    if method == "none":
        return [lambda values: values] * len(records.exit_names)
    fit = {"isotonic": isotonic, "platt": platt}[method]
    calibrators = []
    for index, name in enumerate(records.exit_names):
        scores, right = outcomes(evaluator, index)
        if not len(scores):
            raise CalibrationError(f"calibrating on '{records.split}': {name} has no detections")
        calibrators.append(fit(scores, right))
    return calibrators


def calibrated(records: ExitRecords, calibrators: Sequence[Calibrator]) -> ExitRecords:
    """The records under calibrated scores."""
    scores = [
        torch.from_numpy(np.asarray(f(s.double().numpy()))) for f, s in zip(calibrators, records.scores, strict=True)
    ]
    return records.with_scores(scores)


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, list[float]]:
    """Equal-width bins of the score: mean score, share right and count of those that are not empty."""
    at = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(at, minlength=bins)
    kept = count > 0
    score, share = (np.bincount(at, weights=v, minlength=bins)[kept] / count[kept] for v in (scores, right))
    return {"score": score.tolist(), "right": share.tolist(), "count": count[kept].tolist()}


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
    methods: Sequence[str] = METHODS,
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
    for method in methods:
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
