"""The plane: AP against time of every system and exit, judged by one rule (:mod:`studies.hull`).

``measure`` runs the systems: times, records, match flags. ``judge`` computes all else from the flags and the times,
so that a reader repeats it without weights (``recompute``).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pycocotools.coco import COCO
from pydantic import Field

from eelib.config import ConfigError, Group, override, read_yaml, resolve, validate
from eelib.data import load_split, split_sha256
from eelib.evaluate import versions
from eelib.files import file_sha256, write_json
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.routing import best_cuts
from eelib.timing import machine
from studies.compress.systems import (
    SystemConfig,
    costs,
    graphs_sha256,
    measure_times,
    opened,
    session_records,
    systems_of,
)
from studies.goals import load_goals
from studies.hull import Hull, above, at_prevalence
from studies.report.metrics_files import read_metrics

Log = Callable[[str], None]
Key = tuple[str, int]  # name and seed of a system
Share = Annotated[float, Field(gt=0, lt=1)]


class PlaneConfig(Group):
    """``params/plane.yaml``."""

    systems: dict[str, SystemConfig] = Field(min_length=1)
    out: str = "runs/plane"  # exports and records
    split: Literal["val", "calibrate", "test"] = "test"  # that is reported; `val` while a system is developed
    limit: int | None = Field(None, ge=1)  # images of each split; None takes all
    timed_images: int | None = Field(None, ge=1)  # of `split`; None takes all
    int8_images: int = Field(64, ge=1)  # of calibrate, for the ranges of the activations
    resamples: int = Field(2000, ge=2)  # bootstrap over scenes
    prevalences: list[Share] = [0.5, 0.89]  # shares of empty images, beside the split's own
    latencies: list[Annotated[float, Field(gt=0)]] = []  # at which coins of a network's exits are judged


def load(path: Path | str, settings: dict | None = None) -> PlaneConfig:
    """Read and check ``params/plane.yaml``.

    Raises:
        ConfigError: a key, a value, or not one system that is the measure of time.
    """
    config = validate(PlaneConfig, override(read_yaml(path), settings or {}), str(path))
    plain = [name for name, system in config.systems.items() if system.kind == "plain"]
    if len(plain) != 1:
        raise ConfigError(f"{path}: key 'systems': of kind 'plain' are {plain}; expected one, the measure of time")
    return config


def flags_of(reports: Path | str, name: str, seed: int) -> Path:
    """File of a system's match flags."""
    return Path(reports) / "plane" / f"{name.replace(' ', '_')}_seed{seed}.npz"


def measure(config: PlaneConfig, reports: Path | str, log: Log = print) -> dict:
    """Export, record and time every system; the flags of its matches are saved in ``reports/plane``.

    Returns:
        ``systems``: of each seed ``name``, ``kind``, ``seed``, hashes, sizes, and ``exits`` with ``time_ratio``
        (the plain detector's median is 1; a further seed has the first one's times, its graphs being the same),
        percentiles, operations and ``cut``, the score from which boxes count, chosen on ``val``.
    """
    systems = [
        system for name, line in config.systems.items() for system in systems_of(name, line, resolve(config.out))
    ]
    rows, first = [], {}
    for system in systems:
        log(f"recording {system.name}, seed {system.seed}")
        session = opened(system, config.int8_images)
        splits = dict.fromkeys(("val", "calibrate", config.split))
        records = {split: session_records(system, session, split, config.limit) for split in splits}
        graphs = graphs_sha256(session, system.stages)
        matched = {split: RoutedAP(records[split], load_split(split)) for split in ("val", config.split)}
        matched[config.split].save(flags_of(reports, *_key(system)), split_sha256(config.split), graphs)
        row = {"name": system.name, "kind": system.kind, "seed": system.seed, "int8": system.int8}
        row |= {"checkpoint_sha256": file_sha256(system.checkpoint), "graphs_sha256": graphs} | costs(system, session)
        for exit_, cut in zip(row["exits"].values(), best_cuts(matched["val"]).tolist(), strict=True):
            exit_["cut"] = cut
        rows.append(row)
        first.setdefault(system.name, session)
    times = measure_times(first, config.split, config.timed_images, log)
    (plain,) = (times[s.name, "full"]["median_ms"] for s in systems if s.kind == "plain" and not (s.int8 or s.seed))
    for row in rows:
        for name, exit_ in row["exits"].items():
            exit_ |= {"time_ratio": times[row["name"], name]["median_ms"] / plain} | times[row["name"], name]
    return {"systems": rows}


def _key(system: object) -> Key:
    return system.name, system.seed


class Judged:
    """Every system's AP under one share of empty images.

    Args:
        systems: rows of :func:`measure`.
        evaluators: match flags by name and seed, all of the same images.
        weights: (R, N) how often each image counts in each resample.
        once: (N,) how often it counts in the measured AP.
    """

    def __init__(self, systems: list[dict], evaluators: Mapping[Key, RoutedAP], weights: np.ndarray, once: np.ndarray):
        self.systems = {(row["name"], row["seed"]): row for row in systems}
        self.evaluators, self.once = evaluators, once
        routings = {key: [np.full(e.images, k) for k in range(e.exits)] for key, e in evaluators.items()}
        self.samples = {key: bootstrap(e, routings[key], weights) for key, e in evaluators.items()}
        self.scores = {key: [e.scores(r, once) for r in routings[key]] for key, e in evaluators.items()}
        (self.plain,) = (key for key, row in self.systems.items() if row["kind"] == "plain" and not _later(row))

    def times(self, key: Key) -> np.ndarray:
        """Times of a system's exits on the common axis."""
        return np.array([exit_["time_ratio"] for exit_ in self.systems[key]["exits"].values()])

    def hull(self, seed: int, truncated: bool) -> Hull:
        """Static systems as this seed trained them, or the first one where there is no such seed.

        Args:
            seed: of the system that is compared.
            truncated: whether detectors that end at an exit are among them.
        """
        kinds = {"plain", "input", "width", "search"} | ({"truncated"} if truncated else set())
        names = dict.fromkeys(row["name"] for row in self.systems.values() if row["kind"] in kinds)
        keys = [(name, seed) if (name, seed) in self.systems else (name, 0) for name in names]
        times = np.array([self.times(key)[0] for key in keys])
        return Hull(times, np.stack([self.samples[key][:, 0] for key in keys], 1))

    def coin(self, key: Key) -> Hull:
        """A system's own exits, mixed at random: what a router on them has to beat."""
        return Hull(self.times(key), self.samples[key])

    def against(self, time: float, samples: np.ndarray, key: Key) -> dict:
        """AP less the hull of widths and sizes (``peers``) and of all static systems (``static``): intervals, or None."""
        gaps = {}
        for name, truncated in (("peers", False), ("static", True)):
            gap = self.hull(key[1], truncated).gap(time, samples)
            gaps |= {f"minus_{name}": None if gap is None else interval(gap)}
            gaps |= {f"above_{name}": None if gap is None else above(gap)}
        return gaps

    def exits(self) -> list[dict]:
        """A row for each exit: AP with its interval, precision, recall, false alarms, and the verdicts."""
        rows = []
        for key, evaluator in self.evaluators.items():
            row, samples = self.systems[key], self.samples[key]
            answers = self._answers(key)
            for k, (name, exit_) in enumerate(row["exits"].items()):
                line = {"system": key[0], "kind": row["kind"], "seed": key[1], "exit": name}
                line |= {"time_ratio": exit_["time_ratio"]} | self.scores[key][k] | answers[k]
                line |= {"AP_interval": interval(samples[:, k])}
                line |= {"minus_plain": interval(samples[:, k] - self.samples[self.plain][:, 0])}
                if evaluator.exits > 1:
                    line |= self.against(exit_["time_ratio"], samples[:, k], key)
                rows.append(line)
        return rows

    def _answers(self, key: Key) -> list[dict]:
        """Precision and recall of boxes above each exit's cut, and the share of empty images with such a box."""
        evaluator, cuts = self.evaluators[key], [exit_["cut"] for exit_ in self.systems[key]["exits"].values()]
        claimed, right = evaluator.claims(cuts)
        empty = evaluator.positives == 0
        alarms = (claimed[empty] > 0).mean(0) if empty.any() else np.full(evaluator.exits, np.nan)
        precision = (self.once @ right) / np.maximum(self.once @ claimed, 1e-9)
        recall = (self.once @ right) / np.maximum(self.once @ evaluator.positives, 1e-9)
        columns = zip(precision.tolist(), recall.tolist(), alarms.tolist(), strict=True)
        return [
            {"precision": p, "recall": r, "false_alarms": None if np.isnan(a) else a} for p, r, a in columns
        ]  # fmt: skip

    def coins(self, latencies: list[float]) -> list[dict]:
        """A row for each network with exits and latency: the best coin of its exits there, and the verdicts."""
        rows = []
        for key in (key for key, evaluator in self.evaluators.items() if evaluator.exits > 1):
            measured = Hull(self.times(key), np.array([[values["AP"] for values in self.scores[key]]]))
            for latency in latencies:
                samples = self.coin(key).at(latency)
                if samples is not None:
                    line = {
                        "system": key[0],
                        "seed": key[1],
                        "time_ratio": latency,
                        "AP": float(measured.at(latency)[0]),
                    }
                    line |= {"AP_interval": interval(samples)} | self.against(latency, samples, key)
                    rows.append(line)
        return rows

    def truncations(self) -> list[dict]:
        """Each exit beside the detector that ends there and was trained for that exit alone."""
        rows = []
        for key, row in self.systems.items():
            for k, (name, exit_) in enumerate(row["exits"].items() if row["kind"] == "exits" else ()):
                for other, peer in self.systems.items():
                    (last,) = peer["exits"].values() if peer["kind"] == "truncated" else (None,)
                    same = last and (last["children"], peer["input_px"], peer["int8"], peer["seed"]) == (
                        exit_["children"], row["input_px"], row["int8"], 0
                    )  # fmt: skip
                    if same:
                        gap = self.samples[key][:, k] - self.samples[other][:, 0]
                        line = {"system": key[0], "seed": key[1], "exit": name, "peer": other[0]}
                        line |= {"AP_minus_peer": self.scores[key][k]["AP"] - self.scores[other][0]["AP"]}
                        line |= {"interval": interval(gap), "time_to_peer": exit_["time_ratio"] / last["time_ratio"]}
                        rows.append(line)
        return rows


def _later(row: Mapping) -> bool:
    return bool(row["int8"] or row["seed"])


def judge(systems: list[dict], evaluators: Mapping[Key, RoutedAP], coco: COCO, config: Mapping) -> dict:
    """Everything that follows from match flags and times.

    Args:
        systems: rows of :func:`measure`.
        evaluators: match flags by name and seed.
        coco: annotations of the images.
        config: ``resamples``, ``prevalences`` and ``latencies`` of :class:`PlaneConfig`.

    Returns:
        ``exits``, ``coins`` and ``truncations``, rows with the share of empty images as ``prevalence``.
    """
    any_ = next(iter(evaluators.values()))
    weights = resample(scenes_of(coco, any_.image_ids), config["resamples"], seed=0)
    empty, ones = any_.positives == 0, np.ones(any_.images, np.int64)
    found: dict[str, list] = {"exits": [], "coins": [], "truncations": []}
    for prevalence in (float(empty.mean()), *config["prevalences"]):
        drawn, once = weights, ones
        if prevalence != empty.mean():
            drawn, once = at_prevalence(weights, empty, prevalence), at_prevalence(ones[None], empty, prevalence)[0]
        judged = Judged(systems, evaluators, drawn, once)
        parts = {
            "exits": judged.exits(),
            "coins": judged.coins(config["latencies"]),
            "truncations": judged.truncations(),
        }
        for name, rows in parts.items():
            found[name] += [{"prevalence": prevalence} | row for row in rows]
    return {"images": any_.images, "empty_images": int(empty.sum())} | found


def load_flags(reports: Path | str, systems: list[dict], split_hash: str) -> dict[Key, RoutedAP]:
    """The committed match flags of every system; :class:`RecordsError` where they are of something else."""
    return {
        (row["name"], row["seed"]): RoutedAP.load(
            flags_of(reports, row["name"], row["seed"]), split_hash, row["graphs_sha256"]
        )
        for row in systems
    }


def recompute(reports: Path | str) -> dict:
    """``plane.json`` from its times and the committed flags alone, without weights."""
    report = read_metrics(Path(reports) / "metrics" / "plane.json")
    flags = load_flags(reports, report["systems"], report["split_sha256"])
    return report | judge(report["systems"], flags, load_split(report["split"]), report["plane"])


def run(config: PlaneConfig, reports: Path | str, log: Log = print) -> dict:
    """Measure and judge all systems; ``metrics/plane.json`` and ``plane/*.npz`` in ``reports``."""
    report = measure(config, reports, log)
    split_hash, settings = split_sha256(config.split), config.model_dump(mode="json")
    flags = load_flags(reports, report["systems"], split_hash)
    log("judging")
    report = {"split": config.split, "split_sha256": split_hash, "plane": settings} | report
    report |= judge(report["systems"], flags, load_split(config.split), settings)
    report |= {"runtime": "onnxruntime, batch 1, one thread", "machine": machine(), "versions": versions()}
    write_json(Path(reports) / "metrics" / "plane.json", report)
    return report
