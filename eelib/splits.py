"""A split made ready for routing, and one operating point of a policy on it.

A setting is a confidence for every exit but the last and one threshold each.
:func:`eelib.routing.route` sends an image to the first exit whose confidence reaches its threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from pycocotools.coco import COCO

from eelib.calibrate import calibrated, fit_calibrators, refuse_test
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, scenes_of
from eelib.routing import route


class PolicyError(ValueError):
    """A policy or threshold does not fit; the message says what was expected."""


@dataclass(frozen=True)
class Split:
    """A split's records with everything that policies look at.

    Attributes:
        records: under calibrated scores.
        evaluator: their match flags.
        coco: annotations.
        costs: (E,) time of leaving at each exit as a share of full, rising to 1.
        cuts: (E,) scores from which a box counts in the F1 of an image.
        passing: (E,) what suppression at the exits passed adds, as a share of full.
    """

    records: ExitRecords
    evaluator: RoutedAP
    coco: COCO
    costs: np.ndarray
    cuts: np.ndarray
    passing: np.ndarray

    @property
    def name(self) -> str:
        """Of the split."""
        return self.records.split

    @cached_property
    def evidence(self) -> np.ndarray:
        """(N, E, F), columns :data:`eelib.records.EVIDENCE`."""
        return self.records.evidence.double().numpy()

    @cached_property
    def scenes(self) -> np.ndarray:
        """Scene of each image, (N,)."""
        return scenes_of(self.coco, self.records.image_ids)

    @cached_property
    def f1(self) -> np.ndarray:
        """F1 of every image at every exit, (N, E)."""
        return self.evaluator.f1(self.cuts)

    @cached_property
    def gains(self) -> np.ndarray:
        """What full adds to AP on each image beside each early exit, (N, E - 1)."""
        return self.evaluator.gains()

    @cached_property
    def value(self) -> np.ndarray:
        """What each exit is worth to AP on each image beside full, (N, E): less than 0 where full gains, 0 for full."""
        return np.hstack([-self.gains, np.zeros((len(self.records), 1))])

    def paid(self, reads_boxes: bool) -> np.ndarray:
        """Time of leaving at each exit under a policy, (E,); above 1 at full for one that reads boxes.

        The best score is the same before and after suppression, so a policy on it lets an image
        pass with an exit's raw scores, as the deployed runtime does. Counts, entropies, sizes
        and agreement are taken from suppressed boxes: those policies suppress at every exit asked.
        """
        return self.costs + self.passing if reads_boxes else self.costs

    def time(self, chosen: np.ndarray, reads_boxes: bool = False) -> float:
        """Mean time of a routing as a share of full; arguments as in :meth:`paid`."""
        return float(self.paid(reads_boxes)[chosen].mean())


Confidence = Callable[[Split], np.ndarray]  # (N, E - 1) in [0, 1]


def check_thresholds(thresholds: Sequence[float]) -> None:
    """:class:`PolicyError` unless every threshold lies in [0, 1]."""
    for position, value in enumerate(thresholds):
        if not 0 <= value <= 1:  # NaN as well
            raise PolicyError(f"threshold of exit{position + 1} is {value}; expected [0, 1]")


def never(split: Split) -> np.ndarray:
    """The confidence of a policy by which nothing leaves early: 0."""
    return np.zeros((len(split.records), len(split.costs) - 1))


@dataclass(frozen=True)
class Setting:
    """One operating point of a policy; ``reads_boxes``: its evidence is taken after suppression."""

    thresholds: tuple[float, ...]
    confidence: Confidence
    reads_boxes: bool = False

    def __post_init__(self):
        check_thresholds(self.thresholds)

    def route(self, split: Split) -> np.ndarray:
        """Exit index of each image, (N,)."""
        return route(torch.from_numpy(self.confidence(split)), self.thresholds).numpy()


def best_cuts(evaluator: RoutedAP) -> np.ndarray:
    """For each exit the score from which boxes count, by the mean F1 of the images: (E,)."""
    grid = np.linspace(0.02, 0.9, 45)
    f1 = np.array([evaluator.f1(np.full(evaluator.exits, cut)).mean(0) for cut in grid])  # (45, E)
    return grid[f1.argmax(0)]


def prepare(
    records: Mapping[str, ExitRecords],
    cocos: Mapping[str, COCO],
    costs: Sequence[float],
    method: str = "isotonic",
    on: str = "calibrate",
    matched: Mapping[str, RoutedAP] | None = None,
    passing: Sequence[float] | None = None,
) -> dict[str, Split]:
    """Calibrate on one split, choose the cuts on ``val``, match every split once.

    Args:
        records: of ``val``, of the split to calibrate on and of whatever else is wanted.
        cocos: annotations of the same splits.
        costs: (E,) time of leaving at each exit / full.
        method: of :func:`eelib.calibrate.fit_calibrators`.
        on: split to calibrate on.
        matched: match flags of the records, if they are at hand.
        passing: (E,) what suppression at the exits passed adds to ``costs``; None is nothing.

    Raises:
        PolicyError: the times do not rise to 1, passing an exit takes less than no time, there is one exit
            alone, or the records are of several detectors or under another split's name.
        CalibrationError: ``on`` is ``test``, or holds nothing to learn from.
    """
    costs = np.asarray(costs, float)
    if costs[-1] != 1 or not (np.diff(costs) > 0).all() or not costs[0] > 0:
        raise PolicyError(f"times of the exits are {costs.tolist()}; expected shares of full that rise to 1")
    passing = np.zeros_like(costs) if passing is None else np.asarray(passing, float)
    if passing.shape != costs.shape or not (passing >= 0).all():
        raise PolicyError(f"times of suppression are {passing.tolist()}; expected {len(costs)} shares of full from 0")
    refuse_test(on, "calibrating")
    if len({(r.checkpoint_sha256, r.exit_names) for r in records.values()}) > 1:
        raise PolicyError(f"records of {', '.join(records)} are of several detectors; expected one")
    for name, found in records.items():
        if found.split != name:
            raise PolicyError(f"records of '{found.split}' are given as '{name}'")
    if len(records[on].exit_names) < 2:
        raise PolicyError(f"the detector has no exit but {records[on].exit_names[0]}; there is nothing to route")
    matched = matched or {name: RoutedAP(r, cocos[name]) for name, r in records.items()}
    calibrators = fit_calibrators(records[on], matched[on], method)
    mixed = {name: calibrated(r, calibrators) for name, r in records.items()}
    evaluators = {name: matched[name].rescored(r) for name, r in mixed.items()}
    cuts = best_cuts(evaluators["val"])
    return {name: Split(r, evaluators[name], cocos[name], costs, cuts, passing) for name, r in mixed.items()}
