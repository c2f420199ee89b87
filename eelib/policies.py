"""Routing policies: from the evidence of an exit to the decision to leave there.

A policy is a list of settings (:class:`eelib.splits.Setting`), ordered or not. All confidences and
thresholds lie in [0, 1].

What is fitted is fitted on ``calibrate`` (the benefit regressor on ``val`` as well): every
function that fits refuses ``test``.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eelib.calibrate import fit_temperature, logit, outcomes, refuse_test
from eelib.gates import train_gates
from eelib.records import EVIDENCE
from eelib.splits import Confidence, PolicyError, Setting, Split


def top_score(split: Split) -> np.ndarray:
    """The best box's score at each exit."""
    return split.evidence[:, :-1, EVIDENCE.index("top_score")]


def no_chair(split: Split) -> np.ndarray:
    """How surely an image holds no chair: one less the best score."""
    return 1 - top_score(split)


def count_entropy(split: Split) -> np.ndarray:
    """High when few boxes are undecided: 1 / (1 + their summed entropy in bits)."""
    return 1 / (1 + split.evidence[:, :-1, EVIDENCE.index("undecided")])


def agreement(split: Split) -> np.ndarray:
    """How far an exit repeats the exit before it; 0 at the first. Source: PABEE, Zhou et al. 2020."""
    return split.evidence[:, :-1, EVIDENCE.index("agreement")]


def _swept(confidence: Confidence, calibrate: Split, grid: int) -> list[Setting]:
    """Pairs of quantiles of the confidences on ``calibrate``, first to last exit."""
    values = confidence(calibrate)
    levels = np.linspace(0, 1, grid)
    columns = [np.append(np.quantile(column, levels), 1.0) for column in values.T]
    mesh = np.stack(np.meshgrid(*columns, indexing="ij"), -1).reshape(-1, len(columns))
    return [Setting(tuple(map(float, row)), confidence) for row in mesh]


def _fixed(_: Split, __: Split, options: Mapping) -> list[Setting]:
    """One stated threshold for all exits."""
    return [Setting((float(t),) * 2, top_score) for t in np.linspace(0, 1, options["grid"] * 4 + 1)]


def _percentile(calibrate: Split, _: Split, __: Mapping) -> list[Setting]:
    """Geometric exit shares, thresholds at their percentiles. Source: MSDNet, Huang et al. 2018."""
    settings = []
    for ratio in np.geomspace(0.05, 20, 25):
        shares = ratio ** np.arange(len(calibrate.costs))
        shares, left, thresholds = shares / shares.sum(), np.ones(len(calibrate.records), bool), []
        for index, column in enumerate(top_score(calibrate).T):
            leave = shares[index] / shares[index:].sum()
            thresholds.append(float(np.quantile(column[left], 1 - leave)) if left.any() else 1.0)
            left = left & (column < thresholds[-1])
        settings.append(Setting(tuple(thresholds), top_score))
    return settings


def _patience(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Leave once two exits agree, so never at the first."""
    levels = np.quantile(agreement(calibrate)[:, -1], np.linspace(0, 1, 4 * options["grid"]))
    return [Setting((1.0, float(t)), agreement) for t in np.append(levels, 1.0)]


def _progressive(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Phase 1.7 repaired: its rising thresholds, on a confidence that can fall below them.

    The record's confidence never was below 0.5, so nothing could stay, and its temperature was
    moved by the routing loss and ran away. Here it is the best score under a temperature that
    is fitted to right and wrong boxes inside a clamp, and the schedule goes on up to a cap.
    """
    schedule = options["progressive"]
    temperatures = np.array(
        [
            fit_temperature(*outcomes(calibrate.evaluator, k), tuple(schedule["temperature"]))
            for k in range(len(calibrate.costs) - 1)
        ]
    )

    def tempered(split: Split) -> np.ndarray:
        return 1 / (1 + np.exp(-logit(top_score(split)) / temperatures))

    start, step = np.array(schedule["start"]), np.array(schedule["step"])
    rows = [np.minimum(start + epoch * step, schedule["cap"]) for epoch in range(schedule["epochs"])]
    return [Setting(tuple(map(float, row)), tempered) for row in rows]


def _learned(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Thresholds on the best score by a soft relaxation that is annealed, one pair a budget."""
    confidence = top_score(calibrate)
    mean, spread = confidence.mean(0), confidence.std(0) + 1e-9
    features = ((confidence - mean) / spread)[..., None]  # (N, E - 1, 1)
    weights = train_gates(features, calibrate.value, calibrate.costs, **options["gates"], slope=False)
    thresholds = mean - spread * weights[..., -1]  # the gate opens where feature + shift > 0
    return [Setting(tuple(map(float, np.clip(row, 0, 1))), top_score) for row in thresholds]


def _gumbel(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Linear gates on all the evidence, trained through Gumbel noise; an open gate is 0.5 and more."""
    evidence = calibrate.evidence[:, :-1]
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-6
    weights = train_gates(
        (evidence - mean) / spread, calibrate.value, calibrate.paid(True), **options["gates"], noise=True
    )

    def gate(row: np.ndarray) -> Confidence:
        def confidence(split: Split) -> np.ndarray:
            logits = ((split.evidence[:, :-1] - mean) / spread * row[:, :-1]).sum(-1) + row[:, -1]
            return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))

        return confidence

    return [Setting((0.5,) * len(row), gate(row)) for row in weights]


Features = Callable[[Split, int], np.ndarray]  # what an exit, by its index, knows of each image: (N, F)
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)  # of the ridge


def known_at(split: Split, index: int) -> np.ndarray:
    """Evidence of an exit and of all before it, and the squares: (N, 2 * F * (index + 1))."""
    known = split.evidence[:, : index + 1].reshape(len(split.evidence), -1)
    return np.concatenate((known, known**2), 1)


def ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Least squares with standardised columns and a penalty on all but the constant."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    scaled, centre = (features - mean) / spread, target.mean()
    gram = scaled.T @ scaled + penalty * np.eye(scaled.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (target - centre))
    return lambda rows: centre + np.clip((rows - mean) / spread, -5, 5) @ weights


@dataclass(frozen=True)
class GainRegressor:
    """Ridge regressors of what full would gain on an image, one an early exit, from what the exit knows.

    Attributes:
        features: of a split at an exit, (N, F).
        models: of each early exit, fitted on all images.
        held_out: for the images fitted on, the gains by the other folds of scenes, (N, E - 1).
        error: mean squared error of ``held_out``.
        penalty: of the ridge, the one of :data:`PENALTIES` with the least ``error``.
    """

    features: Features
    models: list[Callable[[np.ndarray], np.ndarray]]
    held_out: np.ndarray
    error: float
    penalty: float

    def gain(self, split: Split) -> np.ndarray:
        """Predicted for images that it was not fitted on, (N, E - 1)."""
        return np.stack([model(self.features(split, k)) for k, model in enumerate(self.models)], 1)


def fit_gain(
    fitted_on: Sequence[Split], targets: np.ndarray, features: Features = known_at, folds: int = 5
) -> GainRegressor:
    """Fit regressors of a gain and choose their penalty, both on the splits given.

    Args:
        fitted_on: splits; never ``test``.
        targets: gain of full over each early exit on all their images, (N, E - 1).
        features: what an exit knows.
        folds: of scenes, for the choice and for ``held_out``.
    """
    for split in fitted_on:
        refuse_test(split.name, "fitting the benefit")
    fold = np.concatenate([np.unique(s.scenes, return_inverse=True)[1] % folds for s in fitted_on])
    rows = [np.concatenate([features(s, k) for s in fitted_on]) for k in range(targets.shape[1])]
    fitted = []
    for penalty in PENALTIES:
        held_out = np.zeros_like(targets)
        for index, out in itertools.product(range(targets.shape[1]), [fold == k for k in range(folds)]):
            model = ridge(rows[index][~out], targets[~out, index], penalty)
            held_out[out, index] = model(rows[index][out])
        models = [ridge(known, column, penalty) for known, column in zip(rows, targets.T, strict=True)]
        fitted.append(GainRegressor(features, models, held_out, float(((held_out - targets) ** 2).mean()), penalty))
    return min(fitted, key=lambda one: one.error)


def fit_benefit(fitted_on: Sequence[Split], target: Callable[[Split], np.ndarray]) -> Confidence:
    """The confidence that full would gain nothing on an image, from what the exit knows.

    A split that it was fitted on gets cross-fitted confidences: each scene's come from the
    other folds, so thresholds chosen there meet the spread of unseen images.

    Args:
        fitted_on: splits; never ``test``.
        target: gain of full over each exit, (N, E - 1).

    Returns:
        Confidence: near 1 where full would gain nothing, near 0 where it would gain most.
    """
    targets = np.concatenate([target(s) for s in fitted_on])
    ends = np.cumsum([len(s.records) for s in fitted_on])
    regressor = fit_gain(fitted_on, targets)
    # one scale for all exits, so that a threshold stands for the same gain at each
    centre, scale = targets.mean(), targets.std() + 1e-9

    def images_of(split: Split) -> tuple:
        return split.name, split.records.split_sha256, split.records.image_ids

    own = {images_of(s): regressor.held_out[end - len(s.records) : end] for s, end in zip(fitted_on, ends, strict=True)}

    def confidence(split: Split) -> np.ndarray:
        gain = own[images_of(split)] if images_of(split) in own else regressor.gain(split)
        return 1 / (1 + np.exp(np.clip(4 * (gain - centre) / scale, -30, 30)))

    return confidence


def _benefit(calibrate: Split, val: Split, options: Mapping) -> list[Setting]:
    """Leave where full is predicted to add little to AP."""
    known = [calibrate] if val.name == calibrate.name else [val, calibrate]
    confidence = fit_benefit(known, lambda s: s.gains)
    return _swept(confidence, calibrate, options["grid"])


POLICIES: dict[str, Callable[[Split, Split, Mapping], list[Setting]]] = {
    "fixed": _fixed,
    "percentile": _percentile,
    "max_score": lambda calibrate, _, options: _swept(top_score, calibrate, options["grid"]),
    "count_entropy": lambda calibrate, _, options: _swept(count_entropy, calibrate, options["grid"]),
    "no_chair": lambda calibrate, _, options: _swept(no_chair, calibrate, options["grid"]),
    "patience": _patience,
    "learned": _learned,
    "gumbel": _gumbel,
    "progressive": _progressive,
    "benefit": _benefit,
}


READ_BOXES = ("count_entropy", "patience", "gumbel", "benefit")  # policies whose evidence is taken after suppression


def check_policy(name: str) -> None:
    """:class:`PolicyError` unless the policy exists."""
    if name not in POLICIES:
        raise PolicyError(f"policy: {name!r} is unknown; expected one of {', '.join(POLICIES)}")


def settings_of(name: str, calibrate: Split, val: Split, options: Mapping) -> list[Setting]:
    """All settings of a policy.

    Args:
        name: one of :data:`POLICIES`.
        calibrate, val: what it may be fitted on.
        options: ``grid``, ``progressive`` and ``gates`` of ``params/report_policies.yaml``.

    Raises:
        PolicyError: the policy is unknown.
        CalibrationError: a split to fit on is ``test``.
    """
    check_policy(name)
    for split in (calibrate, val):
        refuse_test(split.name, f"choosing thresholds of '{name}'")
    settings = POLICIES[name](calibrate, val, options)
    return [replace(setting, reads_boxes=True) for setting in settings] if name in READ_BOXES else settings
