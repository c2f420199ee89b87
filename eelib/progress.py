"""What shows how a training goes: its losses and AP as a picture, and TensorBoard where it is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eelib.detections import exit_colour
from eelib.files import InputError, write_atomic

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger


def draw_history(history: Sequence[Mapping], path: Path) -> bool:
    """Draw the losses and the AP of every exit by epoch, a PNG that is written whole.

    Args:
        history: a dict an epoch, as :func:`eelib.fit.fit` gives it.
        path: of the picture.

    Returns:
        False where matplotlib is not installed: then there is no picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    losses, ap = (list(dict.fromkeys(k for row in history for k in row if which(k))) for which in (_is_loss, _is_ap))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, names, title in zip(figure.subplots(1, 2), (losses, ap), ("loss", "AP on val"), strict=True):
        for name in names:
            epochs, values = zip(*((row["epoch"], row[name]) for row in history if name in row), strict=True)
            colour = exit_colour(name.removesuffix("_AP")) if _is_ap(name) else None
            axis.plot(epochs, values, ".-", label=name.removesuffix("_AP"), color=colour)
        axis.set_title(title if names else f"{title}: not measured yet")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if names:
            axis.legend(fontsize=8)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=120, metadata={"Software": None}))
    return True


def _is_loss(name: str) -> bool:
    return name.startswith(("loss", "blank"))


def _is_ap(name: str) -> bool:
    return name.endswith("_AP")


def tensorboard(out: Path) -> "Logger":
    """A logger of Fabric that writes to ``out/tensorboard``; `tensorboard --logdir` shows it.

    Raises:
        InputError: TensorBoard is not installed.
    """
    from lightning_fabric.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise InputError("--tensorboard: the package is not installed: pip install '.[tensorboard]'") from None
