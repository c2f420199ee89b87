"""What a policy is worth: AP against time, between the random and the oracle bound.

A setting is chosen on ``calibrate`` for each budget of time and reported on ``test``. Time is the
mean over images of the exits' times as a share of full; intervals are paired bootstraps over scenes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eelib.coco import Source, open_root
from eelib.config import resolve
from eelib.data import load_split
from eelib.files import file_sha256
from eelib.records import ExitRecords, records_of
from eelib.routed_ap import bootstrap, interval
from eelib.splits import PolicyError, Setting, Split


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
    records = {s: records_of(s, resolve(checkpoint), source, folder, limit, progress) for s in splits}
    return records, {s: load_split(s, source) for s in splits}


def _measured(settings: Sequence[Setting], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean time and AP of every setting on a split; each routing is evaluated once."""
    routings = [setting.route(split) for setting in settings]
    known = {r.tobytes(): r for r in routings}  # many thresholds give one routing
    ap = {key: split.evaluator.ap(r) for key, r in known.items()}
    times = [split.time(r, s.reads_boxes) for r, s in zip(routings, settings, strict=True)]
    return np.array(times), np.array([ap[r.tobytes()] for r in routings])


def choose(settings: Sequence[Setting], calibrate: Split, budgets: Sequence[float]) -> list[Setting]:
    """For each budget the setting with the best AP on ``calibrate`` among those that keep to it.

    A policy that cannot be that fast gives its fastest setting.
    """
    times, ap = _measured(settings, calibrate)
    chosen = []
    for budget in budgets:
        inside = times <= budget + 1e-9
        best = np.where(inside, ap, -np.inf).argmax() if inside.any() else times.argmin()
        chosen.append(settings[int(best)])
    return chosen


def fastest(settings: Sequence[Setting], calibrate: Split, loss: float = 0.01) -> Setting:
    """The fastest setting that loses no more than a share ``loss`` of full's AP on ``calibrate``.

    Where none does, the one with the best AP.
    """
    times, ap = _measured(settings, calibrate)
    inside = ap >= (1 - loss) * calibrate.evaluator.of_exit(calibrate.evaluator.exits - 1)
    return settings[int(np.where(inside, times, np.inf).argmin() if inside.any() else ap.argmax())]


def point(split: Split, chosen: np.ndarray, weights: np.ndarray, full: np.ndarray, reads_boxes: bool = False) -> dict:
    """One routing measured: AP with interval, difference to full, exit shares, time.

    Args:
        chosen: exit of each image, (N,).
        weights: (R, N) bootstrap resamples.
        full: (R,) AP of full on the same resamples.
        reads_boxes: of the setting that chose.
    """
    scores = split.evaluator.scores(chosen)
    samples = bootstrap(split.evaluator, [chosen], weights)[:, 0]
    whole = split.evaluator.of_exit(split.evaluator.exits - 1)
    names = split.records.exit_names
    shares = np.bincount(chosen, minlength=len(names)) / len(chosen)
    return {
        "time_ratio": split.time(chosen, reads_boxes),
        "exit_shares": dict(zip(names, shares.tolist(), strict=True)),
        **scores,
        "AP_interval": interval(samples),
        "AP_minus_full": scores["AP"] - whole,
        "AP_minus_full_interval": interval(samples - full),
    }


def full_samples(split: Split, weights: np.ndarray) -> np.ndarray:
    """AP of full on every resample, (R,)."""
    full = np.full(len(split.records), split.evaluator.exits - 1)
    return bootstrap(split.evaluator, [full], weights)[:, 0]


def policy_curve(
    settings: Sequence[Setting], calibrate: Split, test: Split, budgets: Sequence[float], weights: np.ndarray
) -> list[dict]:
    """AP–time points of a policy: thresholds from ``calibrate``, everything else from ``test``."""
    full, points = full_samples(test, weights), []
    known: dict[bytes, dict] = {}  # several budgets may get one routing
    for budget, setting in zip(budgets, choose(settings, calibrate, budgets), strict=True):
        chosen = setting.route(test)
        if chosen.tobytes() not in known:
            known[chosen.tobytes()] = point(test, chosen, weights, full, setting.reads_boxes)
        points.append({"budget": float(budget), "thresholds": list(setting.thresholds)} | known[chosen.tobytes()])
    return points


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


def random_curve(
    calibrate: Split, test: Split, budgets: Sequence[float], weights: np.ndarray, draws: int = 20, seed: int = 0
) -> list[dict]:
    """The lower bound: exits drawn without looking, in the mixture that ``calibrate`` favours.

    AP is the mean over the draws; the interval holds the draws and the scenes.
    """
    rng, points, last = np.random.default_rng(seed), [], test.evaluator.exits - 1
    ap = np.array([calibrate.evaluator.of_exit(k) for k in range(last + 1)])
    whole = np.full(len(test.records), last)
    draws = min(draws, len(weights))
    for budget in budgets:
        shares = hull_mixture(calibrate.costs, ap, budget)
        # the shares are kept to the image, so that a draw differs in who leaves and not in how many
        ends = np.floor(np.cumsum(shares) * len(whole) + 1e-9).astype(int)
        base = np.searchsorted(ends, np.arange(len(whole)), side="right").clip(max=last)
        drawn = [rng.permutation(base) for _ in range(draws)]
        samples = np.concatenate(
            [bootstrap(test.evaluator, [chosen, whole], weights[k::draws]) for k, chosen in enumerate(drawn)]
        )
        per_iou = np.mean([test.evaluator.per_iou(chosen) for chosen in drawn], 0)
        counts = np.bincount(base, minlength=last + 1) / len(whole)
        points.append(
            {
                "budget": float(budget),
                "time_ratio": test.time(base),
                "exit_shares": dict(zip(test.records.exit_names, counts.tolist(), strict=True)),
                "AP": float(per_iou.mean()),
                "AP_interval": interval(samples[:, 0]),
                "AP50": float(per_iou[0]),
                "AP_minus_full": float(per_iou.mean()) - test.evaluator.ap(whole),
                "AP_minus_full_interval": interval(samples[:, 0] - samples[:, 1]),
            }
        )
    return points


def priced(value: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """The routing with most value for its time: one price of time for all images, just high enough for a budget.

    Args:
        value: worth of each exit on each image, (N, E).
        costs: (E,) time of each exit / full.
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


def oracle_curve(test: Split, budgets: Sequence[float], weights: np.ndarray) -> list[dict]:
    """The upper bound: each image's gain known, most gain for its time first.

    Gains are first-order changes of AP (:attr:`Split.value`); as AP is not additive, the greedy
    choice is a strong routing in hindsight, not the proven best one.
    """
    full = full_samples(test, weights)
    return [{"budget": float(b)} | point(test, priced(test.value, test.costs, b), weights, full) for b in budgets]


def _at(curve: Sequence[Mapping], times: np.ndarray) -> np.ndarray:
    """AP of a curve at given times, straight between its points and level beyond them."""
    by_time: dict[float, list[float]] = {}
    for p in curve:
        by_time.setdefault(p["time_ratio"], []).append(p["AP"])
    known = sorted(by_time)
    return np.interp(times, known, [float(np.mean(by_time[t])) for t in known])


def recovered(curve: Sequence[Mapping], random: Sequence[Mapping], oracle: Sequence[Mapping], first: float) -> float:
    """Share of the area between the random and the oracle curve that a policy recovers.

    A policy that cannot be as fast as ``first`` gets no more than the random curve below its own fastest point.

    Args:
        first: shortest time, that of leaving always at exit1; the longest is 1.
    """
    times = np.linspace(first, 1, 201)
    mine, low, high = (_at(c, times) for c in (curve, random, oracle))
    mine = np.where(times < min(p["time_ratio"] for p in curve), np.minimum(mine, low), mine)
    area = float((high - low).sum())
    return float((mine - low).sum()) / area if area else 0.0


def auroc(score: np.ndarray, label: np.ndarray) -> float | None:
    """Chance that a positive outranks a negative, ties half; None where one kind is missing."""
    label = np.asarray(label, bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return None
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[group]  # mean rank of ties, from 1
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def gain_auroc(setting: Setting, split: Split) -> dict[str, float | None]:
    """AUROC of a low confidence for "some deeper exit has a higher F1 on this image", an exit each."""
    confidence = setting.confidence(split)
    return {
        split.records.exit_names[k]: auroc(-confidence[:, k], split.f1[:, k + 1 :].max(1) > split.f1[:, k])
        for k in range(confidence.shape[1])
    }


def static_hull(peers: Sequence[Mapping]) -> Callable[[np.ndarray], np.ndarray]:
    """Best AP of static detectors at a mean time, mixing two of them at random where that is better.

    Args:
        peers: each with ``time_ratio`` and ``AP``.
    """
    costs, ap = np.array([p["time_ratio"] for p in peers]), np.array([p["AP"] for p in peers])

    def best(times: np.ndarray) -> np.ndarray:
        values = [hull_mixture(costs, ap, t) @ ap if t >= costs.min() else -np.inf for t in np.atleast_1d(times)]
        return np.array(values)

    return best


def clear_of_hull(curve: Sequence[Mapping], peers: Sequence[Mapping]) -> dict[str, int]:
    """How many routings of a curve have their whole AP interval above the static detectors' hull.

    Returns:
        ``clear``, and ``of``: the distinct routings no faster than the fastest static detector, below
        which there is no hull. Intervals hold point by point, and the hull is taken as measured.
    """
    best, least = static_hull(peers), min(p["time_ratio"] for p in peers)
    distinct = {(p["time_ratio"], p["AP"]): p for p in curve if p["time_ratio"] >= least}
    clear = [p for p in distinct.values() if p["AP_interval"][0] > best(np.array([p["time_ratio"]]))[0]]
    return {"clear": len(clear), "of": len(distinct)}
