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
from pycocotools.coco import COCO

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import ConfigError, parse, resolve
from eelib.curves import choose
from eelib.data import DetectionDataset
from eelib.evaluate import coco_ap, provenance, to_results
from eelib.files import file_sha256, write_json
from eelib.model import SIZE
from eelib.policies import settings_of
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.splits import prepare
from eelib.timing import machine
from studies.compress import search
from studies.compress.alternatives import PEERS
from studies.compress.prune import macs, parameters
from studies.compress.systems import System, eager_ratios, measure_times, session_records, size_mib, system
from studies.compress.variants import RELEASED, CompressConfig, Variant, train_heads, train_variant
from studies.hull import hull_gap

SEARCHED = "searched"  # name of the variant that the search proposes
POLICIES, GRID = ("max_score", "benefit"), 20  # of the routing of a system with exits; quantiles of their thresholds


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
    again = {seed: train_again(best, seed, config, variants, log) for seed in config.seeds}
    return {"folders": folders, "variants": variants, "trained": trained, "search": found, "best": best, "again": again}


def train_again(
    name: str, seed: int, config: CompressConfig, variants: dict[str, Variant], log: Callable[[str], None] = print
) -> Path:
    """A variant, what it was pruned from, and exits on it, trained with another seed."""
    other = config.model_copy(update={"seed": seed})
    folder = train_variant(name, other, variants, log)
    train_heads(folder, other, log)
    return folder


def systems_of(config: CompressConfig, done: Mapping) -> tuple[list[System], list[System]]:
    """Static systems, the released detector first, and systems with exits."""
    out, best = resolve(config.out), done["folders"][done["best"]]
    baseline, exits = resolve(config.baseline), resolve(config.exits)
    static = [system("full", "full", baseline, out / "export_baseline")]
    for name, folder in done["folders"].items():
        static.append(system(name, kind_of(name, done["variants"]), folder / "static.pth", folder / "export_static"))
    static.append(system("full int8", "int8", baseline, out / "export_baseline", config.int8_images))
    _, own_int8, *own = systems_on(done["best"], best, config)
    with_exits = [
        system("exits", "exits", exits, out / "export_exits"),
        system("exits int8", "exits", exits, out / "export_exits", config.int8_images),
    ]
    return [*static, own_int8], with_exits + own


def systems_on(name: str, folder: Path, config: CompressConfig) -> list[System]:
    """A variant in float and in int8, and the exits on it in float and in int8."""
    count = config.int8_images
    return [
        system(name, kind_of(name, config.variants), folder / "static.pth", folder / "export_static"),
        system(f"{name} int8", "int8", folder / "static.pth", folder / "export_static", count),
        system(f"exits on {name}", "exits", folder / "exits.pth", folder / "export_exits"),
        system(f"exits on {name} int8", "exits", folder / "exits.pth", folder / "export_exits", count),
    ]


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
        seen_ms, suppressed_ms = (
            times[one.name, f"{what} at {name}"]["median_ms"] if k + 1 < len(records.exit_names) else 0.0
            for what in ("observation", "suppression")
        )  # own time holds the suppression at the exit where the image leaves
        passed = (passed_ms + max(0.0, seen_ms - suppressed_ms)) / truth.full_ms
        measured = times[one.name, name] | {"passed_ratio": passed}
        passed_ms += seen_ms
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
    """A system with exits: its exits, and a routing on it beside the hull of the static systems.

    Policy and thresholds of each budget come from ``calibrate``. ``minus_peers`` compares with :data:`PEERS`
    alone, ``minus_all`` with every static system, int8 included.
    """
    records = {split: session_records(one, split, config.limit) for split in ("val", "calibrate", "test")}
    exits, _ = exit_rows(one, records["test"], times, truth)
    cocos = {s: DetectionDataset(s, keep_crowd=True, limit=1).coco for s in ("val", "calibrate")} | {"test": truth.coco}
    own_ms = exits["full"]["median_ms"]
    passing = [values["passed_ratio"] * truth.full_ms / own_ms for values in exits.values()]
    splits = prepare(records, cocos, [values["median_ms"] / own_ms for values in exits.values()], passing=passing)
    here, test, points = splits["calibrate"], splits["test"], {}
    policies = {name: settings_of(name, here, splits["val"], {"grid": GRID}) for name in POLICIES}
    settings = [setting for name in POLICIES for setting in policies[name]]
    costs = np.array([row["time_ratio"] for row in static])
    peers = np.array([row["kind"] in PEERS for row in static])
    for budget, setting in zip(config.budgets, choose(settings, here, config.budgets), strict=True):
        chosen, reads = setting.route(test), setting.reads_boxes
        if (chosen.tobytes(), reads) in points:
            points[chosen.tobytes(), reads]["budgets"].append(budget)
            continue
        routed = bootstrap(test.evaluator, [chosen], truth.weights)[:, 0]
        shares = np.bincount(chosen, minlength=len(exits)) / len(chosen)
        time = test.time(chosen, reads) * own_ms / truth.full_ms
        policy = next(name for name in POLICIES if any(setting is one for one in policies[name]))
        point = {"budgets": [budget], "policy": policy, "time_ratio": time, "thresholds": list(setting.thresholds),
                 **test.evaluator.scores(chosen), "AP_interval": interval(routed),
                 "exit_shares": dict(zip(exits, shares.tolist(), strict=True))}  # fmt: skip
        for key, kept in (("minus_peers", peers), ("minus_all", np.ones(len(costs), bool))):
            gap = hull_gap(time, routed, costs[kept], samples[:, kept])
            point[key] = None if gap is None else interval(gap)
        points[chosen.tobytes(), reads] = point
    size = {"size_mib": size_mib(one), "parameters": parameters(load_released(one.checkpoint))}
    return {"name": one.name, "exits": exits, "points": list(points.values())} | size


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
    again = [seed_row(seed, folder, config, done["best"], times, truth, rows, samples)
             for seed, folder in done["again"].items()]  # fmt: skip
    settings = parse(load_checkpoint(resolve(config.baseline))["config"], config.baseline)
    origin = provenance("test", settings, resolve(config.baseline)) | {
        "exits_sha256": file_sha256(resolve(config.exits)), "compress": config.model_dump(mode="json"),
        "images": len(dataset), "runtime": "onnxruntime, batch 1, one thread", "machine": machine(),
    }  # fmt: skip
    found = {"static": rows, "with_exits": systems, "best": done["best"], "search": done["search"], "seeds": again}
    return found | origin


def seed_row(
    seed: int,
    folder: Path,
    config: CompressConfig,
    name: str,
    times: Mapping,
    truth: Truth,
    rows: Sequence[Mapping],
    samples: np.ndarray,
) -> dict:
    """The best alternative and the exits on it from another seed, beside static systems of which it is one.

    Its graphs are those of the first seed with other weights, so their times are taken.

    Returns:
        ``seed``, ``static`` (rows of the alternative in float and int8) and ``with_exits`` (:func:`routed_rows`).
    """
    *static, with_exits, with_exits_int8 = systems_on(name, folder, config)
    own, names, samples = [], [row["name"] for row in rows], samples.copy()
    for one in static:
        values, columns = exit_rows(one, session_records(one, "test", config.limit), times, truth)
        own.append({"name": one.name, "kind": one.kind} | values["full"])
        samples[:, names.index(one.name)] = columns[:, 0]
    routed = [routed_rows(one, config, times, truth, rows, samples) for one in (with_exits, with_exits_int8)]
    return {"seed": seed, "static": own, "with_exits": routed}


def save(report: dict, reports: Path | str) -> list[Path]:
    """Write ``metrics/compress.json``, all of it, and ``metrics/static.json``, the static peers as ``peers``."""
    folder = Path(reports) / "metrics"
    origin = {k: v for k, v in report.items() if k not in ("static", "with_exits", "best", "search", "seeds")}
    peers = {"peers": [row for row in report["static"] if row["kind"] in PEERS]}
    return [write_json(folder / "compress.json", report), write_json(folder / "static.json", peers | origin)]


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
