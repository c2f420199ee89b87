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
import pandas as pd
from pycocotools.coco import COCO

from eelib import search
from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import ConfigError, parse, resolve
from eelib.curves import choose, hull_mixture
from eelib.data import DetectionDataset
from eelib.evaluate import coco_ap, provenance, to_results
from eelib.files import file_sha256
from eelib.latency import machine
from eelib.model import SIZE
from eelib.phases import write_json
from eelib.policies import settings_of
from eelib.prune import macs, parameters
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.splits import prepare
from eelib.systems import System, eager_ratios, measure_times, session_records, size_mib, system
from eelib.variants import RELEASED, CompressConfig, Variant, train_heads, train_variant

SEARCHED = "searched"  # name of the variant that the search proposes
PEERS = ("full", "width", "input")  # kinds of the static peers: what a user would do without any of this
POLICY, GRID = "max_score", 20  # routing on top of an alternative, and the quantiles of its thresholds


def kind_of(variant: Variant) -> str:
    """What a variant is compared as."""
    if variant.teacher:
        return "distilled"
    narrow, small, short = variant.width < 1, variant.size != SIZE, variant.maps < 6
    if narrow + small + short != 1:
        return "mixed"
    return "width" if narrow else "input" if small else "tail"


def hull_gap(time: float, samples: np.ndarray, costs: np.ndarray, static: np.ndarray) -> np.ndarray | None:
    """AP above the best mixture of static systems at a mean time, resample by resample.

    Args:
        time: mean time / full.
        samples: (R,) AP of the system.
        costs: (K,) times of the static systems.
        static: (R, K) their AP on the same resamples.

    Returns:
        (R,), or None where the system is faster than every static one: there is no hull there.
    """
    if time < costs.min() - 1e-9:
        return None
    return samples - np.array([hull_mixture(costs, row, time) @ row for row in static])


def best_variant(trained: Mapping[str, dict], budget: float) -> str:
    """The variant with the best AP on ``val`` among those that keep to a budget of time; of all, if none does.

    Args:
        trained: name to ``val_AP`` of full and ``predicted_ratio``, time / full by the look-up table.
    """
    inside = {n: v for n, v in trained.items() if v["predicted_ratio"] <= budget} or trained
    return max(inside, key=lambda n: (inside[n]["val_AP"], -inside[n]["predicted_ratio"]))


def train_all(config: CompressConfig, log: Callable[[str], None] = print) -> dict:
    """Train what is missing: the variants, the search and what it proposes, exits on the best of them."""
    folders = {name: train_variant(name, config, log=log) for name in config.variants}
    found = search.run(config, log)
    variants = config.variants | {SEARCHED: search.as_variant(found["chosen"], config)}
    # first, so that its cuts are taken where it is another variant over again
    folders = {SEARCHED: train_variant(SEARCHED, config, variants, log)} | folders
    table, trained = search.latency_table(config, log), {}
    widths = {(config.variants[w].width if w != RELEASED else 1.0): w for w in config.search.widths}
    whole = search.predicted_ms(table, RELEASED, Variant(), exits=False)["full"]
    for name, folder in folders.items():
        variant, told = variants[name], json.loads((folder / "variant.json").read_text())
        trained[name] = {"val_AP": told["val_AP"]["full"], "training_seconds": told["seconds"]}
        if variant.width in widths:
            times = search.predicted_ms(table, widths[variant.width], variant, exits=False)
            trained[name]["predicted_ratio"] = times["full"] / whole
    timed = {name: values for name, values in trained.items() if "predicted_ratio" in values}
    best = best_variant(timed, config.budget)
    train_heads(folders[best], config, log)
    return {"folders": folders, "variants": variants, "trained": trained, "search": found, "best": best}


def systems_of(config: CompressConfig, done: Mapping) -> tuple[list[System], list[System]]:
    """Static systems, the released detector first, and systems with exits."""
    out, best = resolve(config.out), done["folders"][done["best"]]
    baseline, exits = resolve(config.baseline), resolve(config.exits)
    static = [system("full", "full", baseline, out / "export_baseline")]
    for name, folder in done["folders"].items():
        kind = "search" if name == SEARCHED else kind_of(done["variants"][name])
        static.append(system(name, kind, folder / "static.pth", folder / "export_static"))
    static.append(system("full int8", "int8", baseline, out / "export_baseline", config.int8_images))
    label = f"{done['best']} int8"
    static.append(system(label, "int8", best / "static.pth", best / "export_static", config.int8_images))
    with_exits = [
        system("exits", "exits", exits, out / "export_exits"),
        system("exits int8", "exits", exits, out / "export_exits", config.int8_images),
        system(f"exits on {done['best']}", "exits", best / "exits.pth", best / "export_exits"),
        system(f"exits on {label}", "exits", best / "exits.pth", best / "export_exits", config.int8_images),
    ]
    return static, with_exits


class Truth(NamedTuple):
    """The test split's annotations, resamples of its scenes, and the time of full in ms."""

    coco: COCO
    weights: np.ndarray
    full_ms: float


def _scores(records: ExitRecords, index: int, coco: COCO) -> dict[str, float]:
    category = coco.getCatIds(catNms=["chair"])[0]
    results = [
        r for row, i in enumerate(records.image_ids) for r in to_results(i, records.detections(index, row), category)
    ]
    values = coco_ap(coco, results, records.image_ids)
    return {key: values[key] for key in ("AP", "AP50")}


def exit_rows(one: System, records: ExitRecords, times: Mapping, truth: Truth) -> tuple[dict[str, dict], np.ndarray]:
    """Each exit of a system: AP by pycocotools with interval, time, parameters, operations; samples (R, E)."""
    evaluator, model = RoutedAP(records, truth.coco), load_released(one.checkpoint).eval()
    routings = [np.full(len(records), k) for k in range(len(records.exit_names))]
    samples, rows, passed_ms = bootstrap(evaluator, routings, truth.weights), {}, 0.0
    for k, name in enumerate(records.exit_names):
        measured = times[one.name, name] | {"passed_ratio": passed_ms / truth.full_ms}
        if k + 1 < len(records.exit_names):
            passed_ms += times[one.name, f"suppression at {name}"]["median_ms"]
        rows[name] = _scores(records, k, truth.coco) | {
            "AP_interval": interval(samples[:, k]),
            "time_ratio": measured["median_ms"] / truth.full_ms, **measured, "macs": macs(model, name),
        }  # fmt: skip
    return rows, samples


def static_rows(
    static: Sequence[System], times: Mapping, truth: Truth, limit: int | None
) -> tuple[list[dict], np.ndarray]:
    """A row a static system, and AP on every resample, (R, K)."""
    rows, columns = [], []
    for one in static:
        values, samples = exit_rows(one, session_records(one, "test", limit), times, truth)
        columns.append(samples[:, 0])
        difference = {"AP_minus_full": values["full"]["AP"] - (rows[0]["AP"] if rows else values["full"]["AP"]),
                      "AP_minus_full_interval": interval(columns[-1] - columns[0])}  # fmt: skip
        size = {"size_mib": size_mib(one), "parameters": parameters(load_released(one.checkpoint))}
        rows.append({"name": one.name, "kind": one.kind} | values["full"] | difference | size)
    return rows, np.stack(columns, 1)


def routed_rows(
    one: System,
    config: CompressConfig,
    times: Mapping,
    truth: Truth,
    static: Sequence[Mapping],
    samples: np.ndarray,
) -> dict:
    """A system with exits: its exits, and a routing by its best score beside the hull of the static systems.

    Thresholds come from ``calibrate``. ``minus_peers`` compares with :data:`PEERS` alone, ``minus_all``
    with every static system, int8 included.
    """
    records = {split: session_records(one, split, config.limit) for split in ("val", "calibrate", "test")}
    exits, _ = exit_rows(one, records["test"], times, truth)
    cocos = {s: DetectionDataset(s, keep_crowd=True, limit=1).coco for s in ("val", "calibrate")} | {"test": truth.coco}
    own_ms = exits["full"]["median_ms"]
    splits = prepare(records, cocos, [values["median_ms"] / own_ms for values in exits.values()])
    here, test, points = splits["calibrate"], splits["test"], {}
    settings = settings_of(POLICY, here, splits["val"], {"grid": GRID})
    costs = np.array([row["time_ratio"] for row in static])
    peers = np.array([row["kind"] in PEERS for row in static])
    for setting in choose(settings, here, config.budgets):
        chosen = setting.route(test)
        if chosen.tobytes() in points:
            continue
        routed = bootstrap(test.evaluator, [chosen], truth.weights)[:, 0]
        shares = np.bincount(chosen, minlength=len(exits)) / len(chosen)
        time = test.time(chosen) * own_ms / truth.full_ms
        point = {"time_ratio": time, "thresholds": list(setting.thresholds),
                 **test.evaluator.scores(chosen), "AP_interval": interval(routed),
                 "exit_shares": dict(zip(exits, shares.tolist(), strict=True))}  # fmt: skip
        for key, kept in (("minus_peers", peers), ("minus_all", np.ones(len(costs), bool))):
            gap = hull_gap(time, routed, costs[kept], samples[:, kept])
            point[key] = None if gap is None else interval(gap)
        points[chosen.tobytes()] = point
    size = {"size_mib": size_mib(one), "parameters": parameters(load_released(one.checkpoint))}
    return {"name": one.name, "exits": exits, "policy": POLICY, "points": list(points.values())} | size


def evaluate(config: CompressConfig, done: Mapping, log: Callable[[str], None] = print) -> dict:
    """Measure every system on ``test``; what ``compress.json`` holds."""
    static, with_exits = systems_of(config, done)
    for one in (*static, *with_exits):
        log(f"detecting with {one.name}")
        for split in ("test",) if one in static else ("val", "calibrate", "test"):
            session_records(one, split, config.limit)
    log("timing all systems in turn")
    times = measure_times([*static, *with_exits], config.repeats)
    eager = eager_ratios([s for s in static if s.kind in PEERS], resolve(config.exits), config.repeats)
    dataset = DetectionDataset("test", keep_crowd=True, limit=config.limit)
    weights = resample(scenes_of(dataset.coco, dataset.image_ids), config.resamples, seed=0)
    truth = Truth(dataset.coco, weights, times["full", "full"]["median_ms"])
    rows, samples = static_rows(static, times, truth, config.limit)
    for row in rows:
        row |= done["trained"].get(row["name"], {})
        if row["name"] in eager:
            row["time_ratio_eager"] = eager[row["name"]]
    log("routing")
    systems = [routed_rows(one, config, times, truth, rows, samples) for one in with_exits]
    settings = parse(load_checkpoint(resolve(config.baseline))["config"], config.baseline)
    origin = provenance("test", settings, resolve(config.baseline)) | {
        "exits_sha256": file_sha256(resolve(config.exits)), "compress": config.model_dump(mode="json"),
        "images": len(dataset), "runtime": "onnxruntime, batch 1, one thread", "machine": machine(),
    }  # fmt: skip
    return {"static": rows, "with_exits": systems, "best": done["best"], "search": done["search"]} | origin


def save(report: dict, reports: Path | str) -> list[Path]:
    """Write ``metrics/compress.json``, all of it, and ``metrics/static.json``, the static peers as ``peers``."""
    folder = Path(reports) / "metrics"
    origin = {k: v for k, v in report.items() if k not in ("static", "with_exits", "best", "search")}
    peers = {"peers": [row for row in report["static"] if row["kind"] in PEERS]}
    return [write_json(folder / "compress.json", report), write_json(folder / "static.json", peers | origin)]


def table(report: Mapping) -> pd.DataFrame:
    """The closing table: AP, AP50, time, size, parameters and operations of every system and exit."""
    lines = []
    for row in report["static"]:
        lines.append({"system": row["name"], "kind": row["kind"], "exit": "–"} | _line(row, row))
    for one in report["with_exits"]:
        for name, values in one["exits"].items():
            lines.append({"system": one["name"], "kind": "exits", "exit": name} | _line(values, one))
    return pd.DataFrame(lines)


def _line(values: Mapping, one: Mapping) -> dict:
    return {
        "AP": values["AP"], "low": values["AP_interval"][0], "high": values["AP_interval"][1], "AP50": values["AP50"],
        "time / full": values["time_ratio"], "MiB": one["size_mib"], "M parameters": one["parameters"] / 1e6,
        "MMAC": values["macs"] / 1e6,
    }  # fmt: skip


def on_measured_time(points: Sequence[Mapping], exits: Mapping[str, Mapping]) -> list[dict]:
    """Points of a routing that reads boxes, with the mean time of their exit shares by the times of ``exits``."""
    paid = {name: values["time_ratio"] + values["passed_ratio"] for name, values in exits.items()}
    return [
        dict(point) | {"time_ratio": sum(share * paid[name] for name, share in point["exit_shares"].items())}
        for point in points
    ]


def winners(report: Mapping, budgets: Sequence[float]) -> pd.DataFrame:
    """The system with the best AP on ``test`` within each budget of time: a description, not a choice."""
    known = [(row["name"], row["time_ratio"], row["AP"]) for row in report["static"]]
    for one in report["with_exits"]:
        known += [(f"{one['name']}, routed", p["time_ratio"], p["AP"]) for p in one["points"]]
    lines = []
    for budget in budgets:
        inside = [entry for entry in known if entry[1] <= budget]
        name, time, ap = max(inside, key=lambda e: (e[2], -e[1]), default=(None, None, None))
        lines.append({"time / full at most": budget, "system": name, "time / full": time, "AP": ap})
    return pd.DataFrame(lines)


def verdict(points: Sequence[Mapping], key: str) -> str:
    """At how many latencies a routing lies above a hull with its whole interval, in words.

    Args:
        points: of :func:`routed_rows`.
        key: ``minus_peers`` or ``minus_all``.
    """
    met = [p for p in points if p[key] is not None]
    above = [p["time_ratio"] for p in met if p[key][0] > 0]
    below = sum(p[key][1] < 0 for p in met)
    where = f" (time / full {', '.join(f'{t:.2f}' for t in above)})" if above else ""
    return (
        f"above the hull, interval clear of it, at {len(above)} of {len(met)} latencies{where}; "
        f"below it, clear, at {below}; {len(points) - len(met)} are faster than any of the static systems"
    )


def run(
    config: CompressConfig, only: str | None, reports: Path | str, log: Callable[[str], None] = print
) -> dict | None:
    """Train what is missing, measure everything, write the metrics; with ``only`` train one variant or the search.

    Raises:
        ConfigError: ``only`` names no variant.
    """
    if only == "search":
        search.run(config, log)
    elif only is not None:
        if only not in config.variants:
            raise ConfigError(f"--only {only}: expected search or one of {', '.join(config.variants)}")
        train_variant(only, config, log=log)
    else:
        report = evaluate(config, train_all(config, log), log)
        save(report, reports)
        return report
    return None
