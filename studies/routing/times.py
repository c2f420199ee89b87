"""Times of a detector's exits for the notebooks: those of 04_exits, or new ones where these are of other weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

from eelib.evaluate import current_metrics
from eelib.routers import measured_times, read_times


def times_of(
    path: Path | str, exit_names: Sequence[str], checkpoint: Path | str, root: str, log: Callable[[str], None] = print
) -> tuple[list[float], list[float]]:
    """Time of each exit, and what suppression at the exits passed adds; 1 is the same detector without exits.

    Args:
        path: metrics of 04_exits.
        exit_names: the detector's exits.
        checkpoint: the detector.
        root: data set, whose images are detected in where the times are measured now.
        log: told so.
    """
    if current_metrics(path, log, checkpoint_sha256=checkpoint) is not None:
        return read_times(path, exit_names, checkpoint)
    log("times are measured now, on eight images: enough for a look, not for a result")
    times = measured_times(checkpoint, root)
    return list(times.exits), list(times.passing)
