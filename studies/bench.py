"""The bench: every runtime, exit and batch size in turn, and what the goals say of it.

Times run from image tensor to final detections, the suppression included, and are shares of the baseline's: the
released detector without exits at 320 px, on onnxruntime. All calls of one batch size and thread count are interleaved,
so that a drift of the machine meets them alike: their ratios hold, times of two sessions are not comparable.
"""

import importlib.util
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from eelib.checkpoints import load_checkpoint, load_released
from eelib.data import DetectionDataset, as_input
from eelib.deploy.export import export
from eelib.deploy.manifest import DeploymentError
from eelib.deploy.router import Rule
from eelib.deploy.runners import open_graph
from eelib.deploy.runtime import Session
from eelib.evaluate import source_for, versions
from eelib.files import file_sha256
from eelib.hub import path_of
from eelib.model import EarlyExitSSDLite
from eelib.timing import machine, measure, run_to
from studies.compress.systems import leaving_at, summary
from studies.goals import load_goals, met
from studies.plots import EXIT_COLOURS, TEXT_WIDTH_IN

BASELINE = ("onnxruntime", "baseline")  # what 1.00 is
PLAIN = ("onnxruntime", "plain")  # the measured detector without its exits, at the same input
UNIT = "the released baseline without exits at 320 px, in an exported session at the same batch size and threads"
EVEN = "best score; half of what arrives at an exit leaves there, by 32 images of calibrate"  # without a router
# Timed rounds by (threads, batch size). The quick ones fit into a minute of a two-core machine.
ROUNDS = {(1, 1): 60, (1, 8): 15, (1, 32): 6}
QUICK_ROUNDS = {(1, 1): 15, (1, 8): 3, (1, 32): 2}

Calls = dict[tuple[str, str], Callable[[], object]]  # by runtime and exit


class Baseline(NamedTuple):
    """What 1.00 is: the export of a detector without exits, and images at its input size."""

    folder: Path
    images: torch.Tensor  # float (N, 3, S, S) in [0, 1]


def baseline(folder: Path, images: int = 32) -> Baseline:
    """The released baseline, exported into a folder, and images of ``calibrate``, the same as :func:`inputs`."""
    export(path_of("baseline"), folder)
    return Baseline(folder, inputs("calibrate", load_released(path_of("baseline")), images))


def inputs(split: str, model: EarlyExitSSDLite, limit: int | None) -> torch.Tensor:
    """Images of a split at the model's input size, float (N, 3, S, S) in [0, 1]; drawn where there is a limit."""
    dataset = DetectionDataset(split, source_for(model, "data/showroom"), model.size, limit=limit)
    return as_input(torch.stack([dataset[i][0] for i in range(len(dataset))]))


def sessions_of(folder: Path, threads: int) -> dict[str, Session]:
    """A session of each runtime that is installed, float and, where the export has it, int8."""
    runtimes = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    kinds = (False, True) if Session(folder).manifest.stages_int8 else (False,)
    return {
        f"{runtime} int8" if int8 else runtime: Session(folder, threads, int8, runtime)
        for runtime, int8 in itertools.product(runtimes, kinds)
    }


def calls_of(model: EarlyExitSSDLite, sessions: Mapping[str, Session], images: torch.Tensor) -> Calls:
    """Calls from images to detections: to each exit in stages, to the ``plain`` detector without exits, and eager ones.

    ``onnxruntime monolithic`` computes all exits in one graph and suppresses the last one's boxes.

    Args:
        model: in evaluation mode, on the CPU.
        sessions: of :func:`sessions_of`.
        images: float (B, 3, S, S) in [0, 1].
    """
    array = np.ascontiguousarray(images.numpy())
    calls: Calls = {("eager", name): lambda name=name: run_to(model, images, name) for name in model.exit_names}
    for runtime, session in sessions.items():
        rules = {name: leaving_at(session, name) for name in session.exits}
        for name, rule in (rules | {"plain": session.at_exit(session.exits[-1])}).items():
            calls[runtime, name] = lambda s=session, rule=rule: s.detect_batch(array, rule)
    session = sessions["onnxruntime"]
    whole = open_graph(session.folder, session.manifest.monolithic, session.threads).run

    def monolithic() -> list:
        answers = (whole(None, {"features": image[None]})[-2:] for image in array)
        return [session.suppress(boxes[0], scores[0], session.exits[-1]) for scores, boxes in answers]

    return calls | {("onnxruntime monolithic", session.exits[-1]): monolithic}


def time_grid(
    model: EarlyExitSSDLite,
    folder: Path,
    images: torch.Tensor,
    unit: Baseline,
    *,
    rounds: Mapping[tuple[int, int], int],
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Times of every runtime, exit, batch size and thread count.

    Args:
        images: float (B, 3, S, S) in [0, 1]; the batches are its first images.
        unit: what 1.00 is.
        rounds: timed rounds by (threads, batch size).

    Returns:
        Rows of ``runtime``, ``exit``, ``batch``, ``threads``, ``median_ms``, ``p95_ms`` and ``p99_ms`` of a call,
        ``images_per_second``, and ``ratio`` to the baseline at the same batch size and threads. At batch 32 the row
        ``routed`` has half of what arrives at an exit leave there, and ``predicted_ms`` from the exits' times.
    """
    rows, before = [], torch.get_num_threads()
    try:
        for (threads, batch), repeats in rounds.items():
            log(f"timing batch {batch}, {threads} thread{'s' * (threads > 1)}")
            torch.set_num_threads(threads)
            sessions = sessions_of(folder, threads)
            plain, pictures = Session(unit.folder, threads), np.ascontiguousarray(unit.images[:batch].numpy())
            whole = plain.at_exit(plain.exits[-1])
            calls: Calls = {BASELINE: lambda s=plain, a=pictures, r=whole: s.detect_batch(a, r)}
            calls |= calls_of(model, sessions, images[:batch])
            session, array = sessions["onnxruntime"], np.ascontiguousarray(images[:batch].numpy())
            rule = even_rule(session, array) if batch == 32 and len(session.exits) > 1 else None
            if rule:
                calls["onnxruntime", "routed"] = lambda s=session, a=array, r=rule: s.detect_batch(a, r)
            times = measure(calls, repeats, warmup=min(3, repeats))
            for (runtime, name), of_call in times.items():
                rates = {"images_per_second": 1e3 * batch / of_call["median_ms"]}
                rates["ratio"] = of_call["median_ms"] / times[BASELINE]["median_ms"]
                rows.append({"runtime": runtime, "exit": name, "batch": batch, "threads": threads, **of_call, **rates})
            if rule:
                left = [d.exit_name for d in session.detect_batch(array, rule)]
                rows[-1]["exits"] = {name: left.count(name) for name in session.exits}
                rows[-1]["predicted_ms"] = sum(times["onnxruntime", name]["median_ms"] / batch for name in left)
    finally:
        torch.set_num_threads(before)
    return rows


def even_rule(session: Session, array: np.ndarray) -> Rule:
    """Thresholds at each exit's median best score, so that half of what arrives there leaves."""
    best = {}
    for name in session.exits[:-1]:
        found = session.detect_batch(array, session.at_exit(name))
        best[name] = statistics.median(max(d.scores, default=0.0) for d in found)
    return session.by_score({name: float(value) for name, value in best.items()})


def routed_latency(paths: Mapping[str, tuple[Session, Rule, Sequence[np.ndarray]]]) -> list[dict]:
    """Latency over all images of a split, one and eight at a time, of several systems beside each other.

    All see a batch one after the other, in an order drawn anew, so that its difficulty and a drift of the machine
    meet them alike. Images that do not fill the last batch are left out.

    Args:
        paths: name of a system to its session of one thread, the rule that its images obey, and the same images
            in the same order, float32 (3, S, S) in [0, 1], at its input size. The first one is what 1.00 is.

    Returns:
        Rows of ``path``, ``batch``, ``images``, ``median_ms``, ``p95_ms`` and ``p99_ms`` of a call,
        ``images_per_second``, ``ratio`` of the mean times, and ``exits`` (images that left at each).
    """
    rows, rng, (unit, (_, _, pictures)) = [], np.random.default_rng(0), next(iter(paths.items()))
    for batch in (1, 8):
        spent, exits = {name: [] for name in paths}, {name: Counter() for name in paths}
        for first in range(0, len(pictures) - batch + 1, batch):
            arrays = {name: np.stack(images[first : first + batch]) for name, (_, _, images) in paths.items()}
            for _ in range(3 if first == 0 else 1):  # the first round warms up
                for name in rng.permutation(list(paths)).tolist():
                    session, rule, _ = paths[name]
                    began = time.perf_counter()
                    found = session.detect_batch(arrays[name], rule)
                    spent[name].append(1e3 * (time.perf_counter() - began))
                    exits[name] += Counter(d.exit_name for d in found) if len(spent[name]) > 2 else Counter()
        for name, values in spent.items():
            kept, mean = values[2:], statistics.fmean(values[2:])
            row = {"path": name, "batch": batch, "images": batch * len(kept)} | summary(kept)
            row |= {"images_per_second": 1e3 * batch / mean, "ratio": mean / statistics.fmean(spent[unit][2:])}
            rows.append(row | {"exits": dict(exits[name])})
    return rows


def evidence_cost(folder: Path, image: np.ndarray, repeats: int = 60) -> dict[str, float]:
    """What computing and reading the evidence adds at each early exit, in % of the time without exits, same input.

    Each stage is timed against itself without the evidence, which is pruned from its graph.

    Args:
        folder: of an export.
        image: float32 (1, 3, S, S) in [0, 1].
    """
    session, calls, features = Session(folder), {}, image
    for stage in session.stages:
        run = open_graph(session.folder, stage).run
        if "evidence" in stage.outputs:
            place = stage.outputs.index("evidence")
            names = [name for name in stage.outputs if name != "evidence"]
            pruned = onnx.utils.Extractor(onnx.load(session.folder / stage.file)).extract_model(["features"], names)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            without = onnxruntime.InferenceSession(pruned.SerializeToString(), options).run
            calls[stage.exit, "with"] = lambda r=run, x=features, p=place: r(None, {"features": x})[p][0, 0] >= 0.5
            calls[stage.exit, "without"] = lambda r=without, x=features: r(None, {"features": x})
        if "next_features" in stage.outputs:
            features = run(["next_features"], {"features": features})[0]
    plain = session.at_exit(session.exits[-1])
    times = measure(calls | {("plain", ""): lambda: session.detect_batch(image, plain)}, repeats)
    ms = {key: of_call["median_ms"] for key, of_call in times.items()}
    exits = [name for name in session.exits if (name, "with") in ms]
    return {name: 100 * (ms[name, "with"] - ms[name, "without"]) / ms["plain", ""] for name in exits}


def check_goals(rows: Sequence[Mapping], detector: str) -> list[dict]:
    """Each goal of the runtime with its value, met or not; of the exits' times where the named detector has goals."""
    limits = load_goals()["runtime"]
    ms = {(r["runtime"], r["exit"]): r["median_ms"] for r in rows if r["batch"] == r["threads"] == 1}
    staged = {name: t for (runtime, name), t in ms.items() if runtime == "onnxruntime"}
    staged = {name: t for name, t in staged.items() if name not in (BASELINE[1], PLAIN[1])}
    last = list(staged)[-1]
    goals = ((*goal["exit"].split(), goal.get("time")) for goal in load_goals()["plane"]["exits"])
    exits = {name: time for of, name, time in goals if of == detector and time is not None}
    checks = [
        (f"{name} / baseline at 320 px", time_ms / ms[BASELINE], "<=", exits[name])
        for name, time_ms in staged.items()
        if name in exits
    ]
    ratio = staged[last] / ms["onnxruntime monolithic", last]
    checks.append((f"{last} in stages / one graph of all exits", ratio, "<=", limits["staged_to_monolithic"]))
    for (runtime, name), time_ms in ms.items():
        if runtime.endswith(" int8") and name in limits["int8_to_float"]:
            ratio = time_ms / ms["onnxruntime", name]
            checks.append((f"{runtime} / float on onnxruntime at {name}", ratio, "<=", limits["int8_to_float"][name]))
    for name, time_ms in staged.items():
        checks.append((f"eager / onnxruntime at {name}", ms["eager", name] / time_ms, ">=", limits["eager_to_staged"]))
    for row in rows:
        if (row["exit"], row["threads"]) == ("routed", 1):
            value = row["predicted_ms"] / row["median_ms"]
            text = "routed throughput / predicted from the exits, batch 32"
            checks.append((text, value, ">=", limits["routed_to_predicted"]))
    return [
        {"goal": text, "value": value, "limit": f"{sign} {limit}", "met": met(value, sign, limit)}
        for text, value, sign, limit in checks
    ]


def run(checkpoint: Path | str, folder: Path, unit: Path, *, quick: bool, log: Callable[[str], None] = print) -> dict:
    """Everything that ``eelib bench`` writes.

    Args:
        checkpoint: a released detector.
        folder: its export.
        unit: folder that the released baseline is exported into, which is what 1.00 is.
        quick: few repeats; ends within a minute.
        log: receives a line a step.

    Raises:
        DeploymentError: the folder is the export of another checkpoint.
    """
    digest = Session(folder).manifest.checkpoint_sha256
    if digest != file_sha256(checkpoint):
        raise DeploymentError(f"{folder}: export of another checkpoint than {checkpoint}: export again")
    config = load_checkpoint(checkpoint).get("config") or {}
    model, began, load_average = load_released(checkpoint).eval(), time.perf_counter(), os.getloadavg()[0]
    images, reference = inputs("calibrate", model, 32), baseline(unit)
    times = time_grid(model, folder, images, reference, rounds=QUICK_ROUNDS if quick else ROUNDS, log=log)
    session, plain = Session(folder), Session(reference.folder)
    early = session.router and session.router.early
    rule = session.router if early else even_rule(session, np.ascontiguousarray(images.numpy()))
    limit = 32 if quick else None
    shown, shown_to_baseline = (
        list(inputs("test", m, limit).numpy()) for m in (model, load_released(path_of("baseline")))
    )
    log(f"timing the routed system on {len(shown)} images of test")
    routed = routed_latency({
        "baseline": (plain, plain.at_exit(plain.exits[-1]), shown_to_baseline),
        "plain": (session, session.at_exit(session.exits[-1]), shown),
        "routed": (session, rule, shown),
    })  # fmt: skip
    return {
        "quick": quick, "machine": machine(), "load_average_before": load_average, "unit": UNIT,
        "times": times, "router": session.router.describe() if early else EVEN, "routed": routed,
        "evidence_percent": evidence_cost(folder, images[:1].numpy(), 15 if quick else 60),
        "goals": check_goals(times, config.get("name", "")), "checkpoint_sha256": digest, "config": config,
        "versions": versions(), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(times: Sequence[Mapping]) -> pd.DataFrame:
    """Ratios to the baseline at the same batch size, on one thread; milliseconds and images a second at batch 1."""
    frame = pd.DataFrame(row for row in times if row["threads"] == 1)
    rows = frame.drop_duplicates(["runtime", "exit"]).set_index(["runtime", "exit"]).index
    wide = frame.pivot(index=["runtime", "exit"], columns="batch", values="ratio").reindex(rows)
    wide.columns = [f"batch {batch}" for batch in wide.columns]
    alone = frame[frame["batch"] == 1].set_index(["runtime", "exit"])
    wide["ms"], wide["images/s"] = alone["median_ms"].round(2), alone["images_per_second"].round(1)
    return wide.round(3).reset_index()


def latency_table(routed: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of :func:`routed_latency` to be printed."""
    frame = pd.DataFrame(routed)
    frame["left at"] = [", ".join(f"{name} {count}" for name, count in sorted(e.items())) for e in frame.pop("exits")]
    return frame.round({"median_ms": 2, "p95_ms": 2, "p99_ms": 2, "images_per_second": 1, "ratio": 3})


def runtimes_figure(times: Sequence[Mapping], threads: int = 1) -> Figure:
    """Time per image at each exit over batch sizes, one panel per exit, one line per runtime, logarithmic axes."""
    frame = pd.DataFrame(times)
    frame["ms per image"] = frame["median_ms"] / frame["batch"]
    frame = frame[(frame["threads"] == threads) & frame["exit"].isin(EXIT_COLOURS)]
    exits = [name for name in EXIT_COLOURS if name in set(frame["exit"])]
    figure, axes = plt.subplots(1, len(exits), figsize=(TEXT_WIDTH_IN, 2.4), sharey=True, squeeze=False)
    runtimes = list(dict.fromkeys(frame["runtime"]))
    for axis, name in zip(axes.flat, exits, strict=True):
        lines = frame[frame["exit"] == name].pivot(index="batch", columns="runtime", values="ms per image")
        for k, runtime in enumerate(runtimes):
            if runtime in lines:
                axis.loglog(lines[runtime].dropna(), marker="o", color=f"C{k}", label=runtime)
        batches = sorted(set(frame["batch"]))
        axis.set_xticks(batches, map(str, batches))
        axis.minorticks_off()
        axis.set(title=name, xlabel="batch size")
    axes.flat[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.flat[0].yaxis.set_major_formatter(ScalarFormatter())
    axes.flat[0].set_ylabel("ms per image")
    figure.legend(*axes.flat[-1].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return figure
