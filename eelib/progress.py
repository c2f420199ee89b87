"""What shows how a training goes: a line on the terminal, losses and AP as a picture, TensorBoard if asked for."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightning_fabric.loggers import TensorBoardLogger

from eelib.detections import exit_colour
from eelib.files import InputError, write_atomic


def progress_line(epoch: int, epochs: int) -> Callable[[int, int], None]:
    """A line on the terminal that is written over: how far the epoch is, and the time left; nothing elsewhere."""
    began = shown = time.monotonic()

    def show(done: int, steps: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - shown < 0.5 and done < steps):
            return
        shown, left = now, (now - began) / done * (steps - done + steps * (epochs - epoch - 1))
        text = f"epoch {epoch + 1} of {epochs}, step {done} of {steps}, {duration(left)} left"
        print(text.ljust(70), end="\r" if done < steps else "\r" + " " * 70 + "\r", file=sys.stderr, flush=True)

    return show


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def draw_history(history: Sequence[Mapping], path: Path) -> None:
    """Draw the losses and the AP of every exit by epoch, a PNG that is written whole; none without matplotlib.

    Args:
        history: a dict an epoch, as :func:`eelib.fit.fit` gives it.
        path: of the picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    losses = [_losses(row) for row in history]
    ap = [{key.removesuffix("_AP"): value for key, value in row.items() if key.endswith("_AP")} for row in history]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, rows, title in zip(figure.subplots(1, 2), (losses, ap), ("loss", "AP on val"), strict=True):
        for name in dict.fromkeys(name for row in rows for name in row):
            points = [(epoch["epoch"], row[name]) for epoch, row in zip(history, rows, strict=True) if name in row]
            axis.plot(
                *zip(*points, strict=True), ".-", label=name, color="black" if name == "all" else exit_colour(name)
            )
        axis.set_title(title if any(rows) else f"{title}: not measured yet")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if any(rows):
            axis.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None}))


def _losses(row: Mapping) -> dict[str, float]:
    """The loss of an epoch, and the sum of the terms of each exit, ``exit1_classification`` and its like."""
    found = {"all": row["loss"]} if "loss" in row else {}
    for key, value in row.items():
        name = key.split("_")[0]
        if name.startswith(("exit", "full")) and not key.endswith("_AP"):
            found[name] = found.get(name, 0.0) + value
    return found


def tensorboard(out: Path) -> TensorBoardLogger:
    """A logger of Fabric that writes to ``out/tensorboard``; `tensorboard --logdir` shows it.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise InputError("--tensorboard: the package is not installed: pip install '.[tensorboard]'") from None
