"""Wall-clock time: warmed up, interleaved, medians. Times of different sessions are not comparable."""

import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eelib.deploy.runtime import EarlyExitSession
from eelib.model import EarlyExitSSDLite, postprocess


def measure(calls: Mapping[str, Callable[[], object]], repeats: int = 30, warmup: int = 5) -> dict[str, dict]:
    """Time several calls in turn, so that a drift of the machine meets all of them alike.

    Args:
        calls: name to a call without arguments.
        repeats: timed rounds, at least 2.
        warmup: rounds that are not counted.

    Returns:
        For each name ``median_ms`` and ``p95_ms``.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= warmup:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {
        name: {"median_ms": statistics.median(t), "p95_ms": statistics.quantiles(t, n=20)[-1]}
        for name, t in times.items()
    }


@torch.no_grad()
def run_to(model: EarlyExitSSDLite, images: Tensor, exit_name: str, suppress_passed: bool = False) -> list:
    """Detections of one exit, computing nothing beyond it.

    Args:
        suppress_passed: suppress at the exits before, too: what a policy needs that reads their boxes.
    """
    for output in model.exits(images):
        if output.name == exit_name:
            return postprocess(output, tuple(images.shape[-2:]))
        if suppress_passed:
            postprocess(output, tuple(images.shape[-2:]))
    raise ValueError(f"exit: {exit_name!r} is unknown; expected one of {', '.join(model.exit_names)}")


@torch.no_grad()
def macs(model: nn.Module, last: str = "full") -> int:
    """Multiply-accumulates of one image up to and with an exit.

    Args:
        model: has ``size`` and yields :class:`eelib.model.ExitOutput` from ``model.exits(images)``.
        last: the exit.
    """
    with FlopCounterMode(display=False) as counter:
        for output in model.eval().exits(torch.zeros(1, 3, model.size, model.size)):
            if output.name == last:
                break
    return counter.get_total_flops() // 2


def exit_times(model: EarlyExitSSDLite, image: Tensor, repeats: int = 30, threads: int = 1) -> dict[str, dict]:
    """Time of leaving at each exit in eager mode, from tensor to detections, NMS included.

    Early exits before the one measured are run too: that is what a routed image pays. Their boxes
    are not suppressed, as in :class:`eelib.deploy.runtime.EarlyExitSession`, whose policies read the raw
    scores. A policy that reads boxes after suppression pays for that at every exit passed.

    Args:
        model: in evaluation mode.
        image: (1, 3, H, W) in [0, 1].
        threads: of torch, restored afterwards.

    Returns:
        For each exit ``median_ms``, ``p95_ms``, ``ratio`` to full and ``passed_ratio``: what
        suppression at the exits passed adds, as a share of full.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls = {
            (name, passed): lambda name=name, passed=passed: run_to(model, image, name, passed)
            for name in model.exit_names
            for passed in (False, True)
        }
        times = measure(calls, repeats)
    finally:
        torch.set_num_threads(before)
    full, found = times["full", False]["median_ms"], {}
    for position, name in enumerate(model.exit_names):
        own, passed = times[name, False], times[name, True]
        # the first exit passes none; below 0 there is noise alone
        added = max(0.0, passed["median_ms"] - own["median_ms"]) if position else 0.0
        found[name] = own | {"ratio": own["median_ms"] / full, "passed_ratio": added / full}
    return found


# Modules of the exported stages by the part that a profile names.
PARTS = {"trunk": "trunk", "second": "trunk", "extra": "trunk", "context": "head", "down": "head", "shared": "head"}


def part_of(operator: str) -> str | None:
    """``trunk``, ``head`` or ``decode`` from a node's name; None for one that onnxruntime put in."""
    if not operator.startswith("/"):
        return "trunk" if operator.startswith("next_features") else None
    module, _, rest = operator[1:].partition("/")
    if module == "decoder":
        return "head" if rest.startswith("predictors") else "decode"
    return PARTS[module.split(".")[0]]


def profile_stage(path: Path | str, features: np.ndarray, repeats: int = 20) -> dict[str, float]:
    """Where a stage's time goes, by onnxruntime's own profile on one thread.

    A change of memory layout that onnxruntime puts in is counted with the operator before it.

    Args:
        path: an exported stage.
        features: its input, float32.
        repeats: profiled runs.

    Returns:
        Milliseconds a run, the sum of each operator's median, of ``trunk``, ``head`` and ``decode``.
    """
    durations: dict[tuple[str, str], list[int]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, {"features": features})
        events = json.loads(Path(session.end_profiling()).read_text())
    part = "trunk"
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            part = part_of(event["name"]) or part
            durations[part, event["name"]].append(event["dur"])  # microseconds
    total = dict.fromkeys(("trunk", "head", "decode"), 0.0)
    for (part, _), values in durations.items():
        total[part] += statistics.median(values) / 1e3
    return total


def profile_export(session: EarlyExitSession, image: np.ndarray, repeats: int = 20) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage's ``trunk``, ``head``, ``decode`` and ``suppression`` for one image.

    Args:
        session: an export with one thread.
        image: float32 (1, 3, S, S) in [0, 1].
    """
    found, features = {}, image
    for entry in session.manifest["stages"]:
        parts = profile_stage(session.path / entry["file"], features, repeats)
        scores, boxes, *rest = session.graph(entry).run(None, {"features": features})
        call = {"suppression": lambda b=boxes[0], s=scores[0], n=entry["exit"]: session.suppress(b, s, n)}
        parts["suppression"] = measure(call, repeats)["suppression"]["median_ms"]
        found[entry["exit"]] = parts
        features = rest[0] if rest else None
    return found


def machine() -> dict[str, str]:
    """What the times were taken on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _processor() -> str:
    """The model's name where Linux tells it; Python's own answer is often just the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
