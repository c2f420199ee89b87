"""Train, route and measure one recorded phase, under the record's file names."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eelib.checkpoints import TrainingError, load_checkpoint, load_weights, save_checkpoint
from eelib.coco import open_source
from eelib.config import PhaseConfig, resolve
from eelib.data import DetectionDataset, batches, build_transform, split_sha256
from eelib.evaluate import coco_ap, file_sha256, to_results
from eelib.files import write_atomic, write_json
from eelib.model import EXIT_NAMES, keep_best
from eelib.routing import exit_shares
from eelib.train import fit, require_architecture, training_set
from studies.phases.cache import FeatureDataset, collate_images, collate_maps
from studies.phases.confidence import confidence, probability_of_maps
from studies.phases.detector import ExitMaps, RecordedDetector, decoded_boxes
from studies.phases.loss import SIZE_HW, recorded_loss
from studies.phases.rates import exit_rates, first_exit_of_groups, scheduled_thresholds

NMS_THRESHOLD = 0.45  # of the record's inference script


def tag(phase: str) -> str:
    """``"1.4"`` as the record writes it in file names: ``"1_4"``."""
    return phase.replace(".", "_")


def run_folder(config: PhaseConfig, runs: Path | str | None = None) -> Path:
    """Folder of a run: ``runs/phase_1_4/seed0``."""
    return Path(runs or resolve("runs")) / f"phase_{tag(config.phase)}" / f"seed{config.seed}"


def _trunk_parts(detector: RecordedDetector) -> list[tuple[nn.Module, str]]:
    names = ("features.1", *(f"extra.{k}" for k in range(len(detector.backbone_tail))))
    tail = [(block, f"backbone.{name}.") for block, name in zip(detector.backbone_tail, names, strict=False)]
    return [(detector.backbone, "backbone.features.0."), *tail]


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
        try:
            for part, prefix in _trunk_parts(detector):
                own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                part.load_state_dict(own)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip()
            raise TrainingError(f"{config.model.start}: checkpoint of another architecture; {detail}") from None
    return detector.to(memory_format=torch.channels_last)


def identity(config: PhaseConfig) -> dict:
    """What a run depends on: configuration, start weights and training data; Snakemake watches the code."""
    return {
        "config": config.model_dump(mode="json"),
        "start_sha256": file_sha256(resolve(config.model.start)) if config.model.start else None,
        "train_sha256": split_sha256("train", open_source(config.data)),
    }


def _continues(config: PhaseConfig, out: Path, log: Callable) -> bool:
    """Whether the folder holds the same run; marks it as this run's otherwise."""
    path, own = out / "identity.json", identity(config)
    if path.exists() and json.loads(path.read_text()) == own:
        return True
    if path.exists():
        log(f"{out}: configuration, start weights or data changed: training starts over")
    for name in ("last.pth", "best.pth"):
        (out / name).unlink(missing_ok=True)
    write_json(path, own)
    return False


def _validation_set(config: PhaseConfig) -> DetectionDataset:
    limit = config.data.val_limit or config.data.eval_limit
    return DetectionDataset("val", open_source(config.data), build_transform(SIZE_HW[0]), keep_crowd=True, limit=limit)


def train_phase(config: PhaseConfig, out: Path | str, *, resume: bool = False, log: Callable = print) -> dict:
    """Train a phase as its switches say; ``early_exit_ssdlite_phase1_N_final.pth`` in ``out``.

    A frozen trunk's maps are cached, so an epoch costs the branches alone. After each epoch the
    phase is routed on ``val`` with the thresholds in force.

    Args:
        out: folder of the run.
        resume: continue a run of the same :func:`identity`, to the same numbers as if it had
            never stopped; any other run in the folder is started over.

    Returns:
        ``detector`` and ``history``, one dict an epoch.
    """
    out = Path(out)
    resume = _continues(config, out, log) and resume
    detector = build_detector(config)
    generator = torch.Generator()
    cached = not config.model.train_trunk

    @functools.cache  # a finished run needs no maps
    def source(split: str) -> FeatureDataset | DetectionDataset:
        dataset = training_set(config) if split == "train" else _validation_set(config)
        if cached:
            return FeatureDataset(detector, dataset, config, mirror=split == "train")
        if split == "train":
            data = config.data
            dataset.transform = build_transform(SIZE_HW[0], data.augment, data.rescale_boxes, data.flip_boxes)
        return dataset

    def epoch_batches(epoch: int) -> DataLoader:
        generator.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        dataset = source("train")
        if cached:
            dataset.draw(config.seed, epoch)
        else:
            dataset.epoch = epoch
        collate = collate_maps if cached else collate_images
        return DataLoader(dataset, config.optim.batch_size, shuffle=True, collate_fn=collate, generator=order)

    def step_loss(model: nn.Module, batch: tuple, epoch: float) -> tuple[Tensor, dict[str, float]]:
        inputs, targets = batch
        outputs = model(inputs)
        heads, in_force = detector.heads, thresholds(detector, config, int(epoch))
        return recorded_loss(outputs, targets, heads.applied_temperatures(), in_force, config, epoch, generator)

    def after_epoch(model: nn.Module, epoch: int) -> dict[str, float]:
        temperatures = detector.heads.applied_temperatures()
        row = {f"temperature_{name}": float(t.detach()) for name, t in zip(EXIT_NAMES, temperatures, strict=True)}
        collate = collate_maps if cached else collate_images
        batches_of_four = DataLoader(source("val"), 4, collate_fn=collate)
        outputs = (model(inputs) for inputs, _ in batches_of_four)
        row |= validation_metrics(detector, config, outputs, epoch)
        if config.optim.keep == "best":
            row["full_AP"] = coco_full_ap(detector, config, _validation_set(config))
        return row

    trained = detector.heads if cached else detector
    history = fit(
        trained,
        step_loss,
        epoch_batches,
        config,
        out,
        resume=resume,
        evaluate=after_epoch,
        after_step=detector.heads.project,
        log=log,
    )
    state = {"model": detector.state_dict(), "config": config.model_dump(mode="json"), "history": history}
    save_checkpoint(weights_path(out, config.phase), state)
    write_metrics(history, config.phase, out)
    return {"detector": detector, "history": history}


def thresholds(detector: RecordedDetector, config: PhaseConfig, epoch: int) -> tuple:
    """Thresholds of exit1 and exit2 in force during an epoch (from 0): parameters or numbers."""
    if config.thresholds.kind == "parameter":
        return tuple(detector.heads.thresholds.values())
    return scheduled_thresholds(config.thresholds, epoch, config.optim.epochs)


@torch.no_grad()
def final_thresholds(detector: RecordedDetector, config: PhaseConfig) -> tuple[float, float]:
    """Thresholds in force in the last epoch, and from then on."""
    return tuple(float(t) for t in thresholds(detector, config, max(0, config.optim.epochs - 1)))


def routing_group(config: PhaseConfig) -> int:
    """Images that share one decision."""
    return 4 if config.routing.unit == "batch_mean" else 1


@torch.no_grad()
def validation_metrics(
    detector: RecordedDetector, config: PhaseConfig, outputs: Iterable[list[ExitMaps]], epoch: int
) -> dict[str, float]:
    """Routing of an epoch on ``val``: shares, confidences over *all* images, hard and soft rates of single images."""
    c = torch.cat([confidences(detector, config, maps) for maps in outputs])
    in_force = tuple(float(t) for t in thresholds(detector, config, epoch))
    shares = exit_shares(first_exit_of_groups(c, in_force, routing_group(config)))
    row = {f"val_share_{name}": share for name, share in zip(EXIT_NAMES, shares, strict=True)}
    row |= {f"val_confidence_{name}": float(v) for name, v in zip(EXIT_NAMES, c.mean(0), strict=True)}
    row |= {f"val_confidence_std_{name}": float(v) for name, v in zip(EXIT_NAMES, c.std(0), strict=True)}
    for kind in ("hard", "soft"):
        rates = exit_rates(c[:, 0], c[:, 1], in_force, kind)
        row |= {f"val_rate_{kind}_{name}": float(r) for name, r in zip(EXIT_NAMES[:2], rates, strict=True)}
    row |= {f"val_threshold_{name}": t for name, t in zip(EXIT_NAMES[:2], in_force, strict=True)}
    return row


def write_metrics(history: list[dict], phase: str, out: Path | str) -> None:
    """``train_metrics_phaseN.csv`` and ``val_metrics_phaseN.csv``, a line an epoch."""
    for split in ("train", "val"):
        chosen = [k for k in history[0] if k.startswith("val_") == (split == "val") and k not in ("epoch", "seconds")]
        lines = [",".join(["epoch", *chosen])]
        lines += [",".join(str(row[k]) for k in ("epoch", *chosen)) for row in history]
        content = ("\n".join(lines) + "\n").encode()
        path = Path(out) / f"{split}_metrics_phase{tag(phase)}.csv"
        write_atomic(path, lambda file, content=content: file.write(content))


def publish(config: PhaseConfig, out: Path | str, folder: Path | str) -> None:
    """Copy a run's curves by epoch, under the record's file names, to the reports; its plots can be drawn from them."""
    for split in ("train", "val"):
        file_name = f"{split}_metrics_phase{tag(config.phase)}.csv"
        content = (Path(out) / file_name).read_bytes()
        write_atomic(Path(folder) / file_name, lambda file, content=content: file.write(content))


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


def exit_probability(detector: RecordedDetector, index: int, maps: ExitMaps) -> Tensor:
    """Chair probability of each box at an exit with the exit's temperature, (B, A)."""
    return probability_of_maps(maps.cls, detector.heads.applied_temperatures()[index])


def confidences(detector: RecordedDetector, config: PhaseConfig, outputs: list[ExitMaps]) -> Tensor:
    """Confidence of each image at each exit, (B, 3)."""
    return torch.stack(
        [confidence(exit_probability(detector, k, maps), config.confidence) for k, maps in enumerate(outputs)], 1
    )


def _detections(maps: ExitMaps, targets: list[dict], config: PhaseConfig, category_id: int) -> dict[int, list[dict]]:
    boxes = decoded_boxes(maps, config.targets.boxes, SIZE_HW)
    kept = keep_best(boxes, probability_of_maps(maps.cls), SIZE_HW, nms_threshold=NMS_THRESHOLD)
    pairs = zip(targets, kept, strict=True)
    return {target["image_id"]: to_results(target["image_id"], d, category_id) for target, d in pairs}


@torch.no_grad()
def coco_full_ap(detector: RecordedDetector, config: PhaseConfig, dataset: DetectionDataset) -> float:
    """AP of the full exit on a data set: it chooses the epoch under ``optim.keep: best``."""
    detector.eval()
    results: list[dict] = []
    for images, targets in batches(dataset, 4):
        rows = _detections(detector(images)[-1], targets, config, dataset.category_ids[0])
        results += [r for image in rows.values() for r in image]
    return coco_ap(dataset.coco, results, dataset.image_ids)["AP"]


@torch.no_grad()
def route_split(detector: RecordedDetector, config: PhaseConfig, split: str) -> dict:
    """Run every exit on a split, then route with the thresholds in force at the end.

    Returns:
        ``confidences`` (N, 3), ``probabilities`` (N, 3): mean over the boxes after the
        temperature, ``chosen`` (N,), ``results``: COCO results of each exit, ``routed``: those
        of the routed system, and the ``dataset``.
    """
    detector.eval()
    dataset = DetectionDataset(
        split, open_source(config.data), build_transform(SIZE_HW[0]), keep_crowd=True, limit=config.data.eval_limit
    )
    columns, means, results = [], [], {name: {} for name in EXIT_NAMES}
    for images, targets in batches(dataset, 4):
        outputs = detector(images)
        columns.append(confidences(detector, config, outputs))
        means.append(torch.stack([exit_probability(detector, k, m).mean(1) for k, m in enumerate(outputs)], 1))
        for name, maps in zip(EXIT_NAMES, outputs, strict=True):
            results[name] |= _detections(maps, targets, config, dataset.category_ids[0])
    c = torch.cat(columns)
    chosen = first_exit_of_groups(c, final_thresholds(detector, config), routing_group(config))
    routed = [r for i, k in zip(dataset.image_ids, chosen.tolist(), strict=True) for r in results[EXIT_NAMES[k]][i]]
    flat = {name: [r for rows in by_image.values() for r in rows] for name, by_image in results.items()}
    return {
        "confidences": c,
        "probabilities": torch.cat(means),
        "chosen": chosen,
        "results": flat,
        "routed": routed,
        "dataset": dataset,
    }
