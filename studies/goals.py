"""The goals of the project, as ``goals.yaml`` beside this file states them."""

import functools
from pathlib import Path

from eelib.config import read_yaml


@functools.cache
def load_goals() -> dict:
    """Groups ``baseline``, ``exits``, ``routing``, ``runtime``, ``plane`` and ``blank``.

    The file's comments say what each number bounds.
    """
    return read_yaml(Path(__file__).with_name("goals.yaml"))


def met(value: float, sign: str, limit: float) -> bool:
    """Whether a value keeps to a limit: at most it where the sign is ``<=``, at least it otherwise."""
    return bool(value <= limit if sign == "<=" else value >= limit)
