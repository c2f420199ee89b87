"""Released weights: a checkpoint in ``checkpoints/``, and what the manifest says of it."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch

from eelib.checkpoints import TrainingError, load_checkpoint, load_released
from eelib.coco import open_source
from eelib.config import ROOT, resolve, saved_config
from eelib.data import DetectionDataset, split_sha256
from eelib.evaluate import evaluate, provenance
from eelib.files import file_sha256, write_atomic, write_json
from eelib.hub import read_manifest
from eelib.records import record
from eelib.routed_ap import RoutedAP

CHECKPOINTS = ROOT / "checkpoints"
# Larger files do not travel well in git.
LARGEST_BYTES = 16 * 2**20


def release(
    source: Path | str, name: str, folder: Path | str = CHECKPOINTS, limit: int | None = None, half: bool = False
) -> dict:
    """Measure trained weights on ``test`` and release them.

    Args:
        source: ``released.pth`` of a training run.
        name: file name under which they are released, such as ``mine.pth``.
        folder: of the released weights, of ``manifest.json`` and of ``matches/``.
        limit: test images; None takes all, as a real release must.
        half: store the weights in half precision; what is stored is what is measured.

    Returns:
        The manifest's entry: hash and size of the file, configuration, AP and AP50 of every exit on ``test``, split
        and versions; ``looks``, how often weights of this name were measured on ``test``; ``stages``, the training runs
        behind them, oldest first, each with ``epochs``, ``start``, ``start_sha256``, ``config`` and, where the start
        is no training of ours, ``origin``; and ``matches``, the file of the match flags that a comparison needs.

    Raises:
        HubError: the folder's manifest is broken.
        TrainingError: no checkpoint, one over 16 MiB, one with weights that are not finite, or a name that is none.
        ConfigError: a checkpoint without a configuration.
        DataError: there is no ``test``, or no object in it.
    """
    folder = Path(folder)
    if name != Path(name).name or not name.endswith(".pth") or name.startswith("."):
        raise TrainingError(f"{name}: expected a file name that ends in .pth, such as mine.pth")
    state, model = load_checkpoint(source), load_released(source)
    read_manifest(folder)  # a broken one is told before the measuring
    config, content = saved_config(state, source), io.BytesIO()
    if half:
        rounded = {key: value.half() if value.is_floating_point() else value for key, value in state["model"].items()}
        state = state | {"model": rounded}
        model.load_state_dict(rounded)
        for key, value in rounded.items():
            if not value.isfinite().all():  # too large for it
                raise TrainingError(f"{source}: '{key}' holds values that are not finite")
    torch.save({key: state[key] for key in ("model", "plan", "config", "history") if key in state}, content)
    if content.tell() > LARGEST_BYTES:  # known before what has the name is replaced
        mebibytes = content.tell() / 2**20
        raise TrainingError(f"{source}: {mebibytes:.1f} MiB; released weights must stay under 16 MiB")
    data = open_source(config.data)
    dataset = DetectionDataset("test", data, model.size, keep_crowd=True, limit=limit)
    ap, matches = evaluate(model, dataset), f"matches/{Path(name).stem}.npz"
    hashes = split_sha256("test", data), hashlib.sha256(content.getvalue()).hexdigest()
    RoutedAP(record(model, dataset, "test", *hashes), dataset.coco).save(folder / matches, *hashes)
    target = write_atomic(folder / name, lambda file: file.write(content.getvalue()))
    manifest = read_manifest(folder)  # as it is now: another release may have ended meanwhile
    before = manifest.get(name)
    entry = {
        "sha256": file_sha256(target),
        "bytes": target.stat().st_size,
        "images": len(dataset),
        "looks": before.get("looks", 1) + 1 if before else 1,
        "test": {exit_: {"AP": values["AP"], "AP50": values["AP50"]} for exit_, values in ap.items()},
        "matches": matches,
        "stages": _stages(state, manifest),
        **provenance("test", config, target),
    }
    write_json(folder / "manifest.json", manifest | {name: entry})
    return entry


def _stages(state: Mapping, manifest: Mapping) -> list[dict]:
    """The training runs behind a checkpoint, oldest first, as far as checkpoints or the manifest know of them."""
    config = saved_config(state, "start")
    stage = {"epochs": len(state.get("history", ())), "start": config.model.start, "start_sha256": None}
    stage["config"] = config.model_dump(mode="json")
    if "origin" in state:  # weights that were trained elsewhere
        stage["origin"] = state["origin"]
    if config.model.start is None:
        return [stage]
    path = resolve(config.model.start)
    if path.name in manifest:
        stage["start_sha256"] = manifest[path.name]["sha256"]
        return [*stages_of(manifest[path.name]), stage]
    if not path.exists():
        return [stage]
    start, stage["start_sha256"] = load_checkpoint(path), file_sha256(path)
    if "origin" in start:  # weights of `eelib study widen` or `prune`
        stage["origin"] = start["origin"]
        return [stage]
    return [*(_stages(start, manifest) if "config" in start else ()), stage]


def stages_of(entry: Mapping) -> list[dict]:
    """All stages of an entry; version 0.1 left out the configuration of the last one, which is the entry's."""
    return [*entry["stages"][:-1], {"config": entry["config"]} | entry["stages"][-1]]
