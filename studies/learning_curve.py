"""The learning curve: does the baseline still gain from more images, at the same number of optimiser steps?

Each point trains the same detector on a subset of ``train``, each subset within the next, and is
measured on ``val``, whose chair models no training image shows. More images then mean fewer passes,
never more steps.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.utils.data import DataLoader

from eelib.checkpoints import TrainingError
from eelib.coco import open_source
from eelib.config import ConfigError, override, parse, read_yaml
from eelib.data import DetectionDataset, collate, load_split, split_sha256
from eelib.evaluate import provenance
from eelib.files import file_sha256, write_json
from eelib.records import ExitRecords, load_records, record, save_records
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.train import build_model, detection_step, fit, image_size_at, require_architecture, training_set
from studies.phases.config import PhaseConfig
from studies.phases.trainer import identity

Count = Annotated[int, Field(ge=1, strict=True)]


class Curve(BaseModel):
    """The key ``curve`` of a parameter file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: list[Count | None] = Field(min_length=1)  # of train, a point each; None is all
    steps: Count  # of the optimiser in each point at least: it takes whole rounds
    resamples: Count  # bootstrap over scenes


def load_curve(path: Path | str, settings: dict[str, object] | None = None) -> tuple[PhaseConfig, Curve]:
    """A parameter file of a run with the key ``curve``; dotted ``settings`` replace its values.

    Raises:
        ConfigError: the key is missing or has another shape.
    """
    values = override(read_yaml(path), settings or {})
    group = values.pop("curve", None)
    try:
        curve = Curve.model_validate(group)
    except ValidationError:
        expected = f"{', '.join(Curve.model_fields)}: a list of images and whole numbers above 0"
        raise ConfigError(f"{path}: key 'curve' is {group!r}; expected a group of {expected}") from None
    return parse(values, str(path)), curve


def stream(images: int, start: int, count: int, seed: int) -> list[int]:
    """Part of an endless row of shuffled passes over ``images`` images, from position ``start``."""
    first, last = start // images, (start + count - 1) // images
    passes = [
        torch.randperm(images, generator=torch.Generator().manual_seed(seed * 1_000_003 + k))
        for k in range(first, last + 1)
    ]
    return torch.cat(passes)[start - first * images :][:count].tolist()


def round_batches(config: PhaseConfig, steps: int) -> Callable[[int], DataLoader]:
    """``epoch_batches`` of :func:`eelib.train.fit` with ``steps`` batches each, whatever the number of images."""
    data, optim = config.data, config.optim
    dataset = training_set(config)
    count = steps * optim.batch_size

    def batches(number: int) -> DataLoader:
        size = image_size_at(number, data.image_sizes)
        dataset.transform = build_transform(size, data.augment, data.rescale_boxes, data.flip_boxes)
        dataset.epoch = number
        rows = stream(len(dataset), number * count, count, config.seed)
        return DataLoader(dataset, optim.batch_size, sampler=rows, num_workers=optim.workers, collate_fn=collate)

    return batches


def _trained_records(config: PhaseConfig, steps: int, folder: Path, log: Callable[[str], None]) -> ExitRecords:
    """Train a point, or continue it, and record it on ``val``; a finished one is read."""
    mark, point = folder / "identity.json", identity(config)
    if mark.exists() and json.loads(mark.read_text()) != point:
        raise TrainingError(f"{folder}: a point of other weights, data, settings or code; expected another --out")
    write_json(mark, point)
    model = build_model(config)
    trained = MaskSupervised(model) if config.loss.mask else model
    fit(trained, detection_step(config), round_batches(config, steps), config, folder, resume=True, log=log)
    source = open_source(config.data)
    hashes, path = (split_sha256("val", source), file_sha256(folder / "last.pth")), folder / "records.pt"
    if path.exists():
        return load_records(path, *hashes)
    size = image_size_at(config.optim.epochs - 1, config.data.image_sizes)
    val = DetectionDataset("val", source, size, keep_crowd=True, limit=config.data.eval_limit)
    with torch.inference_mode():
        records = record(model, val, "val", *hashes)
    save_records(records, path)
    return records


def learning_curve(
    config: PhaseConfig, curve: Curve, out: Path | str, reports: Path | str, log: Callable[[str], None] = print
) -> dict:
    """Train and measure every point; ``metrics/learning_curve.json`` in ``reports``.

    A round of training is one pass over the smallest subset, so that each point takes the same
    rounds of the same number of steps. An interrupted curve continues where it stopped.

    Args:
        config: of every point but for ``data.limit`` and ``optim.epochs``, which the curve sets.
        out: folder of the points' checkpoints.
        reports: folder of the metrics.

    Returns:
        What is written: ``points`` and ``gains`` from each point to the next and from the first to the last,
        with 95 % intervals over scenes of ``val`` (paired for the gains). They hold for one training seed.

    Raises:
        ConfigError: a point has more images than ``train``, or fewer than a batch.
        TrainingError: ``out`` holds another curve.
    """
    require_architecture(config, "ssdlite")
    source, batch = open_source(config.data), config.optim.batch_size
    available = len(load_split("train", source).imgs)
    sizes = sorted({available if n is None else n for n in curve.images})
    if sizes[-1] > available or sizes[0] < batch:
        raise ConfigError(f"curve.images: {sizes}; expected at least a batch ({batch}) and at most {available} images")
    steps = sizes[0] // batch
    rounds = -(-curve.steps // steps)
    optim = config.optim.model_copy(update={"epochs": rounds, "keep": "last"})
    val, points, samples = load_split("val", source), [], []
    for images in sizes:
        data, folder = config.data.model_copy(update={"limit": images}), Path(out) / f"images_{images}"
        log(f"{images} images: {rounds * steps} steps of {batch} images")
        records = _trained_records(config.model_copy(update={"data": data, "optim": optim}), steps, folder, log)
        evaluator, chosen = RoutedAP(records, val), np.full(len(records), len(records.exit_names) - 1)
        weights = resample(scenes_of(val, records.image_ids), curve.resamples, config.seed)
        samples.append(bootstrap(evaluator, [chosen], weights)[:, 0])
        point = {"images": images, "steps": rounds * steps, "passes": rounds * steps * batch / images}
        point |= evaluator.scores(chosen) | {"interval": interval(samples[-1])}
        points.append(point | {"checkpoint_sha256": records.checkpoint_sha256, "val_images": len(records)})
    pairs = [*itertools.pairwise(range(len(points))), *([(0, len(points) - 1)] if len(points) > 2 else [])]
    gains = [
        {"from": points[a]["images"], "to": points[b]["images"], "AP": points[b]["AP"] - points[a]["AP"],
         "interval": interval(samples[b] - samples[a])}
        for a, b in pairs
    ]  # fmt: skip
    result = {"points": points, "gains": gains, "image_size": image_size_at(rounds - 1, config.data.image_sizes)}
    result |= {"resamples": curve.resamples, "train_sha256": split_sha256("train", source)}
    result |= provenance("val", config, folder / "last.pth")
    del result["checkpoint_sha256"]  # each point has its own
    write_json(Path(reports) / "metrics" / "learning_curve.json", result)
    return result
