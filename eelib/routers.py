"""Choose a router for a budget of time, or certify one, and measure it on ``test``.

Both record the detector's exits on three splits once, time the exits on this machine, take the thresholds from
``calibrate`` and report what they give on ``test``. Their router is a file that :func:`eelib.export` embeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eelib import guarantee
from eelib.calibrate import refuse_test
from eelib.checkpoints import load_released
from eelib.coco import Source
from eelib.data import load_split
from eelib.deploy.evidence import Never
from eelib.deploy.router import Budget, Gate, Guarantee, Router, Times
from eelib.evaluate import source_for
from eelib.files import look_up
from eelib.hub import path_of
from eelib.model import EarlyExitSSDLite
from eelib.policies import check_policy, settings_of
from eelib.records import ExitRecords, records_of
from eelib.routed_ap import bootstrap, resample
from eelib.routing import (
    PolicyError,
    Setting,
    Split,
    check_thresholds,
    choose,
    hull_mixture,
    measured,
    point,
    prepare,
)
from eelib.timing import measured_times, read_times

Detector = EarlyExitSSDLite | Path | str  # what `eelib.load` gave, a checkpoint, or the name of a released detector
COIN_DRAWS = 20  # random routings that a coin's AP is the mean of


@dataclass(frozen=True)
class RouterOptions:
    """What a router is chosen from and measured on.

    Attributes:
        calibrate_on: split that thresholds come from; never ``test``.
        calibration: of the scores, see :func:`eelib.calibrate.fit_calibrators`.
        grid: quantiles of a confidence that are tried as thresholds of each exit.
        evidence: names of what the benefit, the guarantee or the user's function reads; None is what costs next to
            nothing, :attr:`eelib.records.ExitRecords.raw_names`.
        gate_epsilon: let the blank gates end images, certified to lose this share of the images with objects or
            less with probability 1 - ``gate_delta``; None ends none.
        times: metrics of 04_exits with each exit's time; None measures the exits on this machine.
        records: folder of exit records; they are made where there are none.
        limit: images of each split; None takes all.
        resamples: of the bootstrap over the scenes of ``test``.
        progress: called with a line while records are made.
    """

    calibrate_on: str = "calibrate"
    calibration: str = "isotonic"
    grid: int = 20
    evidence: tuple[str, ...] | None = None
    gate_epsilon: float | None = None
    gate_delta: float = 0.1
    times: Path | str | None = None
    records: Path | str = "runs/records"
    limit: int | None = None
    resamples: int = 200
    progress: Callable[[str], None] | None = None

    def __post_init__(self):
        refuse_test(self.calibrate_on, "choosing thresholds")
        for name in ("limit", "resamples", "grid"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PolicyError(f"{name} {value}: expected 1 or more")
        if self.gate_epsilon is not None:
            guarantee.check_level("gate_epsilon", self.gate_epsilon)
        guarantee.check_level("gate_delta", self.gate_delta)


@dataclass(frozen=True)
class RoutedSystem:
    """A router and its worth.

    Attributes:
        router: to be saved and exported.
        setting: thresholds and the confidence that they are compared with.
        stated: what was asked for or promised: ``policy``, ``thresholds`` and ``budget``, or what
            :func:`eelib.guarantee.certified` states with ``risk_on_test``; and what the ``gates`` promise.
        comparison: on the split of the thresholds, ``AP`` and ``time_ratio`` of the choice, of each exit alone
            (``exits``), and of the best ``coin``: a random mixture of two exits of the same mean time. The choice was
            made by this AP, the others were not.
        measured: on ``test``, as :func:`eelib.routing.point`.
        notes: sentences that whoever reads the numbers must know.
    """

    router: Router
    setting: Setting
    stated: dict
    comparison: dict
    measured: dict

    def save(self, path: Path | str) -> Path:
        """Write the router as JSON; :func:`eelib.export` takes the file, this system, or its router."""
        return self.router.save(path)

    @property
    def notes(self) -> list[str]:
        """As above."""
        here, notes = self.comparison, []
        ours = f"the router's {here['AP']:.4f} at {here['time_ratio']:.3f} on {here['split']}"
        for other in (*here["exits"], here["coin"]):
            if other["time_ratio"] <= here["time_ratio"] + 1e-9 and other["AP"] >= here["AP"]:
                notes.append(f"{other['name']} is no worse: AP {other['AP']:.4f} at {other['time_ratio']:.3f}, {ours}")
        budget, time = self.stated.get("budget"), self.measured["time_ratio"]
        if budget is not None and time > budget + 5e-4:
            notes.append(f"on test the mean time is {time:.3f} for a budget of {budget:g}")
        return notes


def route(
    detector: Detector,
    source: Source | Path | str = "data/showroom",
    policy: str = "benefit",
    budget: float = 0.75,
    thresholds: Sequence[float] | None = None,
    options: RouterOptions | None = None,
) -> RoutedSystem:
    """The setting of a policy with the best AP on ``calibrate`` within a budget of time, measured on ``test``.

    Args:
        detector: with exits; its file is what is recorded.
        source: data set with ``val``, the split to calibrate on and ``test``.
        policy: one of :data:`eelib.policies.POLICIES`, or ``module:function``.
        budget: mean time as a share of the plain detector's, above 0 and up to 1.
        thresholds: of each exit but the last, in place of a budget.
        options: see :class:`RouterOptions`.

    Raises:
        PolicyError: an unknown policy, a threshold or budget out of its range, a budget that no setting keeps, or
            times that do not fit.
        RecordsError: the folder's records are of another detector or data set.

    Examples:
        >>> system = eelib.route(model, "my", budget=0.75)
        >>> path = system.save("router.json")
    """
    check_policy(policy)
    check_thresholds(thresholds or ())
    if not 0 < budget <= 1:
        raise PolicyError(f"budget {budget}: expected a share of the plain detector's time, above 0 and up to 1")
    options = options or RouterOptions()
    study = _study(detector, source, options, options.calibration)
    calibrate, early = study.gated(options.calibrate_on), len(study.times.exits) - 1
    settings = [Setting((), Never())]
    if early:
        fitting = {"grid": options.grid, "evidence": options.evidence}
        settings = settings_of(policy, study.splits[options.calibrate_on], study.splits["val"], fitting)
    if thresholds:
        if len(thresholds) != early:
            raise PolicyError(f"thresholds {list(thresholds)}: expected {early}, one for each exit but the last")
        setting, stated, promise = replace(settings[0], thresholds=tuple(thresholds)), {}, None
    else:
        times, _ = measured(settings, calibrate)
        if times.min() > budget + 1e-9:
            reach = f"{times.min():.3f} to {times.max():.3f} of the plain detector's time"
            raise PolicyError(f"budget {budget}: cannot be kept on {calibrate.name}; '{policy}' reaches {reach}")
        setting, stated = choose(settings, calibrate, [budget])[0], {"budget": budget}
        promise = Budget(budget, calibrate.time(setting.route(calibrate), setting.confidence.reads_boxes))
    stated |= {"policy": policy, "thresholds": list(setting.thresholds)}
    return study.routed(setting, stated, promise, options)


def certify(
    detector: Detector,
    source: Source | Path | str = "data/showroom",
    epsilon: float = 0.05,
    delta: float = 0.1,
    bound: str = "hoeffding_bentkus",
    options: RouterOptions | None = None,
) -> RoutedSystem:
    """The fastest setting that is certified to keep an image's F1 on average within ``epsilon`` of full's.

    What the blank gates lose, if they are asked for, is promised apart: this loss is of the exits.

    Args:
        detector, source, options: as in :func:`route`. Scores are not calibrated whatever the options say,
            because a guarantee may look at ``calibrate`` once only.
        epsilon: mean drop of F1 against full, between 0 and 1.
        delta: probability that the promise fails, between 0 and 1.
        bound: see :data:`eelib.guarantee.BOUNDS`.

    Returns:
        Its ``thresholds`` are stated as None where nothing is certified and all images take full.

    Raises:
        GuaranteeError: a level out of its range, or a split that cannot certify it.

    Examples:
        >>> system = eelib.certify(model, "my", epsilon=0.2, delta=0.2)
        >>> system.router.promise.epsilon
        0.2
    """
    guarantee.check_level("epsilon", epsilon)
    guarantee.check_level("delta", delta)
    options = options or RouterOptions()
    study = _study(detector, source, options, "none")
    test, early = study.splits["test"], len(study.times.exits) - 1
    full = Setting((1.0,) * early, Never())
    settings = guarantee.sequence(study.splits["val"], evidence=options.evidence) if early else [full]
    stated = guarantee.certified(study.splits[options.calibrate_on], settings, epsilon, delta, bound)
    setting = settings[stated["index"]] if stated["thresholds"] else full
    stated["risk_on_test"] = float(guarantee.loss_against_full(test.f1, setting.route(test)).mean())
    return study.routed(setting, stated, _promised("f1", stated), options)


def _promised(loss: str, stated: dict) -> Guarantee:
    """What a certificate of :mod:`eelib.guarantee` promises of a loss."""
    levels = (stated[key] for key in ("epsilon", "delta", "n", "bound", "p_value"))
    return Guarantee(loss, *levels, tuple(stated.get("cuts", ())), stated["risk"])


@dataclass(frozen=True)
class _Study:
    """A detector's splits, times and gates.

    Attributes:
        splits: without gates.
        gates: certified ones; none where they were not asked for.
        certificate: what :func:`eelib.guarantee.certified_gates` states of them.
    """

    size: int
    splits: dict[str, Split]
    times: Times
    gates: tuple[Gate, ...]
    certificate: dict | None

    def gated(self, name: str) -> Split:
        """A split whose images the gates end first."""
        return replace(self.splits[name], gates=self.gates, gate_costs=self.times.gates if self.gates else ())

    def routed(
        self, setting: Setting, stated: dict, promise: Budget | Guarantee | None, options: RouterOptions
    ) -> RoutedSystem:
        """The system of a setting."""
        test, calibrate = self.gated("test"), self.gated(options.calibrate_on)
        chosen, full = setting.route(test), np.full(len(test.records), test.evaluator.exits - 1)
        samples = bootstrap(test.evaluator, [chosen, full], resample(test.scenes, options.resamples, seed=0))
        on_test = point(test, chosen, setting.confidence.reads_boxes, *samples.T)
        if self.certificate:
            thresholds = np.array(self.certificate["thresholds"])
            on_test_too = {"risk": float(guarantee.objects_lost(thresholds[None], test).mean())}
            on_test_too |= guarantee.gate_effect(thresholds, test)
            stated |= {"gates": self.certificate, "gates_on_test": on_test_too}
        router = Router(
            exits=test.records.exit_names,
            confidence=setting.confidence,
            thresholds=setting.thresholds,
            calibrators=test.calibrators,
            gates=self.gates,
            times=self.times,
            promise=promise,
            gates_promise=_promised("objects", self.certificate) if self.certificate else None,
            size=self.size,
            checkpoint_sha256=test.records.checkpoint_sha256,
            data_sha256={s: self.splits[s].records.split_sha256 for s in ("val", options.calibrate_on)},
        )
        return RoutedSystem(router, setting, stated, compared(setting, calibrate), on_test)


def compared(setting: Setting, split: Split) -> dict:
    """AP and mean time of a setting, of each exit alone, and of the best coin of the same mean time, on a split."""
    routing, reads_boxes = setting.route(split), setting.confidence.reads_boxes
    time, ap, names = split.time(routing, reads_boxes), split.evaluator.ap, split.records.exit_names
    costs = np.append(split.costs[:-1], min(1.0, split.costs[-1]))  # the last exit alone is the plain detector
    alone = np.array([split.evaluator.of_exit(k) for k in range(len(names))])
    shares = hull_mixture(costs, alone, time)
    counts = np.diff(np.round(np.cumsum(np.append(0, shares)) * len(split.records)).astype(int))
    draw, cards = np.random.default_rng(0), np.repeat(np.arange(len(names)), counts)
    coin = float(np.mean([ap(draw.permutation(cards)) for _ in range(COIN_DRAWS)]))
    both = " and ".join(f"{share:.0%} {name}" for name, share in zip(names, shares, strict=True) if share > 0)
    return {
        "split": split.name,
        "AP": ap(routing),
        "time_ratio": time,
        "exits": [
            {"name": f"{name} alone", "AP": float(one), "time_ratio": float(cost)}
            for name, one, cost in zip(names, alone, costs, strict=True)
        ],
        "coin": {"name": f"a coin of {both}", "AP": coin, "time_ratio": float(shares @ costs)},
    }


def _study(detector: Detector, source: Source | Path | str, options: RouterOptions, calibration: str) -> _Study:
    """``val``, the split to calibrate on and ``test``, ready for routing."""
    checkpoint, names = path_of(detector), tuple(dict.fromkeys(("val", options.calibrate_on, "test")))
    records, cocos = load_study(checkpoint, source, options.records, names, options.limit, options.progress)
    model = load_released(checkpoint)
    if options.times is None:
        times = measured_times(checkpoint, source, options.calibrate_on)
    else:
        times = read_times(options.times, records["test"].exit_names, checkpoint)
    splits = prepare(records, cocos, times.exits, calibration, options.calibrate_on, passing=times.passing)
    if options.gate_epsilon is None:
        return _Study(model.size, splits, times, (), None)
    if not model.blank or not times.gates:
        what = "the detector has no blank gates" if not model.blank else f"{options.times} has no times of the gates"
        raise PolicyError(f"gate_epsilon {options.gate_epsilon}: {what}")
    sequence = guarantee.gate_sequence(splits["val"])
    levels = options.gate_epsilon, options.gate_delta
    certificate = guarantee.certified_gates(splits[options.calibrate_on], sequence, *levels)
    order, early = list(model.stages), model.exit_names
    before = [sum(name in early for name in order[: order.index(gate)]) for gate in records["test"].gates]
    gates = tuple(Gate(place, value) for place, value in zip(before, certificate["thresholds"], strict=True))
    return _Study(model.size, splits, times, gates, certificate)


def load_study(
    checkpoint: Path | str,
    root: Path | str | Source,
    folder: Path | str,
    splits: Sequence[str] = ("val", "calibrate", "test"),
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, ExitRecords], dict]:
    """Records and annotations of several splits, each by the split's name; records are made where there are none."""
    checkpoint = look_up(checkpoint)
    source = source_for(load_released(checkpoint), root)
    records = {split: records_of(split, checkpoint, source, folder, limit, progress) for split in splits}
    return records, {split: load_split(split, source) for split in splits}
