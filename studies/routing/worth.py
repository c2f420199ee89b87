"""What a routing adds: beside the coin of its own exits and beside every static detector, by share of empty images.

The axis is the plane's: 1 is the plain detector at 320 px on onnxruntime, one thread, batch 1, suppression included.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from eelib.files import read_json
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample
from eelib.routing import Setting, Split, measured
from studies.compress.plane import HULLS, load_flags
from studies.goals import load_goals
from studies.hull import Hull, above, at_prevalence

# What a routing is compared with, in words.
PEERS = {"full": "full", "coin": "the coin", "peers": "widths and sizes", "static": "all static detectors"}


class Times(NamedTuple):
    """Times of a network's exits on the plane's axis.

    Attributes:
        exits: (E,) where no blank gate is computed, as the plane measures them.
        gated: (E,) where the blank gates are computed, too, and gates: (G,) of ending at each of them.
        told: of each exit median, p95 and p99, for tables.
        processor: that they were taken on.
    """

    exits: np.ndarray
    gated: np.ndarray
    gates: np.ndarray
    told: dict[str, dict[str, float]]
    processor: str


MADE_UP = Times(
    np.array([0.36, 0.52, 0.78]), np.array([0.39, 0.55, 0.83]), np.array([0.28, 0.32]), {}, "nothing: made up"
)  # of a smoke run without the plane


class Static(NamedTuple):
    """A static detector of a plane: its kind (:data:`studies.compress.plane.HULLS`), time and match flags."""

    kind: str
    time: float
    flags: RoutedAP


def common_times(plane: Mapping, measured: Mapping, checkpoint_sha256: str, size: int) -> Times:
    """Times of a detector with exits: without gates from the plane, with them from 04_exits, as shares of one unit.

    Args:
        plane: metrics of the plane that holds the detector.
        measured: metrics of 04_exits of the same weights, whose unit is the plain detector at ``size``.
        checkpoint_sha256: of the detector.
        size: of its input.
    """
    own = next(r for r in plane["systems"] if r["checkpoint_sha256"] == checkpoint_sha256 and not r["int8"])
    # what 04_exits calls 1: the plain detector at this input size
    plain = [r for r in plane["systems"] if r["kind"] in ("plain", "input") and not r["int8"] and r["seed"] == 0]
    unit = next(r["exits"]["full"]["time_ratio"] for r in plain if r["input_px"] == size)
    plain_ms = plane["systems"][0]["exits"]["full"]["median_ms"]
    told = {
        name: {key: exit_[f"{key}_ms"] / plain_ms for key in ("median", "p95", "p99")}
        for name, exit_ in own["exits"].items()
    }
    return Times(
        np.array([row["time_ratio"] for row in own["exits"].values()]),
        unit * np.array([row["ratio"] for row in measured["exits"].values()]),
        unit * np.array(list(measured["gates"].values())),
        told,
        plane["machine"]["processor"],
    )


def static_flags(reports: Path | str, plane: Mapping, seed: int = 0) -> list[Static]:
    """Every static system of a plane, int8 and truncated ones too: as a seed trained it, or as the first seed did."""
    flags, trained = [], {row["name"] for row in plane["systems"] if row["seed"] == seed}
    for row in plane["systems"]:
        if row["kind"] in HULLS["static"] and row["seed"] == (seed if row["name"] in trained else 0):
            time = next(iter(row["exits"].values()))["time_ratio"]
            flags.append(Static(row["kind"], time, load_flags(reports, plane, row["name"])[row["name"], row["seed"]]))
    return flags


class Beside:
    """Measures routings of one network under one share of empty images, by the one rule of :mod:`studies.hull`.

    Empty images are weighted, so their false alarms and their time count and nothing else changes.

    Attributes:
        ap: (E,) of each exit alone; exits: (R, E) the same on the resamples.
        coin: of the exits; hulls: of the static detectors, by the names of :data:`studies.compress.plane.HULLS`.
        weights, once: (R, N) and (N,) how often each image counts, in the resamples and in AP as stated.
        prevalence: share of empty images.

    Args:
        test: split under raw scores: the coin is of these exits.
        times: (E,) of its exits where nothing routes.
        static: to compare with, on the same images; none claims nothing.
        prevalence: share of empty images; None is the split's own.
        resamples: bootstrap over scenes.
    """

    def __init__(
        self, test: Split, times: np.ndarray, static: Sequence[Static], prevalence: float | None, resamples: int
    ):
        empty = test.evaluator.positives == 0
        self.test, self.once = test, np.ones(len(empty), np.int64)
        self.weights = resample(test.scenes, resamples, seed=0)
        if prevalence is not None:
            self.once = at_prevalence(self.once[None], empty, prevalence)[0]
            self.weights = at_prevalence(self.weights, empty, prevalence)
        self.prevalence = float(self.once @ empty / self.once.sum())
        routings = [np.full(len(empty), k) for k in range(test.evaluator.exits)]
        self.exits = bootstrap(test.evaluator, routings, self.weights)
        self.ap = np.array([test.evaluator.ap(routing, self.once) for routing in routings])
        self.coin, self.hulls = Hull(np.asarray(times), self.exits), {}
        samples = [bootstrap(system.flags, routings[:1], self.weights)[:, 0] for system in static]
        for hull, kinds in HULLS.items() if static else ():
            of = [k for k, system in enumerate(static) if system.kind in kinds]
            if not of:
                continue
            self.hulls[hull] = Hull(np.array([static[k].time for k in of]), np.stack([samples[k] for k in of], 1))
        self._samples: dict[tuple, np.ndarray] = {}

    def samples(self, chosen: np.ndarray, evaluator: RoutedAP | None = None) -> np.ndarray:
        """AP of a routing on every resample, (R,); arguments as in :meth:`routed`."""
        evaluator, chosen = evaluator or self.test.evaluator, chosen.astype(np.int64)
        key = chosen.tobytes(), id(evaluator)
        if key not in self._samples:  # many thresholds give one routing
            self._samples[key] = bootstrap(evaluator, [chosen], self.weights)[:, 0]
        return self._samples[key]

    def routed(self, chosen: np.ndarray, times: np.ndarray, evaluator: RoutedAP | None = None) -> dict:
        """AP, mean time and verdicts of a routing.

        Args:
            chosen: (N,) place of each image; from E on it ends without a box.
            times: time of each place.
            evaluator: under the scores that the routing mixes, if they are calibrated.
        """
        ap = (evaluator or self.test.evaluator).ap(chosen, self.once)
        time = float(self.once @ times[chosen] / self.once.sum())
        return self.row(time, ap, self.samples(chosen, evaluator))

    def mixed(self, shares: np.ndarray, times: np.ndarray) -> dict:
        """The same of a coin that takes each exit for a share (E,) of whole runs."""
        return self.row(float(shares @ times), float(shares @ self.ap), self.exits @ shares)

    def row(self, time: float, ap: float, samples: np.ndarray) -> dict:
        """``prevalence``, ``time``, ``AP``, and intervals of its differences with what is ``above``.

        ``minus_full`` is against full alone, ``minus_coin`` against the best coin of the exits that is as fast, each
        ``minus_`` hull against the static systems; None where nothing is as fast.
        """
        row = {"prevalence": self.prevalence, "time": time, "AP": ap, "AP_interval": interval(samples)}
        row["minus_full"] = interval(samples - self.exits[:, -1])
        for name, hull in {"coin": self.coin, **self.hulls}.items():
            gap = hull.gap(time, samples)
            row[f"minus_{name}"] = None if gap is None else interval(gap)
            row[f"above_{name}"] = None if gap is None else above(gap)
        return row


def best_within(
    settings: Sequence[Setting], calibrate: Split, budgets: Sequence[float], prevalence: float | None
) -> list[Setting]:
    """The settings with most AP on ``calibrate`` within each budget, under a share of empty images.

    A setting that is the best within several budgets comes once; a budget that no setting keeps gives none.
    """
    empty, weights = calibrate.evaluator.positives == 0, None
    if prevalence is not None:
        weights = at_prevalence(np.ones((1, len(empty)), np.int64), empty, prevalence)[0]
    times, ap = measured(settings, calibrate, weights)
    inside = [times <= budget + 1e-9 for budget in budgets]
    best = dict.fromkeys(int(np.where(of, ap, -np.inf).argmax()) for of in inside if of.any())
    return [settings[k] for k in best]


def table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """A line for each routing: time, AP with its interval, and the intervals of its differences, empty for none."""
    lines = []
    for row in rows:
        line = {"empty": row["prevalence"], "router": row["system"], "time": row["time"], "AP": row["AP"]}
        line |= dict(zip(("low", "high"), row["AP_interval"], strict=True))
        for peer, words in PEERS.items():
            bounds = row.get(f"minus_{peer}") or (None, None)
            line |= dict(zip((f"minus {words}, low", f"minus {words}, high"), bounds, strict=True))
        lines.append(line)
    return pd.DataFrame(lines, dtype=object)


def sentences(rows: Sequence[Mapping]) -> list[str]:
    """What a router adds at each share of empty images, in words, with its numbers."""
    told = []
    for share in dict.fromkeys(row["prevalence"] for row in rows):
        for name in dict.fromkeys(row["system"] for row in rows):
            points = [row for row in rows if (row["prevalence"], row["system"]) == (share, name)]
            parts = []
            for peer, words in PEERS.items():
                if peer != "full" and (judged := [row for row in points if row.get(f"minus_{peer}")]):
                    best = max(judged, key=lambda row: row[f"minus_{peer}"][0])
                    low, high = best[f"minus_{peer}"]
                    count = sum(row[f"above_{peer}"] for row in judged)
                    parts.append(f"above {words} at {count} of {len(judged)} times (best {low:+.3f} to {high:+.3f} at "
                                 f"time {best['time']:.3f}, AP {best['AP']:.3f})")  # fmt: skip
            told.append(f"{100 * share:.0f} % empty, {name}: " + "; ".join(parts))
    return told


def counted(rows: Sequence[Mapping]) -> list[dict]:
    """At how many of its times each router lies above its coin and all static detectors, by share of empty images."""
    lines: dict[tuple, dict] = {}
    for row in (row for row in rows if row["system"] != "full alone"):
        line = {"router": row["system"], "empty images": f"{100 * row['prevalence']:.0f} %"}
        line = lines.setdefault((row["system"], row["prevalence"]), line)
        for peer in ("coin", "static"):
            here = [r for r in rows if (r["system"], r["prevalence"]) == (row["system"], row["prevalence"])]
            verdicts = [r.get(f"above_{peer}") for r in here]  # a smoke run has none on static detectors
            judged = [verdict for verdict in verdicts if verdict is not None]
            line[f"above {PEERS[peer]}"] = f"{sum(judged)} of {len(judged)}"
    return list(lines.values())


def other_seeds(reports: Path | str, plane: Mapping, checkpoint_sha256: str) -> dict[int, list[dict]]:
    """Routings of the same network with its other seeds, ``blank_seedN.json`` in the metrics, as far as they are there.

    Args:
        reports: folder of the metrics.
        plane: metrics of the plane that holds all seeds.
        checkpoint_sha256: of the network.
    """
    systems = [row for row in plane["systems"] if not row["int8"]]
    name = next((row["name"] for row in systems if row["checkpoint_sha256"] == checkpoint_sha256), None)
    rows = {}
    for row in (row for row in systems if row["name"] == name and row["checkpoint_sha256"] != checkpoint_sha256):
        path = Path(reports) / "metrics" / f"blank_seed{row['seed']}.json"
        if path.exists() and (other := read_json(path))["checkpoint_sha256"] == row["checkpoint_sha256"]:
            rows[row["seed"]] = other["worth"]
    return rows


def seeds_table(seeds: Mapping[int, Sequence[Mapping]]) -> pd.DataFrame:
    """What :func:`counted` says of each router and share of empty images, seeds side by side."""
    frames = [
        pd.DataFrame(counted(rows)).set_index(["empty images", "router"]).add_prefix(f"seed {seed} ")
        for seed, rows in seeds.items()
    ]
    return pd.concat(frames, axis=1).reset_index()


def check_goals(blank: Mapping) -> pd.DataFrame:
    """The goals of the gates and of routing, from the metrics of 05f_blank.

    A time is the least at which a router keeps the AP asked for, infinite where none does.
    """
    goals, views, rows = load_goals()["blank"], blank["views"], blank["worth"]
    rare, lines = goals["rare"], []
    by_exit1 = max(row["blank_ended"] for name, row in views.items() if name.startswith(("blank", "both")))
    promise = blank["epsilon"] <= goals["lost"] and blank["delta"] <= 1 - goals["certainty"] + 1e-9
    name = f"share of empty images that gates end by exit1, certified to lose {goals['lost']:g} of those with objects"
    lines.append((name, by_exit1, f">= {goals['blank_ended']:g}", promise and by_exit1 >= goals["blank_ended"]))
    here = [row for row in rows if abs(row["prevalence"] - rare["empty"]) < 5e-3]
    full = next(row["AP"] for row in here if row["system"] == "full alone")
    for gated in (True, False):
        kept = [row for row in here if ("gates" in row["system"]) == gated and row["AP"] >= rare["AP_share"] * full]
        name = f"least mean time of any router with {rare['AP_share']:g} of full's AP at {rare['empty']:g} empty, "
        value = min((row["time"] for row in kept), default=float("inf"))
        name += "with gates" if gated else "without gates"
        lines.append((name, value, f"<= {rare['time']:g}", value <= rare["time"]))
    own = [row for row in rows if row["prevalence"] == rows[0]["prevalence"] and row["system"] != "full alone"]
    both = sum(row["above_coin"] is True and row["above_static"] is True for row in own)
    share = f"{100 * rows[0]['prevalence']:.0f} % empty"
    name = f"times at which a router is above its coin and all static detectors, {share}"
    lines.append((name, both, f">= {goals['routed_above']}", both >= goals["routed_above"]))
    for share in goals["gated"]:
        at = [row for row in rows if abs(row["prevalence"] - share) < 5e-3 and "gates" in row["system"]]
        count = sum(row["above_static"] is True for row in at)
        name = f"times at which a router with gates is above all static detectors, {100 * share:.0f} % empty"
        lines.append((name, count, ">= 1", count >= 1))
    return pd.DataFrame(lines, columns=["goal", "value", "limit", "met"])
