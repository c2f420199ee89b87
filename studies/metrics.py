"""Metrics that an earlier notebook or command left, where they are of the present weights."""

from collections.abc import Callable
from pathlib import Path

from eelib.files import file_sha256, read_json


def current_metrics(path: Path | str, log: Callable[[str], None] = print, **weights: Path | str) -> dict | None:
    """Metrics that an earlier command left, where they are of the present weights.

    Args:
        path: of the metrics file.
        log: told why there are none.
        weights: a key of the file, such as ``checkpoint_sha256``, and the checkpoint whose hash it must be.

    Returns:
        None where the file is missing or states another hash, or none.
    """
    path = Path(path)
    if not path.exists():
        log(f"{path.name}: not measured yet")
        return None
    metrics = read_json(path)
    other = [key for key, checkpoint in weights.items() if metrics.get(key) != file_sha256(checkpoint)]
    if other:
        log(f"{path.name}: measured with other weights ({', '.join(other)}), so it is not used")
        return None
    return metrics
