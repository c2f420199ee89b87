"""Exits and their alternatives on one axis: AP on ``test`` against measured time on onnxruntime.

Every system is exported and detects through the session that a user would deploy. All times come
from one interleaved run at batch 1 on one thread, from the tensor of the system's own size to
detections, as a share of the released detector without exits. Intervals are paired bootstraps over
scenes. What is chosen (the best alternative, the search, thresholds) is chosen on ``val`` and
``calibrate``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from eelib.curves import choose
from eelib.splits import prepare
from pycocotools.coco import COCO

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import ConfigError, parse, resolve
from eelib.data import DetectionDataset, load_split
from eelib.evaluate import provenance
from eelib.files import file_sha256, write_json
from eelib.model import SIZE
from eelib.policies import settings_of
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.timing import machine, macs
from studies.compress import search
from studies.compress.alternatives import PEERS
from studies.compress.systems import System, eager_ratios, export_system, measure_times, session_records
from studies.compress.variants import CompressConfig, Variant, train_heads, train_variant
from studies.hull import hull_gap

SEARCHED = "searched"  # name of the variant that the search proposes
POLICIES, GRID = ("max_score", "benefit"), 20  # of the routing of a system with exits; quantiles of their thresholds

Log = Callable[[str], None]


class Trained(NamedTuple):
    """What training leaves: folders and lines of all variants, the search, the best variant, and that again by seed.

    ``val`` has for each variant ``val_AP`` of full, ``training_seconds`` and ``ratio_at_choice``, its time / full.
    """

    folders: dict[str, Path]
    variants: dict[str, Variant]
    val: dict[str, dict]
    search: dict
    best: str
    by_seed: dict[int, Path]


class Systems(NamedTuple):
    """What is measured: static systems, the released detector first; systems with exits; those of other seeds."""

    static: list[System]
    with_exits: list[System]
    by_seed: dict[int, list[System]]


class Axis(NamedTuple):
    """What all systems are measured by: annotations of ``test``, resamples of its scenes (R, N), times of one run."""

    coco: COCO
    weights: np.ndarray
    times: Mapping[tuple[str, str], Mapping]

    @property
    def full_ms(self) -> float:
        """Time of the released detector without exits."""
        return self.times["full", "full"]["median_ms"]


class Static(NamedTuple):
    """The static systems as measured: a row each, and AP on every resample, (R, K)."""

    rows: list[dict]
    samples: np.ndarray


def kind_of(name: str, variants: Mapping[str, Variant]) -> str:
    """What a variant is compared as."""
    if name == SEARCHED:
        return "search"
    variant = variants[name]
    if variant.teacher:
        return "distilled"
    narrow, small, short = variant.width < 1, variant.size != SIZE, variant.maps < 6
    if narrow + small + short != 1:
        return "mixed"
    return "width" if narrow else "input" if small else "tail"


def best_variant(trained: Mapping[str, Mapping], budget: float) -> str:
    """The variant with the best AP on ``val`` among those that keep to a budget of time; of all, if none does.

    Args:
        trained: :attr:`Trained.val`.
    """
    inside = {name: v for name, v in trained.items() if v["ratio_at_choice"] <= budget} or trained
    return max(inside, key=lambda name: (inside[name]["val_AP"], -inside[name]["ratio_at_choice"]))


def train_all(config: CompressConfig, log: Log = print) -> Trained:
    """Train what is missing: the variants, the search and what it proposes, exits on the best of them."""
    folders = {name: train_variant(name, config, log=log) for name in config.variants}
    proposed = search.run(config, log)
    variants = config.variants | {SEARCHED: search.as_variant(proposed["chosen"]["params"], config)}
    # first, so that its cuts are taken where it is another variant over again
    folders = {SEARCHED: train_variant(SEARCHED, config, variants, log)} | folders
    static, val = static_systems(config, folders, variants), {}
    times = measure_times(static, config.search.repeats)
    for name, folder in folders.items():
        result = json.loads((folder / "variant.json").read_text())
        val[name] = {"val_AP": result["val_AP"]["full"], "training_seconds": result["seconds"]}
        val[name]["ratio_at_choice"] = times[name, "full"]["median_ms"] / times["full", "full"]["median_ms"]
    best, by_seed = best_variant(val, config.budget), {}
    for seed in (config.seed, *config.seeds):
        other = config.model_copy(update={"seed": seed})
        by_seed[seed] = folders[best] if seed == config.seed else train_variant(best, other, variants, log)
        train_heads(by_seed[seed], other, log)
    return Trained(folders, variants, val, proposed, best, {seed: by_seed[seed] for seed in config.seeds})


def static_systems(config: CompressConfig, folders: Mapping[str, Path], variants: Mapping) -> list[System]:
    """The released detector without exits and the variants, in float."""
    full = export_system("full", "full", resolve(config.baseline), resolve(config.out) / "export_baseline")
    return [full] + [
        export_system(name, kind_of(name, variants), folder / "static.pth", folder / "export_static")
        for name, folder in folders.items()
    ]


def systems_of(config: CompressConfig, trained: Trained) -> Systems:
    """Everything that is measured, exported."""
    out, (baseline, exits) = resolve(config.out), map(resolve, (config.baseline, config.exits))
    static = static_systems(config, trained.folders, trained.variants)
    static.append(export_system("full int8", "int8", baseline, out / "export_baseline", config.int8_images))
    kind = kind_of(trained.best, trained.variants)
    _, best_int8, *best = systems_on(trained.best, kind, trained.folders[trained.best], config.int8_images)
    with_exits = [
        export_system("exits", "exits", exits, out / "export_exits"),
        export_system("exits int8", "exits", exits, out / "export_exits", config.int8_images),
    ]
    by_seed = {s: systems_on(trained.best, kind, folder, config.int8_images) for s, folder in trained.by_seed.items()}
    return Systems([*static, best_int8], with_exits + best, by_seed)


def systems_on(name: str, kind: str, folder: Path, int8_images: int) -> list[System]:
    """A variant in float and in int8, and the exits on it in float and in int8."""
    return [
        export_system(name, kind, folder / "static.pth", folder / "export_static"),
        export_system(f"{name} int8", "int8", folder / "static.pth", folder / "export_static", int8_images),
        export_system(f"exits on {name}", "exits", folder / "exits.pth", folder / "export_exits"),
        export_system(f"exits on {name} int8", "exits", folder / "exits.pth", folder / "export_exits", int8_images),
    ]


def passed_ratios(times: Mapping, name: str, exits: Sequence[str], full_ms: float) -> list[float]:
    """What a look at the boxes of every exit asked adds to leaving at each exit, as a share of full's time.

    Args:
        times: of :func:`studies.compress.systems.measure_times`.
        name: the system.
        exits: its exits in order.
    """
    passed_ms, ratios = 0.0, []
    for k, exit_name in enumerate(exits):
        observed_ms, suppressed_ms = (
            times[name, f"{what} at {exit_name}"]["median_ms"] if k + 1 < len(exits) else 0.0
            for what in ("observation", "suppression")
        )  # the exit's own time holds the suppression where the image leaves
        ratios.append((passed_ms + max(0.0, observed_ms - suppressed_ms)) / full_ms)
        passed_ms += observed_ms
    return ratios


def exit_rows(system: System, records: ExitRecords, axis: Axis) -> tuple[dict[str, dict], np.ndarray]:
    """Each exit of a system: AP with interval, time and operations; and AP on every resample, (R, E)."""
    evaluator, model, names = RoutedAP(records, axis.coco), load_released(system.checkpoint), records.exit_names
    routings = [np.full(len(records), k) for k in range(len(names))]
    samples, rows = bootstrap(evaluator, routings, axis.weights), {}
    passed = passed_ratios(axis.times, system.name, names, axis.full_ms)
    for k, name in enumerate(names):
        time = axis.times[system.name, name]
        rows[name] = evaluator.scores(routings[k]) | {"AP_interval": interval(samples[:, k])}
        rows[name] |= {"time_ratio": time["median_ms"] / axis.full_ms, **time, "passed_ratio": passed[k]}
        rows[name]["macs"] = macs(model, name)
    return rows, samples


def measure_static(static: Sequence[System], axis: Axis, limit: int | None) -> Static:
    """All static systems; the first is what the others' AP is compared with."""
    rows, columns = [], []
    for system in static:
        exits, samples = exit_rows(system, session_records(system, "test", limit), axis)
        columns.append(samples[:, 0])
        row = {"name": system.name, "kind": system.kind} | exits["full"] | system.size()
        row["AP_minus_full"] = row["AP"] - (rows[0]["AP"] if rows else row["AP"])
        rows.append(row | {"AP_minus_full_interval": interval(columns[-1] - columns[0])})
    return Static(rows, np.stack(columns, 1))


def measure_routed(system: System, config: CompressConfig, axis: Axis, static: Static) -> dict:
    """A system with exits: its exits, and a routing on it beside the hull of the static systems.

    Policy and thresholds of each budget come from ``calibrate``. ``minus_peers`` compares with :data:`PEERS`
    alone, ``minus_all`` with every static system, int8 included.
    """
    records = {split: session_records(system, split, config.limit) for split in ("val", "calibrate", "test")}
    cocos = {"val": load_split("val"), "calibrate": load_split("calibrate"), "test": axis.coco}
    exits, _ = exit_rows(system, records["test"], axis)
    full_ratio = exits["full"]["time_ratio"]
    costs, passing = ([row[key] / full_ratio for row in exits.values()] for key in ("time_ratio", "passed_ratio"))
    splits = prepare(records, cocos, costs, passing=passing)
    here, test, points = splits["calibrate"], splits["test"], {}
    settings = {name: settings_of(name, here, splits["val"], {"grid": GRID}) for name in POLICIES}
    policy_of = {id(setting): name for name in POLICIES for setting in settings[name]}
    static_costs = np.array([row["time_ratio"] for row in static.rows])
    peers = np.array([row["kind"] in PEERS for row in static.rows])
    everything = [setting for name in POLICIES for setting in settings[name]]
    for budget, setting in zip(config.budgets, choose(everything, here, config.budgets), strict=True):
        chosen = setting.route(test)
        key = chosen.tobytes(), setting.reads_boxes
        if key in points:
            points[key]["budgets"].append(budget)
            continue
        samples = bootstrap(test.evaluator, [chosen], axis.weights)[:, 0]
        shares = np.bincount(chosen, minlength=len(exits)) / len(chosen)
        time = test.time(chosen, setting.reads_boxes) * full_ratio
        points[key] = {
            "budgets": [budget], "policy": policy_of[id(setting)], "time_ratio": time,
            "thresholds": list(setting.thresholds), **test.evaluator.scores(chosen), "AP_interval": interval(samples),
            "exit_shares": dict(zip(exits, shares.tolist(), strict=True)),
        }  # fmt: skip
        for hull, members in (("minus_peers", peers), ("minus_all", np.ones_like(peers))):
            gap = hull_gap(time, samples, static_costs[members], static.samples[:, members])
            points[key][hull] = None if gap is None else interval(gap)
    return {"name": system.name, "exits": exits, "points": list(points.values())} | system.size()


def measure_seed(systems: Sequence[System], config: CompressConfig, axis: Axis, static: Static) -> dict:
    """The best alternative and the exits on it from another seed, beside static systems of which it is one.

    Its graphs are those of the first seed with other weights, so their times are taken.

    Args:
        systems: of :func:`systems_on`.

    Returns:
        ``static`` (rows of the alternative in float and int8) and ``with_exits`` (:func:`measure_routed`).
    """
    rows, names, samples = [], [row["name"] for row in static.rows], static.samples.copy()
    for system in systems[:2]:
        exits, columns = exit_rows(system, session_records(system, "test", config.limit), axis)
        rows.append({"name": system.name, "kind": system.kind} | exits["full"])
        samples[:, names.index(system.name)] = columns[:, 0]
    beside = static._replace(samples=samples)
    return {"static": rows, "with_exits": [measure_routed(system, config, axis, beside) for system in systems[2:]]}


def measure_all(config: CompressConfig, systems: Systems, times: Mapping, log: Log = print) -> dict:
    """Every system on ``test``: ``static``, ``with_exits`` and ``seeds`` of ``compress.json``.

    Args:
        times: of :func:`studies.compress.systems.measure_times`, one run for all systems but those of other seeds.
    """
    log("detecting and routing with every system")
    dataset = DetectionDataset("test", keep_crowd=True, limit=config.limit)
    weights = resample(scenes_of(dataset.coco, dataset.image_ids), config.resamples, seed=0)
    axis = Axis(dataset.coco, weights, times)
    static = measure_static(systems.static, axis, config.limit)
    return {
        "static": static.rows,
        "with_exits": [measure_routed(system, config, axis, static) for system in systems.with_exits],
        "seeds": [{"seed": s} | measure_seed(group, config, axis, static) for s, group in systems.by_seed.items()],
        "images": len(dataset),
    }


def evaluate(config: CompressConfig, trained: Trained, log: Log = print) -> dict:
    """Measure what was trained; what ``compress.json`` holds."""
    systems = systems_of(config, trained)
    log("timing all systems in turn")
    times = measure_times([*systems.static, *systems.with_exits], config.repeats)
    peers = [system for system in systems.static if system.kind in PEERS]
    eager = eager_ratios(peers, resolve(config.exits), config.repeats)
    report = measure_all(config, systems, times, log)
    for row in report["static"]:
        row |= trained.val.get(row["name"], {})
        row |= {"time_ratio_eager": eager[row["name"]]} if row["name"] in eager else {}
    baseline = resolve(config.baseline)
    settings = parse(load_checkpoint(baseline)["config"], config.baseline)
    report |= {"best": trained.best, "search": trained.search} | provenance("test", settings, baseline)
    return report | {
        "exits_sha256": file_sha256(resolve(config.exits)), "compress": config.model_dump(mode="json"),
        "runtime": "onnxruntime, batch 1, one thread", "machine": machine(),
    }  # fmt: skip


def save(report: dict, reports: Path | str) -> None:
    """Write ``metrics/compress.json``, all of it, and ``metrics/static.json``, the static peers as ``peers``."""
    folder = Path(reports) / "metrics"
    origin = {k: v for k, v in report.items() if k not in ("static", "with_exits", "best", "search", "seeds")}
    write_json(folder / "compress.json", report)
    write_json(folder / "static.json", {"peers": [r for r in report["static"] if r["kind"] in PEERS]} | origin)


def run(config: CompressConfig, only: str | None, reports: Path | str, log: Log = print) -> dict | None:
    """Train what is missing, measure everything, write the metrics; with ``only`` train one variant or the search.

    Raises:
        ConfigError: ``only`` names no variant.
    """
    if only is None:
        report = evaluate(config, train_all(config, log), log)
        save(report, reports)
        return report
    if only == "search":
        search.run(config, log)
    elif only in config.variants:
        train_variant(only, config, log=log)
    else:
        raise ConfigError(f"--only {only}: expected search or one of {', '.join(config.variants)}")
    return None
