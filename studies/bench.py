"""The bench: every runtime, exit and batch size in turn, and what the goals say of it.

Times run from image tensor to final detections. All calls of one batch size and thread count are
interleaved, so that a drift of the machine meets them alike: their ratios hold, times of two sessions
are not comparable.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import saved_config
from eelib.data import DetectionDataset, as_input
from eelib.deploy.runtime import DeploymentError, EarlyExitSession, Policy, fixed, forced
from eelib.evaluate import versions
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite, postprocess
from eelib.plots import EXIT_COLOURS, TEXT_WIDTH_IN
from eelib.timing import machine, measure, run_to
from studies.goals import load_goals

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
        calls[f"onnx {runtime}", "full"] = lambda g=graph: [_detect_whole(staged, g, image) for image in array]
    if torch.cuda.is_available():
        device_images, device_model = images.cuda(), copy.deepcopy(model).cuda()
        for name in model.exit_names:
            calls["eager cuda", name] = lambda name=name: run_to(device_model, device_images, name)
    return calls


def _detect_whole(session: EarlyExitSession, graph, image: np.ndarray):
    *_, scores, boxes = graph.run(None, {"features": image[None]})
    return session.suppress(boxes[0], scores[0], "full")


def compiled_calls(model: EarlyExitSSDLite, images: torch.Tensor, log: Callable[[str], None]) -> dict:
    """``torch.compile`` of each exit, where it works; compiling takes about a minute."""
    networks = {
        name: torch.compile(lambda x, name=name: model(x, name)[-1], dynamic=False) for name in model.exit_names
    }

    @torch.no_grad()
    def detect(name: str) -> list:
        return postprocess(networks[name](images), tuple(images.shape[-2:]))

    try:
        for name in networks:
            detect(name)
    except Exception as error:  # a missing compiler, an unsupported operator: any type
        log(f"torch.compile does not work here: {type(error).__name__}")
        return {}
    return {("compiled", name): lambda name=name: detect(name) for name in networks}


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
    try:
        for (threads, batch), repeats in rounds.items():
            log(f"timing batch {batch}, {threads} thread{'s' * (threads > 1)}")
            torch.set_num_threads(threads)
            sessions = _sessions(folder, threads)
            calls = runtime_calls(model, sessions, images[:batch])
            if compiled and batch == threads == 1:
                calls |= compiled_calls(model, images[:1], log)
            staged, array = sessions["onnx staged"], np.ascontiguousarray(images[:batch].numpy())
            policy = even_policy(staged, array) if batch == 32 and len(staged.exits) > 1 else None
            if policy:
                calls["onnx routed", "mixed"] = lambda s=staged, a=array, p=policy: s.detect(a, p)
            times = measure(calls, repeats, warmup=min(3, repeats // 3))
            for (runtime, name), time_ms in times.items():
                rows.append({"runtime": runtime, "exit": name, "batch": batch, "threads": threads, **time_ms})
            if policy:
                left = [d.exit_name for d in staged.detect(array, policy)]
                rows[-1]["exits"] = {name: left.count(name) for name in staged.exits}
                rows[-1]["predicted_ms"] = sum(times["onnx staged", name]["median_ms"] / batch for name in left)
    finally:
        torch.set_num_threads(before)
    return rows


def _sessions(folder: Path, threads: int) -> dict[str, EarlyExitSession]:
    sessions = {"onnx staged": EarlyExitSession(folder, threads)}
    if "stages_int8" in sessions["onnx staged"].manifest:
        sessions["onnx int8"] = EarlyExitSession(folder, threads, "stages_int8")
    return sessions


def even_policy(session: EarlyExitSession, array: np.ndarray) -> Policy:
    """Fixed thresholds at each exit's median best score, so that half of what arrives there leaves."""
    best = {}
    for name in session.exits[:-1]:
        best[name] = statistics.median(float(d.scores[0]) for d in session.detect(array, forced(name)))
    return fixed(best)


def check_goals(rows: Sequence[Mapping]) -> list[dict]:
    """Each goal of the staged runtime with its measured value, met or not."""
    goals = load_goals()
    limits = goals["runtime"]
    ms = {(r["runtime"], r["exit"]): r["median_ms"] for r in rows if r["batch"] == r["threads"] == 1}
    staged = {name: time for (runtime, name), time in ms.items() if runtime == "onnx staged"}
    full, plain = staged["full"], ms["onnx plain", "full"]
    at_most, at_least = [], []
    for name, goal in goals["exits"].items():
        if "time" in goal and name in staged:
            at_most.append((f"{name} / detector without exits, batch 1, one thread", staged[name] / plain, goal["time"]))
    monolithic = ms["onnx monolithic", "full"]
    at_most.append(("staged full / one graph of all exits", full / monolithic, limits["staged_to_monolithic"]))
    at_most.append(("staged full / detector without exits", full / plain, limits["staged_to_plain"]))
    for name, time_ms in staged.items():
        at_least.append((f"eager / onnx at {name}", ms["eager", name] / time_ms, limits["eager_to_staged"]))
    for r in rows:
        if (r["runtime"], r["batch"], r["threads"]) == ("onnx routed", 32, 1):
            text = "routed throughput / predicted from the stages, batch 32"
            at_least.append((text, r["predicted_ms"] / r["median_ms"], limits["routed_to_predicted"]))
    return [
        {"goal": text, "value": value, "limit": f"<= {limit}", "met": bool(value <= limit)}
        for text, value, limit in at_most
    ] + [
        {"goal": text, "value": value, "limit": f">= {limit}", "met": bool(value >= limit)}
        for text, value, limit in at_least
    ]


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
    manifest = EarlyExitSession(folder).manifest
    if manifest["checkpoint_sha256"] != file_sha256(checkpoint):
        raise DeploymentError(f"{folder}: export of another checkpoint than {checkpoint}: export again")
    model, began, load_average = load_released(checkpoint).eval(), time.perf_counter(), os.getloadavg()[0]
    dataset = DetectionDataset("calibrate", size=model.size, limit=32)
    images = as_input(torch.stack([image for image, _ in (dataset[i] for i in range(len(dataset)))]))
    rounds = QUICK_ROUNDS if quick else ROUNDS
    times = time_grid(model, folder, images, rounds=rounds, compiled=not quick, log=log)
    return {
        "quick": quick, "machine": machine(), "load_average_before": load_average, "times": times,
        "goals": check_goals(times), "checkpoint_sha256": manifest["checkpoint_sha256"],
        "config": saved_config(load_checkpoint(checkpoint), checkpoint).model_dump(mode="json"), "versions": versions(),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(times: Sequence[Mapping]) -> pd.DataFrame:
    """Ratios to the detector without exits in one graph, at the same batch size and threads."""
    frame = pd.DataFrame(times).set_index(["threads", "batch", "runtime", "exit"])["median_ms"]
    wide = (frame / frame.xs(("onnx plain", "full"), level=("runtime", "exit"))).unstack(["threads", "batch"])
    wide.columns = [f"batch {batch}, {threads} thr" for threads, batch in wide.columns]
    return wide.round(3).reset_index()


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
        axis.set_title(name)
        axis.set_xlabel("batch size")
    axes.flat[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.flat[0].yaxis.set_major_formatter(ScalarFormatter())
    axes.flat[0].set_ylabel("ms per image")
    figure.legend(*axes.flat[-1].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return figure
