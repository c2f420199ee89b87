"""Parameter files of studies that train: a configuration of :mod:`eelib.config` and one group of the study's own."""

from pathlib import Path
from typing import TypeVar

from eelib.config import Config, ConfigError, Group, override, parse, read_yaml, validate

Kind = TypeVar("Kind", bound=Group)


def load_study(
    path: Path | str, key: str, kind: type[Kind], settings: dict[str, object] | None = None
) -> tuple[Config, Kind]:
    """Read ``params/<study>.yaml``, which has the study's group under ``key``; ``settings`` replace dotted keys.

    Raises:
        ConfigError: a key or a value of either; the message names file and key.
    """
    values = override(read_yaml(path), settings or {})
    if not isinstance(values.get(key), dict):
        expected = f"a group of {', '.join(kind.model_fields)}"
        raise ConfigError(f"{path}: key '{key}' is {values.get(key)!r}; expected {expected}")
    group = values.pop(key)
    return parse(values, str(path)), validate(kind, group, f"{path}: {key}")
