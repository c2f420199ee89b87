"""The learning curve: does the baseline still gain from more images, at the same number of optimiser steps?

Each point trains the same detector on a subset of ``train``, each subset within the next, and is measured on ``val``,
whose chair models no training image shows. More images then mean fewer passes, never more steps.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from eelib.coco import open_source
from eelib.config import Config, ConfigError, Group
from eelib.data import load_split, split_sha256
from eelib.evaluate import provenance
from eelib.files import write_json
from eelib.records import records_of
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.train import train

Count = Annotated[int, Field(ge=1)]


class Curve(Group):
    """The key ``curve`` of a parameter file."""

    images: list[Count | None] = Field(min_length=1)  # of train, a point each; None is all
    steps: Count  # of the optimiser in each point at least: it takes whole epochs
    resamples: Count  # bootstrap over scenes


def points_of(config: Config, curve: Curve) -> list[Config]:
    """The training of each point, fewest images first: whole epochs of ``curve.steps`` steps or the next more.

    Raises:
        ConfigError: a point has more images than ``train``, or fewer than a batch.
    """
    available, batch = len(load_split("train", open_source(config.data)).imgs), config.optim.batch_size
    sizes = sorted({available if images is None else images for images in curve.images})
    if sizes[-1] > available or sizes[0] < batch:
        raise ConfigError(f"curve.images: {sizes}; expected at least a batch ({batch}) and at most {available} images")
    points = []
    for images in sizes:
        epochs = -(-curve.steps // (images // batch))
        data = config.data.model_copy(update={"limit": images})  # drawn with the seed, so that subsets are nested
        optim = config.optim.model_copy(update={"epochs": epochs, "eval_every": epochs, "keep": "last"})
        points.append(config.model_copy(update={"data": data, "optim": optim}))
    return points


def learning_curve(
    config: Config, curve: Curve, out: Path | str, reports: Path | str, log: Callable[[str], None] = print
) -> dict:
    """Train and measure every point; ``metrics/learning_curve.json`` in ``reports``.

    An interrupted curve continues where it stopped.

    Args:
        config: of every point but for ``data.limit`` and ``optim.epochs``, which the curve sets.
        out: folder of the points' runs.

    Returns:
        What is written: ``points`` and ``gains`` from each point to the next and from the first to the last,
        with 95 % intervals over scenes of ``val`` (paired for the gains). They hold for one training seed.

    Raises:
        ConfigError: see :func:`points_of`.
        TrainingError: ``out`` holds another curve.
    """
    source, points, samples = open_source(config.data), [], []
    val = load_split("val", source)
    for point in points_of(config, curve):
        images, steps = point.data.limit, point.optim.epochs * (point.data.limit // point.optim.batch_size)
        log(f"{images} images: {steps} steps of {point.optim.batch_size} images")
        folder = Path(out) / f"images_{images}"
        released = train(point, folder, resume=True, log=log)
        records = records_of("val", released, source, folder, config.data.eval_limit)
        evaluator, full = RoutedAP(records, val), np.full(len(records), len(records.exit_names) - 1)
        weights = resample(scenes_of(val, records.image_ids), curve.resamples, config.seed)
        samples.append(bootstrap(evaluator, [full], weights)[:, 0])
        row = {"images": images, "steps": steps, "passes": point.optim.epochs}
        row |= evaluator.scores(full) | {"interval": interval(samples[-1])}
        points.append(row | {"checkpoint_sha256": records.checkpoint_sha256, "val_images": len(records)})
    pairs = [*itertools.pairwise(range(len(points))), *([(0, len(points) - 1)] if len(points) > 2 else [])]
    gains = [
        {"from": points[a]["images"], "to": points[b]["images"], "AP": points[b]["AP"] - points[a]["AP"]}
        | {"interval": interval(samples[b] - samples[a])}
        for a, b in pairs
    ]
    result = {"points": points, "gains": gains, "resamples": curve.resamples}
    result |= {"train_sha256": split_sha256("train", source)} | provenance("val", config, released)
    del result["checkpoint_sha256"]  # each point has its own
    write_json(Path(reports) / "metrics" / "learning_curve.json", result)
    return result
