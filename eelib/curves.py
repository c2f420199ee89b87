"""What a policy is worth: AP against time, between the random and the oracle bound.

A setting is chosen on ``calibrate`` for each budget of time and reported on ``test``. Time is the
mean over images of the exits' times as a share of full; intervals are paired bootstraps over scenes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eelib.config import resolve
from eelib.data import load_split
from eelib.policies import PolicyError, Setting, Split
from eelib.records import ExitRecords, records_of
from eelib.routed_ap import AREAS, RoutedAP, bootstrap, interval, only_model


def read_times(path: Path | str, exit_names: Sequence[str]) -> list[float]:
    """Time of each exit as a share of full, from ``exits.<name>.ratio`` of a metrics file.

    Raises:
        PolicyError: the file is missing, is no JSON, or has no ratio for an exit.
    """
    try:
        content = json.loads(Path(path).read_text())
        return [float(content["exits"][name]["ratio"]) for name in exit_names]
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file of times; run notebook 04_exits first") from None
    except json.JSONDecodeError as error:
        raise PolicyError(f"{path}: not valid JSON ({error})") from None
    except (KeyError, TypeError) as error:
        raise PolicyError(f"{path}: no key exits.<name>.ratio for every one of {exit_names}: {error}") from None


def load_study(
    checkpoint: Path | str,
    root: Path | str,
    folder: Path | str,
    splits: Sequence[str] = ("val", "calibrate", "test"),
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, ExitRecords], dict]:
    """Records and annotations of several splits; records are made where ``folder`` has none.

    Returns:
        Split name to records, and split name to annotations.
    """
    records = {s: records_of(s, resolve(checkpoint), resolve(root), folder, limit, progress) for s in splits}
    return records, {s: load_split(s, resolve(root)) for s in splits}


def _measured(settings: Sequence[Setting], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean time and AP of every setting on a split; each routing is evaluated once."""
    routings = [setting.route(split) for setting in settings]
    known = {r.tobytes(): r for r in routings}  # many thresholds give one routing
    ap = {key: split.evaluator.ap(r) for key, r in known.items()}
    return np.array([split.time(r) for r in routings]), np.array([ap[r.tobytes()] for r in routings])


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


def point(split: Split, chosen: np.ndarray, weights: np.ndarray, full: np.ndarray) -> dict:
    """One routing measured: AP with interval, difference to full, exit shares, time.

    Args:
        chosen: exit of each image, (N,).
        weights: (R, N) bootstrap resamples.
        full: (R,) AP of full on the same resamples.
    """
    per_iou = split.evaluator.per_iou(chosen)
    samples = bootstrap(split.evaluator, [chosen], weights)[:, 0]
    whole = split.evaluator.of_exit(split.evaluator.exits - 1)
    names = split.records.exit_names
    shares = np.bincount(chosen, minlength=len(names)) / len(chosen)
    return {
        "time_ratio": split.time(chosen),
        "exit_shares": dict(zip(names, shares.tolist(), strict=True)),
        "AP": float(per_iou.mean()),
        "AP_interval": interval(samples),
        "AP50": float(per_iou[0]),
        "AP_minus_full": float(per_iou.mean()) - whole,
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
            known[chosen.tobytes()] = point(test, chosen, weights, full)
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


def oracle_curve(test: Split, budgets: Sequence[float], weights: np.ndarray) -> list[dict]:
    """The upper bound: each image's gain known, most gain for its time first.

    Gains are first-order changes of AP (:attr:`Split.value`); as AP is not additive, the greedy
    choice is a strong routing in hindsight, not the proven best one.
    """
    full, points = full_samples(test, weights), []
    for budget in budgets:
        low, high = 0.0, 1e4
        for _ in range(60):  # price of time at which the mean time just keeps to the budget
            price = (low + high) / 2
            over = test.time((test.value - price * test.costs).argmax(1)) > budget + 1e-9
            low, high = (price, high) if over else (low, price)
        chosen = (test.value - high * test.costs).argmax(1)
        points.append({"budget": float(budget)} | point(test, chosen, weights, full))
    return points


def _at(curve: Sequence[Mapping], times: np.ndarray) -> np.ndarray:
    """AP of a curve at given times, straight between its points and level beyond them."""
    by_time: dict[float, list[float]] = {}
    for p in curve:
        by_time.setdefault(p["time_ratio"], []).append(p["AP"])
    known = sorted(by_time)
    return np.interp(times, known, [float(np.mean(by_time[t])) for t in known])


def recovered(curve: Sequence[Mapping], random: Sequence[Mapping], oracle: Sequence[Mapping], first: float) -> float:
    """Share of the area between the random and the oracle curve that a policy recovers.

    Args:
        first: shortest time, that of leaving always at exit1; the longest is 1.
    """
    times = np.linspace(first, 1, 201)
    mine, low, high = (_at(c, times) for c in (curve, random, oracle))
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


def clear_of_hull(curve: Sequence[Mapping], peers: Sequence[Mapping]) -> list[dict]:
    """Points of a curve whose whole AP interval lies above the static detectors' hull."""
    best = static_hull(peers)
    return [p for p in curve if p["AP_interval"][0] > best(np.array([p["time_ratio"]]))[0]]


def groups_of(split: Split) -> dict[str, np.ndarray]:
    """Images by difficulty tag: name to bool (N,). Clutter is cut at its median."""
    images = [split.coco.imgs[i] for i in split.records.image_ids]
    groups = {"all": np.ones(len(images), bool)}
    for tag in ("recipe", "dark"):
        for value in sorted({image[tag] for image in images if tag in image}, key=str):
            groups[f"{tag} {value}"] = np.array([image.get(tag) == value for image in images])
    clutter = np.array([image.get("clutter", np.nan) for image in images], float)
    if not np.isnan(clutter).any():
        groups["clutter low"] = clutter <= np.median(clutter)
        groups["clutter high"] = clutter > np.median(clutter)
    return groups


def breakdown(split: Split, routings: Mapping[str, np.ndarray], weights: np.ndarray, models: bool = True) -> list[dict]:
    """AP and AP50 of several routings by tag, size of the chair and chair model.

    Args:
        routings: name to exit of each image, (N,).
        weights: (R, N) resamples for the intervals.
        models: by chair model, too: over the images that show it, other chairs ignored.

    Returns:
        Rows of group, objects, system, AP, AP50 and the interval's ends; None where nothing can be found.
    """
    rows = []
    for name, inside in groups_of(split).items():
        rows += _rows(name, split.evaluator, routings, weights * inside, inside.astype(np.int64))
    for name, area in AREAS.items():
        evaluator = RoutedAP(split.records, split.coco, area)
        rows += _rows(f"size {name}", evaluator, routings, weights, None)
    shown: dict[str, set] = {}
    for annotation in split.coco.dataset["annotations"]:
        if models and "model" in annotation:
            shown.setdefault(annotation["model"], set()).add(annotation["image_id"])
    for name, ids in sorted(shown.items()):
        kept = [row for row, i in enumerate(split.records.image_ids) if i in ids]
        if not kept:
            continue
        evaluator = RoutedAP(split.records.rows(kept), only_model(split.coco, name))
        rows += _rows(f"model {name}", evaluator, {k: r[kept] for k, r in routings.items()}, weights[:, kept], None)
    return rows


def _rows(group, evaluator, routings, weights, once) -> list[dict]:
    samples = bootstrap(evaluator, list(routings.values()), weights)
    objects = int(evaluator.positives @ (once if once is not None else np.ones(evaluator.images, np.int64)))
    rows = []
    for index, (system, chosen) in enumerate(routings.items()):
        per_iou = evaluator.per_iou(chosen, once)
        low, high = interval(samples[:, index]) if len(samples) else (None, None)
        rows.append(
            {
                "group": group, "objects": objects, "system": system,
                "AP": float(per_iou.mean()) if objects else None, "AP50": float(per_iou[0]) if objects else None,
                "AP low": low, "AP high": high,
            }
        )  # fmt: skip
    return rows
