"""The bench: every runtime, exit and batch size in turn, and what the goals say of it.

Times run from image tensor to final detections. All calls of one batch size and thread count are
interleaved, so a drift of the machine meets them alike: their ratios hold, times of two sessions
are not comparable.
"""

import contextlib
import copy
import importlib.metadata
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import hotcoco
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from pycocotools.coco import COCO

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import ROOT, PhaseConfig, load, parse
from eelib.data import DetectionDataset, as_input, build_transform, loader
from eelib.deploy.runtime import DeploymentError, EarlyExitSession, fixed, forced
from eelib.evaluate import coco_ap, file_sha256
from eelib.files import write_atomic
from eelib.losses import detection_loss
from eelib.model import EarlyExitSSDLite, postprocess
from eelib.plots import EXIT_COLOURS, TEXT_WIDTH_IN
from eelib.timing import machine, measure, run_to
from eelib.train import build_model

PACKAGES = ("torch", "torchvision", "onnxruntime", "numpy", "pycocotools", "hotcoco")
# Timed rounds by (threads, batch size). The quick ones fit into a minute of a two-core machine.
ROUNDS = {(threads, batch): rounds for threads in (1, 2) for batch, rounds in ((1, 60), (8, 15), (32, 8))}
QUICK_ROUNDS = {(1, 1): 15, (1, 8): 3, (1, 32): 2, (2, 1): 8}


def runtime_calls(model: EarlyExitSSDLite, sessions: Mapping[str, EarlyExitSession], images: torch.Tensor) -> dict:
    """Calls from images to detections, by ``(runtime, exit)``.

    ``monolithic`` computes all exits in one graph and suppresses the last one's boxes; ``plain``
    is the detector without early exits in one graph: what a user would deploy instead.

    Args:
        model: in evaluation mode, on the CPU.
        sessions: name of a runtime to its session; ``"onnx staged"`` gives the whole graphs too.
        images: float (B, 3, H, W) in [0, 1].
    """
    array = np.ascontiguousarray(images.numpy())
    calls = {("eager", name): lambda name=name: run_to(model, images, name) for name in model.exit_names}
    for runtime, session in sessions.items():
        for name in session.exits:
            calls[runtime, name] = lambda s=session, name=name: s.detect(array, forced(name))
    staged = sessions["onnx staged"]
    for runtime in ("monolithic", "plain"):
        graph = staged.graph(staged.manifest[runtime])
        calls[f"onnx {runtime}", "full"] = lambda g=graph: _whole(staged, g, array)
    if torch.cuda.is_available():
        device_images, device_model = images.cuda(), copy.deepcopy(model).cuda()
        for name in model.exit_names:
            calls["eager cuda", name] = lambda name=name: run_to(device_model, device_images, name)
    return calls


def _whole(session: EarlyExitSession, graph, array: np.ndarray) -> list:
    found = []
    for image in array:
        *_, scores, boxes = graph.run(None, {"features": image[None]})
        found.append(session.suppress(boxes[0], scores[0], "full"))
    return found


@torch.no_grad()
def compiled_calls(model: EarlyExitSSDLite, images: torch.Tensor, log: Callable[[str], None]) -> dict:
    """``torch.compile`` of each exit, where it works; compiling takes about a minute."""
    calls = {}
    size_hw = tuple(images.shape[-2:])
    for name in model.exit_names:
        network = torch.compile(lambda x, name=name: model(x, name)[-1], dynamic=False)

        @torch.no_grad()
        def call(network=network):
            return postprocess(network(images), size_hw)

        try:
            call()
        except Exception as error:  # a missing compiler, an unsupported operator: any type
            log(f"torch.compile does not work here: {type(error).__name__}")
            return {}
        calls["compiled", name] = call
    return calls


def time_grid(
    model: EarlyExitSSDLite,
    folder: Path,
    images: torch.Tensor,
    *,
    rounds: Mapping[tuple[int, int], int],
    compiled: bool = False,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Times of every runtime, exit, batch size and thread count.

    Args:
        images: float (B, 3, H, W); the batches are its first images.
        rounds: timed rounds by (threads, batch size).
        compiled: time torch.compile too, at batch 1 on one thread.

    Returns:
        Rows of ``runtime``, ``exit``, ``batch``, ``threads``, ``median_ms`` and ``p95_ms`` of a
        call. The row ``onnx routed`` at the largest batch has ``predicted_ms`` beside it.
    """
    rows, before = [], torch.get_num_threads()
    sessions: dict[int, dict[str, EarlyExitSession]] = {}
    try:
        for (threads, batch), repeats in rounds.items():
            log(f"timing batch {batch}, {threads} thread{'s' * (threads > 1)}")
            torch.set_num_threads(threads)
            if threads not in sessions:
                sessions[threads] = _sessions(folder, threads)
            calls = runtime_calls(model, sessions[threads], images[:batch])
            if compiled and batch == threads == 1:
                calls |= compiled_calls(model, images[:1], log)
            session, array = sessions[threads]["onnx staged"], np.ascontiguousarray(images[:batch].numpy())
            routed = batch == 32 and len(session.exits) > 1
            if routed:
                policy = even_policy(session, array)
                calls["onnx routed", "mixed"] = lambda s=session, a=array, p=policy: s.detect(a, p)
            times = measure(calls, repeats, warmup=min(3, repeats // 3))
            for (runtime, name), found in times.items():
                rows.append({"runtime": runtime, "exit": name, "batch": batch, "threads": threads, **found})
            if routed:
                left = [d.exit_name for d in session.detect(array, policy)]
                cost = {name: times["onnx staged", name]["median_ms"] / batch for name in session.exits}
                rows[-1]["exits"] = {name: left.count(name) for name in session.exits}
                rows[-1]["predicted_ms"] = sum(cost[name] for name in left)
    finally:
        torch.set_num_threads(before)
    return rows


def _sessions(folder: Path, threads: int) -> dict[str, EarlyExitSession]:
    sessions = {"onnx staged": EarlyExitSession(folder, threads)}
    if "stages_int8" in sessions["onnx staged"].manifest:
        sessions["onnx int8"] = EarlyExitSession(folder, threads, "stages_int8")
    return sessions


def even_policy(session: EarlyExitSession, array: np.ndarray):
    """Fixed thresholds at each exit's median best score, so that half of what arrives there leaves."""
    best = {}
    for name in session.exits[:-1]:
        best[name] = statistics.median(float(d.scores[0]) for d in session.detect(array, forced(name)))
    return fixed(best)


def training_calls(config: PhaseConfig) -> dict[str, Callable[[], None]]:
    """Calls of one training step and of its parts: ``loader``, ``forward_backward``, ``step``.

    The loader runs in this process (no workers), so what it costs is seen whole.
    """
    dataset = DetectionDataset(
        "train", transform=build_transform(320, config.data.augment), limit=4 * config.optim.batch_size
    )
    model = build_model(config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    batches = loader(dataset, config.optim.batch_size, shuffle=True)
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    ready = next(endless)

    def forward_backward(batch=ready) -> None:
        images, targets = batch
        outputs = model(as_input(images))
        losses = [detection_loss(o, targets, classification=config.loss.classification) for o in outputs]
        sum(value for parts in losses for value in parts.values()).backward()

    def step() -> None:
        forward_backward(next(endless))
        optimizer.step()
        optimizer.zero_grad()

    return {"loader": lambda: next(endless), "forward_backward": forward_backward, "step": step}


def training_rates(config: PhaseConfig, *, quick: bool) -> dict[str, float]:
    """The data loader's share of a training step, and images a second with and without the rest."""
    if quick:
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": 8})})
    times = measure(training_calls(config), 2 if quick else 10, warmup=1)
    found = {name: t["median_ms"] for name, t in times.items()}
    return {
        "batch": config.optim.batch_size,
        "loader_share_of_step": found["loader"] / found["step"],
        "images_per_s": 1e3 * config.optim.batch_size / found["step"],
        "images_per_s_forward_backward": 1e3 * config.optim.batch_size / found["forward_backward"],
    }


def scorer_calls(coco: COCO, results: list[dict]) -> dict[str, Callable[[], float]]:
    """AP[.50:.95] of the same results by each scorer; a further scorer is a further entry."""

    def by_hotcoco() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = hotcoco.COCO(coco.dataset)
            evaluation = hotcoco.COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return float(evaluation.stats[0])

    return {"pycocotools": lambda: coco_ap(coco, results)["AP"], "hotcoco": by_hotcoco}


def scorer_times(folder: Path, *, quick: bool) -> dict[str, dict[str, float]]:
    """Time and value of every scorer on the full exit's detections in ``calibrate``."""
    dataset = DetectionDataset("calibrate", keep_crowd=True, limit=32 if quick else None)
    session, results = EarlyExitSession(folder), []
    for image_id, image in zip(dataset.image_ids, dataset.images, strict=True):
        (found,) = session.detect(as_input(image[None]).numpy(), forced("full"))
        boxes = found.boxes_xyxy - np.pad(found.boxes_xyxy[:, :2], ((0, 0), (2, 0)))  # x, y, width, height
        for box, score in zip(boxes.tolist(), found.scores.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": dataset.category_ids[0], "bbox": box, "score": score})
    calls = scorer_calls(dataset.coco, results)
    times = measure(calls, 2 if quick else 5, warmup=1)
    return {name: {"AP": call(), "median_ms": times[name]["median_ms"]} for name, call in calls.items()}


_DETECT = """
import sys, numpy
from eelib.deploy.runtime import EarlyExitSession, forced
session = EarlyExitSession(sys.argv[1])
images = numpy.random.default_rng(0).random((int(sys.argv[2]), 3, session.size, session.size), dtype=numpy.float32)
session.detect(images, forced("full"))
"""
_TRAIN = """
import sys
from studies.bench import training_calls
from eelib.config import load
training_calls(load(sys.argv[1]))["step"]()
"""


def peak_memory_mib(folder: Path, config: Path) -> dict[str, float]:
    """Peak resident memory of a process that detects at batch 1 or 32, and of one that trains."""
    runs = {
        "detect_batch_1": (_DETECT, str(folder), "1"),
        "detect_batch_32": (_DETECT, str(folder), "32"),
        "training_step": (_TRAIN, str(config)),
    }
    return {name: _peak(code, arguments) for name, (code, *arguments) in runs.items()}


def _peak(code: str, arguments: list[str]) -> float:
    # On Linux ru_maxrss of a child begins at its parent's size, which a program's start does not
    # reset; VmHWM is its own.
    if sys.platform == "linux":
        code += "\nprint(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    else:
        code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1]) / 1024


def check_goals(rows: list[dict]) -> list[dict]:
    """Each goal of the staged runtime with its measured value, met or not."""
    cell = {(r["runtime"], r["exit"], r["batch"], r["threads"]): r for r in rows}

    def ratio(top: tuple, bottom: tuple) -> float:
        return cell[*top, 1, 1]["median_ms"] / cell[*bottom, 1, 1]["median_ms"]

    plain, goals = ("onnx plain", "full"), []

    def add(goal: str, value: float, limit: float, at_most: bool) -> None:
        met = value <= limit if at_most else value >= limit
        goals.append({"goal": goal, "value": value, "limit": f"{'<=' if at_most else '>='} {limit}", "met": bool(met)})

    names = [r["exit"] for r in rows if (r["runtime"], r["batch"], r["threads"]) == ("onnx staged", 1, 1)]
    for name, limit in (("exit1", 0.55), ("exit2", 0.72)):
        if name in names:
            staged = ("onnx staged", name)
            add(f"{name} / detector without exits, batch 1, one thread", ratio(staged, plain), limit, True)
            add(f"{name} / staged full, batch 1, one thread", ratio(staged, ("onnx staged", "full")), limit, True)
    full = ("onnx staged", "full")
    add("staged full / one graph of all exits", ratio(full, ("onnx monolithic", "full")), 1.05, True)
    add("staged full / detector without exits", ratio(full, plain), 1.05, True)
    for name in names:
        add(f"eager / onnx at {name}", ratio(("eager", name), ("onnx staged", name)), 2.0, False)
    routed = cell.get(("onnx routed", "mixed", 32, 1))
    if routed:
        share = routed["predicted_ms"] / routed["median_ms"]
        add("routed throughput / predicted from the stages, batch 32", share, 0.9, False)
    return goals


@torch.no_grad()
def _sample(count: int) -> torch.Tensor:
    dataset = DetectionDataset("calibrate", transform=build_transform(320), limit=count)
    return as_input(torch.stack([dataset[i][0] for i in range(count)]))


def run(checkpoint: Path | str, folder: Path, *, quick: bool, log: Callable[[str], None] = print) -> dict:
    """Everything that ``eelib bench`` writes.

    Args:
        checkpoint: a released detector.
        folder: its export.
        quick: few repeats and no torch.compile; ends within a minute.
        log: receives a line a step.

    Raises:
        DeploymentError: the folder is the export of another checkpoint.
    """
    model = load_released(checkpoint).eval()
    manifest = EarlyExitSession(folder).manifest
    if manifest["checkpoint_sha256"] != file_sha256(checkpoint):
        raise DeploymentError(f"{folder}: export of another checkpoint than {checkpoint}: export again")
    began, load_average = time.perf_counter(), os.getloadavg()[0]
    params = ROOT / "params" / "phase_2_0_scratch.yaml"
    report = {"quick": quick, "machine": machine(), "load_average_before": load_average}
    report["times"] = time_grid(
        model, folder, _sample(32), rounds=QUICK_ROUNDS if quick else ROUNDS, compiled=not quick, log=log
    )
    report["goals"] = check_goals(report["times"])
    log("timing training and scorers, measuring memory")
    report["training"] = training_rates(load(params), quick=quick)
    report["scorers"] = scorer_times(folder, quick=quick)
    report["peak_memory_mib"] = peak_memory_mib(folder, params)
    report["checkpoint_sha256"] = manifest["checkpoint_sha256"]
    report["config"] = parse(load_checkpoint(checkpoint)["config"]).model_dump(mode="json")
    report["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    return report | {"seconds": round(time.perf_counter() - began, 1)}


def table(report: dict) -> pd.DataFrame:
    """Ratios to the detector without exits in one graph, at the same batch size and threads."""
    frame = pd.DataFrame(report["times"])
    plain = frame[frame["runtime"] == "onnx plain"].set_index(["batch", "threads"])["median_ms"]
    base = plain.loc[pd.MultiIndex.from_frame(frame[["batch", "threads"]])].to_numpy()
    frame["ratio"] = frame["median_ms"] / base
    wide = frame.pivot(index=["runtime", "exit"], columns=["threads", "batch"], values="ratio")
    wide.columns = [f"batch {batch}, {threads} thr" for threads, batch in wide.columns]
    return wide.round(3).reset_index()


def save(report: dict, reports: Path) -> Path:
    """Write ``metrics/bench.json``."""
    text = json.dumps(report, indent=2) + "\n"
    return write_atomic(reports / "metrics" / "bench.json", lambda file: file.write(text.encode()))


def runtimes_figure(rows: Sequence[Mapping], threads: int = 1) -> Figure:
    """Time per image at each exit over batch sizes, one panel per exit, one line per runtime, logarithmic axes."""
    frame = pd.DataFrame(rows)
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
        axis.set_title(name)
        axis.set_xlabel("batch size")
    axes.flat[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.flat[0].yaxis.set_major_formatter(ScalarFormatter())
    axes.flat[0].set_ylabel("ms per image")
    figure.legend(*axes.flat[-1].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return figure
