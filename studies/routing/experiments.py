"""Policies that the dissertation tries and no user should deploy: add them by ``POLICIES.update(EXPERIMENTS)``."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from eelib.calibrate import outcomes
from eelib.deploy.evidence import Confidence, logit
from eelib.policies import Policy
from eelib.routing import Setting, Split
from studies.routing.gates import gumbel, learned
from studies.routing.published import branchynet, dynamic_det


def fit_temperature(scores: np.ndarray, right: np.ndarray, clamp: tuple[float, float]) -> float:
    """Temperature of least negative log-likelihood inside a clamp."""
    values = logit(scores)

    def loss(log_t: float) -> float:
        z = values / np.exp(log_t)
        return float((np.logaddexp(0, z) - right * z).mean())

    fit = minimize_scalar(loss, bounds=np.log(clamp), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(fit.x))


@dataclass(frozen=True)
class Tempered(Confidence):
    """The best score under a temperature of each early exit."""

    temperatures: tuple[float, ...]
    evidence = ("top_score",)

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """As in :class:`eelib.deploy.evidence.Confidence`."""
        return 1 / (1 + np.exp(-logit(evidence[:, index, 0]) / self.temperatures[index]))


def progressive(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Phase 1.7 repaired: its rising thresholds, on a confidence that can fall below them.

    The record's confidence never was below 0.5, so nothing could stay, and its temperature was
    moved by the routing loss and ran away. Here it is the best score under a temperature that
    is fitted to right and wrong boxes inside a clamp, and the schedule goes on up to a cap.
    """
    schedule, early = options["progressive"], range(len(calibrate.costs) - 1)
    clamp = tuple(schedule["temperature"])
    tempered = Tempered(tuple(fit_temperature(*outcomes(calibrate.evaluator, k), clamp) for k in early))
    start, step = np.array(schedule["start"]), np.array(schedule["step"])
    rows = [np.minimum(start + epoch * step, schedule["cap"]) for epoch in range(schedule["epochs"])]
    return [Setting(tuple(map(float, row)), tempered) for row in rows]


EXPERIMENTS: dict[str, Policy] = {
    "branchynet": branchynet, "dynamic_det": dynamic_det, "learned": learned, "gumbel": gumbel,
    "progressive": progressive,
}  # fmt: skip
# Policies that learn more than thresholds from data, or train these by gradient: the complex ones. All others compare
# a number that an exit has at hand with thresholds: the simple ones.
COMPLEX = ("benefit", "dynamic_det", "gumbel", "learned", "progressive")
