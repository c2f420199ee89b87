"""Released weights: a checkpoint in ``checkpoints/``, and what the manifest says of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.coco import Source, open_source
from eelib.config import ROOT, resolve, saved_config
from eelib.data import DetectionDataset, split_sha256
from eelib.evaluate import evaluate, provenance
from eelib.files import file_sha256, write_atomic
from eelib.fit import selection_score
from eelib.records import record
from eelib.routed_ap import RoutedAP

CHECKPOINTS = ROOT / "checkpoints"
# Larger files do not travel well in git.
LARGEST_BYTES = 16 * 2**20


def read_manifest(folder: Path | str = CHECKPOINTS) -> dict:
    """The manifest of a folder of released weights; empty where there is none yet.

    Raises:
        TrainingError: the manifest is not JSON.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path}: not valid JSON ({error})") from None


def release(source: Path | str, name: str, folder: Path | str = CHECKPOINTS, limit: int | None = None) -> dict:
    """Evaluate trained weights on ``test`` and release them.

    Args:
        source: ``released.pth`` of a training run.
        name: file name under which they are released, such as ``baseline.pth``.
        folder: of the released weights and of ``manifest.json``.
        limit: test images; None takes all, as a real release must.

    Returns:
        The manifest's entry: hash and size of the file, configuration, AP and AP50 of every
        exit on ``test``, split and versions, and ``stages``: the training runs behind the
        weights that are not behind other released weights, see :func:`stages_of`.

    Raises:
        TrainingError: no checkpoint, one without a configuration, or one over 16 MiB.
    """
    state, manifest = load_checkpoint(source), read_manifest(folder)
    config = saved_config(state, source)
    dataset = DetectionDataset("test", open_source(config.data), 320, keep_crowd=True, limit=limit)
    ap = evaluate(source, dataset)
    target = save_checkpoint(Path(folder) / name, {key: state[key] for key in ("model", "config", "history")})
    if target.stat().st_size > LARGEST_BYTES:
        size = target.stat().st_size / 2**20
        target.unlink()
        raise TrainingError(f"{target}: {size:.1f} MiB; released weights must stay under 16 MiB")
    entry = {
        "sha256": file_sha256(target),
        "bytes": target.stat().st_size,
        "images": len(dataset),
        "test": {exit_: {"AP": values["AP"], "AP50": values["AP50"]} for exit_, values in ap.items()},
        "stages": _stages(state, manifest),
        **provenance("test", config, target),
    }
    if name in manifest:  # what started from the weights that are replaced keeps their history
        replaced = manifest[name]["sha256"]
        for other in manifest.values():
            if other["stages"][0]["start_sha256"] == replaced:
                other["stages"] = [*_behind(manifest[name], manifest), *other["stages"]]
    _write_manifest(folder, manifest | {name: entry})
    return entry


def _stages(state: Mapping, manifest: Mapping) -> list[dict]:
    """The training runs behind a checkpoint since a released one, oldest first, as far as checkpoints are there."""
    config = saved_config(state, "start")
    stage = {"epochs": len(state["history"]), "start": config.model.start, "start_sha256": None}
    earlier = []
    if config.model.start:
        path = resolve(config.model.start)
        if path.name in manifest:
            stage["start_sha256"] = manifest[path.name]["sha256"]
        elif path.exists():  # never released: an earlier stage in runs/, or the weights of `eelib widen`
            start = load_checkpoint(path)
            stage["start_sha256"] = file_sha256(path)
            if "config" in start:
                earlier = _stages(start, manifest)
                earlier[-1]["config"] = saved_config(start, path).model_dump(mode="json")
            elif "origin" in start:
                stage["origin"] = start["origin"]
    return [*earlier, stage]


def _behind(entry: Mapping, manifest: Mapping) -> list[dict]:
    """All stages of an entry: its own, the last with the entry's configuration, after those of its start."""
    stages = [*entry["stages"][:-1], entry["stages"][-1] | {"config": entry["config"]}]
    starts = (other for other in manifest.values() if other["sha256"] == stages[0]["start_sha256"])
    start = next(starts, None)
    return [*_behind(start, manifest), *stages] if start else stages


def stages_of(name: str, folder: Path | str = CHECKPOINTS) -> list[dict]:
    """The training runs behind released weights, oldest first.

    The manifest lists with each weights only the runs since the released ones that they started from, which
    ``start_sha256`` of the first run names.

    Returns:
        ``epochs``, ``start``, ``start_sha256``, ``config`` and, where the start is no training of ours, ``origin``.

    Raises:
        TrainingError: the manifest has no entry of this name.
    """
    manifest = read_manifest(folder)
    if name not in manifest:
        raise TrainingError(f"{Path(folder) / 'manifest.json'}: no entry '{name}'; expected one of {list(manifest)}")
    return _behind(manifest[name], manifest)


def _write_manifest(folder: Path | str, manifest: dict) -> None:
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomic(Path(folder) / "manifest.json", lambda file: file.write(text.encode()))


def choose(name: str, candidates: Sequence[str], folder: Path | str = CHECKPOINTS) -> dict:
    """Rename the best of several released detectors, by ``val`` alone.

    Args:
        name: file name that the best gets, such as ``exits.pth``.
        candidates: released file names; the mean AP of their exits on ``val``, as measured in
            training on the epoch that was kept, decides.
        folder: of the released weights and of ``manifest.json``.

    Returns:
        The manifest's entry: that of the best, and ``chosen``: its former name and every candidate's mean AP.

    Raises:
        TrainingError: a candidate was not released, was never measured on ``val``, or has other
            exits than the first.
    """
    folder, manifest, scores = Path(folder), read_manifest(folder), {}
    for candidate in candidates:
        if candidate not in manifest:
            raise TrainingError(f"{candidate}: not released; expected one of {', '.join(manifest)}")
        expected = list(manifest[candidates[0]]["test"])
        if list(manifest[candidate]["test"]) != expected:
            raise TrainingError(f"{candidate}: has other exits than {candidates[0]}; expected {', '.join(expected)}")
        history = load_checkpoint(folder / candidate).get("history", [])
        scores[candidate] = max(map(selection_score, history), default=-1.0)
        if scores[candidate] < 0:
            raise TrainingError(f"{candidate}: was not measured on val in training; train it with optim.eval_every")
    best = max(scores, key=scores.get)
    entry = manifest[best] | {"chosen": {"from": best, "val_mean_AP": scores}}
    # the manifest first: a stop in between leaves an entry whose file can still be moved
    _write_manifest(folder, manifest | {name: entry})
    (folder / best).replace(folder / name)
    _write_manifest(folder, {key: value for key, value in manifest.items() if key != best} | {name: entry})
    return entry


def retire(name: str, folder: Path | str = CHECKPOINTS, limit: int | None = None) -> Path:
    """Replace released weights by the match flags of their detections on ``test``, which a comparison needs.

    Args:
        name: released file name. Its entry stays in the manifest and gets ``matches``.
        folder: of the released weights and of ``manifest.json``.
        limit: test images; None takes all, as a comparison must.

    Returns:
        The flags' file, in ``folder / "matches"``.

    Raises:
        TrainingError: the weights were not released, or are no longer there.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    if name not in manifest:
        raise TrainingError(f"{name}: not released; expected one of {', '.join(manifest)}")
    weights, flags = folder / name, folder / "matches" / f"{Path(name).stem}.npz"
    source = open_source(saved_config(load_checkpoint(weights), name).data)
    dataset = DetectionDataset("test", source, 320, keep_crowd=True, limit=limit)
    hashes = split_sha256("test", source), manifest[name]["sha256"]
    RoutedAP(record(load_released(weights), dataset, "test", *hashes), dataset.coco).save(flags, *hashes)
    _write_manifest(folder, manifest | {name: manifest[name] | {"matches": f"matches/{flags.name}"}})
    weights.unlink()
    return flags


def find_released(paths: Mapping[str, Path | str], root: Path | str | Source) -> dict[str, Path | RoutedAP]:
    """Released detectors as far as they are there: weights, wherever ``choose`` put them, or flags of retired ones.

    Args:
        paths: name to the path that the weights were released under.
        root: data set whose ``test`` the flags must be of.

    Raises:
        RecordsError: the flags are of another checkpoint or data set.
    """
    found: dict[str, Path | RoutedAP] = {}
    for key, path in paths.items():
        folder, name = resolve(path).parent, Path(path).name
        manifest = read_manifest(folder)
        moved = {entry["chosen"]["from"]: new for new, entry in manifest.items() if "chosen" in entry}
        weights = folder / moved.get(name, name)
        entry = manifest.get(name, {})
        if weights.exists():
            found[key] = weights
        elif "matches" in entry:
            found[key] = RoutedAP.load(folder / entry["matches"], split_sha256("test", root), entry["sha256"])
    return found


def stages_table(name: str, folder: Path | str = CHECKPOINTS) -> pd.DataFrame:
    """The training runs behind released weights, oldest first, one line each.

    Raises:
        TrainingError: the manifest has no entry of this name.
    """
    rows = []
    for stage in stages_of(name, folder):
        config = stage["config"]
        optim, data = config["optim"], config["data"]
        # version 0.1 raised the size while it trained
        reached = [side for first, side in data.get("image_sizes", [[0, data.get("size")]]) if first < stage["epochs"]]
        rows.append(
            {
                "epochs": stage["epochs"],
                "planned": optim["epochs"],
                "sides in px": ", ".join(map(str, reached)),
                "class loss": config["loss"]["classification"],
                "mask loss": config["loss"].get("mask", 0.0),
                "batch": optim["batch_size"] * optim.get("devices", 1),
                "learning rate": f"{optim['lr']:g}",
                "start": stage.get("origin") or stage["start"] or "nothing",
            }
        )
    return pd.DataFrame(rows)
