"""Metrics files: read so that a missing key is named with its file, and taken where they are of the present weights."""

from collections.abc import Callable
from pathlib import Path

from eelib.config import ConfigError
from eelib.files import file_sha256, read_json


class Values(dict):
    """A mapping of a metrics file whose missing keys are named with the file."""

    def __init__(self, values: dict, file: Path | str, path: str = ""):
        super().__init__({key: _wrap(value, file, f"{path}{key}") for key, value in values.items()})
        self.origin = (file, path)

    def __missing__(self, key: str):
        file, path = self.origin
        raise ConfigError(f"{file}: key '{path}{key}' is missing; run `make reproduce` again")


def _wrap(value: object, file: Path | str, path: str) -> object:
    if isinstance(value, dict):
        return Values(value, file, f"{path}.")
    if isinstance(value, list):
        return [_wrap(item, file, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def read_metrics(path: Path) -> Values:
    """A metrics file; :class:`ConfigError` when it is missing or not JSON."""
    try:
        return Values(read_json(path, ConfigError), path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such metrics file; run `make reproduce`") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; expected metrics") from None


def load_entries(path: Path) -> dict[str, Values]:
    """Entries of ``phases.json`` by phase; :class:`ConfigError` as :func:`read_metrics`."""
    return {entry["phase"]: entry for entry in read_metrics(path)["phases"]}


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
