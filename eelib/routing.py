"""Which exit an image takes, and what a routing of a whole split costs and gives.

A setting is a confidence for every exit but the last and one threshold each: an image leaves at the first exit
whose confidence reaches its threshold. Settings are chosen on ``calibrate`` and reported on ``test``. Time is the
mean over images of the exits' times as a share of full; intervals are paired bootstraps over scenes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pycocotools.coco import COCO

from eelib.calibrate import calibrated, fit_calibrators, refuse_test
from eelib.deploy.evidence import Calibrator, Confidence, first_exit
from eelib.deploy.router import Gate, ended
from eelib.files import InputError
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, interval, scenes_of


class PolicyError(InputError):
    """A policy, a threshold or a time does not fit; the message says what was expected."""


@dataclass(frozen=True)
class Split:
    """A split's records with everything that policies look at.

    Attributes:
        records: under calibrated scores.
        evaluator: their match flags.
        coco: annotations.
        costs: (E,) time of leaving at each exit on the axis of :data:`eelib.timing.UNIT`, rising.
        cuts: (E,) scores from which a box counts in the F1 of an image.
        passing: (E,) what suppression at the exits passed adds.
        calibrators: of each exit, by which the scores were calibrated.
        gates: blank gates that end images before any setting is asked; none by default.
        gate_costs: time of ending at each.
    """

    records: ExitRecords
    evaluator: RoutedAP
    coco: COCO
    costs: np.ndarray
    cuts: np.ndarray
    passing: np.ndarray
    calibrators: tuple[Calibrator, ...]
    gates: tuple[Gate, ...] = ()
    gate_costs: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Of the split."""
        return self.records.split

    @property
    def images(self) -> tuple:
        """What tells these images from all others: split, its hash, image ids."""
        return self.records.split, self.records.split_sha256, self.records.image_ids

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """Some columns of the evidence in the order given, (N, E, len(names))."""
        return self.records.columns(names).astype(np.float64)

    @cached_property
    def holds(self) -> np.ndarray:
        """Probability by each blank gate of the detector that an image holds an object, (N, G)."""
        return self.columns(self.records.gates)[:, -1]

    @property
    def places(self) -> tuple[str, ...]:
        """Where an image may leave: the exits, then the gates."""
        return (*self.records.exit_names, *(f"blank{k + 1}" for k in range(len(self.gates))))

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
        """Time of leaving at each exit under a policy, and of ending at each gate, (E + G,).

        A policy that reads boxes suppresses at every exit asked; one that reads raw scores where an image leaves.
        """
        costs = np.concatenate((self.costs, self.gate_costs))
        if not reads_boxes:
            return costs
        return costs + np.concatenate((self.passing, [self.passing[gate.before] for gate in self.gates]))

    def time(self, chosen: np.ndarray, reads_boxes: bool = False, weights: np.ndarray | None = None) -> float:
        """Mean time of a routing, ``reads_boxes`` as in :meth:`paid`; weights (N,) say how often each image counts."""
        return float(np.average(self.paid(reads_boxes)[chosen], weights=weights))


def check_thresholds(thresholds: Sequence[float]) -> None:
    """:class:`PolicyError` unless every threshold lies in [0, 1]."""
    for position, value in enumerate(thresholds):
        if not 0 <= value <= 1:  # NaN as well
            raise PolicyError(f"threshold of exit{position + 1} is {value}; expected [0, 1]")


@dataclass(frozen=True)
class Setting:
    """One operating point of a policy.

    Attributes:
        thresholds: of each exit but the last, in [0, 1].
        confidence: what they are compared with.
        cross_fitted: confidences (N, E - 1) on the images that ``confidence`` was fitted on, by
            :attr:`Split.images`, each by a fit without its scene; thresholds that are chosen there then meet
            the spread of unseen images.
    """

    thresholds: tuple[float, ...]
    confidence: Confidence
    cross_fitted: Mapping[tuple, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        check_thresholds(self.thresholds)

    def on(self, split: Split) -> np.ndarray:
        """Confidence of each image at every exit but the last, (N, E - 1)."""
        if split.images in self.cross_fitted:
            return self.cross_fitted[split.images]
        return self.confidence(split.columns(self.confidence.evidence))

    def route(self, split: Split) -> np.ndarray:
        """Where each image leaves, (N,): the index of an exit, or E + k where gate k ends it."""
        chosen = first_exit(self.on(split), self.thresholds)
        return ended(chosen, split.holds, split.gates, len(split.costs)) if split.gates else chosen


def exit_shares(chosen: Sequence[int], exits: int = 3) -> list[float]:
    """Share of the images at each exit."""
    return (np.bincount(np.asarray(chosen), minlength=exits) / max(1, len(chosen))).tolist()


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
        costs: (E,) time of leaving at each exit on the axis of :data:`eelib.timing.UNIT`.
        method: of :func:`eelib.calibrate.fit_calibrators`.
        on: split to calibrate on.
        matched: match flags of the records, if they are at hand.
        passing: (E,) what suppression at the exits passed adds to ``costs``; None is nothing.

    Raises:
        PolicyError: the times do not rise, passing an exit takes less than no time, there is one exit and no gate,
            or the records are of several detectors or under another split's name.
        CalibrationError: ``on`` is ``test``, or holds nothing to learn from.
    """
    costs = np.asarray(costs, float)
    if not (np.diff(costs) > 0).all() or not costs[0] > 0:
        raise PolicyError(f"times of the exits are {costs.tolist()}; expected numbers that rise, above 0")
    passing = np.zeros_like(costs) if passing is None else np.asarray(passing, float)
    if passing.shape != costs.shape or not (passing >= 0).all():
        raise PolicyError(f"times of suppression are {passing.tolist()}; expected {len(costs)} numbers from 0")
    refuse_test(on, "calibrating")
    if len({(r.checkpoint_sha256, r.exit_names, r.evidence_names) for r in records.values()}) > 1:
        raise PolicyError(f"records of {', '.join(records)} are of several detectors; expected one")
    for name, of_split in records.items():
        if of_split.split != name:
            raise PolicyError(f"records of '{of_split.split}' are given as '{name}'")
    if len(records[on].exit_names) < 2 and not records[on].gates:
        raise PolicyError(f"the detector has no exit but {records[on].exit_names[0]}; there is nothing to route")
    matched = matched or {name: RoutedAP(r, cocos[name]) for name, r in records.items()}
    calibrators = fit_calibrators(records[on], matched[on], method)
    mixed = {name: calibrated(r, calibrators) for name, r in records.items()}
    evaluators = {name: matched[name].rescored(r) for name, r in mixed.items()}
    cuts = best_cuts(evaluators["val"])
    return {
        name: Split(r, evaluators[name], cocos[name], costs, cuts, passing, calibrators) for name, r in mixed.items()
    }


def measured(
    settings: Sequence[Setting], split: Split, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean time and AP of every setting on a split, (S,) each; weights (N,) say how often each image counts."""
    routings = [setting.route(split) for setting in settings]
    distinct = {routing.tobytes(): routing for routing in routings}  # many thresholds give one routing
    ap = {key: split.evaluator.ap(routing, weights) for key, routing in distinct.items()}
    times = [split.time(r, s.confidence.reads_boxes, weights) for r, s in zip(routings, settings, strict=True)]
    return np.array(times), np.array([ap[routing.tobytes()] for routing in routings])


def choose(settings: Sequence[Setting], calibrate: Split, budgets: Sequence[float]) -> list[Setting]:
    """For each budget the setting with the best AP on ``calibrate`` that keeps to it, or else the fastest."""
    times, ap = measured(settings, calibrate)
    chosen = []
    for budget in budgets:
        inside = times <= budget + 1e-9
        best = np.where(inside, ap, -np.inf).argmax() if inside.any() else times.argmin()
        chosen.append(settings[int(best)])
    return chosen


def fastest(settings: Sequence[Setting], calibrate: Split, loss: float = 0.01) -> Setting:
    """The fastest setting that loses no more than a share ``loss`` of full's AP on ``calibrate``, or else the best."""
    times, ap = measured(settings, calibrate)
    inside = ap >= (1 - loss) * calibrate.evaluator.of_exit(calibrate.evaluator.exits - 1)
    return settings[int(np.where(inside, times, np.inf).argmin() if inside.any() else ap.argmax())]


def point(split: Split, chosen: np.ndarray, reads_boxes: bool, samples: np.ndarray, full: np.ndarray) -> dict:
    """One routing measured: AP with interval, difference to full, exit shares, time.

    Args:
        chosen: where each image leaves, (N,), as :meth:`Setting.route` says.
        reads_boxes: of the confidence that chose.
        samples, full: AP of the routing and of full on the same resamples, (R,).
    """
    scores = split.evaluator.scores(chosen)
    return {
        "time_ratio": split.time(chosen, reads_boxes),
        "exit_shares": dict(zip(split.places, exit_shares(chosen, len(split.places)), strict=True)),
        **scores,
        "AP_interval": interval(samples),
        "AP_minus_full": scores["AP"] - split.evaluator.of_exit(split.evaluator.exits - 1),
        "AP_minus_full_interval": interval(samples - full),
    }


def hull_mixture(costs: np.ndarray, ap: np.ndarray, budget: float) -> np.ndarray:
    """Shares of the exits that give most AP at a mean time, if AP were a mean over images: (E,).

    The best mixture takes at most two exits, so all pairs are tried.
    """
    best, shares = -np.inf, np.eye(len(costs))[0]
    for low in range(len(costs)):
        for high in range(low, len(costs)):
            gap = costs[high] - costs[low]
            part = float(np.clip((budget - costs[low]) / gap, 0, 1)) if gap else 0.0
            mixed = (1 - part) * np.eye(len(costs))[low] + part * np.eye(len(costs))[high]
            if mixed @ costs <= budget + 1e-9 and mixed @ ap > best:
                best, shares = mixed @ ap, mixed
    return shares
