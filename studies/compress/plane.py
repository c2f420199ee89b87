"""The plane: AP against time of every system and exit, judged by one rule (:mod:`studies.hull`).

:func:`measure` runs the systems: times, records, match flags. :func:`judge` computes all else from flags and times,
so that a reader repeats it without weights (:func:`recompute`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pycocotools.coco import COCO
from pydantic import Field

from eelib.config import ConfigError, Group, override, read_yaml, resolve, validate
from eelib.data import load_split, split_sha256
from eelib.evaluate import versions
from eelib.files import file_sha256, write_json
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.routing import best_cuts
from eelib.timing import machine
from studies.compress import systems as deployed
from studies.hull import Hull, above, at_prevalence

Log = Callable[[str], None]
Key = tuple[str, int]  # name and seed of a system
# What a network with exits is compared with: widths and sizes, and with them detectors that end at an exit.
HULLS = {"peers": ("plain", "input", "width", "search"), "static": ("plain", "input", "width", "search", "truncated")}


class PlaneConfig(Group):
    """``params/plane.yaml``."""

    name: str = Field("plane", pattern=r"^\w+$")  # of the metrics file and of the folder of match flags
    systems: dict[str, deployed.SystemConfig] = Field(min_length=1)
    out: str = "runs/plane"  # exports and exit records
    split: Literal["val", "calibrate", "test"] = "test"  # that is reported; `val` while a system is developed
    limit: int | None = Field(None, ge=1)  # images of each split; None takes all
    timed_images: int | None = Field(None, ge=1)  # of `split`; None takes all
    int8_images: int = Field(64, ge=1)  # of calibrate, for the ranges of the activations
    resamples: int = Field(2000, ge=2)  # bootstrap over scenes
    # shares of empty images, beside the split's own
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.89]
    latencies: list[Annotated[float, Field(gt=0)]]  # at which coins of a network's exits are judged


def load(path: Path | str, settings: dict[str, object] | None = None) -> PlaneConfig:
    """Read and check ``params/plane.yaml``.

    Raises:
        ConfigError: a key, a value, or not one system that is the measure of time.
    """
    config = validate(PlaneConfig, override(read_yaml(path), settings or {}), str(path))
    plain = [name for name, system in config.systems.items() if system.kind == "plain"]
    if len(plain) != 1:
        raise ConfigError(f"{path}: key 'systems': of kind 'plain' are {plain}; expected one, the measure of time")
    return config


def flags_of(reports: Path | str, name: str, seed: int, plane: str = "plane") -> Path:
    """File of the match flags of a plane's system."""
    return Path(reports) / plane / f"{name.replace(' ', '_')}_seed{seed}.npz"


def trained(config: PlaneConfig, log: Log = print) -> tuple[list[deployed.System], list[str]]:
    """The systems that have weights, and the names of those that have none.

    Raises:
        ConfigError: the plain detector has none: nothing would have a time.
    """
    systems, missing = [], []
    for name, line in config.systems.items():
        of_line = deployed.systems_of(name, line, resolve(config.out))
        if not of_line and line.kind == "plain":
            raise ConfigError(f"key 'systems.{name}.weights' is '{line.weights}': no such checkpoint; train it first")
        if not of_line:
            log(f"left out: {name}, there is no {line.weights}")
            missing.append(name)
        systems += of_line
    return systems, missing


def measure(
    config: PlaneConfig, systems: Sequence[deployed.System], reports: Path | str, log: Log = print
) -> list[dict]:
    """Export, record and time systems; the flags of their matches are saved in ``reports/plane``.

    Returns:
        For each system and seed ``name``, ``kind``, ``seed``, hashes, sizes, and ``exits``: of each its place,
        operations, ``cut`` (score from which boxes count, chosen on ``val``), times and ``time_ratio``. The plain
        detector's median is 1; a further seed has the times of the first, whose graphs are the same.
    """
    rows, sessions, split = [], {}, config.split
    for system in systems:
        log(f"recording {system.name}, seed {system.seed}")
        session = deployed.opened(system, config.int8_images)
        records = {of: deployed.session_records(system, session, of, config.limit) for of in {"val", split}}
        cuts = best_cuts(RoutedAP(records["val"], load_split("val")))
        flags, graphs = flags_of(reports, system.name, system.seed, config.name), records[split].checkpoint_sha256
        RoutedAP(records[split], load_split(split)).save(flags, split_sha256(split), graphs)
        row = {"name": system.name, "kind": system.kind, "seed": system.seed, "int8": system.int8}
        row |= {"checkpoint_sha256": file_sha256(system.checkpoint), "graphs_sha256": graphs}
        rows.append(row | deployed.costs(system, session))
        for exit_, cut in zip(rows[-1]["exits"].values(), cuts.tolist(), strict=True):
            exit_["cut"] = cut
        sessions.setdefault(system.name, session)
    times = deployed.measure_times(sessions, split, config.timed_images, log)
    plain = times[next(row["name"] for row in rows if row["kind"] == "plain"), "full"]["median_ms"]
    for row in rows:
        for name, exit_ in row["exits"].items():
            exit_ |= times[row["name"], name] | {"time_ratio": times[row["name"], name]["median_ms"] / plain}
    return rows


def times_of(system: Mapping) -> np.ndarray:
    """Times (E,) of a system's exits as shares of the plain detector's."""
    return np.array([exit_["time_ratio"] for exit_ in system["exits"].values()])


class Judged:
    """AP of every system under one share of empty images, and what it is worth beside the others.

    Args:
        systems: of :func:`measure`.
        evaluators: match flags by name and seed, all of the same images.
        weights: (R, N) how often each image counts in each resample.
        once: (N,) how often it counts in the AP that is stated.
    """

    def __init__(
        self, systems: Sequence[dict], evaluators: Mapping[Key, RoutedAP], weights: np.ndarray, once: np.ndarray
    ):
        self.systems = {(row["name"], row["seed"]): row for row in systems}
        self.evaluators, self.once = evaluators, once
        routings = {key: [np.full(e.images, k) for k in range(e.exits)] for key, e in evaluators.items()}
        self.samples = {key: bootstrap(e, routings[key], weights) for key, e in evaluators.items()}
        self.scores = {key: [e.scores(routing, once) for routing in routings[key]] for key, e in evaluators.items()}
        self.times = {key: times_of(row) for key, row in self.systems.items()}

    def of_seed(self, name: str, seed: int) -> Key:
        """The system as this seed trained it, or the first one where there is no such seed."""
        return (name, seed) if (name, seed) in self.systems else (name, 0)

    def hull(self, hull: str, seed: int) -> Hull:
        """The static systems of :data:`HULLS` beside a system of some seed."""
        names = dict.fromkeys(row["name"] for row in self.systems.values() if row["kind"] in HULLS[hull])
        keys = [self.of_seed(name, seed) for name in names]
        times = np.array([self.times[key][0] for key in keys])
        return Hull(times, np.stack([self.samples[key][:, 0] for key in keys], 1))

    def against(self, seed: int, time: float, samples: np.ndarray) -> dict:
        """Interval of AP (R,) less each hull's at a time, and whether it is above; None where no system is as fast."""
        verdicts = {}
        for hull in HULLS:
            gap = self.hull(hull, seed).gap(time, samples)
            verdicts |= {f"minus_{hull}": None if gap is None else interval(gap)}
            verdicts |= {f"above_{hull}": None if gap is None else above(gap)}
        return verdicts

    def exits(self) -> list[dict]:
        """A row for each system and exit: AP with its interval, answers, and the verdicts on networks with exits."""
        rows, plain = [], next(key for key, row in self.systems.items() if row["kind"] == "plain")
        for key, system in self.systems.items():
            answers = self.answers(key)
            for k, name in enumerate(system["exits"]):
                samples, time = self.samples[key][:, k], float(self.times[key][k])
                row = {"system": key[0], "kind": system["kind"], "seed": key[1], "exit": name, "time_ratio": time}
                row |= self.scores[key][k] | {"AP_interval": interval(samples)} | answers[k]
                row |= {"minus_plain": interval(samples - self.samples[plain][:, 0])}
                rows.append(row | (self.against(key[1], time, samples) if system["kind"] == "exits" else {}))
        return rows

    def answers(self, key: Key) -> list[dict]:
        """Of each exit precision and recall of boxes above its cut, and the share of empty images with such a box."""
        evaluator, cuts = self.evaluators[key], [exit_["cut"] for exit_ in self.systems[key]["exits"].values()]
        (claimed, right), empty = evaluator.claims(cuts), evaluator.positives == 0
        found, objects = self.once @ right, self.once @ evaluator.positives
        columns = {"precision": found / np.maximum(self.once @ claimed, 1e-9), "recall": found / max(objects, 1e-9)}
        columns["false_alarms"] = (claimed[empty] > 0).sum(0) / max(1, empty.sum())
        return [{name: float(column[k]) for name, column in columns.items()} for k in range(evaluator.exits)]

    def coins(self, latencies: Sequence[float]) -> list[dict]:
        """A row for each network with exits and latency: the best coin of its exits there, and the verdicts."""
        rows = []
        for key in (key for key, system in self.systems.items() if system["kind"] == "exits"):
            stated = Hull(self.times[key], np.array([[values["AP"] for values in self.scores[key]]]))
            coin = Hull(self.times[key], self.samples[key])
            for latency in latencies:
                if (samples := coin.at(latency)) is not None:
                    row = {"system": key[0], "seed": key[1], "time_ratio": latency, "AP": float(stated.at(latency)[0])}
                    rows.append(row | {"AP_interval": interval(samples)} | self.against(key[1], latency, samples))
        return rows

    def alone(self) -> list[dict]:
        """A row for each exit beside the detector that was trained for it alone: truncated there, or without exits."""
        peers = {
            (row["input_px"], exit_["children"], row["int8"]): row["name"]
            for row in self.systems.values() if row["kind"] in ("plain", "input", "truncated")
            for exit_ in row["exits"].values()
        }  # fmt: skip
        rows = []
        for key, system in self.systems.items():
            for k, (name, exit_) in enumerate(system["exits"].items() if system["kind"] == "exits" else ()):
                if peer := peers.get((system["input_px"], exit_["children"], system["int8"])):
                    other = self.of_seed(peer, key[1])
                    row = {"system": key[0], "seed": key[1], "exit": name, "peer": peer}
                    row |= {"AP_minus_peer": self.scores[key][k]["AP"] - self.scores[other][0]["AP"]}
                    row |= {"interval": interval(self.samples[key][:, k] - self.samples[other][:, 0])}
                    rows.append(row | {"time_to_peer": float(self.times[key][k] / self.times[other][0])})
        return rows


def judge(systems: Sequence[dict], evaluators: Mapping[Key, RoutedAP], coco: COCO, config: Mapping) -> dict:
    """Everything that follows from match flags and times.

    Args:
        systems: of :func:`measure`.
        evaluators: match flags by name and seed.
        config: ``resamples``, ``prevalences`` and ``latencies`` of :class:`PlaneConfig`.

    Returns:
        ``images``, ``empty_images``, and rows of :class:`Judged` as ``exits``, ``coins`` and ``alone``, each with the
        share of empty images as ``prevalence``, the split's own first.
    """
    some = next(iter(evaluators.values()))
    weights = resample(scenes_of(coco, some.image_ids), config["resamples"], seed=0)
    empty, ones = some.positives == 0, np.ones(some.images, np.int64)
    cases = {float(empty.mean()): (weights, ones)}
    for prevalence in config["prevalences"] if empty.any() else ():
        cases[prevalence] = at_prevalence(weights, empty, prevalence), at_prevalence(ones[None], empty, prevalence)[0]
    report: dict = {"images": some.images, "empty_images": int(empty.sum()), "exits": [], "coins": [], "alone": []}
    for prevalence, case in cases.items():
        judged = Judged(systems, evaluators, *case)
        parts = {"exits": judged.exits(), "coins": judged.coins(config["latencies"]), "alone": judged.alone()}
        for name, rows in parts.items():
            report[name] += [{"prevalence": prevalence} | row for row in rows]
    return report


def load_flags(reports: Path | str, report: Mapping, system: str | None = None) -> dict[Key, RoutedAP]:
    """Match flags by name and seed of a plane's systems, or of one system's seeds, from files alone.

    Args:
        report: the plane's metrics file.

    Raises:
        RecordsError: a system has no flags, or those of other graphs or images.
    """
    flags = {}
    for row in report["systems"]:
        key = row["name"], row["seed"]
        if system in (None, row["name"]):
            path = flags_of(reports, *key, report["plane"]["name"])
            flags[key] = RoutedAP.load(path, report["split_sha256"], row["graphs_sha256"])
    return flags


def recompute(reports: Path | str, report: Mapping) -> dict:
    """A plane from the times in its metrics file and from its match flags in ``reports`` alone, without weights.

    Raises:
        RecordsError: a system has no flags, or those of other graphs or images.
    """
    flags = load_flags(reports, report)
    return dict(report) | judge(report["systems"], flags, load_split(report["split"]), report["plane"])


def run(config: PlaneConfig, reports: Path | str, log: Log = print) -> dict:
    """Measure and judge all systems; ``metrics/NAME.json`` and ``NAME/*.npz`` in ``reports``."""
    systems, missing = trained(config, log)
    report: dict = {"split": config.split, "split_sha256": split_sha256(config.split), "missing": missing}
    report |= {"plane": config.model_dump(mode="json"), "runtime": "onnxruntime, batch 1, one thread"}
    report |= {"machine": machine(), "versions": versions(), "systems": measure(config, systems, reports, log)}
    report["checkpoint_sha256"] = next(row["checkpoint_sha256"] for row in report["systems"] if row["kind"] == "plain")
    log("judging")
    report = recompute(reports, report)
    write_json(Path(reports) / "metrics" / f"{config.name}.json", report)
    return report
