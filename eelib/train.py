"""Training on Lightning Fabric: any device and precision, an exact resume, a CSV line an epoch."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eelib.checkpoints import TrainingError, load_checkpoint, save_checkpoint
from eelib.coco import open_source
from eelib.config import ConfigError, PhaseConfig, parse, resolve
from eelib.data import DetectionDataset, as_input, build_transform, loader
from eelib.files import write_atomic
from eelib.losses import joint_loss
from eelib.model import EarlyExitSSDLite, ExitOutput
from eelib.supervision import mask_loss


class WeightAverage:
    """Exponential moving average of weights and statistics, the ones that are evaluated and released.

    The decay ramps up as min(decay, (1 + step) / (10 + step)), so that the first epochs are
    not held back by the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step = decay, 0
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.step += 1
        weight = 1 - min(self.decay, (1 + self.step) / (10 + self.step))  # 1 when decay is 0
        current = model.state_dict()
        moving = [key for key, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[key] for key in moving], [current[key] for key in moving], weight)
        for key in current.keys() - moving:
            self.state[key].copy_(current[key])


def learning_rate_factor(step: int, total: int, warmup: int, end: float = 0.01) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to ``end`` at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def image_size_at(epoch: int, schedule: list[list[int]]) -> int:
    """Image side of an epoch from ``[[first epoch, side], ...]``."""
    return [side for first, side in schedule if epoch >= first][-1]


def make_fabric(config: PhaseConfig) -> Fabric:
    """A launched Fabric for the configuration's device and precision."""
    fabric = Fabric(
        accelerator=config.optim.accelerator, devices=config.optim.devices, precision=config.optim.precision
    )
    fabric.launch()
    return fabric


def parameter_groups(model: nn.Module, config: PhaseConfig) -> list[dict]:
    """Weights with decay, norms and biases without; the trunk and the scalars of routing at their own rate."""
    optim = config.optim
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # a module that trains the detector through itself puts a name of its own before the trunk's
        trunk = any(part.startswith("backbone") for part in name.split("."))
        lr = optim.lr * (optim.trunk_lr_factor if trunk else 1.0)
        decay = optim.weight_decay if parameter.ndim > 1 or optim.decay_all else 0.0
        for part, rule in (("temperatures", config.temperature), ("thresholds", config.thresholds)):
            if part in name.split("."):
                lr, decay = rule.lr, rule.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


def fit(
    model: nn.Module,
    step_loss: Callable[[nn.Module, object, float], tuple[Tensor, dict[str, float]]],
    epoch_batches: Callable[[int], DataLoader],
    config: PhaseConfig,
    out: Path | str,
    *,
    resume: bool = False,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    after_step: Callable[[], None] | None = None,
    log: Callable[[str], None] = print,
) -> list[dict]:
    """Train a model by a configuration; a checkpoint and a CSV line after every epoch.

    Args:
        model: its parameters that require a gradient are trained.
        step_loss: (model, batch, fractional epoch) to the loss and its parts for the log.
        epoch_batches: the loader of an epoch; its order must depend on the seed and the epoch alone.
        config: the run's configuration; ``optim`` and ``seed`` are used.
        out: folder of ``last.pth`` and ``losses.csv``.
        resume: continue from ``last.pth`` to the same weights as an uninterrupted run.
        evaluate: called on the averaged model every ``optim.eval_every`` epochs and after the last;
            under ``optim.keep: best`` the mean of what it gives as ``*_AP`` chooses the epoch (``best.pth``).
        after_step: called after each optimiser step, to bring bounded parameters back.
        log: receives one line an epoch.

    Returns:
        One dict an epoch: means of the parts, learning rate, seconds, and what ``evaluate`` gave.
        The model holds the averaged weights of the epoch that is kept.

    Raises:
        TrainingError: a loss is not finite, or the checkpoint belongs to another configuration.
    """
    out, optim = Path(out), config.optim
    fabric = make_fabric(config)
    if not fabric.is_global_zero:  # every process trains, one speaks and writes
        log = _silent
    average = WeightAverage(model, optim.ema_decay)
    raw = model
    # fused: a quarter of the time on a CPU; it unscales half-precision gradients itself, which clipping forbids
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=optim.lr, fused=optim.precision != "16-mixed")
    base = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = fabric.setup(model, optimizer)
    history, first = [], 0
    if resume and (out / "last.pth").exists():
        history, first = _restore(out / "last.pth", raw, optimizer, average, config)
        log(f"resumed after epoch {first} of {optim.epochs}")
    for epoch in range(first, optim.epochs):
        began = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        batches = fabric.setup_dataloaders(epoch_batches(epoch))
        steps = len(batches)
        model.train()
        sums: dict[str, float] = {}
        for index, batch in enumerate(batches):
            step, end = (epoch * steps + index, 0.01) if optim.cosine == "step" else (epoch * steps, 0.0)
            factor = learning_rate_factor(step, steps * optim.epochs, optim.warmup_steps, end)
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor
            loss, parts = step_loss(model, batch, epoch + index / steps)
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(f"loss is not finite at epoch {epoch + 1}, batch {index + 1}: {parts}")
            optimizer.zero_grad()
            fabric.backward(loss)
            if optim.clip_norm:
                fabric.clip_gradients(model, optimizer, max_norm=optim.clip_norm)
            optimizer.step()
            if after_step:
                after_step()
            average.update(raw)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value / steps
        row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **sums}
        row["seconds"] = round(time.perf_counter() - began, 1)
        if evaluate and ((epoch + 1) % optim.eval_every == 0 or epoch + 1 == optim.epochs):
            row |= _evaluate_average(raw, average, evaluate, epoch)
        best = max(map(selection_score, history), default=-1.0)
        history.append(row)
        if fabric.is_global_zero and selection_score(row) > best:
            save_checkpoint(out / "best.pth", {"model": average.state, "epoch": epoch + 1})
        if fabric.is_global_zero:
            _save(out, raw, optimizer, average, config, epoch + 1, history)
        log("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    fabric.barrier()  # best.pth is written by one process and read by all
    measured = any(selection_score(row) >= 0 for row in history)
    best = load_checkpoint(out / "best.pth") if optim.keep == "best" and measured else {"model": average.state}
    raw.load_state_dict(best["model"])
    return history


def _silent(_: str) -> None:
    pass


def selection_score(row: dict) -> float:
    """Mean AP of the exits in a row of the history, -1 where none was measured.

    The mean, because a frozen full path has the same AP in every epoch.
    """
    values = [value for key, value in row.items() if key.endswith("_AP")]
    return sum(values) / len(values) if values else -1.0


def _evaluate_average(model, average, evaluate, epoch) -> dict[str, float]:
    own = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(average.state)
    try:
        return evaluate(model.eval(), epoch)
    finally:
        model.load_state_dict(own)


def _save(out, model, optimizer, average, config, epoch, history) -> None:
    state = {
        "model": average.state,
        "raw": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average_step": average.step,
        "epoch": epoch,
        "config": config.model_dump(mode="json"),
        "history": history,
    }
    save_checkpoint(out / "last.pth", state)
    write_atomic(out / "losses.csv", lambda file: file.write(_as_csv(history).encode()))


def _as_csv(history: list[dict]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _restore(path, model, optimizer, average, config) -> tuple[list[dict], int]:
    state = load_checkpoint(path)
    # parsed, so that a switch that is newer than the checkpoint counts with its default
    try:
        same = parse(state.get("config")) == config
    except ConfigError:
        same = False
    if not same:
        raise TrainingError(f"{path}: checkpoint of another configuration; start in an empty folder or drop --resume")
    model.load_state_dict(state["raw"])
    optimizer.load_state_dict(state["optimizer"])
    average.state, average.step = state["model"], state["average_step"]
    return state["history"], state["epoch"]


def require_architecture(config: PhaseConfig, expected: str) -> None:
    """Refuse a configuration that was written for the other detector."""
    if config.model.architecture != expected:
        raise TrainingError(
            f"phase {config.phase}: key 'model.architecture' is '{config.model.architecture}'; "
            f"this command trains '{expected}'"
        )


def build_model(config: PhaseConfig) -> EarlyExitSSDLite:
    """The SSDLite of a configuration, from its start weights; the trunk frozen where it says so.

    Raises:
        TrainingError: the start checkpoint does not fit, or torchvision's weights cannot be had.
    """
    require_architecture(config, "ssdlite")
    torch.manual_seed(config.seed)
    weights = None if config.model.weights == "none" or config.model.start else config.model.weights
    try:
        model = EarlyExitSSDLite(config.model.exits, weights, gradient_rescaling=config.loss.gradient_rescaling)
    except OSError as error:  # torchvision downloads them
        problem = f"key 'model.weights' is '{weights}', but they cannot be downloaded ({error})"
        raise TrainingError(f"{problem}; expected 'none' without a network") from None
    if config.model.start:
        start = load_checkpoint(resolve(config.model.start))["model"]
        early = {k: v for k, v in model.state_dict().items() if k.startswith("early.") and k not in start}
        model.load_state_dict(start | early)
    if not config.model.train_trunk:
        model.requires_grad_(False)
        model.early.requires_grad_(True)
    return model


def detection_step(config: PhaseConfig) -> Callable:
    """``step_loss`` of :func:`fit` for an SSDLite with or without exits."""
    frozen = not config.model.train_trunk
    # a frozen full path has nothing to learn; as a teacher it is run all the same
    last = "exit2" if frozen and not config.loss.distillation else "full"

    def outputs(network: nn.Module, images: Tensor) -> tuple[list, list]:
        if config.loss.mask:
            exits, masks = network(images)
        else:
            exits, masks = network(images, last), []
        return [tuple(o) for o in exits], masks

    call = torch.compile(outputs, dynamic=False) if config.optim.compile else outputs

    def step_loss(model: nn.Module, batch: tuple, epoch: float) -> tuple[Tensor, dict[str, float]]:
        images, targets = batch
        if frozen:  # statistics of the trunk stay as they are: the full path must not move
            model.module.backbone.eval()
            model.module.head.eval()
        total, parts = torch.zeros(()), {}
        exits, masks = call(model, as_input(images))
        if masks:
            auxiliary = mask_loss(masks, torch.stack([t["mask"] for t in targets]))
            total, parts = config.loss.mask * auxiliary, {"mask": float(auxiliary.detach())}
        found = [ExitOutput(*o) for o in exits]
        loss, own = joint_loss(
            found if not frozen else found[:2],
            targets,
            config.loss.exit_weights,
            teacher=found[-1] if config.loss.distillation else None,
            distillation=config.loss.distillation,
            iou_threshold=config.targets.iou_threshold,
            classification=config.loss.classification,
            box=config.loss.box,
        )
        total, parts = total + loss, parts | own
        return total, {"loss": float(total.detach()), **parts}

    return step_loss


def training_set(config: PhaseConfig) -> DetectionDataset:
    """The training split as ``data`` of a configuration selects it, without a transform."""
    data = config.data
    return DetectionDataset(
        "train",
        open_source(data),
        keep_crowd=not data.drop_crowd,
        negatives=data.negatives,
        limit=data.limit,
        sample=data.sample,
        seed=config.seed,
        masks=config.loss.mask > 0,
    )


def training_batches(config: PhaseConfig) -> Callable[[int], DataLoader]:
    """``epoch_batches`` of :func:`fit` for the training split of a configuration."""
    data, optim = config.data, config.optim
    dataset = training_set(config)

    def epoch_batches(epoch: int) -> DataLoader:
        size = image_size_at(epoch, data.image_sizes)
        dataset.transform = build_transform(size, data.augment, data.rescale_boxes, data.flip_boxes)
        return loader(dataset, optim.batch_size, shuffle=True, epoch=epoch, workers=optim.workers)

    return epoch_batches
