"""What ``eelib check`` measures before a training: seconds before hours.

The measurements serve the recorded phases as well, with their own matching and loss (``studies.phases.preflight``).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eelib.anchors import decode, encode, match_iou, pairwise_iou
from eelib.augment import Draw, draw
from eelib.batches import Batch, pool_of
from eelib.checkpoints import TrainingError
from eelib.coco import open_source, read_split
from eelib.config import Config, ConfigError
from eelib.data import DetectionDataset, as_input
from eelib.evaluate import coco_ap, detect_exits
from eelib.fit import Trainer, warmup_of
from eelib.losses import Targets, assign, detection_loss
from eelib.model import SCALES, EarlyExitSSDLite, ExitOutput, class_scores
from eelib.train import WithGates, build_model, check_budget, detection_step

REACHED = 0.5  # least share of objects that a default box of an exit overlaps by half
FEW_STEPS = 150  # from a released detector 200 will do
BY_HEART, HEART_SIZE = 8, 128  # images that are learnt by heart, and the largest side of theirs in pixels
LEARNT = 0.5  # least AP50 of each exit on them
APART = 0.1  # least distance of the best score with objects from that of a grey picture


class Check(NamedTuple):
    """One measurement, in words: whether it will do, and what helps where it does not."""

    name: str
    measured: str
    holds: bool = True
    advice: str = ""


def preflight(config: Config, images: int = 64, steps: int = 100) -> list[Check]:
    """Check a configuration on a few training images.

    Args:
        images: training images that are looked at, drawn with the configuration's seed.
        steps: of the training on eight images that are to be learnt by heart; 0 leaves it out.

    Raises:
        DataError, ImageError: the data set is not what it should be.
    """
    source = open_source(config.data)
    count = len(read_split("train", source).content["images"])
    count = min(count, config.data.limit or count)
    dataset = DetectionDataset("train", source, limit=min(images, count), seed=config.seed)
    labels = Counter(label for index in range(len(dataset)) for label in dataset.labels(index).tolist())
    seen = ", ".join(f"{name} {labels[label]}" for label, name in enumerate(source.names, 1))
    absent = [name for label, name in enumerate(source.names, 1) if not labels[label]]
    advice = f"no object of {', '.join(absent)}; look at more with --images, or leave the category out"
    checks = [Check("objects by category", f"{seen} on {len(dataset)} images", not absent, advice)]
    checks.append(_budget(config, count))
    if config.model.weights != "none":  # nothing is downloaded for a check
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": "none"})})
    detector = build_model(config).eval()
    checks += _targets(config, dataset, detector)
    return checks + (_by_heart(config, steps) if steps else [])


def _budget(config: Config, count: int) -> Check:
    """Steps of the training, and whether they are enough."""
    optim, name = config.optim, "length of the training"
    each = count // max(1, min(optim.batch_size, count // optim.devices) * optim.devices)
    steps = each * optim.epochs
    text = f"{count} images, {each} steps an epoch, {steps} in all, {warmup_of(optim, steps)} of warm-up"
    try:
        val = DetectionDataset("val", open_source(config.data), keep_crowd=True, limit=config.data.eval_limit)
        check_budget(config, count, val, log=lambda _: None)
    except ConfigError as error:
        return Check(name, text, False, str(error))
    advice = f"fewer than {FEW_STEPS} steps end near AP 0: more optim.epochs, or a smaller optim.batch_size such as 8"
    return Check(name, text, steps >= FEW_STEPS, advice)


def matching(samples: Iterable[tuple[Tensor, Tensor]], defaults: Tensor) -> dict[str, float]:
    """How an assignment of default boxes (A, 4) serves images that hold objects.

    Args:
        samples: of each image the boxes (G, 4) in pixels of the input, and the index of the object of each default
            box (A,), negative for none.

    Returns:
        ``objects``; ``reached``: share of them with a positive of IoU 0.5 or more; ``positives`` of all images;
        ``iou``: mean IoU of a positive with its object.
    """
    objects = reached = positives = 0
    iou_sum = 0.0
    for boxes, matched in samples:
        positive = torch.where(matched >= 0)[0]
        iou = pairwise_iou(boxes[None], defaults)[0, matched[positive], positive]
        objects += len(boxes)
        reached += len(matched[positive][iou >= 0.5].unique())
        positives += len(positive)
        iou_sum += float(iou.sum())
    return {
        "objects": objects,
        "reached": reached / max(1, objects),
        "positives": positives,
        "iou": iou_sum / max(1, positives),
    }


def raised_share(samples: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of the positives whose score a step raises, less that of the others: 1 where the class loss is right.

    Args:
        samples: of each image the gradient of the class loss to the logit of the object's class (A,), and which
            boxes are positives (A,).
    """
    gradients, positive = (torch.cat(parts) for parts in zip(*samples, strict=True))
    found, others = ((gradients[mask] < 0).float() for mask in (positive, ~positive))
    return float(found.mean() if len(found) else 0.0) - float(others.mean() if len(others) else 0.0)


def _targets(config: Config, dataset: DetectionDataset, detector: EarlyExitSSDLite) -> list[Check]:
    """Default boxes, the encoding and the class loss of each exit."""
    size, checks = config.data.size, []
    with torch.no_grad():
        outputs = detector(torch.zeros(1, 3, size, size))
    samples = []
    for index, image_id in enumerate(dataset.image_ids):
        entry, labels = dataset.coco.imgs[image_id], dataset.labels(index)
        if len(labels):
            scale = torch.tensor([size / entry["width"], size / entry["height"]] * 2)
            samples.append((dataset.objects(index) * scale, labels))
    if not samples:
        return []  # said before
    for output in outputs:
        defaults = output.default_boxes
        matched = [(boxes, match_iou(boxes, defaults, config.loss.iou_threshold)) for boxes, _ in samples]
        found = matching(matched, defaults)
        best = torch.cat([pairwise_iou(boxes[None], defaults)[0].amax(1) for boxes, _ in samples])
        text = (
            f"{found['reached']:.2f} of {found['objects']} objects reached at IoU 0.5 (median of the best "
            f"{best.median():.2f}), {found['positives'] / len(samples):.1f} positives an image"
        )
        advice = "AP stays near 0 for objects that no box reaches; " + _scales(samples, detector, output, size)
        checks.append(Check(f"default boxes of {output.name}", text, found["reached"] >= REACHED, advice))
    wrong = 0.0
    for boxes, found in matched:
        near, objects = defaults[found >= 0], boxes[found[found >= 0]]
        wrong = max(wrong, float((decode(encode(objects, near), near) - objects).abs().max()))
    checks.append(Check("encoding of boxes", f"decoded {wrong:.3f} px away at the most", wrong < 0.1, "eelib.anchors"))
    share = raised_share(class_gradients(config, outputs[-1], samples[:BY_HEART]))
    text = f"raises the score of {share:.2f} more of the positives than of the others, expected 0.9"
    advice = "scores never leave 0 (confidence 0, AP 0): the layout of the logits, or loss.classification"
    return [*checks, Check("class loss", text, share >= 0.9, advice)]


def _scales(samples: Sequence, detector: EarlyExitSSDLite, output: ExitOutput, size: int) -> str:
    """Scales that would reach more of the objects at an exit, if there are some."""
    shares = torch.cat([(b[:, 2:] - b[:, :2]).prod(1).sqrt() / size for b, _ in samples])
    low, high = (float(shares.quantile(q).clamp(0.02, 0.9)) for q in (0.1, 0.95))
    scales = [round(float(s), 3) for s in np.geomspace(low, max(high, 2 * low), len(SCALES))]
    other = EarlyExitSSDLite(
        [*detector.cuts.values()], full=detector.head is not None, classes=detector.classes, scales=scales
    ).eval()
    with torch.no_grad():
        boxes = next(o for o in other(torch.zeros(1, 3, size, size)) if o.name == output.name).default_boxes
    reached = matching(((b, match_iou(b, boxes, REACHED)) for b, _ in samples), boxes)["reached"]
    here = matching(((b, match_iou(b, output.default_boxes, REACHED)) for b, _ in samples), output.default_boxes)
    if reached > here["reached"]:
        return f"model.scales {scales} would reach {reached:.2f}"
    return "a larger data.size or an earlier cut in model.exits has finer maps; or cut the images into parts"


def class_gradients(config: Config, output: ExitOutput, samples: Sequence) -> Iterable[tuple[Tensor, Tensor]]:
    """Samples of :func:`raised_share` at an untrained exit, from the boxes and labels of each image.

    A gradient is that to the logit of the object's class, less that to the background's.
    """
    for boxes, labels in samples:
        logits = torch.full_like(output.cls_logits, -4.6)  # 1 % of each class
        logits[..., 0] = 0
        logits.requires_grad_()
        untrained = output._replace(cls_logits=logits, bbox_regression=torch.zeros_like(output.bbox_regression))
        targets = Targets(boxes[None], labels[None])
        iou = pairwise_iou(targets.boxes_xyxy, output.default_boxes)
        matched = assign(iou, targets, untrained, config.loss.iou_threshold)
        loss = detection_loss(untrained, matched, config.loss.classification, config.loss.box)["classification"]
        (gradient,) = torch.autograd.grad(loss, logits)
        classes = matched.classes[0].argmax(-1, keepdim=True) + 1
        yield gradient[0].gather(1, classes)[:, 0] - gradient[0, :, 0], matched.positive[0]


class _WithObjects(DetectionDataset):
    """The first images that hold an object."""

    def select(self, ids: list[int], limit: int | None, seed: int) -> list[int]:
        """As the library has it, but for the order and for those without an object."""
        return [i for i in ids if self.annotations[i]][:limit]


def _by_heart(config: Config, steps: int) -> list[Check]:
    """Train on eight small images alone, and look at gradients, AP and scores: what fails here fails for hours."""
    size = min(config.data.size, HEART_SIZE)
    optim = {"epochs": steps, "warmup_steps": 0, "batch_size": BY_HEART, "compile": False, "devices": 1}
    groups = {"data": {"size": size, "augment": "none"}, "optim": optim}
    config = config.model_copy(update={k: getattr(config, k).model_copy(update=v) for k, v in groups.items()})
    dataset = _WithObjects("train", open_source(config.data), size, limit=BY_HEART)
    detector = build_model(config)
    trainer = Trainer(WithGates(detector), detection_step(config, detector), config.optim)
    drawn = draw(torch.arange(len(dataset)), len(dataset), torch.Generator())
    batch = Batch(pool_of(dataset, trainer.device), Draw(*(part.to(trainer.device) for part in drawn)), True)
    name, losses, checks = f"{len(dataset)} images by heart", [], []
    try:
        for step in range(steps):
            losses.append(trainer.run_epoch(step, lambda _: [batch], lambda *_: None)["loss"])
            if not step:
                checks.append(_gradients(detector))
    except TrainingError as error:
        return [*checks, Check(name, str(error), False, "a smaller optim.lr, or float in place of optim.precision")]
    _settle(trainer, detector, batch)
    found = detect_exits(detector, dataset)
    with torch.no_grad():
        outputs = detector(torch.full((1, 3, size, size), 0.5, device=trainer.device))
    grey = [float(class_scores(output.cls_logits).amax()) for output in outputs]
    ap = {exit_: coco_ap(dataset.coco, results, dataset.image_ids)["AP50"] for exit_, results in found.items()}
    text = f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {steps} steps at {size} px, AP50 "
    text += ", ".join(f"{exit_} {value:.2f}" for exit_, value in ap.items())
    advice = f"expected AP50 {LEARNT} of each exit; AP 0 here is AP 0 after hours: optim.lr, data.size, the boxes"
    checks.append(Check(name, text, min(ap.values()) >= LEARNT, advice))
    for exit_, empty in zip(found, grey, strict=True):
        best = dict.fromkeys(dataset.image_ids, 0.0)
        for row in found[exit_]:
            best[row["image_id"]] = max(best[row["image_id"]], row["score"])
        low, high = min(best.values()), max(best.values())
        text = f"best score {low:.2f} to {high:.2f} on them, {empty:.2f} on grey"
        advice = "it does not move with the image (confidence 0): no threshold parts them, all images take one exit"
        checks.append(Check(f"confidence of {exit_}", text, high - empty >= APART, advice))
    return checks


@torch.no_grad()
def _settle(trainer: Trainer, detector: EarlyExitSSDLite, batch: Batch) -> None:
    """Statistics of the weights as they are: the running ones lag some 30 steps behind, most of so short a training."""
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.training:  # those of a frozen trunk stay
            layer.reset_running_stats()
            layer.momentum = None
    trainer.raw(as_input(batch.pool.images), detector.exit_names[-1])
    detector.eval()


def _gradients(detector: EarlyExitSSDLite) -> Check:
    """Whether the first step's gradient came to every part that is to be trained."""
    parts = {"trunk": detector.backbone, **detector.early} | ({"full": detector.head} if detector.head else {})
    sizes = {}
    for name, part in parts.items():
        grads = [p.grad for p in part.parameters() if p.requires_grad]
        if grads:
            sizes[name] = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
    text = ", ".join(f"{name} {value:.2g}" for name, value in sizes.items())
    sound = bool(sizes) and all(np.isfinite(value) and value > 0 for value in sizes.values())
    return Check("gradient of each exit", text, sound, "what has none stays random: loss.exit_weights, optim.clip_norm")
