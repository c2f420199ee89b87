"""What a detector loses on images that it was not trained on: is it the scenes that are new, or the chairs?

``train`` shows known scenes, ``val`` new scenes with chair models that ``train`` does not have. The set
between them is rendered: new scenes with the chair models of ``train``.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from eelib.checkpoints import load_checkpoint
from eelib.config import saved_config
from eelib.data import load_split
from eelib.evaluate import provenance
from eelib.files import write_json
from eelib.records import records_of
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of


def generalisation(
    checkpoint: Path | str,
    sets: Mapping[str, tuple[str, Path | str]],
    folder: Path | str,
    reports: Path | str,
    *,
    resamples: int = 1000,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """AP of a detector's full path on each of several sets; ``metrics/generalisation.json`` in ``reports``.

    Args:
        sets: name to (split, folder of the data set), from the best known to the least known images.
        folder: of exit records; made where there are none.
        resamples: bootstrap draws of scenes, of each set on its own: they share no scene.

    Returns:
        What is written: ``sets``, rows of ``name``, ``images``, ``scenes``, ``objects``, ``AP``,
        ``AP50``, ``interval`` (95 %), ``split_sha256`` and ``rendered_with`` (the renderer's settings, with
        their seed, where the file names them), and ``steps``, the difference of each set from the one before.
    """
    truths = [load_split(split, root) for split, root in sets.values()]  # a missing set ends it here, not half-way
    rows, samples, steps = [], [], []
    for seed, ((name, (split, root)), coco) in enumerate(zip(sets.items(), truths, strict=True)):
        records = records_of(split, checkpoint, root, folder, progress=progress)
        scenes, evaluator = scenes_of(coco, records.image_ids), RoutedAP(records, coco)
        full = np.full(len(records), evaluator.exits - 1)
        samples.append(bootstrap(evaluator, [full], resample(scenes, resamples, seed))[:, 0])
        row = {"name": name, "split": split, "images": len(records), "scenes": len(np.unique(scenes))}
        row |= {"objects": int(evaluator.positives.sum())} | evaluator.scores(full)
        row |= {"interval": interval(samples[-1]), "split_sha256": records.split_sha256}
        rows.append(row | {"rendered_with": coco.dataset.get("info", {}).get("settings")})
    for (before, row), (first, second) in zip(pairwise(rows), pairwise(samples), strict=True):
        size = min(len(first), len(second))  # a resample without an object is left out
        step = {"from": before["name"], "to": row["name"], "AP": row["AP"] - before["AP"]}
        steps.append(step | {"interval": interval(second[:size] - first[:size])})
    config = saved_config(load_checkpoint(checkpoint), checkpoint)
    result = {"sets": rows, "steps": steps, "resamples": resamples} | provenance("val", config, checkpoint)
    del result["split"], result["split_sha256"]  # each set has its own
    write_json(Path(reports) / "metrics" / "generalisation.json", result)
    return result
