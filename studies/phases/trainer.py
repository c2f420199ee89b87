"""Train one recorded phase as its switches say."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eelib.checkpoints import TrainingError, save_checkpoint
from eelib.coco import open_source
from eelib.config import resolve
from eelib.data import as_input, batches, split_sha256
from eelib.evaluate import coco_ap, detect_exits
from eelib.files import file_sha256, read_json, write_json
from eelib.fit import Trainer, fit, learning_rate_factor
from eelib.model import SIZE, ExitOutput
from eelib.routing import exit_shares
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.detector import ExitMaps, RecordedDetector
from studies.phases.images import PhaseImages, mirror
from studies.phases.loss import exit_rates, first_exit_of_groups, recorded_loss
from studies.phases.trained import build_detector, routing_group, thresholds, weights_path, write_metrics


class FeatureDataset(Dataset):
    """A frozen trunk's maps of every image and its mirror image, as float16 (0.7 MB an image and side).

    Items are ``(maps, boxes)``, full's maps last; which side is drawn depends on (seed, epoch, index) alone. Maps wait
    where the detector is, boxes in the processor's memory.
    Caching changes nothing: the contexts of the exits are added to these maps and never pass
    through the trunk (the record, section A.3).

    Args:
        detector: its trunk is run in evaluation mode.
        dataset: images that are not mirrored themselves.
        config: ``data`` is used.
        mirrored: cache the mirror images too; False for evaluation.
    """

    @torch.no_grad()
    def __init__(self, detector: RecordedDetector, dataset: PhaseImages, config: PhaseConfig, mirrored: bool = True):
        self.sides, self.boxes, self.flips = [], [[], []], torch.zeros(len(dataset), dtype=torch.bool)
        self.augment = mirrored and config.data.augment != "none"
        detector.eval()
        device = next(detector.backbone.parameters()).device
        for mirrored in (False, True)[: 1 + self.augment]:
            maps, follows = [], mirrored and config.data.flip_boxes
            for images, targets in batches(dataset, 8):
                images = images.to(device)
                features = sum(detector.trunk_maps(images.flip(-1) if mirrored else images), [])
                maps.append([f.half() for f in features])
                self.boxes[mirrored] += [mirror(t["boxes"], SIZE) if follows else t["boxes"] for t in targets]
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


def collate_maps(items: list) -> tuple[list[list[Tensor]], list[dict]]:
    """Items of a :class:`FeatureDataset` to the maps (B, C, H, W) of each exit, and targets."""
    # channels last is a fifth faster in the 1 x 1 convolutions of the branches on a CPU
    levels = zip(*(maps for maps, _ in items), strict=True)
    maps = [torch.stack(level).contiguous(memory_format=torch.channels_last) for level in levels]
    return [maps[:1], maps[1:2], maps[2:]], [{"boxes": boxes} for _, boxes in items]


def collate_images(items: list) -> tuple[Tensor, list[dict]]:
    """Images (B, 3, H, W) in [0, 1] and targets, for a trunk that is trained."""
    return as_input(torch.stack([image for image, _ in items])), [target for _, target in items]


def identity(config: PhaseConfig) -> dict:
    """What a run depends on: configuration, start weights and training data; Snakemake watches the code."""
    return {
        "config": config.model_dump(mode="json"),
        "start_sha256": file_sha256(resolve(config.model.start)) if config.model.start else None,
        "train_sha256": split_sha256("train", open_source(config.data)),
    }


def _continues(config: PhaseConfig, out: Path, log: Callable) -> bool:
    """Whether the folder holds the same run; marks it as this run's otherwise."""
    path, run = out / "identity.json", identity(config)
    if path.exists() and read_json(path, TrainingError) == run:
        return True
    if path.exists():
        log(f"{out}: configuration, start weights or data changed: training starts over")
    for name in ("last.pth", "best.pth"):
        (out / name).unlink(missing_ok=True)
    write_json(path, run)
    return False


def parameter_groups(model: nn.Module, config: PhaseConfig) -> list[dict]:
    """Weights and scalars of a phase, each at its own rate and decay: thresholds and temperatures have theirs."""
    optim = config.optim
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = optim.lr * (optim.trunk_lr_factor if name.startswith("backbone") else 1.0)
        decay = optim.weight_decay if parameter.ndim > 1 or optim.decay_all else 0.0
        for part, rule in (("temperatures", config.temperature), ("thresholds", config.thresholds)):
            if part in name.split("."):
                lr, decay = rule.lr, rule.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


def learning_rate(config: PhaseConfig) -> Callable[[int, int], float] | None:
    """Factor on every rate at a step, of so many an epoch: one an epoch and to 0; None is the library's, by step."""
    optim = config.optim
    if optim.cosine == "step":
        return None

    def factor(step: int, steps: int) -> float:
        return learning_rate_factor(step // steps * steps, steps * optim.epochs, optim.warmup_steps, end=0.0)

    return factor


def epoch_line(row: dict) -> str:
    """An epoch in four numbers: the loss, exit1's confidence and temperature, and where ``val`` leaves, if routed."""
    line = (
        f"epoch {row['epoch']:2}: loss {row['loss']:.4g}, confidence of exit1 {row['confidence_exit1']:.3f}, "
        f"its temperature {row['temperature_mean_exit1']:.3f}"
    )
    if "val_share_exit1" in row:  # not in every epoch, by optim.eval_every
        line += ", val leaves " + " / ".join(f"{100 * row[f'val_share_{name}']:.0f}" for name in EXIT_NAMES) + " %"
    return line


def train_phase(config: PhaseConfig, out: Path | str, *, resume: bool = False, log: Callable = print) -> dict:
    """Train a phase as its switches say; ``early_exit_ssdlite_phase1_N_final.pth`` in ``out``.

    A frozen trunk's maps are cached, so an epoch costs the branches alone. After each epoch the phase is routed on
    ``val`` with the thresholds in force.

    Args:
        out: folder of the run.
        resume: continue a run of the same :func:`identity`, to the same numbers as if it had never stopped; any other
            run in the folder is started over.

    Returns:
        ``detector`` and ``history``, one dict an epoch.
    """
    out = Path(out)
    resume = _continues(config, out, log) and resume
    detector, generator, cached = build_detector(config), torch.Generator(), not config.model.train_trunk
    collate = collate_maps if cached else collate_images
    val_limit = config.data.val_limit or config.data.eval_limit

    @functools.cache  # a finished run needs no maps
    def source(split: str) -> FeatureDataset | PhaseImages:
        train = split == "train"
        limit = config.data.limit if train else val_limit
        dataset = PhaseImages(split, config, limit, mirrored=train and not cached)
        return FeatureDataset(detector, dataset, config, mirrored=train) if cached else dataset

    def epoch_batches(epoch: int) -> DataLoader:
        generator.manual_seed(config.seed * 1_000_003 + epoch)
        order = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        dataset = source("train")
        if cached:
            dataset.draw(config.seed, epoch)
        else:
            dataset.epoch = epoch
        return DataLoader(dataset, config.optim.batch_size, shuffle=True, collate_fn=collate, generator=order)

    def exits(model: nn.Module, inputs: list[list[Tensor]] | Tensor) -> list[ExitMaps]:
        return model(inputs if cached else inputs.to(trainer.device))  # cached maps are there already

    def step_loss(model: nn.Module, batch: tuple, epoch: float) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, targets = batch
        in_force, temperatures = thresholds(detector, config, int(epoch)), detector.heads.applied_temperatures()
        return recorded_loss(exits(model, inputs), targets, temperatures, in_force, config, epoch, generator)

    def after_epoch(model: nn.Module, epoch: int) -> dict[str, float]:
        temperatures = detector.heads.applied_temperatures()
        row = {f"temperature_{name}": float(t.detach()) for name, t in zip(EXIT_NAMES, temperatures, strict=True)}
        batches_of_four = DataLoader(source("val"), 4, collate_fn=collate)
        outputs = ([maps.output() for maps in exits(model, inputs)] for inputs, _ in batches_of_four)
        row |= validation_metrics(detector, config, outputs, epoch)
        if config.optim.keep == "best":
            val = PhaseImages("val", config, val_limit)
            row["full_AP"] = coco_ap(val.coco, detect_exits(detector, val, 4)["full"], val.image_ids)["AP"]
        return row

    trained = detector.heads if cached else detector
    trainer = Trainer(
        trained, step_loss, config.optim,
        groups=parameter_groups(trained, config), rate=learning_rate(config), after_step=detector.heads.project,
        capture=False,  # a term of the loss that is not violated is left out
    )  # fmt: skip
    detector.to(trainer.device)
    history = fit(
        trainer, epoch_batches, out,
        identity=identity(config), resume=resume, evaluate=after_epoch, log=log, line=epoch_line,
    )  # fmt: skip
    detector.cpu()
    state = {"model": detector.state_dict(), "config": config.model_dump(mode="json"), "history": history}
    save_checkpoint(weights_path(out, config.phase), state)
    write_metrics(history, config.phase, out)
    return {"detector": detector, "history": history}


@torch.no_grad()
def validation_metrics(
    detector: RecordedDetector, config: PhaseConfig, outputs: Iterable[list[ExitOutput]], epoch: int
) -> dict[str, float]:
    """Routing of an epoch on ``val``, from the outputs of the exits for each batch: shares, confidences over *all*
    images, hard and soft rates of single images."""
    rule = config.confidence
    c = torch.cat([torch.stack([confidence(detector.probability(o), rule) for o in batch], 1) for batch in outputs])
    c = c.cpu()
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
