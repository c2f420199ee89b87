"""Metrics files whose missing keys are named with the file."""

from pathlib import Path

from eelib.config import ConfigError
from eelib.files import read_json


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
