"""Preflight: can this configuration learn to detect, and can its routing route? Seconds, before any training.

Nine phases were trained before anyone asked. Each check here is a measurement on a handful of
training images that needs no trained weights, and each would have stopped the record in phase 1.1.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eelib.anchors import match_iou
from eelib.coco import DataError, open_source
from eelib.config import Config, load_config, read_yaml
from eelib.data import DetectionDataset
from eelib.heads import flatten_predictions
from eelib.preflight import class_gradients, matching, raised_share
from studies.phases.confidence import confidence
from studies.phases.config import PhaseConfig
from studies.phases.config import load as load_phase
from studies.phases.detector import BOXES_PER_CELL, GRIDS_HW, ExitMaps, RecordedExits
from studies.phases.images import PhaseImages
from studies.phases.loss import assign, distribution_loss, exit_rates, recorded_loss, scheduled_thresholds, slope_at

# Logit of the difference chair - background at which a detector starts: 1 % chair (RetinaNet's prior).
PRIOR_LOGIT = -4.6
PUSHED = 10.0


class Check(NamedTuple):
    """One measurement: what was asked, what was found, and whether it will do."""

    name: str
    question: str
    measured: float
    expected: str
    holds: bool


def preflight(config: PhaseConfig | Config, images: int = 24) -> list[Check]:
    """All checks that apply to a configuration, in the order in which the data flows.

    Args:
        config: of a recorded phase, or of the library's detector, which routes by a fixed threshold on its best score.
        images: training images that the first checks look at, at least 1.
    """
    samples = _samples(config, images)
    routed = config if isinstance(config, PhaseConfig) else PhaseConfig(phase=config.name)
    return [*_data(samples), *_targets(config, samples), *_class_path(config, samples), *_routing(routed)]


def load_any(path: Path | str) -> PhaseConfig | Config:
    """The parameter file of a recorded phase, which names its ``phase``, or of the library's detector."""
    return (load_phase if "phase" in read_yaml(path) else load_config)(path)


class Outlined(DetectionDataset):
    """A split whose annotations keep their segmentations."""

    segmentations = True


class _OutlinedPhase(PhaseImages):
    segmentations = True


def object_mask(dataset: DetectionDataset, index: int) -> Tensor:
    """Union of all objects of an image, the tiny ones annotated as crowd too: bool (H, W).

    Args:
        dataset: keeps segmentations; images have their own size.

    Raises:
        DataError: an annotation has no segmentation, or one of another size.
    """
    image = dataset.coco.imgs[dataset.image_ids[index]]
    size_hw = (image["height"], image["width"])
    mask = torch.zeros(size_hw, dtype=torch.bool)
    for annotation in dataset.coco.imgToAnns[image["id"]]:
        shape = annotation.get("segmentation")
        if shape is None or (isinstance(shape, dict) and tuple(shape["size"]) != size_hw):
            state = "has no 'segmentation'" if shape is None else f"has a 'segmentation' of size {shape['size']}"
            raise DataError(f"{dataset.file}: annotation {annotation['id']} {state}; expected one of {list(size_hw)}")
        mask |= torch.from_numpy(dataset.coco.annToMask(annotation)).bool()
    return mask.flip(-1) if isinstance(dataset, PhaseImages) and dataset.mirrors(index) else mask


def _samples(config: PhaseConfig | Config, images: int) -> list[dict]:
    if isinstance(config, Config):
        dataset = Outlined("train", open_source(config.data), limit=images, seed=config.seed)
    else:
        # whatever the phase trains on: a sample of images with chairs
        sample = {"negatives": False, "drop_crowd": True, "sample": "seeded"}
        seen = config.model_copy(update={"data": config.data.model_copy(update=sample)})
        dataset = _OutlinedPhase("train", seen, images, mirrored=True, size=None)
    targets = (dataset[i][1] | {"mask": object_mask(dataset, i)} for i in range(len(dataset)))
    return [target for target in targets if len(target["boxes"])]


def _data(samples: list[dict]) -> Iterator[Check]:
    """Defects 7 and 8: visible chairs must lie in their boxes after resize, crop and flip."""
    inside = covered = 0
    for target in samples:
        mask, boxes = target["mask"], torch.zeros_like(target["mask"])
        for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
            boxes[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
        inside, covered = inside + int((mask & boxes).sum()), covered + int(mask.sum())
    share = inside / max(1, covered)
    yield Check("boxes follow the image", "share of chair pixels inside a box", share, "at least 0.85", share >= 0.85)


def _untrained(config: PhaseConfig | Config) -> ExitMaps:
    """Maps of an untrained exit for one image: every box at the prior, its class maps leaves of the graph."""
    grids = GRIDS_HW[:1] if isinstance(config, PhaseConfig) and config.model.single_map else GRIDS_HW
    prior = torch.tensor([0.0, PRIOR_LOGIT]).repeat(BOXES_PER_CELL).view(1, -1, 1, 1)
    cls = [prior.repeat(1, 1, *grid).requires_grad_() for grid in grids]
    return ExitMaps("full", cls, [torch.zeros(1, 4 * BOXES_PER_CELL, *grid) for grid in grids])


def _matched(config: PhaseConfig | Config, target: dict, defaults: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(config, Config):
        return match_iou(target["boxes"], defaults, config.loss.iou_threshold)
    return assign([target], defaults, config, generator)[0]


def _targets(config: PhaseConfig | Config, samples: list[dict]) -> Iterator[Check]:
    """Defects 3 and 4: positives must lie on the objects that they are asked for."""
    defaults, generator = _untrained(config).output().default_boxes, torch.Generator().manual_seed(config.seed)
    found = matching(((t["boxes"], _matched(config, t, defaults, generator)) for t in samples), defaults)
    reached, iou = found["reached"], found["iou"]
    yield Check("objects are reached", "share with a positive of IoU 0.5", reached, "at least 0.5", reached >= 0.5)
    yield Check("positives lie on objects", "mean IoU of a positive", iou, "at least 0.4", iou >= 0.4)


def _class_path(config: PhaseConfig | Config, samples: list[dict]) -> Iterator[Check]:
    """Defects 1 and 2: the class loss must raise the chair logit of positives, as the confidence reads it."""
    if isinstance(config, Config):
        labelled = [(target["boxes"], target["labels"]) for target in samples[:8]]
        gradients = class_gradients(config, _untrained(config).output(), labelled)
    else:
        gradients = _class_gradients(config, samples[:8])
    advantage = raised_share(gradients)
    question = "share of positives whose chair logit is raised, less that of the others"
    yield Check("class loss trains the confidence", question, advantage, "at least 0.9", advantage >= 0.9)


def _class_gradients(config: PhaseConfig, samples: list[dict]) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`eelib.preflight.class_gradients`, by a phase's own matching and loss."""
    ones = [torch.ones(())] * 3
    for target in samples:
        maps, generator = _untrained(config), torch.Generator().manual_seed(config.seed)
        positive = _matched(config, target, maps.output().default_boxes, generator) >= 0
        generator.manual_seed(config.seed)  # the loss draws the same positives
        # only the full exit's maps are leaves here, so no box, teacher or order term reaches them
        still = maps._replace(cls=[level.detach() for level in maps.cls])
        loss, _ = recorded_loss([still, still, maps], [target], ones, ones[:2], config, config.optim.epochs, generator)
        (pairs,) = flatten_predictions(torch.autograd.grad(loss, maps.cls), 2)
        yield pairs[:, 1] - pairs[:, 0], positive


def _routing(config: PhaseConfig) -> Iterator[Check]:
    """Defects 22 to 34: a right detector's images must be routable, and what is learned must have a gradient."""
    threshold = scheduled_thresholds(config.thresholds, config.optim.epochs - 1, config.optim.epochs)[0]
    image = torch.full((1, 2400), 0.01)
    rest = threshold - float(confidence(image, config.confidence))
    image[:, :24] = 0.95  # one box in a hundred lies on a chair
    gap = float(confidence(image, config.confidence)) - threshold
    question = "margin of a sure image over the threshold"
    yield Check("a detected chair may leave", question, gap, "at least 0", gap >= 0)
    question = "margin of the threshold over an image without a chair"
    yield Check("not everything leaves", question, rest, "above 0", rest > 0)
    logit = torch.full((1, 2400), -0.2, requires_grad=True)
    (slope,) = torch.autograd.grad(confidence(logit.sigmoid(), config.confidence).sum(), logit, allow_unused=True)
    size = 0.0 if slope is None else float(slope.abs().sum())
    question = "gradient of the confidence of a flat, unsure image"
    yield Check("confidence can recover", question, size, "at least 0.05", size >= 0.05)
    if config.thresholds.kind == "parameter":
        size = _threshold_gradient(config)
        yield Check("thresholds can learn", "gradient of the exit rates to them", size, "above 0", size > 0)
    if config.temperature.from_routing:
        reached, limit = _pushed_temperature(config), config.temperature.bounds[1]
        question = f"a temperature that is pushed to {PUSHED:g}, after a step"
        yield Check("temperatures are bounded", question, reached, f"at most {limit:g}", reached <= limit)


@torch.no_grad()
def _pushed_temperature(config: PhaseConfig) -> float:
    """Where a temperature ends that a routing loss drives away: a clamp in the forward pass leaves the parameter."""
    rule = config.temperature
    exits = RecordedExits(config.model, rule, config.thresholds)
    for temperature in exits.temperatures.values():
        temperature.fill_(PUSHED)
    exits.project()
    return float(max(exits.temperatures.values()))


def _threshold_gradient(config: PhaseConfig) -> float:
    thresholds = [torch.tensor(t, requires_grad=True) for t in (config.thresholds.exit1, config.thresholds.exit2)]
    loss, options = config.loss, {"slope": slope_at(config.loss, 0, config.optim.epochs)}
    options |= {"temperature": loss.gumbel_temperature, "generator": torch.Generator().manual_seed(config.seed)}
    flat = torch.full((4,), 0.5)
    value = distribution_loss(exit_rates(flat, flat, thresholds, loss.exit_rates, **options), loss)
    if not value.requires_grad:
        return 0.0
    return float(sum(g.abs() for g in torch.autograd.grad(value, thresholds, allow_unused=True) if g is not None))
