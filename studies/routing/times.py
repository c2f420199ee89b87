"""Times of a detector's exits for the notebooks: measured ones on the common axis, or those of the detector itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eelib.deploy.router import Times as ExitTimes
from eelib.files import file_sha256
from eelib.timing import measured_times, read_times
from studies.metrics import current_metrics

COMMON_UNIT = "the plain detector at 320 px on onnxruntime, one thread"


class Times(NamedTuple):
    """Time of each exit and what they are shares of.

    Attributes:
        costs: (E,) median time of leaving at each exit.
        tails: p95 and p99 of each exit, (E, 2); empty where they are not known on this axis.
        passing: (E,) what suppression at the exits passed adds.
        unit: what 1.00 is, in words.
        machine: processor that they were taken on, in words.
        committed: whether they are of the plane, and so on the axis of all reports.
    """

    costs: np.ndarray
    tails: np.ndarray
    passing: np.ndarray
    unit: str
    machine: str
    committed: bool


def times_of(
    path: Path | str, exit_names: Sequence[str], checkpoint: Path | str, root: str, log: Callable[[str], None] = print
) -> ExitTimes:
    """Time of each exit, and what suppression at the exits passed adds; 1 is the same detector without exits.

    They are read from the metrics of 04_exits at ``path``, or measured now on images of ``root``.
    """
    if current_metrics(path, log, checkpoint_sha256=checkpoint) is not None:
        return read_times(path, exit_names, checkpoint)
    log("times are measured now, on eight images: enough for a look, not for a result")
    return measured_times(checkpoint, root)


def plane_exits(plane: dict | None, checkpoint: Path | str) -> dict[str, dict]:
    """What the plane measured of each exit of a detector in float; empty where it lacks the detector."""
    sha256 = file_sha256(checkpoint)
    for row in plane["systems"] if plane else ():
        if row["checkpoint_sha256"] == sha256 and not row["int8"]:
            return row["exits"]
    return {}


def common_times(
    plane: dict | None, path: Path | str, exit_names: Sequence[str], checkpoint: Path | str, root: str
) -> Times:
    """Times of a detector as the plane has them: 1.00 is the plain detector, measured in the same run.

    The plane does not tell what suppression at the exits passed adds. 04_exits does, beside its own time of the last
    exit, and that share of the last exit is taken over.

    Args:
        plane: metrics of ``eelib study plane``. Where it lacks the detector, the times are of 04_exits or measured
            now, and 1.00 is the detector itself without its exits.
        path, exit_names, checkpoint, root: as in :func:`times_of`.
    """
    own = times_of(path, exit_names, checkpoint, root)
    ratios, passing = np.array(own.exits), np.array(own.passing)
    exits = plane_exits(plane, checkpoint)
    if plane and exits:
        costs = np.array([exits[name]["time_ratio"] for name in exit_names])
        tails = np.array([[exits[name]["p95_ms"], exits[name]["p99_ms"]] for name in exit_names])
        tails *= (costs / [exits[name]["median_ms"] for name in exit_names])[:, None]
        passing = passing * costs[-1] / ratios[-1]
        return Times(costs, tails, passing, COMMON_UNIT, plane["machine"]["processor"], True)
    return Times(ratios, np.zeros((0, 2)), passing, "this detector without its exits", "this machine", False)
