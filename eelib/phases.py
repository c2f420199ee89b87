"""Train, route and measure one recorded phase; the recorded figures beside ours."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eelib.confidence import confidence, probability_of_maps
from eelib.config import PhaseConfig, resolve
from eelib.data import DetectionDataset, as_input, batches, build_transform
from eelib.evaluate import coco_ap, decision, provenance, to_results
from eelib.latency import machine, measure
from eelib.model import EXIT_NAMES, keep_best
from eelib.recorded import ExitMaps, RecordedDetector, decoded_boxes, recorded_loss
from eelib.routing import exit_shares, route
from eelib.train import (
    TrainingError,
    fit,
    load_checkpoint,
    load_weights,
    require_architecture,
    save_checkpoint,
    training_set,
    write_atomic,
)

SIZE_HW = (320, 320)
NMS_THRESHOLD = 0.45  # of the record's inference script
RECORDED = "data/record/phases.csv"


def tag(phase: str) -> str:
    """``"1.4"`` as the record writes it in file names: ``"1_4"``."""
    return phase.replace(".", "_")


def recorded_values(phase: str) -> dict[str, str]:
    """The recorded row of a phase as text, or an empty dict for a phase that is not on record."""
    with resolve(RECORDED).open(newline="") as file:
        return next((row for row in csv.DictReader(file) if row["phase"] == phase), {})


def build_detector(config: PhaseConfig) -> RecordedDetector:
    """The recorded detector of a configuration, its trunk from the start checkpoint.

    Raises:
        TrainingError: the start checkpoint has no fitting trunk.
    """
    require_architecture(config, "recorded")
    torch.manual_seed(config.seed)
    detector = RecordedDetector(config)
    if config.model.start:
        state = load_checkpoint(resolve(config.model.start))["model"]
        prefix = "backbone.features.0."
        trunk = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        try:
            detector.backbone.load_state_dict(trunk)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip()
            raise TrainingError(f"{config.model.start}: checkpoint of another architecture; {detail}") from None
    return detector


class FeatureDataset(Dataset):
    """A frozen trunk's maps of every image and its mirror image, as float16 (0.7 MB an image and side).

    Items are ``(maps, boxes)``; which side is drawn depends on (seed, epoch, index) alone.
    """

    def __init__(self, detector: RecordedDetector, dataset: DetectionDataset, config: PhaseConfig):
        self.sides, self.flips = [], torch.zeros(len(dataset), dtype=torch.bool)
        self.boxes = [[], []]
        self.augment = config.data.augment != "none"
        dataset.transform = build_transform(SIZE_HW[0], "none", config.data.rescale_boxes)
        detector.eval()
        for mirrored in (False, True):
            maps = []
            for images, targets in batches(dataset, 8):
                with torch.no_grad():
                    features = list(detector.trunk_maps(images.flip(-1) if mirrored else images))
                maps.append([f.half() for f in features])
                for target in targets:
                    boxes = target["boxes"]
                    if mirrored and config.data.flip_boxes:
                        boxes = torch.stack(
                            (SIZE_HW[1] - boxes[:, 2], boxes[:, 1], SIZE_HW[1] - boxes[:, 0], boxes[:, 3]), 1
                        )
                    self.boxes[mirrored].append(boxes)
            self.sides.append([torch.cat(level) for level in zip(*maps, strict=True)])

    def draw(self, seed: int, epoch: int) -> None:
        """Choose the side of every image for an epoch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        self.flips = (torch.rand(len(self.flips), generator=generator) < 0.5) & self.augment

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        side = int(self.flips[index])
        return [level[index].float() for level in self.sides[side]], self.boxes[side][index]


def _collate(items: list) -> tuple[list[Tensor], list[dict]]:
    maps = [torch.stack(level) for level in zip(*(m for m, _ in items), strict=True)]
    return maps, [{"boxes": boxes} for _, boxes in items]


def _collate_images(items: list) -> tuple[Tensor, list[dict]]:
    return as_input(torch.stack([image for image, _ in items])), [target for _, target in items]


def train_phase(config: PhaseConfig, out: Path | str, *, resume: bool = False, log: Callable = print) -> dict:
    """Train a phase as its switches say; ``early_exit_ssdlite_phase1_N_final.pth`` in ``out``.

    A frozen trunk's maps are cached, so an epoch costs the branches alone.

    Returns:
        ``detector`` and ``history``, one dict an epoch.
    """
    out, optim = Path(out), config.optim
    detector = build_detector(config).to(memory_format=torch.contiguous_format)
    dataset = training_set(config)
    generator = torch.Generator()
    cached = not config.model.train_trunk
    features = FeatureDataset(detector, dataset, config) if cached else dataset
    if not cached:
        dataset.transform = build_transform(
            SIZE_HW[0], config.data.augment, config.data.rescale_boxes, config.data.flip_boxes
        )

    def epoch_batches(epoch: int) -> DataLoader:
        generator.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        if cached:
            features.draw(config.seed, epoch)
        else:
            features.epoch = epoch
        collate = _collate if cached else _collate_images
        return DataLoader(features, optim.batch_size, shuffle=True, collate_fn=collate, generator=order)

    def step_loss(model: nn.Module, batch: tuple, epoch: float) -> tuple[Tensor, dict[str, float]]:
        inputs, targets = batch
        outputs = model(inputs)
        heads = detector.heads
        return recorded_loss(outputs, targets, heads.temperatures, config, epoch, generator)

    def after_epoch(_: nn.Module, __: int) -> dict[str, float]:
        return {f"temperature_{n}": t for n, t in zip(EXIT_NAMES, detector.heads.temperatures.tolist(), strict=True)}

    trained = detector.heads if cached else detector
    history = fit(trained, step_loss, epoch_batches, config, out, resume=resume, evaluate=after_epoch, log=log)
    save_checkpoint(
        weights_path(out, config.phase),
        {"model": detector.state_dict(), "config": config.model_dump(mode="json"), "history": history},
    )
    return {"detector": detector, "history": history}


def weights_path(out: Path | str, phase: str) -> Path:
    """The trained weights of a phase, under the record's file name."""
    return Path(out) / f"early_exit_ssdlite_phase{tag(phase)}_final.pth"


def load_phase(config: PhaseConfig, out: Path | str) -> RecordedDetector:
    """A trained phase from its folder; :class:`TrainingError` when it was not trained yet."""
    path = weights_path(out, config.phase)
    if not path.exists():
        raise TrainingError(
            f"{path}: phase {config.phase} is not trained yet; run `make reproduce` or "
            f"`eelib run notebooks/05_routing.ipynb --params params/phase_{tag(config.phase)}.yaml`"
        )
    detector = RecordedDetector(config)
    load_weights(detector, path)
    return detector.eval()


def exit_confidence(detector: RecordedDetector, index: int, maps: ExitMaps, config: PhaseConfig) -> Tensor:
    """Confidence of each image at an exit, with the exit's temperature."""
    return confidence(probability_of_maps(maps.cls, detector.heads.temperatures[index]), config.confidence)


@torch.no_grad()
def route_split(detector: RecordedDetector, config: PhaseConfig, split: str) -> dict:
    """Run every exit on a split, then route.

    Returns:
        ``confidences`` (N, 3), ``chosen`` (N,), ``scores`` (N, 3): best chair probability,
        ``results``: COCO results of each exit, ``routed``: those of the routed system, and
        the ``dataset``.
    """
    detector.eval()
    dataset = DetectionDataset(
        split, resolve(config.data.root), build_transform(SIZE_HW[0]), keep_crowd=True, limit=config.data.eval_limit
    )
    confidences, scores, results = [], [], {name: {} for name in EXIT_NAMES}
    for images, targets in batches(dataset, 4):
        columns, best = [], []
        for index, maps in enumerate(detector.exits(images)):
            columns.append(exit_confidence(detector, index, maps, config))
            p = probability_of_maps(maps.cls)
            best.append(p.amax(1))
            boxes = decoded_boxes(maps.box, config.targets.boxes, SIZE_HW)
            for target, d in zip(targets, keep_best(boxes, p, SIZE_HW, nms_threshold=NMS_THRESHOLD), strict=True):
                image_id = target["image_id"]
                results[EXIT_NAMES[index]][image_id] = to_results(image_id, d, dataset.category_ids[0])
        confidences.append(torch.stack(columns, 1))
        scores.append(torch.stack(best, 1))
    confidences = torch.cat(confidences)
    group = 4 if config.routing.unit == "batch_mean" else 1
    chosen = route(confidences, (config.thresholds.exit1, config.thresholds.exit2), group)
    routed = [r for i, k in zip(dataset.image_ids, chosen.tolist(), strict=True) for r in results[EXIT_NAMES[k]][i]]
    flat = {name: [r for rows in by_image.values() for r in rows] for name, by_image in results.items()}
    return {
        "confidences": confidences,
        "chosen": chosen,
        "scores": torch.cat(scores),
        "results": flat,
        "routed": routed,
        "dataset": dataset,
    }


@torch.no_grad()
def routed_call(detector: RecordedDetector, config: PhaseConfig, images: Tensor) -> int:
    """One timed call: exits until the batch's mean confidence reaches its threshold."""
    thresholds = (config.thresholds.exit1, config.thresholds.exit2)
    for index, maps in enumerate(detector.exits(images)):
        value = float(exit_confidence(detector, index, maps, config).mean())
        if index == len(thresholds) or value >= thresholds[index]:
            return index
    raise AssertionError("the full exit takes what no other took")


@torch.no_grad()
def phase_times(detector: RecordedDetector, config: PhaseConfig, images: Tensor) -> dict:
    """Time of the routed call as the phase takes it, and of one warmed-up image.

    Args:
        images: at least ``timing.batch_size`` of them, (N, 3, 320, 320).
    """
    n = config.timing.batch_size
    calls = {"routed": lambda: routed_call(detector, config, images[:n])}
    as_configured = measure(calls, repeats=15, warmup=config.timing.warmup)["routed"]["median_ms"]
    single = measure({"routed": lambda: routed_call(detector, config, images[:1])}, repeats=15)["routed"]["median_ms"]
    return {"routed_call_ms": as_configured, "images_per_call": n, "one_image_ms": single, "machine": machine()}


def summarise(config: PhaseConfig, detector: RecordedDetector, history: list[dict], out: Path | str) -> dict:
    """Everything measured of a trained phase on ``test``, with its provenance.

    Writes ``final_summary_phaseN.json`` and ``train_metrics_phaseN.csv`` to ``out``.
    """
    run = route_split(detector, config, "test")
    dataset = run["dataset"]
    ap = {name: coco_ap(dataset.coco, rows, dataset.image_ids) for name, rows in run["results"].items()}
    routed = coco_ap(dataset.coco, run["routed"], dataset.image_ids)
    images = as_input(torch.stack([dataset[i][0] for i in range(min(4, len(dataset)))]))
    name = f"phase{tag(config.phase)}"
    summary = {
        "phase": config.phase,
        "seed": config.seed,
        "images": len(dataset),
        "train_images": config.data.limit,
        "exit_shares": dict(zip(EXIT_NAMES, exit_shares(run["chosen"]), strict=True)),
        "confidence_mean": dict(zip(EXIT_NAMES, run["confidences"].mean(0).tolist(), strict=True)),
        "confidence_std": dict(zip(EXIT_NAMES, run["confidences"].std(0).tolist(), strict=True)),
        "temperature": dict(zip(EXIT_NAMES, detector.heads.temperatures.tolist(), strict=True)),
        "thresholds": config.thresholds.model_dump(),
        "loss": {key.removeprefix("loss_"): history[-1][key] for key in history[-1] if key.startswith("loss")},
        "time": phase_times(detector, config, images),
        "AP_exits": {exit_: values["AP"] for exit_, values in ap.items()},
        "AP": routed["AP"],
        "AP50": routed["AP50"],
        "detections_per_image": len(run["routed"]) / len(dataset),
        "decision": decision(routed["AP"]),
        **provenance("test", config, weights_path(out, config.phase)),
    }
    write_json(Path(out) / f"final_summary_{name}.json", summary)
    losses = (Path(out) / "losses.csv").read_bytes()
    write_atomic(Path(out) / f"train_metrics_{name}.csv", lambda file: file.write(losses))
    return summary


def write_json(path: Path | str, values: dict) -> Path:
    """Write JSON atomically, keys in their order, one trailing newline."""
    text = json.dumps(values, indent=2) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode()))
