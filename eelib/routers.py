"""Choose a router for a budget of time, or certify one, and measure it on ``test``.

Both record the detector's exits on three splits once, time the exits on this machine, take the thresholds from
``calibrate`` and report what they give on ``test``.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eelib.calibrate import refuse_test
from eelib.checkpoints import load_released
from eelib.coco import Source, open_root
from eelib.config import ROOT, resolve
from eelib.data import DetectionDataset, as_input, load_split
from eelib.deploy.evidence import Never
from eelib.files import file_sha256
from eelib.guarantee import certified, check_level, loss_against_full, sequence
from eelib.policies import check_policy, settings_of
from eelib.records import ExitRecords, records_of
from eelib.routed_ap import resample
from eelib.routing import PolicyError, Setting, Split, check_thresholds, choose, full_samples, point, prepare
from eelib.timing import exit_times


@dataclass(frozen=True)
class RouterOptions:
    """What a router is chosen from and measured on.

    Attributes:
        calibrate_on: split that thresholds come from; never ``test``.
        calibration: of the scores, see :func:`eelib.calibrate.fit_calibrators`.
        grid: quantiles of a confidence that are tried as thresholds of each exit.
        times: metrics of 04_exits with each exit's time; None measures the exits on this machine.
        records: folder of exit records; they are made where there are none.
        limit: images of each split; None takes all.
        resamples: of the bootstrap over the scenes of ``test``.
        progress: called with a line while records are made.
    """

    calibrate_on: str = "calibrate"
    calibration: str = "isotonic"
    grid: int = 20
    times: Path | str | None = None
    records: Path | str = ROOT / "runs" / "records"
    limit: int | None = None
    resamples: int = 200
    progress: Callable[[str], None] | None = None

    def __post_init__(self):
        refuse_test(self.calibrate_on, "choosing thresholds")
        for name in ("limit", "resamples", "grid"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PolicyError(f"{name} {value}: expected 1 or more")


@dataclass(frozen=True)
class RoutedSystem:
    """A router and its worth.

    Attributes:
        setting: thresholds and the confidence that they are compared with.
        stated: what was asked for or promised: ``policy``, ``thresholds`` and ``budget``, or what
            :func:`eelib.guarantee.certified` states with ``risk_on_test``.
        measured: on ``test``, as :func:`eelib.routing.point`.
    """

    setting: Setting
    stated: dict
    measured: dict


def route(
    checkpoint: Path | str,
    source: Source | Path | str = "data/showroom",
    policy: str = "benefit",
    budget: float = 0.75,
    thresholds: Sequence[float] | None = None,
    options: RouterOptions | None = None,
) -> RoutedSystem:
    """The setting of a policy with the best AP on ``calibrate`` within a budget of time, measured on ``test``.

    Args:
        checkpoint: released detector with exits.
        source: data set with ``val``, the split to calibrate on and ``test``.
        policy: one of :data:`eelib.policies.POLICIES`.
        budget: mean time as a share of full's, above 0 and up to 1.
        thresholds: of each exit but the last, in place of a budget.
        options: see :class:`RouterOptions`.

    Raises:
        PolicyError: an unknown policy, a threshold or budget out of its range, or times that do not fit.
        RecordsError: the folder's records are of another detector or data set.
    """
    check_policy(policy)
    check_thresholds(thresholds or ())
    if not 0 < budget <= 1:
        raise PolicyError(f"budget {budget}: expected a share of full's time, above 0 and up to 1")
    options = options or RouterOptions()
    splits = _splits(checkpoint, source, options, options.calibration)
    calibrate = splits[options.calibrate_on]
    settings = settings_of(policy, calibrate, splits["val"], {"grid": options.grid})
    if thresholds:
        expected = len(calibrate.costs) - 1
        if len(thresholds) != expected:
            raise PolicyError(f"thresholds {list(thresholds)}: expected {expected}, one for each exit but the last")
        setting, stated = replace(settings[0], thresholds=tuple(thresholds)), {}
    else:
        setting, stated = choose(settings, calibrate, [budget])[0], {"budget": budget}
    stated |= {"policy": policy, "thresholds": list(setting.thresholds)}
    return RoutedSystem(setting, stated, _measured(setting, splits["test"], options.resamples))


def certify(
    checkpoint: Path | str,
    source: Source | Path | str = "data/showroom",
    epsilon: float = 0.05,
    delta: float = 0.1,
    bound: str = "hoeffding_bentkus",
    options: RouterOptions | None = None,
) -> RoutedSystem:
    """The fastest setting that is certified to lose ``epsilon`` of an image's F1 or less on average.

    Args:
        checkpoint, source, options: as in :func:`route`. Scores are not calibrated whatever the options say,
            because a guarantee may look at ``calibrate`` once only.
        epsilon: mean drop of F1 against full, between 0 and 1.
        delta: probability that the promise fails, between 0 and 1.
        bound: see :data:`eelib.guarantee.BOUNDS`.

    Returns:
        Its ``thresholds`` are stated as None where nothing is certified and all images take full.

    Raises:
        GuaranteeError: a level out of its range, or a split that cannot certify it.
    """
    check_level("epsilon", epsilon)
    check_level("delta", delta)
    options = options or RouterOptions()
    splits = _splits(checkpoint, source, options, "none")
    test, settings = splits["test"], sequence(splits["val"])
    stated = certified(splits[options.calibrate_on], settings, epsilon, delta, bound)
    setting = settings[stated["index"]] if stated["thresholds"] else Setting((1.0,) * (len(test.costs) - 1), Never())
    stated["risk_on_test"] = float(loss_against_full(test.f1, setting.route(test)).mean())
    return RoutedSystem(setting, stated, _measured(setting, test, options.resamples))


def _splits(
    checkpoint: Path | str, source: Source | Path | str, options: RouterOptions, calibration: str
) -> dict[str, Split]:
    """``val``, the split to calibrate on and ``test``, ready for routing."""
    names = tuple(dict.fromkeys(("val", options.calibrate_on, "test")))
    records, cocos = load_study(checkpoint, source, options.records, names, options.limit, options.progress)
    if options.times is None:
        costs, passing = measured_times(checkpoint, source, options.calibrate_on)
    else:
        costs, passing = read_times(resolve(options.times), records["test"].exit_names, resolve(checkpoint))
    return prepare(records, cocos, costs, calibration, options.calibrate_on, passing=passing)


def _measured(setting: Setting, test: Split, resamples: int) -> dict:
    weights = resample(test.scenes, resamples, seed=0)
    return point(test, setting.route(test), weights, full_samples(test, weights), setting.confidence.reads_boxes)


def load_study(
    checkpoint: Path | str,
    root: Path | str | Source,
    folder: Path | str,
    splits: Sequence[str] = ("val", "calibrate", "test"),
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, ExitRecords], dict]:
    """Records and annotations of several splits; records are made where ``folder`` has none.

    Returns:
        Split name to records, and split name to annotations.
    """
    source = open_root(root if isinstance(root, Source) else resolve(root))
    records = {split: records_of(split, resolve(checkpoint), source, folder, limit, progress) for split in splits}
    return records, {split: load_split(split, source) for split in splits}


def measured_times(
    checkpoint: Path | str, root: Path | str | Source, split: str = "calibrate"
) -> tuple[list[float], list[float]]:
    """As :func:`read_times`, measured now on the first image of a split; it takes some seconds."""
    model, source = load_released(resolve(checkpoint)), open_root(root if isinstance(root, Source) else resolve(root))
    dataset = DetectionDataset(split, source, model.size, keep_crowd=True, limit=1)
    with torch.inference_mode():
        times = exit_times(model.eval(), as_input(dataset[0][0][None]))
    return [time["ratio"] for time in times.values()], [time["passed_ratio"] for time in times.values()]


def read_times(path: Path | str, exit_names: Sequence[str], checkpoint: Path | str) -> tuple[list[float], list[float]]:
    """Time of each exit, and what suppression at the exits passed adds, as shares of full.

    Args:
        path: metrics of 04_exits; ``ratio`` and ``passed_ratio`` of ``exits.<name>`` are read.
        checkpoint: the detector that the times must be of.

    Raises:
        PolicyError: the file is missing, is no JSON, is of other weights, or lacks a ratio of an exit.
    """
    try:
        content = json.loads(Path(path).read_text())
        both = [[float(content["exits"][name][key]) for name in exit_names] for key in ("ratio", "passed_ratio")]
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file of times; run notebook 04_exits first") from None
    except json.JSONDecodeError as error:
        raise PolicyError(f"{path}: not valid JSON ({error})") from None
    except (KeyError, TypeError) as error:
        raise PolicyError(
            f"{path}: no keys exits.<name>.ratio and passed_ratio for every one of {exit_names}: {error}; run 04_exits"
        ) from None
    if content.get("checkpoint_sha256") != file_sha256(checkpoint):
        raise PolicyError(f"{path}: times of other weights than {checkpoint}; run 04_exits with that checkpoint")
    return both[0], both[1]
