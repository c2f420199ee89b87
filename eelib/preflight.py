"""What ``eelib check`` measures before a training: seconds before hours."""

from typing import NamedTuple

import torch

from eelib.anchors import match_iou, matching_quality
from eelib.coco import open_source, read_split
from eelib.config import Config, ConfigError
from eelib.data import DetectionDataset
from eelib.model import ExitOutput
from eelib.train import build_model, check_budget

REACHED = 0.5  # least share of objects that a default box of an exit overlaps by half


class Check(NamedTuple):
    """One measurement.

    Attributes:
        name: what was looked at.
        measured: what it is, in words.
        holds: whether it will do.
        advice: what helps where it does not.
    """

    name: str
    measured: str
    holds: bool = True
    advice: str = ""


def preflight(config: Config, images: int = 64) -> list[Check]:
    """Check a configuration on a few training images; no weights are trained or downloaded.

    Args:
        config: of the training.
        images: training images that are looked at, drawn with the configuration's seed.

    Raises:
        DataError, ImageError: the data set is not what it should be.
    """
    source = open_source(config.data)
    count = len(read_split("train", source).content["images"])
    count = min(count, config.data.limit or count)
    dataset = DetectionDataset("train", source, limit=min(images, count), seed=config.seed)
    counts = dict.fromkeys(source.names, 0)
    for image_id in dataset.image_ids:
        for row in dataset.annotations[image_id]:
            counts[source.names[dataset.category_ids.index(row["category_id"])]] += 1
    seen = ", ".join(f"{name} {n}" for name, n in counts.items())
    absent = [name for name, n in counts.items() if not n]
    advice = f"no object of {', '.join(absent)}; look at more with --images, or leave the category out"
    checks = [Check("objects by category", f"{seen} on {len(dataset)} images", not absent, advice)]
    return [*checks, _budget(config, count), *_reach(config, dataset)]


def _budget(config: Config, count: int) -> Check:
    """Steps of the training, and whether the learning rate leaves its warm-up."""
    optim = config.optim
    steps = count // max(1, min(optim.batch_size, count // optim.devices) * optim.devices)
    text = f"{count} images, {steps} steps an epoch, {steps * optim.epochs} in all, {optim.warmup_steps} of warm-up"
    try:
        val = DetectionDataset("val", open_source(config.data), keep_crowd=True, limit=config.data.eval_limit)
        check_budget(config, count, val, log=lambda _: None)
    except ConfigError as error:
        return Check("length of the training", text, False, str(error))
    return Check("length of the training", text)


def _reach(config: Config, dataset: DetectionDataset) -> list[Check]:
    """Of each exit, how many objects a default box overlaps by half."""
    plain = config.model.model_copy(update={"weights": "none", "start": None})
    detector, size = build_model(config.model_copy(update={"model": plain})).eval(), config.data.size
    with torch.no_grad():
        outputs: list[ExitOutput] = detector(torch.zeros(1, 3, size, size))
    advice = "a larger data.size helps objects that are too small, and so does an earlier cut in model.exits"
    checks = []
    for output in outputs:
        rows = []
        for index, image_id in enumerate(dataset.image_ids):
            entry, boxes = dataset.coco.imgs[image_id], dataset.objects(index)
            boxes = boxes * torch.tensor([size / entry["width"], size / entry["height"]] * 2)
            if len(boxes):
                matched = match_iou(boxes, output.default_boxes, config.loss.iou_threshold)
                rows.append(matching_quality(boxes, output.default_boxes, matched))
        objects, positives = (sum(row[key] for row in rows) for key in ("objects", "positives"))
        share = sum(row["reached"] for row in rows) / max(1, objects)
        text = f"{share:.2f} of {objects} objects reached at IoU 0.5, {positives / max(1, objects):.1f} positives each"
        checks.append(Check(f"default boxes of {output.name}", text, share >= REACHED, advice))
    return checks
