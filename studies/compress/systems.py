"""Systems on the axis of time: exports that detect as a user would deploy them, and what they cost.

A system is a set of weights with the export that they are measured by, in float or int8.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eelib.checkpoints import load_released
from eelib.data import DetectionDataset, as_input, split_sha256
from eelib.deploy import export as deploy
from eelib.deploy.int8 import described, quantise
from eelib.deploy.runtime import MANIFEST, EarlyExitSession, forced
from eelib.files import file_sha256
from eelib.model import Detections
from eelib.records import MAX_DETECTIONS, ExitRecords, box_certainty, evidence_of, load_records, save_records
from eelib.timing import measure, run_to


class System(NamedTuple):
    """Something that is measured.

    ``checkpoint`` the weights, ``folder`` of their export, ``stages`` key of its manifest.
    """

    name: str
    kind: str
    checkpoint: Path
    folder: Path
    stages: str = "stages"

    def session(self) -> EarlyExitSession:
        """Its export, opened on one thread."""
        return EarlyExitSession(self.folder, 1, self.stages)

    def size(self) -> dict[str, float]:
        """MiB of its graphs on disk, and the number of its parameters."""
        files = json.loads((self.folder / MANIFEST).read_text())[self.stages]
        mib = sum((self.folder / entry["file"]).stat().st_size for entry in files) / 2**20
        return {"size_mib": mib, "parameters": sum(p.numel() for p in load_released(self.checkpoint).parameters())}


def export_system(name: str, kind: str, checkpoint: Path, folder: Path, int8_images: int = 0) -> System:
    """Export weights, once; with ``int8_images`` quantise them too and take the int8 stages."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    if manifest.get("checkpoint_sha256") != file_sha256(checkpoint):
        manifest = deploy.export(checkpoint, folder)
    if int8_images and manifest.get("int8") != described(int8_images):
        quantise(folder, count=int8_images)
    return System(name, kind, checkpoint, folder, "stages_int8" if int8_images else "stages")


def observe(
    session: EarlyExitSession,
    planes: tuple[np.ndarray, np.ndarray],
    exit_name: str,
    before: Detections | None,
    size_hw: tuple[int, int],
) -> tuple[Detections, list[float]]:
    """Detections of an exit on an image and the evidence that they are, from the output of its graph.

    Args:
        planes: boxes (4, A) in pixels of the input and scores (A,).
        before: of the exit before, in pixels of the original image.
        size_hw: of the original image.

    Returns:
        Detections in pixels of the original image, and :data:`eelib.deploy.evidence.EVIDENCE`.
    """
    best = session.suppress(*planes, exit_name)
    scale = torch.tensor([size_hw[1], size_hw[0]] * 2) / session.size
    boxes_xyxy = torch.from_numpy(best.boxes_xyxy[:MAX_DETECTIONS]) * scale
    detections = Detections(boxes_xyxy, torch.from_numpy(best.scores[:MAX_DETECTIONS]))
    certainty = float(box_certainty(torch.from_numpy(planes[1])[None]))
    return detections, evidence_of(detections, before, size_hw, certainty)


def session_records(system: System, split: str, limit: int | None) -> ExitRecords:
    """Detections of every exit of an export on a split; written to the export's folder, and read from it."""
    session = system.session()
    entries = session.manifest[system.stages]
    hashes = split_sha256(split), "".join(entry["sha256"][:16] for entry in entries)
    path = system.folder / "observed" / f"{split}_{limit or 'all'}_{hashes[0][:8]}_{hashes[1][:8]}.pt"
    if path.exists():
        return load_records(path, *hashes)
    graphs = {entry["exit"]: session.graph(entry) for entry in entries}
    dataset = DetectionDataset(split, size=session.size, keep_crowd=True, limit=limit)
    detections: dict[str, list[Detections]] = {name: [] for name in session.exits}
    evidence: list[list[list[float]]] = []
    for index, image_id in enumerate(dataset.image_ids):
        features = np.ascontiguousarray(as_input(dataset[index][0][None]).numpy())
        image, before = dataset.coco.imgs[image_id], None
        evidence.append([])
        for name, graph in graphs.items():
            scores, boxes, *rest = graph.run(None, {"features": features})
            before, row = observe(session, (boxes[0], scores[0]), name, before, (image["height"], image["width"]))
            detections[name].append(before)
            evidence[-1].append(row)
            features = rest[0] if rest else None
    records = ExitRecords.of(split, hashes, dataset.image_ids, detections, torch.tensor(evidence))
    save_records(records, path)
    return records


def measure_times(systems: Sequence[System], repeats: int) -> dict[tuple[str, str], dict]:
    """Median and 95th percentile of every (system, exit), all in turn in one run.

    Also of (system, ``suppression at <exit>``) and (system, ``observation at <exit>``) for every exit but
    the last: a policy that reads boxes pays the second for an image that goes on, and what it is more
    than the first, which the exit's own time holds, for one that leaves.
    """
    calls = {}
    for system in systems:
        session = system.session()
        features = input_image(session.size)
        for name in session.exits:
            calls[system.name, name] = lambda s=session, f=features, n=name: s.detect(f, forced(n))
        before, size_hw = None, (session.size, session.size)
        for entry in session.manifest[system.stages][:-1]:
            scores, boxes, features = session.graph(entry).run(None, {"features": features})
            planes, name = (boxes[0], scores[0]), entry["exit"]
            calls[system.name, f"suppression at {name}"] = lambda s=session, p=planes, n=name: s.suppress(*p, n)
            look = planes, name, before, size_hw
            calls[system.name, f"observation at {name}"] = lambda s=session, k=look: observe(s, *k)
            before, _ = observe(session, *look)
    return measure(calls, repeats)


def input_image(size: int) -> np.ndarray:
    """One image of ``calibrate`` as the network takes it: float32 (1, 3, size, size)."""
    dataset = DetectionDataset("calibrate", size=size, limit=1)
    return np.ascontiguousarray(as_input(dataset[0][0][None]).numpy())


def eager_ratios(static: Sequence[System], exits: Path, repeats: int) -> dict[str, float]:
    """Eager time of static systems as a share of the full exit of the detector with exits, one thread.

    ``05d_policies`` draws its routing on that axis.
    """
    models = {system.name: load_released(system.checkpoint).eval() for system in static}
    models["exits"] = load_released(exits).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = {name: torch.from_numpy(input_image(model.size)) for name, model in models.items()}
        calls = {name: lambda n=name: run_to(models[n], images[n], "full") for name in models}
        times = measure(calls, repeats)
    finally:
        torch.set_num_threads(threads)
    return {system.name: times[system.name]["median_ms"] / times["exits"]["median_ms"] for system in static}
