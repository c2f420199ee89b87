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
from eelib.data import DetectionDataset, as_input, build_transform, split_sha256
from eelib.deploy import export as deploy
from eelib.deploy.int8 import described, quantise
from eelib.deploy.runtime import MANIFEST, EarlyExitSession, forced
from eelib.files import file_sha256
from eelib.model import Detections
from eelib.records import MAX_DETECTIONS, ExitRecords, evidence_of, load_records, save_records
from eelib.records import box_certainty as entropy
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


def system(name: str, kind: str, checkpoint: Path, folder: Path, int8_images: int = 0) -> System:
    """Export weights, once; with ``int8_images`` quantise them too and take the int8 stages."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    if manifest.get("checkpoint_sha256") != file_sha256(checkpoint):
        manifest = deploy.export(checkpoint, folder)
    if int8_images and manifest.get("int8") != described(int8_images):
        quantise(folder, count=int8_images)
    return System(name, kind, checkpoint, folder, "stages_int8" if int8_images else "stages")


def size_mib(one: System) -> float:
    """Size of a system's graphs on disk."""
    files = json.loads((one.folder / MANIFEST).read_text())[one.stages]
    return sum((one.folder / entry["file"]).stat().st_size for entry in files) / 2**20


def observe(
    session: EarlyExitSession,
    planes: tuple[np.ndarray, np.ndarray],
    exit_name: str,
    before: Detections | None,
    size_hw: tuple[int, int],
) -> tuple[Detections, list[float]]:
    """What an exit finds on an image and what it knows by that, from the output of its graph.

    Args:
        planes: boxes (4, A) in pixels of the input and scores (A,).
        before: of the exit before, in pixels of the original image.
        size_hw: of the original image.

    Returns:
        Detections in pixels of the original image, and :data:`eelib.deploy.evidence.EVIDENCE`.
    """
    kept = session.suppress(*planes, exit_name)
    scale = torch.tensor([size_hw[1], size_hw[0]] * 2) / session.size
    boxes_xyxy = torch.from_numpy(kept.boxes_xyxy[:MAX_DETECTIONS]) * scale
    found = Detections(boxes_xyxy, torch.from_numpy(kept.scores[:MAX_DETECTIONS]))
    return found, evidence_of(found, before, size_hw, float(entropy(torch.from_numpy(planes[1])[None])))


def session_records(system: System, split: str, limit: int | None) -> ExitRecords:
    """What every exit of an export finds on a split; kept in the export's folder."""
    session = system.session()
    entries = session.manifest[system.stages]
    hashes = split_sha256(split), "".join(entry["sha256"][:16] for entry in entries)
    path = system.folder / "observed" / f"{split}_{limit or 'all'}_{hashes[0][:8]}_{hashes[1][:8]}.pt"
    if path.exists():
        return load_records(path, *hashes)
    graphs = {entry["exit"]: session.graph(entry) for entry in entries}
    dataset = DetectionDataset(split, transform=build_transform(session.size), keep_crowd=True, limit=limit)
    found: dict[str, list[Detections]] = {name: [] for name in session.exits}
    evidence: list[list[list[float]]] = []
    for index, image_id in enumerate(dataset.image_ids):
        features = np.ascontiguousarray(as_input(dataset[index][0][None]).numpy())
        image = dataset.coco.imgs[image_id]
        before, rows = None, []
        for name, graph in graphs.items():
            scores, boxes, *rest = graph.run(None, {"features": features})
            before, known = observe(session, (boxes[0], scores[0]), name, before, (image["height"], image["width"]))
            found[name].append(before)
            rows.append(known)
            features = rest[0] if rest else None
        evidence.append(rows)
    records = ExitRecords.of((split, *hashes), dataset.image_ids, found, torch.tensor(evidence))
    save_records(records, path)
    return records


def measure_times(systems: Sequence[System], repeats: int) -> dict[tuple[str, str], dict]:
    """Median and 95th percentile of every (system, exit), all in turn in one run.

    Also of (system, ``suppression at <exit>``) and (system, ``observation at <exit>``) for every exit but
    the last: a policy that reads boxes pays the second for an image that goes on, and what it is more
    than the first, which the exit's own time holds, for one that leaves.
    """
    calls = {}
    for one in systems:
        session = one.session()
        array = np.ascontiguousarray(_image(session.size).numpy())
        for name in session.exits:
            calls[one.name, name] = lambda s=session, a=array, n=name: s.detect(a, forced(n))
        features, before, size_hw = array, None, (session.size, session.size)
        for name, stage in list(zip(session.exits, session._stages, strict=True))[:-1]:
            scores, boxes, features = stage.run(None, {"features": features})
            planes = boxes[0], scores[0]
            calls[one.name, f"suppression at {name}"] = lambda s=session, p=planes, n=name: s.suppress(*p, n)
            known = planes, name, before, size_hw
            calls[one.name, f"observation at {name}"] = lambda s=session, k=known: observe(s, *k)
            before, _ = observe(session, *known)
    return measure(calls, repeats)


def _image(size: int) -> torch.Tensor:
    dataset = DetectionDataset("calibrate", transform=build_transform(size), limit=1)
    return as_input(dataset[0][0][None])


def eager_ratios(static: Sequence[System], exits: Path, repeats: int) -> dict[str, float]:
    """Eager time of static systems as a share of the full exit of the detector with exits, one thread.

    ``05d_policies`` draws its routing on that axis.
    """
    models = {one.name: load_released(one.checkpoint).eval() for one in static}
    models["exits"] = load_released(exits).eval()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = {name: _image(model.size) for name, model in models.items()}
        calls = {name: lambda n=name: run_to(models[n], images[n], "full") for name in models}
        times = measure(calls, repeats)
    finally:
        torch.set_num_threads(before)
    return {one.name: times[one.name]["median_ms"] / times["exits"]["median_ms"] for one in static}
