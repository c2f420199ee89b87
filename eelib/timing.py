"""Wall-clock time: warmed up, interleaved, medians. Times of different sessions are not comparable."""

import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eelib.checkpoints import load_released
from eelib.coco import Source
from eelib.data import DetectionDataset, as_input
from eelib.deploy.evidence import Column, RouterError
from eelib.deploy.export import export
from eelib.deploy.router import Times
from eelib.deploy.runtime import Session
from eelib.evaluate import source_for
from eelib.files import file_sha256, look_up, read_json, shorten
from eelib.model import EarlyExitSSDLite
from eelib.routing import PolicyError

# What 1.000 is where the times of a session are ratios: at batch 1, on one thread, suppression included.
UNIT = "this detector without early exits and blank gates, in an exported session"


def measure(calls: Mapping[str, Callable[[], object]], repeats: int = 30, warmup: int = 5) -> dict[str, dict]:
    """Time several calls in turn, so that a drift of the machine meets all of them alike.

    Returns:
        For each name ``median_ms``, ``p95_ms`` and ``p99_ms`` of at least 2 ``repeats``, without those of the warm-up.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for round_ in range(warmup + repeats):
        for name, call in calls.items():
            finish()
            began = time.perf_counter()
            call()
            finish()
            if round_ >= warmup:
                times[name].append((time.perf_counter() - began) * 1e3)
    keys = ("median_ms", "p95_ms", "p99_ms")
    return {n: dict(zip(keys, np.percentile(t, (50, 95, 99)).tolist(), strict=True)) for n, t in times.items()}


@torch.no_grad()
def run_to(model: EarlyExitSSDLite, images: Tensor, exit_name: str) -> list:
    """Detections of one exit, computing nothing beyond it."""
    for output in model.exits(images):
        if output.name == exit_name:
            return model.postprocess(output, tuple(images.shape[-2:]))
    raise ValueError(f"exit: {exit_name!r} is unknown; expected one of {', '.join(model.exit_names)}")


def exit_times(
    model: EarlyExitSSDLite, images: Tensor, repeats: int = 30, session: Session | None = None
) -> dict[str, dict]:
    """Time of leaving at each exit, from tensor to detections: what a routed image pays, the exits passed included.

    The boxes of exits that are passed are not suppressed: routers read the raw scores. One that reads boxes after
    suppression pays ``passed_ratio``, which a session states, on top.

    Args:
        model: in evaluation mode.
        images: (N, 3, H, W) in [0, 1]; they take turns in a session, the first one is taken in eager mode.
        session: an export of the model, which is timed in place of eager torch; the latter runs on one thread.

    Returns:
        For each exit ``median_ms``, ``p95_ms``, ``p99_ms`` and ``ratio``. In eager torch the ratio is to the last exit,
        all exits before it included; in a session it is to :data:`UNIT`. A session adds ``passed_ratio``,
        ``batch_8_ms``, which is the median for an image of a batch of 8, and the times of ending at its blank gates.
    """
    if session is not None:
        return _session_times(session, np.ascontiguousarray(images.numpy()), repeats)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = measure({name: lambda name=name: run_to(model, images[:1], name) for name in model.exit_names}, repeats)
    finally:
        torch.set_num_threads(before)
    full_ms = times[model.exit_names[-1]]["median_ms"]
    return {name: time | {"ratio": time["median_ms"] / full_ms} for name, time in times.items()}


def _session_times(session: Session, images: np.ndarray, repeats: int) -> dict[str, dict]:
    names = [stage.exit for stage in session.stages]
    rules = {("plain", False): session.at_exit(session.exits[-1])}
    for name, reading in itertools.product(names, (False, True)):
        confidence = Column("agreement" if reading else "top_score")
        rules[name, reading] = session.at_exit(name, confidence)

    def call(rule: object, count: int) -> Callable[[], object]:
        turns = itertools.cycle([images[np.arange(k, k + count) % len(images)] for k in range(len(images))])
        return lambda: session.detect_batch(next(turns), rule)

    times = measure({key: call(rule, 1) for key, rule in rules.items()}, max(repeats, len(images)))
    many = measure({name: call(rules[name, False], 8) for name in names}, max(2, repeats // 8), 1)
    ratios, unit_ms = {}, times["plain", False]["median_ms"]
    for name in names:
        own, reading = times[name, False], times[name, True]
        # where no exit is passed, and below 0, there is noise alone
        added = max(0.0, reading["median_ms"] - own["median_ms"]) if name in session.exits[1:] else 0.0
        ratios[name] = own | {"ratio": own["median_ms"] / unit_ms, "passed_ratio": added / unit_ms}
        ratios[name]["batch_8_ms"] = many[name]["median_ms"] / 8
    return ratios


def measured_times(checkpoint: Path | str, root: Path | str | Source, split: str = "calibrate") -> Times:
    """Times of an exported session on this machine, on eight images of a split; it takes some seconds."""
    model = load_released(checkpoint)
    dataset = DetectionDataset(split, source_for(model, root), model.size, keep_crowd=True, limit=8)
    images = as_input(torch.stack([dataset[index][0] for index in range(len(dataset))]))
    with tempfile.TemporaryDirectory() as folder:
        export(checkpoint, folder)
        session = Session(folder)
        times = exit_times(model, images, session=session)
    exits = [times[name] for name in session.exits]
    return Times(
        exits=tuple(time["ratio"] for time in exits),
        passing=tuple(time["passed_ratio"] for time in exits),
        gates=tuple(times[name]["ratio"] for name in times if name not in session.exits),
        unit=UNIT,
        machine=machine(),
    )


def read_times(path: Path | str, exit_names: Sequence[str], checkpoint: Path | str) -> Times:
    """Times of an exported session that 04_exits measured, without those of the gates.

    Args:
        path: metrics of 04_exits; ``ratio`` and ``passed_ratio`` of ``exits.<name>`` are read.
        checkpoint: the detector that the times must be of.

    Raises:
        PolicyError: the file is missing, is no JSON, is of other weights, lacks a ratio of an exit, or its times do
            not rise or are shares of something else.
    """
    try:
        content = read_json(look_up(path), PolicyError)
        both = [[content["exits"][name][key] for name in exit_names] for key in ("ratio", "passed_ratio")]
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file of times; run notebook 04_exits first") from None
    except (KeyError, TypeError):
        raise PolicyError(
            f"{path}: no keys exits.<name>.ratio and passed_ratio for every one of {exit_names}; run 04_exits"
        ) from None
    for value in (value for values in both for value in values):
        if type(value) not in (int, float) or not 0 <= value < 1e6:
            raise PolicyError(f"{path}: a time in exits is {shorten(value)}; expected a share from 0")
    if content.get("checkpoint_sha256") != file_sha256(checkpoint):
        raise PolicyError(f"{path}: times of other weights than {checkpoint}; run 04_exits with that checkpoint")
    if content.get("unit", UNIT) != UNIT:  # a file without it is older than the key
        raise PolicyError(f"{path}: key 'unit' is {shorten(content['unit'])}; expected '{UNIT}'; run 04_exits again")
    try:
        return Times(tuple(both[0]), tuple(both[1]), (), UNIT, {"file": str(path)})
    except RouterError as error:
        raise PolicyError(f"{path}: {error}") from None


# Modules of the exported stages by the part that a profile names.
PARTS = {"trunk": "trunk", "second": "trunk", "extra": "trunk"}
PARTS |= dict.fromkeys(("context", "down", "shared", "features"), "head")


def part_of(operator: str) -> str | None:
    """``trunk``, ``head`` or ``decode`` from a node's name; None for one that onnxruntime put in."""
    if not operator.startswith("/"):
        return "trunk" if operator.startswith("next_features") else None
    module, _, rest = operator[1:].partition("/")
    if module == "decoder":
        return "head" if rest.startswith("predictors") else "decode"
    return PARTS[module.split(".")[0]]


def machine() -> dict[str, str]:
    """What the times were taken on; the processor by its model's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()  # often just the architecture
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
