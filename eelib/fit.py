"""The training loop: any device and precision through Lightning Fabric, an exact resume, a CSV line an epoch."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import Logger
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from eelib.augment import Draw
from eelib.batches import Batch, EpochBatches
from eelib.checkpoints import (
    TrainingError,
    check_identity,
    check_optimizer,
    history_of,
    load_checkpoint,
    save_checkpoint,
)
from eelib.config import OptimConfig
from eelib.files import shorten, write_atomic
from eelib.progress import draw_history, progress_line

Step = Callable[[nn.Module, object, float], tuple[Tensor, dict[str, Tensor]]]


class WeightAverage:
    """Exponential moving average of weights and statistics, the ones that are evaluated and released.

    The decay ramps up as min(decay, (1 + step) / (10 + step)), so that the first epochs are not held back by the
    initial weights. The average lives where the model does.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step, self.live = decay, 0, model.state_dict()
        self.state = {key: value.detach().clone() for key, value in self.live.items()}
        moving = [key for key, value in self.live.items() if value.is_floating_point()]
        # weights and their average stay where they are in memory, so they are looked up once
        self._pairs = [[values[key] for key in moving] for values in (self.state, self.live)]
        self._counters = [(self.state[key], self.live[key]) for key in self.live.keys() - set(moving)]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model."""
        self.step += 1
        weight = 1 - min(self.decay, (1 + self.step) / (10 + self.step))  # 1 when decay is 0
        torch._foreach_lerp_(*self._pairs, weight)
        for average, live in self._counters:
            average.copy_(live)

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take over an average that was saved."""
        self.step = step
        for key, value in state.items():
            self.state[key].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights, in evaluation mode; its own come back afterwards."""
        own = {key: value.clone() for key, value in self.live.items()}
        model.load_state_dict(self.state)
        try:
            yield model.eval()
        finally:
            model.load_state_dict(own)


def warmup_of(optim: OptimConfig, total: int) -> int:
    """Steps of warm-up in a training of so many steps: as configured, and a fifth of them at the most."""
    return min(optim.warmup_steps, total // 5)


def learning_rate_factor(step: int, total: int, warmup: int, end: float = 0.01) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to ``end`` at ``total``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict]:
    """Weights with decay, norms and biases without; the trunk, ``backbone`` at any depth, at its own rate."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = optim.lr * (optim.trunk_lr_factor if "backbone" in name.split(".") else 1.0)
            groups.setdefault((lr, optim.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


class Captured:
    """A step as a CUDA graph: its hundreds of small kernels start without Python.

    The first batches of a kind run as they are, which is what a capture needs before it; then every
    batch is copied to where the graph reads it.
    """

    EAGER = 3

    def __init__(self, step: Callable[[Batch], Tensor]):
        self.step, self.seen, self.graphs = step, Counter(), {}
        self.side = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> Tensor:
        key = batch.calm, batch.draw.rows.shape
        self.seen[key] += 1
        if self.seen[key] <= self.EAGER:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                result = self.step(batch)
            torch.cuda.current_stream().wait_stream(self.side)
            return result
        if key not in self.graphs:
            where = Draw(*(part.clone() for part in batch.draw))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = self.step(batch._replace(draw=where))
            self.graphs[key] = graph, where, result
        graph, where, result = self.graphs[key]
        for target, part in zip(where, batch.draw, strict=True):
            target.copy_(part)
        graph.replay()
        return result


class Trainer:
    """One training in progress: model, optimiser and average on their device.

    Args:
        model: its parameters that require a gradient are trained.
        step_loss: (model, batch, fractional epoch) to the loss and its parts for the log, detached.
        optim: how weights move.
        groups: of the optimiser; None is :func:`parameter_groups`.
        rate: (step, steps an epoch) to the factor on every learning rate; None is warm-up and cosine by step.
        after_step: called after each optimiser step, to bring bounded parameters back.
        loggers: of Fabric, which receive the numbers of every epoch.
        capture: a GPU's step may be recorded as a graph: it never waits for a value, and its shapes are few.

    Raises:
        TrainingError: the machine has no such device, or fewer.
    """

    def __init__(
        self,
        model: nn.Module,
        step_loss: Step,
        optim: OptimConfig,
        *,
        groups: list[dict] | None = None,
        rate: Callable[[int, int], float] | None = None,
        after_step: Callable[[], None] | None = None,
        loggers: Sequence[Logger] = (),
        capture: bool = True,
    ):
        self.raw, self.step_loss, self.optim, self.after_step = model, step_loss, optim, after_step
        self.rate = rate or self._warm_cosine
        try:
            self.fabric = Fabric(
                accelerator=optim.accelerator, devices=optim.devices, precision=optim.precision, loggers=list(loggers)
            )
        except (RuntimeError, MisconfigurationException) as error:
            asked = f"'optim.accelerator' is '{optim.accelerator}', 'optim.devices' {optim.devices}"
            raise TrainingError(f"{asked}: not on this machine ({shorten(str(error))})") from None
        self.fabric.launch()
        self.device = self.fabric.device
        cuda = self.device.type == "cuda"
        # fused: a quarter of the time on a CPU; it unscales half-precision gradients itself, which clipping forbids
        optimizer = torch.optim.AdamW(
            groups or parameter_groups(model, optim),
            lr=optim.lr,
            fused=optim.precision != "16-mixed",
            capturable=cuda and optim.precision != "16-mixed",
        )
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = self.fabric.setup(model.to(memory_format=torch.channels_last), optimizer)
        self.scaler = getattr(self.fabric.strategy.precision, "scaler", None)  # of half precision alone
        self.average = WeightAverage(model, optim.ema_decay)
        self.names: list[str] = []
        captured = capture and cuda and optim.devices == 1 and optim.precision != "16-mixed"
        self._advance = Captured(self._step) if captured else self._step
        self.epoch_at = 0.0
        self._tensor_rates()

    def _warm_cosine(self, step: int, each: int) -> float:
        total = each * self.optim.epochs
        return learning_rate_factor(step, total, warmup_of(self.optim, total))

    def _tensor_rates(self) -> None:
        """A graph reads the learning rate from memory: as a number it would stay that of the capture."""
        for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = torch.tensor(lr, device=self.device) if self.device.type == "cuda" else lr

    def _step(self, batch: object) -> Tensor:
        """One optimiser step; the loss and its parts as one vector, on the device."""
        loss, parts = self.step_loss(self.model, batch, self.epoch_at)
        self.names = list(parts)
        values = torch.stack([value.float() for value in parts.values()])  # of before the step: one may be a weight
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.optim.clip_norm:
            norm = self.optim.clip_norm
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)
        self.optimizer.step()
        return values

    def run_epoch(self, epoch: int, batches: EpochBatches, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Train for an epoch; the means of the loss's parts, and the learning rate of its last step.

        Raises:
            TrainingError: a loss or a weight is not finite.
        """
        found = batches(epoch)
        steps, sums = len(found), torch.zeros((), device=self.device)
        self.model.train()
        for index, batch in enumerate(found):
            factor = self.rate(epoch * steps + index, steps)
            for group, lr in zip(self.optimizer.param_groups, self.base, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr * factor)
                else:
                    group["lr"] = lr * factor
            self.epoch_at = epoch + index / steps
            values = self._advance(batch)
            if self.device.type == "cpu" and not values[0].isfinite():
                parts = dict(zip(self.names, values.tolist(), strict=True))
                raise TrainingError(f"loss is not finite at epoch {epoch + 1}, batch {index + 1}: {parts}")
            if self.after_step:
                self.after_step()
            self.average.update()
            sums = sums + values
            progress(index + 1, steps)
        means = dict(zip(self.names, (sums / steps).tolist(), strict=True))
        self._refuse_not_finite(epoch, means)
        return {"lr": self.base[0] * factor, **means}

    def _refuse_not_finite(self, epoch: int, means: dict[str, float]) -> None:
        weights = [value for value in self.average.state.values() if value.is_floating_point()]
        if not all(map(math.isfinite, means.values())):
            raise TrainingError(f"loss is not finite in epoch {epoch + 1}: {means}")
        if not torch.stack(torch._foreach_norm(weights)).isfinite().all():
            raise TrainingError(f"weights are not finite after epoch {epoch + 1}; expected a smaller optim.lr")

    def state(self) -> dict:
        """What a resume needs."""
        return {
            "model": self.average.state,
            "raw": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler and self.scaler.state_dict(),
            "average_step": self.average.step,
        }

    def restore(self, state: Mapping) -> None:
        """Take over what :meth:`state` gave."""
        self.raw.load_state_dict(state["raw"])
        check_optimizer(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._tensor_rates()
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if type(state["average_step"]) is not int:
            raise TypeError("'average_step' is no number")
        self.average.load(state["model"], state["average_step"])


def fit(
    trainer: Trainer,
    batches: EpochBatches,
    out: Path | str,
    *,
    identity: Mapping,
    resume: bool = False,
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,
    log: Callable[[str], None] = print,
    line: Callable[[dict], str] | None = None,
) -> list[dict]:
    """Train to the end; a checkpoint and a CSV line after every epoch (on a GPU, whenever it is evaluated).

    Args:
        trainer: what is trained.
        batches: of an epoch; their order must depend on the seed and the epoch alone.
        out: folder of ``last.pth``, ``best.pth``, ``losses.csv`` and ``losses.png``.
        identity: what the weights depend on, plain values; a resume of another one is refused.
        resume: continue from ``last.pth`` to the same weights as an uninterrupted run.
        evaluate: called on the averaged model every ``optim.eval_every`` epochs and after the last;
            under ``optim.keep: best`` the mean of what it gives as ``*_AP`` chooses the epoch (``best.pth``).
        log: receives one line an epoch.
        line: an epoch's row to its line; None says every number of the row.

    Returns:
        One dict an epoch: means of the parts, learning rate, seconds, and what ``evaluate`` gave.
        The model holds the averaged weights of the epoch that is kept.

    Raises:
        TrainingError: a loss is not finite, or the checkpoint belongs to another training.
    """
    out, optim, first = Path(out), trainer.optim, trainer.fabric.is_global_zero
    log = log if first else lambda _: None  # every process trains, one speaks and writes
    history: list[dict] = []
    if resume and (out / "last.pth").exists():
        state = load_checkpoint(out / "last.pth")
        check_identity(state.get("identity"), identity, out / "last.pth")
        try:
            trainer.restore(state)
            history = history_of(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise TrainingError(f"{out / 'last.pth'}: cannot be resumed from ({shorten(str(error))})") from None
        log(f"resumed after epoch {len(history)} of {optim.epochs}")
    for epoch in range(len(history), optim.epochs):
        began, last = time.perf_counter(), epoch + 1 == optim.epochs
        row = {"epoch": epoch + 1, **trainer.run_epoch(epoch, batches, progress_line(epoch, optim.epochs))}
        row["seconds"] = round(time.perf_counter() - began, 1)
        evaluated = evaluate is not None and ((epoch + 1) % optim.eval_every == 0 or last)
        if evaluated:
            with trainer.average.applied(trainer.raw) as averaged:
                row |= evaluate(averaged, epoch)
        best = max(map(selection_score, history), default=-1.0)
        history.append(row)
        if first and selection_score(row) > best:
            kept = {"model": trainer.average.state, "epoch": epoch + 1, "identity": dict(identity)}
            save_checkpoint(out / "best.pth", kept)
        if first and (evaluated or last or trainer.device.type == "cpu"):
            state = trainer.state() | {"epoch": epoch + 1, "history": history, "identity": dict(identity)}
            table = partial(pd.DataFrame(history, dtype=object).to_csv, index=False, lineterminator="\r\n")
            write_atomic(out / "losses.csv", table)
            draw_history(history, out / "losses.png")
            save_checkpoint(out / "last.pth", state)  # last: a run that is killed before it writes the others again
        trainer.fabric.log_dict({key: value for key, value in row.items() if key != "epoch"}, step=epoch + 1)
        log((line or _every_number)(row))
    for logger in trainer.fabric.loggers:
        logger.finalize("success")  # a writer's thread may still hold the last epochs
    trainer.fabric.barrier()  # best.pth is written by one process and read by all
    weights = trainer.average.state
    if optim.keep == "best" and any(selection_score(row) >= 0 for row in history):
        kept = load_checkpoint(out / "best.pth")
        check_identity(kept.get("identity"), identity, out / "best.pth")
        weights = kept["model"]
    try:
        trainer.raw.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{out / 'best.pth'}: of another architecture ({shorten(str(error))})") from None
    return history


def _every_number(row: dict) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def selection_score(row: Mapping) -> float:
    """Mean AP of the exits in a row of the history, -1 where none was measured.

    The mean, because a frozen full path has the same AP in every epoch.
    """
    values = [value for key, value in row.items() if key.endswith("_AP")]
    return sum(values) / len(values) if values else -1.0
