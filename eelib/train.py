"""Training on Lightning Fabric: any device and precision, an exact resume, a CSV line an epoch."""

import csv
import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from eelib.config import PhaseConfig
from eelib.data import DetectionDataset, as_input, build_transform, loader


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where and why."""


def write_atomic(path: Path | str, write: Callable[[io.BufferedWriter], None]) -> Path:
    """Write a file whole or not at all: to a neighbour first, then renamed over the target."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def save_checkpoint(path: Path | str, state: dict) -> Path:
    """Save a dict of tensors and plain values atomically, loadable with ``weights_only=True``."""
    return write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path | str) -> dict:
    """Load a checkpoint with ``weights_only=True``.

    Raises:
        TrainingError: the file is missing or is not a dict written by :func:`save_checkpoint`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises a different type for each way of being no checkpoint
        raise TrainingError(f"{path}: not a checkpoint ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise TrainingError(f"{path}: not a checkpoint; expected a dict with key 'model'")
    return state


def load_weights(model: nn.Module, path: Path | str) -> dict:
    """Load a checkpoint's weights into a model of the same architecture; returns the checkpoint.

    Raises:
        TrainingError: keys or shapes differ; the message names the first of them.
    """
    state = load_checkpoint(path)
    own = model.state_dict()
    missing, unknown = own.keys() - state["model"].keys(), state["model"].keys() - own.keys()
    wrong = [k for k in own.keys() & state["model"].keys() if own[k].shape != state["model"][k].shape]
    for what, keys in (("lacks", missing), ("has the unknown", unknown), ("has another shape for", wrong)):
        if keys:
            raise TrainingError(
                f"{path}: checkpoint of another architecture; it {what} key '{sorted(keys)[0]}' ({len(keys)} in all)"
            )
    model.load_state_dict(state["model"])
    return state


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
        weight = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, weight)
            else:
                self.state[key].copy_(value)


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to 1 % at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def image_size_at(epoch: int, schedule: list[list[int]]) -> int:
    """Image side of an epoch from ``[[first epoch, side], ...]``."""
    return [side for first, side in schedule if epoch >= first][-1]


def make_fabric(config: PhaseConfig) -> Fabric:
    """A launched Fabric for the configuration's device and precision."""
    fabric = Fabric(accelerator=config.optim.accelerator, devices=config.optim.devices, precision=config.optim.precision)
    fabric.launch()
    return fabric


def parameter_groups(model: nn.Module, config: PhaseConfig) -> list[dict]:
    """Weights with decay, norms and biases without; the trunk at its own learning rate."""
    optim = config.optim
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone"), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optim.lr * (optim.trunk_lr_factor if trunk else 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (trunk, decays), parameters in groups.items()
    ]


def fit(
    model: nn.Module,
    loss_fn: Callable[[object, list[dict], int], dict[str, Tensor]],
    config: PhaseConfig,
    out: Path | str,
    *,
    resume: bool = False,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    log: Callable[[str], None] = print,
    forward: Callable[[nn.Module, Tensor], object] | None = None,
) -> list[dict]:
    """Train a model by a configuration; a checkpoint and a CSV line after every epoch.

    Args:
        model: called on images (B, 3, S, S) in [0, 1].
        loss_fn: (outputs, targets, step) to a dict of scalars; their sum is minimised.
        config: the run's configuration; ``optim`` and ``data`` are used.
        out: folder of ``last.pth`` and ``losses.csv``.
        resume: continue from ``last.pth`` to the same weights as an uninterrupted run.
        evaluate: called on the averaged model every ``optim.eval_every`` epochs.
        log: receives one line an epoch.
        forward: replaces ``model(images)``, for training a part of a model.

    Returns:
        One dict an epoch: losses, learning rate, seconds, and what ``evaluate`` gave.

    Raises:
        TrainingError: a loss is not finite, or the checkpoint belongs to another configuration.
    """
    out, optim, data = Path(out), config.optim, config.data
    fabric = make_fabric(config)
    torch.manual_seed(config.seed)
    dataset = DetectionDataset(
        "train", data.root, keep_crowd=not data.drop_crowd, negatives=data.negatives, limit=data.limit, seed=config.seed
    )
    steps_per_epoch = len(loader(dataset, optim.batch_size, shuffle=True))
    total = steps_per_epoch * optim.epochs
    average = WeightAverage(model, optim.ema_decay)
    raw = model
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=optim.lr)
    base = [group["lr"] for group in optimizer.param_groups]
    model, optimizer = fabric.setup(model.to(memory_format=torch.channels_last), optimizer)
    history, first = [], 0
    if resume and (out / "last.pth").exists():
        history, first = _restore(out / "last.pth", raw, optimizer, average, config)
        log(f"resumed after epoch {first} of {optim.epochs}")
    call = forward or (lambda network, images: network(images))
    if optim.compile:
        call = torch.compile(call, dynamic=False)
    for epoch in range(first, optim.epochs):
        began = time.perf_counter()
        size = image_size_at(epoch, data.image_sizes)
        dataset.transform = build_transform(size, data.augment, data.rescale_boxes, data.flip_boxes)
        batches = fabric.setup_dataloaders(
            loader(dataset, optim.batch_size, shuffle=True, epoch=epoch, workers=optim.workers)
        )
        model.train()
        sums: dict[str, float] = {}
        for index, (images, targets) in enumerate(batches):
            step = epoch * steps_per_epoch + index
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * learning_rate_factor(step, total, optim.warmup_steps)
            losses = loss_fn(call(model, as_input(images)), targets, step)
            loss = torch.stack(list(losses.values())).sum()
            parts = {name: float(value.detach()) for name, value in losses.items()}
            if not math.isfinite(sum(parts.values())):
                raise TrainingError(f"loss is not finite at epoch {epoch + 1}, batch {index + 1}: {parts}")
            optimizer.zero_grad()
            fabric.backward(loss)
            if optim.clip_norm:
                fabric.clip_gradients(model, optimizer, max_norm=optim.clip_norm)
            optimizer.step()
            average.update(raw)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
        row = {"epoch": epoch + 1, "image_size": size, "lr": optimizer.param_groups[0]["lr"]}
        row |= {name: value / steps_per_epoch for name, value in sums.items()}
        row["seconds"] = round(time.perf_counter() - began, 1)
        if evaluate and ((epoch + 1) % optim.eval_every == 0 or epoch + 1 == optim.epochs):
            row |= _evaluate_average(raw, average, evaluate, epoch)
        history.append(row)
        if fabric.is_global_zero:
            _save(out, raw, optimizer, average, config, epoch + 1, history)
        log("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    raw.load_state_dict(average.state)
    return history


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
    if state.get("config") != config.model_dump(mode="json"):
        raise TrainingError(f"{path}: checkpoint of another configuration; start in an empty folder or drop --resume")
    model.load_state_dict(state["raw"])
    optimizer.load_state_dict(state["optimizer"])
    average.state, average.step = state["model"], state["average_step"]
    return state["history"], state["epoch"]
