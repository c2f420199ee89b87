"""Routing policies: from the evidence of an exit to the decision to leave there.

A policy is a list of settings (:class:`eelib.routing.Setting`), ordered or not, from which
:func:`eelib.routing.choose` takes one for a budget. What is fitted is fitted on ``calibrate`` (the benefit's
regressors on ``val`` as well): every function that fits refuses ``test``.

Examples:
    >>> "benefit" in eelib.POLICIES  # the name of a policy to the function that makes its settings
    True
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge

from eelib.calibrate import refuse_test
from eelib.deploy.evidence import Benefit, Column, Confidence, Function, Regressor, features_at
from eelib.routing import PolicyError, Setting, Split

BEST_SCORE = Column("top_score")
NO_CHAIR = Column("top_score", "complement")  # how surely an image holds no chair
# High when the boxes' summed entropy is low: the entropy of the exit's answer, if its boxes are independent. Source of
# a threshold on entropy: Teerapittayanon et al., "BranchyNet", ICPR 2016.
FEW_UNDECIDED = Column("undecided", "inverse")
AGREEMENT = Column("agreement")  # how far an exit repeats the one before
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)  # of the ridge

Policy = Callable[[Split, Split, Mapping], list[Setting]]  # of calibrate, val and options such as `grid`
Features = Callable[[Split, int], np.ndarray]  # what an exit, by its index, knows of each image: (N, F)


def swept(
    confidence: Confidence, calibrate: Split, grid: int, cross_fitted: Mapping[tuple, np.ndarray] | None = None
) -> list[Setting]:
    """Quantiles of the confidences on ``calibrate``, first to last exit, in all combinations."""
    values = Setting((), confidence, cross_fitted or {}).on(calibrate)
    levels = np.linspace(0, 1, grid)
    columns = [np.append(np.quantile(column, levels), 1.0) for column in values.T]
    mesh = np.stack(np.meshgrid(*columns, indexing="ij"), -1).reshape(-1, len(columns))
    return [Setting(tuple(row), confidence, cross_fitted or {}) for row in mesh.tolist()]


def sweep_of(confidence: Confidence) -> Policy:
    """The policy that sweeps the thresholds of a confidence which is not fitted."""
    return lambda calibrate, _, options: swept(confidence, calibrate, options["grid"])


def _fixed(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """One stated threshold for all exits."""
    early = len(calibrate.costs) - 1
    return [Setting((float(t),) * early, BEST_SCORE) for t in np.linspace(0, 1, options["grid"] * 4 + 1)]


def _percentile(calibrate: Split, _: Split, __: Mapping) -> list[Setting]:
    """Exit shares in a geometric series, thresholds at the percentiles of the best score that give them.

    Source: the budgeted batch of Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image
    Classification" (MSDNet), ICLR 2018.
    """
    settings, scores = [], Setting((), BEST_SCORE).on(calibrate)
    for ratio in np.geomspace(0.05, 20, 25):
        shares = ratio ** np.arange(len(calibrate.costs))
        shares, left, thresholds = shares / shares.sum(), np.ones(len(calibrate.records), bool), []
        for index, column in enumerate(scores.T):
            leave = shares[index] / shares[index:].sum()
            thresholds.append(float(np.quantile(column[left], 1 - leave)) if left.any() else 1.0)
            left = left & (column < thresholds[-1])
        settings.append(Setting(tuple(thresholds), BEST_SCORE))
    return settings


def _patience(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Leave once two exits agree, so never at the first: a patience of one, which is all that three exits allow.

    Agreement of two classes is that of two sets of boxes here, and takes a threshold as for a regression there.
    Source: Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit" (PABEE), NeurIPS 2020.
    """
    agreement = Setting((), AGREEMENT).on(calibrate)
    levels = np.append(np.quantile(agreement[:, -1], np.linspace(0, 1, 4 * options["grid"])), 1.0)
    return [Setting((1.0, *[float(level)] * (agreement.shape[1] - 1)), AGREEMENT) for level in levels]


def evidence_features(names: Sequence[str]) -> Features:
    """Some evidence of an exit and of all before it, and the squares: (N, 2 * F * (index + 1))."""
    return lambda split, index: features_at(split.columns(names), index)


def ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> Regressor:
    """Least squares with standardised columns and a penalty on all but the constant."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    fit = Ridge(alpha=penalty, solver="cholesky").fit((features - mean) / spread, target)
    return Regressor(tuple(mean.tolist()), tuple(spread.tolist()), tuple(fit.coef_.tolist()), float(fit.intercept_))


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
    models: tuple[Regressor, ...]
    held_out: np.ndarray
    error: float
    penalty: float

    def gain(self, split: Split) -> np.ndarray:
        """Predicted for images that it was not fitted on, (N, E - 1)."""
        return np.stack([model(self.features(split, k)) for k, model in enumerate(self.models)], 1)


def fit_gain(fitted_on: Sequence[Split], targets: np.ndarray, features: Features, folds: int = 5) -> GainRegressor:
    """Fit regressors of a gain and choose their penalty, both on splits that are never ``test``.

    Args:
        targets: gain of full over each early exit on all their images, (N, E - 1).
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
            held_out[out, index] = ridge(rows[index][~out], targets[~out, index], penalty)(rows[index][out])
        models = tuple(ridge(x, y, penalty) for x, y in zip(rows, targets.T, strict=True))
        fitted.append(GainRegressor(features, models, held_out, float(((held_out - targets) ** 2).mean()), penalty))
    return min(fitted, key=lambda regressor: regressor.error)


def fit_benefit(
    fitted_on: Sequence[Split], target: Callable[[Split], np.ndarray], evidence: Sequence[str] | None = None
) -> tuple[Benefit, dict[tuple, np.ndarray]]:
    """The confidence that full would gain nothing on an image, from what the exit knows.

    Args:
        fitted_on: splits; never ``test``.
        target: gain of full over each exit, (N, E - 1).
        evidence: names of what the exit knows; None is what costs next to nothing,
            :attr:`eelib.records.ExitRecords.raw_names`. On ``calibrate`` the evidence of boxes gave no more AP at the
            same time, and reading it takes 3 to 13 % of the plain detector's.

    Returns:
        The confidence, and its cross-fitted values on the splits that it was fitted on, as
        :attr:`eelib.routing.Setting.cross_fitted`.
    """
    names = tuple(evidence or fitted_on[0].records.raw_names)
    targets = np.concatenate([target(s) for s in fitted_on])
    regressor = fit_gain(fitted_on, targets, evidence_features(names))
    # one scale for all exits, so that a threshold stands for the same gain at each
    benefit = Benefit(names, regressor.models, float(targets.mean()), float(targets.std() + 1e-9))
    ends = np.cumsum([len(s.records) for s in fitted_on])[:-1]
    parts = np.split(benefit.of_gain(regressor.held_out), ends)
    return benefit, {split.images: part for split, part in zip(fitted_on, parts, strict=True)}


def _benefit(calibrate: Split, val: Split, options: Mapping) -> list[Setting]:
    """Leave where full is predicted to add little to AP."""
    fitted_on = [calibrate] if val.name == calibrate.name else [val, calibrate]
    benefit, cross_fitted = fit_benefit(fitted_on, lambda split: split.gains, options.get("evidence"))
    return swept(benefit, calibrate, options["grid"], cross_fitted)


# Those that can be deployed. A study adds its experiments where it uses them.
POLICIES: dict[str, Policy] = {
    "fixed": _fixed,
    "percentile": _percentile,
    "max_score": sweep_of(BEST_SCORE),
    "count_entropy": sweep_of(FEW_UNDECIDED),
    "no_chair": sweep_of(NO_CHAIR),
    "patience": _patience,
    "benefit": _benefit,
}


def check_policy(name: str) -> None:
    """:class:`PolicyError` unless the policy exists, or is ``module:function``."""
    if name not in POLICIES and ":" not in name:
        raise PolicyError(f"policy: {name!r} is unknown; expected {', '.join(POLICIES)}, or module:function")


def settings_of(name: str, calibrate: Split, val: Split, options: Mapping) -> list[Setting]:
    """All settings of a policy.

    Args:
        name: one of :data:`POLICIES`, or ``module:function`` of the user's own confidence, see
            :class:`eelib.deploy.evidence.Function`.
        calibrate, val: what it may be fitted on.
        options: ``grid``, the quantiles of a confidence to each exit; ``evidence``, names of what the benefit or the
            user's function reads; and what else the policy asks for.

    Raises:
        PolicyError: the policy is unknown.
        CalibrationError: a split to fit on is ``test``.
    """
    check_policy(name)
    for split in (calibrate, val):
        refuse_test(split.name, f"choosing thresholds of '{name}'")
    if ":" in name:
        own = Function(name, tuple(options.get("evidence") or calibrate.records.raw_names))
        return swept(own, calibrate, options["grid"])
    return POLICIES[name](calibrate, val, options)
