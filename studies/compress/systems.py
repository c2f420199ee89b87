"""Systems of the plane as a user would deploy them: exported, recorded, timed. Nothing else touches the runtime."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from onnxruntime import InferenceSession

from eelib.checkpoints import load_released
from eelib.config import ROOT, ConfigError, Group
from eelib.data import DetectionDataset, as_input, split_sha256
from eelib.deploy import export as deploy
from eelib.deploy.int8 import described, quantise
from eelib.deploy.observe import box_certainty, evidence_of
from eelib.deploy.runtime import MANIFEST, EarlyExitSession, forced
from eelib.detections import Detections
from eelib.files import file_sha256
from eelib.records import MAX_DETECTIONS, ExitRecords, load_records, save_records
from eelib.timing import macs

WARM_UP = 3  # rounds that are not counted


class SystemConfig(Group):
    """A line of ``params/plane.yaml``."""

    # what it is compared as; `plain` is the measure of every time
    kind: Literal["plain", "input", "width", "search", "truncated", "exits"]
    weights: str  # checkpoint, or a pattern of one for each seed, such as runs/exits_256/seed*/released.pth
    int8: bool = True  # in int8 as well


class System(NamedTuple):
    """Weights of one seed, in float or in int8, and the folder of their export."""

    name: str
    kind: str
    seed: int
    checkpoint: Path
    folder: Path
    int8: bool

    @property
    def stages(self) -> str:
        """Key of the manifest that lists its graphs."""
        return "stages_int8" if self.int8 else "stages"


def systems_of(name: str, config: SystemConfig, out: Path) -> list[System]:
    """A line of the parameter file as systems: each seed in float, then each in int8.

    Raises:
        ConfigError: no checkpoint fits the pattern.
    """
    pattern = Path(config.weights)
    root = Path(pattern.anchor) if pattern.is_absolute() else ROOT
    checkpoints = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
    if not checkpoints:
        raise ConfigError(f"key 'systems.{name}.weights' is '{config.weights}': no such checkpoint; train it first")
    return [
        System(f"{name} int8" if int8 else name, config.kind, seed, path, out / f"{name}_seed{seed}", int8)
        for int8 in (False, True)[: 1 + config.int8]
        for seed, path in enumerate(checkpoints)
    ]


def opened(system: System, int8_images: int = 64) -> EarlyExitSession:
    """Its session on one thread; weights that changed are exported, and quantised, first."""
    path = system.folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    if manifest.get("checkpoint_sha256") != file_sha256(system.checkpoint):
        manifest = deploy.export(system.checkpoint, system.folder)
    if system.int8 and manifest.get("int8") != described(int8_images):
        quantise(system.folder, count=int8_images)
    return EarlyExitSession(system.folder, 1, system.stages)


def graphs_sha256(session: EarlyExitSession, stages: str) -> str:
    """What stands for a system in its records: the hashes of its graphs, joined."""
    return "".join(entry["sha256"][:16] for entry in session.manifest[stages])


def looks(
    session: EarlyExitSession, graphs: Mapping[str, InferenceSession], image: np.ndarray
) -> Iterator[tuple[str, Detections, float]]:
    """What each exit sees in an image: its name, detections in pixels of the input, and ``box_certainty``.

    Args:
        session: of the export, for the suppression.
        graphs: of its stages by exit.
        image: float32 (1, 3, S, S) in [0, 1].
    """
    features = image
    for name, graph in graphs.items():
        scores, boxes, *rest = graph.run(None, {"features": features})
        yield name, session.suppress(boxes[0], scores[0], name).rows(slice(MAX_DETECTIONS)), box_certainty(scores[0])
        features = rest[0] if rest else None


def session_records(system: System, session: EarlyExitSession, split: str, limit: int | None) -> ExitRecords:
    """Detections and evidence of every exit on a split; written beside the export, and read from there."""
    hashes = split_sha256(split), graphs_sha256(session, system.stages)
    name = f"{split}_{limit or 'all'}_{hashes[0][:8]}_{hashes[1][:8]}.npz"
    path = system.folder / "records" / name
    if path.exists():
        return load_records(path, *hashes)
    dataset = DetectionDataset(split, size=session.size, keep_crowd=True, limit=limit)
    graphs = {entry["exit"]: session.graph(entry) for entry in session.manifest[system.stages]}
    detections: dict[str, list[Detections]] = {name: [] for name in session.exits}
    evidence: list[list[list[float]]] = []
    for index, image_id in enumerate(dataset.image_ids):
        image, before = dataset.coco.imgs[image_id], None
        evidence.append([])
        for name, found, certainty in looks(session, graphs, network_input(dataset, index)):
            found = found.scaled(image["width"] / session.size, image["height"] / session.size)
            evidence[-1].append(evidence_of(found, before, (image["height"], image["width"]), certainty))
            detections[name].append(found)
            before = found
    records = ExitRecords.of((split, *hashes), dataset.image_ids, detections, np.array(evidence))
    save_records(records, path)
    return records


def network_input(dataset: DetectionDataset, index: int) -> np.ndarray:
    """An image as the session takes it: float32 (1, 3, S, S) in [0, 1]."""
    return np.ascontiguousarray(as_input(dataset[index][0][None]).numpy())


def measure_times(
    sessions: dict[str, EarlyExitSession], split: str, images: int | None, log: Callable[[str], None] = print
) -> dict[tuple[str, str], dict[str, float]]:
    """Time from image tensor to detections of every system and exit: batch 1, suppression included.

    Each image goes through all of them before the next one comes, in an order drawn anew for each image, so that a
    drift of the machine and the difficulty of an image meet all alike.

    Args:
        sessions: of one thread each, by the name of the system.
        split: of the images.
        images: how many, drawn; None is all.

    Returns:
        By system and exit ``median_ms``, ``p95_ms`` and ``p99_ms`` over the images.
    """
    datasets = {size: DetectionDataset(split, size=size, limit=images) for size in {s.size for s in sessions.values()}}
    calls = [(name, exit_name) for name, session in sessions.items() for exit_name in session.exits]
    spent: dict[tuple[str, str], list[float]] = {call: [] for call in calls}
    rng, count = np.random.default_rng(0), len(next(iter(datasets.values())))
    log(f"timing {len(calls)} exits of {len(sessions)} systems on {count} images")
    for turn in range(WARM_UP + count):
        inputs = {size: network_input(dataset, max(0, turn - WARM_UP)) for size, dataset in datasets.items()}
        for k in rng.permutation(len(calls)):
            session = sessions[calls[k][0]]
            image, policy = inputs[session.size], forced(calls[k][1])
            began = time.perf_counter()
            session.detect(image, policy)
            if turn >= WARM_UP:
                spent[calls[k]].append(1e3 * (time.perf_counter() - began))
    return {call: summary(values) for call, values in spent.items()}


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile."""
    values = np.percentile(milliseconds, [50, 95, 99]).tolist()
    return dict(zip(("median_ms", "p95_ms", "p99_ms"), values, strict=True))


def costs(system: System, session: EarlyExitSession) -> dict:
    """What a system weighs: MiB of its graphs, parameters, and of each exit its place and operations."""
    model, entries = load_released(system.checkpoint), session.manifest[system.stages]
    mib = sum((system.folder / entry["file"]).stat().st_size for entry in entries) / 2**20
    return {
        "input_px": model.size,
        "size_mib": mib,
        "parameters": sum(p.numel() for p in model.parameters()),
        # children of the trunk before the exit; None is all of them
        "exits": {name: {"children": model.cuts.get(name), "macs": macs(model, name)} for name in model.exit_names},
    }
