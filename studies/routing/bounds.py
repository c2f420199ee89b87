"""What a policy is worth: AP against time beside a coin, between it and an oracle, and beside static detectors.

The *coin* chooses one exit of the same network at random for a whole run, so its AP and time lie on the straight line
between two exits (:mod:`studies.hull`). All comparisons are paired over the same resamples of scenes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eelib.routed_ap import interval
from eelib.routing import Setting, Split, choose, point
from studies.hull import Hull, above
from studies.routing.worth import Beside, Static

STEPS = 201  # of the area between two curves


class Judge(Beside):
    """Measures routings of ``test`` beside the coin of the same exits and the hull of static detectors.

    Args:
        test: split, all of it or a part; a part is never called above anything.
        resamples: bootstrap draws of scenes.
        static: detectors on the same images; none are compared where there are none.
    """

    def __init__(self, test: Split, resamples: int, static: Sequence[Static] = ()):
        self.whole = len(test.records) == len(test.coco.imgs)
        super().__init__(test, test.costs, static if self.whole else (), None, resamples)

    def coin_at(self, time: float) -> float:
        """AP of the best coin at a mean time; NaN where every exit is slower."""
        best = Hull(self.test.costs, self.ap[None]).at(time)
        return float("nan") if best is None else float(best[0])

    def point(self, chosen: np.ndarray, reads_boxes: bool = False) -> dict:
        """One routing measured.

        Returns:
            What :func:`eelib.routing.point` says, ``coin``, its AP, ``AP_minus_coin`` with its interval, and
            ``above_coin``; with static detectors ``minus_static`` and ``above_static``. Verdicts of a part of the split
            are None.
        """
        samples = self.samples(chosen)
        row = point(self.test, chosen, reads_boxes, samples, self.exits[:, -1])
        time = row["time_ratio"]
        coin, beside = self.coin_at(time), self.coin.gap(time, samples)
        row |= {
            "coin": coin,
            "AP_minus_coin": row["AP"] - coin,
            "AP_minus_coin_interval": interval(beside),
            "above_coin": above(beside) if self.whole else None,
        }
        hull = self.hulls.get("static")
        if hull is not None and (gap := hull.gap(time, samples)) is not None:
            row |= {"minus_static": interval(gap), "above_static": above(gap)}
        return row


@dataclass(frozen=True)
class Curve:
    """Points of AP and time, as :meth:`Judge.point` measures them, and AP on the resamples, (R, P)."""

    points: list[dict]
    samples: np.ndarray

    @cached_property
    def times(self) -> np.ndarray:
        """(P,)."""
        return np.array([point["time_ratio"] for point in self.points])

    @property
    def ap(self) -> np.ndarray:
        """(1, P)."""
        return np.array([[point["AP"] for point in self.points]])


def policy_curve(settings: Sequence[Setting], calibrate: Split, judge: Judge, budgets: Sequence[float]) -> Curve:
    """A policy at several budgets: thresholds from ``calibrate``, everything else from ``test``."""
    points, samples = [], []
    for budget, setting in zip(budgets, choose(settings, calibrate, budgets), strict=True):
        chosen = setting.route(judge.test)
        row = {"budget": float(budget), "thresholds": list(setting.thresholds)}
        points.append(row | judge.point(chosen, setting.confidence.reads_boxes))
        samples.append(judge.samples(chosen))
    return Curve(points, np.stack(samples, 1))


def priced(value: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """The routing with most value for its time: one price of time for all images, just high enough for a budget.

    Args:
        value: worth of each exit on each image, (N, E).
        costs: (E,) time of each exit.
        budget: mean time to keep to.

    Returns:
        Exit index of each image, (N,).
    """
    low, high = 0.0, 1e4
    for _ in range(60):
        price = (low + high) / 2
        over = costs[(value - price * costs).argmax(1)].mean() > budget + 1e-9
        low, high = (price, high) if over else (low, price)
    return (value - high * costs).argmax(1)


def oracle_curve(judge: Judge, budgets: Sequence[float]) -> Curve:
    """The upper bound: each image's gain known, most gain for its time first.

    Gains are first-order changes of AP (:attr:`eelib.routing.Split.value`); as AP is not additive, the greedy choice
    is a strong routing in hindsight, not the proven best one.
    """
    test = judge.test
    routings = [priced(test.value, test.costs, budget) for budget in budgets]
    points = [{"budget": float(b)} | judge.point(chosen) for b, chosen in zip(budgets, routings, strict=True)]
    return Curve(points, np.stack([judge.samples(chosen) for chosen in routings], 1))


def along(times: np.ndarray, ap: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """AP of a curve at given times, straight between its points and level beyond them: (R, P) to (R, T).

    Args:
        times: (P,) of the points, in any order; points of one time count by their mean.
        ap: (R, P).
        grid: (T,).
    """
    distinct, group = np.unique(times, return_inverse=True)
    mean = np.eye(len(distinct))[group] / np.bincount(group)[group][:, None]  # (P, D)
    straight = np.stack([np.interp(grid, distinct, unit) for unit in np.eye(len(distinct))])  # (D, T)
    return ap @ mean @ straight


@dataclass(frozen=True)
class Area:
    """What lies between the coin and the oracle, from the time of the first exit to that of the last.

    Attributes:
        grid: (T,) times.
        low, high: AP of the coin and of the oracle there, (R, T); R is 1 for AP as measured.
    """

    grid: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def share(self, times: np.ndarray, ap: np.ndarray) -> np.ndarray:
        """Share of the area that a curve recovers: 0 is the coin, 1 the oracle, (R,).

        A policy that cannot be as fast as the first exit gets no more than the coin below its own fastest point.

        Args:
            times: (P,) of its points.
            ap: (R, P) of its points.
        """
        mine = along(times, ap, self.grid)
        mine = np.where(self.grid < times.min(), np.minimum(mine, self.low), mine)
        area = (self.high - self.low).sum(1)
        return (mine - self.low).sum(1) / np.where(area > 0, area, np.inf)


def areas(judge: Judge, oracle: Curve) -> tuple[Area, Area]:
    """The area as measured, and resample by resample."""
    costs = judge.test.costs
    grid = np.linspace(costs[0], costs[-1], STEPS)
    stated = Hull(costs, judge.ap[None])
    measured, drawn = (np.stack([hull.at(time) for time in grid], 1) for hull in (stated, judge.coin))
    high = [along(oracle.times, ap, grid) for ap in (oracle.ap, oracle.samples)]
    return Area(grid, measured, high[0]), Area(grid, drawn, high[1])


@dataclass(frozen=True)
class Recovered:
    """Share of the area that a policy recovers, as measured and on every resample, (R,)."""

    share: float
    samples: np.ndarray

    @property
    def interval(self) -> list[float]:
        """95 %, paired over scenes."""
        return interval(self.samples)


def recovered(curve: Curve, between: tuple[Area, Area]) -> Recovered:
    """What a policy recovers of :func:`areas`."""
    measured, drawn = between
    return Recovered(float(measured.share(curve.times, curve.ap)[0]), drawn.share(curve.times, curve.samples))
