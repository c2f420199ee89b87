"""What a detector costs: its operations, and where the time of its export goes."""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eelib.deploy.runtime import Session
from eelib.timing import measure, part_of


@torch.no_grad()
def macs(model: nn.Module, last: str = "full") -> int:
    """Multiply-accumulates of one image up to and with an exit of a model that has ``size`` and ``exits(images)``."""
    with FlopCounterMode(display=False) as counter:
        for output in model.eval().exits(torch.zeros(1, 3, model.size, model.size)):
            if output.name == last:
                break
    return counter.get_total_flops() // 2


def profile_stage(path: Path | str, features: np.ndarray, repeats: int = 20) -> dict[str, float]:
    """Where a stage's time goes, by onnxruntime's own profile on one thread.

    A change of memory layout that onnxruntime puts in is counted with the operator before it.

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


def profile_export(session: Session, image: np.ndarray, repeats: int = 20) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage's ``trunk``, ``head``, ``decode`` and ``suppression`` in a session of one thread.

    The image is float32 (1, 3, S, S) in [0, 1].
    """
    profile = {}
    for stage, features, outputs in session.walk(image):
        parts = profile_stage(session.folder / stage.file, features, repeats)
        if not stage.gate:
            planes = outputs["boxes"][0], outputs["scores"][0], stage.exit
            call = {"suppression": lambda planes=planes: session.suppress(*planes)}
            parts["suppression"] = measure(call, repeats)["suppression"]["median_ms"]
        profile[stage.exit] = parts
    return profile
