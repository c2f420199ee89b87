"""Released weights as the notebooks show them: what stands in for weights that are gone, and how all were trained."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eelib.checkpoints import TrainingError
from eelib.coco import Source
from eelib.config import resolve
from eelib.data import split_sha256
from eelib.hub import read_manifest
from eelib.release import CHECKPOINTS, stages_of
from eelib.routed_ap import RoutedAP


def find_released(paths: Mapping[str, Path | str], root: Path | str | Source) -> dict[str, Path | RoutedAP]:
    """Released detectors as far as they are there: weights, or the match flags that stand for them.

    The flags say which boxes of ``test`` matched, all that a comparison needs; ``matches`` of the manifest names them.

    Args:
        paths: name to the path that the weights were released under.
        root: data set whose ``test`` the flags must be of.

    Raises:
        RecordsError: the flags are of another checkpoint or data set.
    """
    released: dict[str, Path | RoutedAP] = {}
    for key, path in paths.items():
        folder, name = resolve(path).parent, Path(path).name
        manifest = read_manifest(folder)
        weights, entry = folder / name, manifest.get(name, {})
        if weights.exists():
            released[key] = weights
        elif "matches" in entry:
            released[key] = RoutedAP.load(folder / entry["matches"], split_sha256("test", root), entry["sha256"])
    return released


def stages_table(name: str, folder: Path | str = CHECKPOINTS) -> pd.DataFrame:
    """The training runs behind released weights, oldest first, one line each.

    Raises:
        TrainingError: the manifest has no entry of this name.
    """
    manifest, rows = read_manifest(folder), []
    if name not in manifest:
        raise TrainingError(f"{Path(folder) / 'manifest.json'}: no entry '{name}'; expected one of {list(manifest)}")
    for stage in stages_of(manifest[name]):
        config = stage["config"]
        optim, data = config["optim"], config["data"]
        sizes = data["image_sizes"] if "image_sizes" in data else [[0, data["size"]]]  # version 0.1 had several
        reached = [side for first, side in sizes if first < stage["epochs"]]
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
