"""Scores that can be mixed: after calibration 0.7 means the same at every exit.

Detections of different exits are pooled in one AP, so an exit that overstates its scores
pushes another exit's right boxes down the list. Each exit's scores are mapped, after
suppression, to the share of right detections (IoU 0.5) seen on ``calibrate``.

Source: Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR
Workshops 2020; Zadrozny and Elkan, KDD 2002 (isotonic); Platt, 1999 (logistic).
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from eelib.deploy.evidence import Calibrator, Isotonic, Platt, Raw, logit
from eelib.files import InputError
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP


class CalibrationError(InputError):
    """Nothing can be fitted here; the message names the split and what was expected."""


def refuse_test(split: str, what: str) -> None:
    """:class:`CalibrationError` for ``test``: nothing is ever tuned on it."""
    if split == "test":
        raise CalibrationError(f"{what} on 'test': nothing is ever tuned on test; use 'calibrate' or 'val'")


def fit_isotonic(scores: np.ndarray, right: np.ndarray) -> Isotonic:
    """A rising map through the centres of the isotonic blocks and the corners (0, 0), (1, 1).

    Straight lines between the centres keep the order of scores inside a block, which AP needs.
    """
    values, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    fit = isotonic_regression(np.bincount(group, weights=right) / count, weights=count)
    x = np.add.reduceat(values * count, fit.blocks[:-1]) / fit.weights  # mean score of each block
    y = fit.x[fit.blocks[:-1]]
    inside = (x > 0) & (x < 1)
    return Isotonic((0.0, *x[inside].tolist(), 1.0), (0.0, *y[inside].tolist(), 1.0))


def fit_platt(scores: np.ndarray, right: np.ndarray) -> Platt:
    """A logistic map of the log odds of the score to Platt's soft targets.

    Its slope is held above 0.01: a map that falls would turn an exit's ranking around.
    """
    positives = right.sum()
    target = np.where(right > 0, (positives + 1) / (positives + 2), 1 / (len(right) - positives + 2))
    design = np.stack((logit(scores), np.ones(len(scores))), 1)  # (D, 2)

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        z = design @ beta
        gradient = design.T @ (expit(z) - target) + 1e-6 * beta
        return (np.logaddexp(0, z) - target * z).sum() + 0.5e-6 * beta @ beta, gradient

    slope, shift = minimize(loss, [1.0, 0.0], jac=True, method="BFGS").x
    return Platt(max(float(slope), 0.01), float(shift))


METHODS = {"isotonic": fit_isotonic, "platt": fit_platt, "none": lambda scores, right: Raw()}


def outcomes(evaluator: RoutedAP, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one exit's detections and whether each is right at IoU 0.5: (D,), (D,) of 0 and 1."""
    rows = (evaluator.exit == index) & ~evaluator.ignored[0]
    return evaluator.score[rows], evaluator.matched[0][rows].astype(float)


def fit_calibrators(records: ExitRecords, evaluator: RoutedAP, method: str = "isotonic") -> tuple[Calibrator, ...]:
    """One calibrator an exit, from records of ``calibrate`` (or ``val``) and their match flags.

    Args:
        method: ``isotonic``, ``platt``, or ``none`` for the scores as they are.

    Raises:
        CalibrationError: the split is ``test``, is empty or holds no object; unknown method.
    """
    refuse_test(records.split, "calibrating")
    if method not in METHODS:
        raise CalibrationError(f"calibration: {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if not len(records) or not evaluator.positives.sum():
        raise CalibrationError(f"calibrating on '{records.split}': {len(records)} images hold no object to learn from")
    pairs = [outcomes(evaluator, index) for index in range(len(records.exit_names))]
    for name, (scores, _) in zip(records.exit_names, pairs, strict=True):
        if method != "none" and not len(scores):
            raise CalibrationError(f"calibrating on '{records.split}': {name} has no detections")
    return tuple(METHODS[method](*pair) for pair in pairs)


def calibrated(records: ExitRecords, calibrators: Sequence[Calibrator]) -> ExitRecords:
    """The records under calibrated scores."""
    pairs = zip(calibrators, records.scores, strict=True)
    return records.with_scores([calibrator(scores.astype(np.float64)) for calibrator, scores in pairs])
