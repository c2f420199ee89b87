"""Systems of the plane as a user would deploy them: exported, recorded, timed. Nothing else touches the runtime."""

import contextlib
import glob
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from eelib.checkpoints import load_released
from eelib.config import ROOT, Group
from eelib.data import DetectionDataset, as_input, split_sha256
from eelib.deploy.evidence import Column
from eelib.deploy.export import export
from eelib.deploy.int8 import described, quantise
from eelib.deploy.manifest import DeploymentError, read_manifest
from eelib.deploy.observe import MAX_DETECTIONS
from eelib.deploy.router import Rule
from eelib.deploy.runtime import Session
from eelib.detections import Detections
from eelib.files import file_sha256
from eelib.records import ExitRecords, load_records, save_records
from studies.profiling import macs

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


def systems_of(name: str, config: SystemConfig, out: Path) -> list[System]:
    """A line of the parameter file as systems: each seed in float, then each in int8; none where nothing is trained."""
    checkpoints = sorted(ROOT / path for path in glob.glob(config.weights, root_dir=ROOT))
    return [
        System(f"{name} int8" if int8 else name, config.kind, seed, path, out / f"{name}_seed{seed}", int8)
        for int8 in (False, True)[: 1 + config.int8]
        for seed, path in enumerate(checkpoints)
    ]


def opened(system: System, int8_images: int = 64) -> Session:
    """Its session on one thread; weights that changed are exported, and quantised, first."""
    manifest = None
    with contextlib.suppress(DeploymentError):  # no export yet, or one of an older format
        manifest = read_manifest(system.folder)
    if manifest is None or manifest.checkpoint_sha256 != file_sha256(system.checkpoint):
        manifest = export(system.checkpoint, system.folder, gates=False)  # nothing asks them in the plane
    if system.int8 and manifest.int8 != described(int8_images):
        quantise(system.folder, count=int8_images)
    return Session(system.folder, 1, system.int8)


def session_records(system: System, session: Session, split: str, limit: int | None) -> ExitRecords:
    """Detections of every exit on a split, for AP alone; written beside the export, and read from there."""
    graphs = "".join(stage.sha256[:16] for stage in session.stages)  # stands for the weights
    hashes = split_sha256(split), graphs
    name = f"{split}_{limit or 'all'}_{hashes[0][:8]}_{hashes[1][:8]}_{'int8' if system.int8 else 'float'}.npz"
    path = system.folder / "records" / name
    if path.exists():
        return load_records(path, *hashes)
    dataset = DetectionDataset(split, size=session.size, keep_crowd=True, limit=limit)
    detections: dict[str, list[Detections]] = {name: [] for name in session.exits}
    for index, image_id in enumerate(dataset.image_ids):
        image = dataset.coco.imgs[image_id]
        for stage, _, outputs in session.walk(network_input(dataset, index)):
            if not stage.gate:
                found = session.suppress(outputs["boxes"][0], outputs["scores"][0], stage.exit)
                found = found.rows(slice(MAX_DETECTIONS))
                found = found.scaled(image["width"] / session.size, image["height"] / session.size)
                detections[stage.exit].append(found)
    records = ExitRecords.of((split, *hashes), dataset.image_ids, detections)
    save_records(records, path)
    return records


def network_input(dataset: DetectionDataset, index: int) -> np.ndarray:
    """An image as the session takes it: float32 (1, 3, S, S) in [0, 1]."""
    return np.ascontiguousarray(as_input(dataset[index][0][None]).numpy())


def leaving_at(session: Session, name: str) -> Rule:
    """All images leave at an exit, after they were looked at on the way: what a routed image pays.

    :meth:`eelib.deploy.runtime.Session.at_exit` would send them to the last exit past all others.
    """
    return session.at_exit(name, Column("top_score"))


def measure_times(
    sessions: Mapping[str, Session], split: str, images: int | None, log: Callable[[str], None] = print
) -> dict[tuple[str, str], dict[str, float]]:
    """Time from image tensor to detections of every system and exit: batch 1, suppression included.

    Each image goes through all of them before the next one comes, in an order drawn anew for each image, so that a
    drift of the machine and the difficulty of an image meet all alike.

    Args:
        sessions: of one thread each, by the name of the system.
        images: how many, drawn from the split; None is all.

    Returns:
        The :func:`summary` over the images by system and exit.
    """
    datasets = {size: DetectionDataset(split, size=size, limit=images) for size in {s.size for s in sessions.values()}}
    calls = [(name, exit_name) for name, session in sessions.items() for exit_name in session.exits]
    rules = {(name, exit_name): leaving_at(sessions[name], exit_name) for name, exit_name in calls}
    spent: dict[tuple[str, str], list[float]] = {call: [] for call in calls}
    rng, count = np.random.default_rng(0), len(next(iter(datasets.values())))
    log(f"timing {len(calls)} exits of {len(sessions)} systems on {count} images")
    for turn in range(WARM_UP + count):
        inputs = {size: network_input(dataset, max(0, turn - WARM_UP)) for size, dataset in datasets.items()}
        for k in rng.permutation(len(calls)):
            session = sessions[calls[k][0]]
            image, rule = inputs[session.size], rules[calls[k]]
            began = time.perf_counter()
            session.detect_batch(image, rule)
            if turn >= WARM_UP:
                spent[calls[k]].append(1e3 * (time.perf_counter() - began))
    return {call: summary(values) for call, values in spent.items()}


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """``median_ms``, ``p95_ms`` and ``p99_ms``."""
    values = np.percentile(milliseconds, [50, 95, 99]).tolist()
    return dict(zip(("median_ms", "p95_ms", "p99_ms"), values, strict=True))


def costs(system: System, session: Session) -> dict:
    """What a system weighs: MiB of its graphs, parameters, and of each exit its place and operations."""
    model = load_released(system.checkpoint)
    return {
        "input_px": model.size,
        "size_mib": sum((system.folder / stage.file).stat().st_size for stage in session.stages) / 2**20,
        "parameters": sum(p.numel() for p in model.parameters()),
        # children of the trunk before the exit; None is all of them
        "exits": {name: {"children": model.cuts.get(name), "macs": macs(model, name)} for name in model.exit_names},
    }
