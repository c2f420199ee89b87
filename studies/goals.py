"""The goals of the project, as ``goals.yaml`` beside this file states them, and the record's own decision."""

import functools
from pathlib import Path

from eelib.config import read_yaml


@functools.cache
def load_goals() -> dict:
    """Groups ``baseline``, ``routing``, ``runtime``, ``plane`` and ``blank``.

    The file's comments say what each number bounds.
    """
    return read_yaml(Path(__file__).with_name("goals.yaml"))


def met(value: float, sign: str, limit: float) -> bool:
    """Whether a value keeps to a limit: at most it where the sign is ``<=``, at least it otherwise."""
    return bool(value <= limit if sign == "<=" else value >= limit)


def decision(ap: float) -> str:
    """The record's decision on a fast mode from its AP[.50:.95] (phase comparison, "Decision Point")."""
    if ap > 0.30:
        return "acceptable fast mode"
    if ap < 0.20:
        return "retrain with proper matching"
    return "look closer"
