"""Systems on the axis of time: exports that detect as a user would deploy them, and what they cost.

A system is a set of weights with the export that they are measured by, in float or int8.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eelib import deploy
from eelib.checkpoints import load_released
from eelib.data import DetectionDataset, as_input, build_transform, split_sha256
from eelib.files import file_sha256
from eelib.latency import measure, run_to
from eelib.model import Detections
from eelib.quantise import described, quantise
from eelib.records import EVIDENCE, MAX_DETECTIONS, ExitRecords, load_records, save_records
from eelib.runtime import MANIFEST, EarlyExitSession, forced


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


def session_records(system: System, split: str, limit: int | None) -> ExitRecords:
    """What every exit of an export finds on a split; kept in the export's folder.

    ``top_score`` is the only evidence that is filled in.
    """
    session = system.session()
    entries = session.manifest[system.stages]
    hashes = split_sha256(split), "".join(entry["sha256"][:16] for entry in entries)
    path = system.folder / "records" / f"{split}_{limit or 'all'}_{hashes[0][:8]}_{hashes[1][:8]}.pt"
    if path.exists():
        return load_records(path, *hashes)
    graphs = {entry["exit"]: session.graph(entry) for entry in entries}
    dataset = DetectionDataset(split, transform=build_transform(session.size), keep_crowd=True, limit=limit)
    found: dict[str, list[Detections]] = {name: [] for name in session.exits}
    for index, image_id in enumerate(dataset.image_ids):
        features = np.ascontiguousarray(as_input(dataset[index][0][None]).numpy())
        image = dataset.coco.imgs[image_id]
        scale = torch.tensor([image["width"], image["height"]] * 2) / session.size
        for name, graph in graphs.items():
            scores, boxes, *rest = graph.run(None, {"features": features})
            kept = session.suppress(boxes[0], scores[0], name)
            boxes_xyxy = torch.from_numpy(kept.boxes_xyxy[:MAX_DETECTIONS]) * scale
            found[name].append(Detections(boxes_xyxy, torch.from_numpy(kept.scores[:MAX_DETECTIONS])))
            features = rest[0] if rest else None
    evidence = torch.zeros(len(dataset), len(found), len(EVIDENCE))
    for k, detections in enumerate(found.values()):
        column = [float(d.scores[0]) if len(d.scores) else 0.0 for d in detections]
        evidence[:, k, EVIDENCE.index("top_score")] = torch.tensor(column)
    records = ExitRecords(
        split, *hashes, tuple(found), tuple(dataset.image_ids),
        torch.tensor([[len(d.scores) for d in detections] for detections in found.values()]),
        tuple(torch.cat([d.boxes for d in detections]) for detections in found.values()),
        tuple(torch.cat([d.scores for d in detections]) for detections in found.values()), evidence,
    )  # fmt: skip
    save_records(records, path)
    return records


def measure_times(systems: Sequence[System], repeats: int) -> dict[tuple[str, str], dict]:
    """Median and 95th percentile of every (system, exit), all in turn in one run.

    Also of (system, ``suppression at <exit>``) for every exit but the last: what a policy that reads
    boxes pays there for an image that goes on.
    """
    calls = {}
    for one in systems:
        session = one.session()
        array = np.ascontiguousarray(_image(session.size).numpy())
        for name in session.exits:
            calls[one.name, name] = lambda s=session, a=array, n=name: s.detect(a, forced(n))
        features = array
        for name, stage in list(zip(session.exits, session._stages, strict=True))[:-1]:
            scores, boxes, features = stage.run(None, {"features": features})
            planes = boxes[0], scores[0], name
            calls[one.name, f"suppression at {name}"] = lambda s=session, p=planes: s.suppress(*p)
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
