"""A router as a file: all that decides where an image leaves, as plain values of JSON, checked when it is read."""

import re
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import numpy as np

from eelib.deploy.evidence import (
    Benefit,
    Column,
    Isotonic,
    Never,
    Platt,
    Raw,
    RouterError,
    first_exit,
)

FORMAT = 1


def _check_range(key: str, value: float, high: float = 1.0) -> None:
    """:class:`RouterError` unless a number lies in [0, high]."""
    if not 0 <= value <= high:
        raise RouterError(f"{key} is {value}; expected a number from 0 to {high:g}")


@dataclass(frozen=True)
class Times:
    """Time of each exit as a share of full's, on one machine.

    Attributes:
        exits: of leaving there, (E,), rising to 1.
        passing: what suppression at the exits passed adds for evidence that is read from boxes, (E,).
        machine: what they were measured on, as :func:`eelib.timing.machine` says.
    """

    exits: tuple[float, ...]
    passing: tuple[float, ...]
    machine: dict[str, str]

    def __post_init__(self):
        if not self.exits or self.exits[0] <= 0 or self.exits[-1] != 1 or not (np.diff(self.exits) > 0).all():
            raise RouterError("exits: expected shares of full's time that rise to 1")
        if len(self.passing) != len(self.exits) or min(self.passing) < 0:
            raise RouterError(f"passing: expected {len(self.exits)} shares of full's time from 0")


@dataclass(frozen=True)
class Budget:
    """Promise of a mean time: ``budget`` was asked for, ``time_ratio`` kept on the split of the thresholds."""

    budget: float
    time_ratio: float

    def __post_init__(self):
        _check_range("budget", self.budget)
        _check_range("time_ratio", self.time_ratio, 2)


@dataclass(frozen=True)
class Guarantee:
    """Promise that, with probability 1 - ``delta``, an image's F1 falls by ``epsilon`` or less on average.

    Attributes:
        images: of the split that it was certified on.
        bound: name of the test, and its ``p_value``.
        cuts: score of each exit from which a box counts in the F1.
        risk, time_ratio: mean loss, and mean time as a share of full's, on the same split.
    """

    epsilon: float
    delta: float
    images: int
    bound: str
    p_value: float
    cuts: tuple[float, ...]
    risk: float
    time_ratio: float

    def __post_init__(self):
        for key in ("epsilon", "delta", "p_value", "risk"):
            _check_range(key, getattr(self, key))
        for position, cut in enumerate(self.cuts):
            _check_range(f"cuts[{position}]", cut)
        _check_range("time_ratio", self.time_ratio, 2)
        if self.images < 1:
            raise RouterError(f"images is {self.images}; expected 1 or more")


@dataclass(frozen=True)
class Router:
    """Where an image leaves, and what that rests on.

    Attributes:
        exits: E names in the order in which they are computed.
        confidence: of each exit but the last; its ``evidence`` names the columns that :meth:`route` is given.
        thresholds: of each exit but the last, in [0, 1].
        calibrators: of the scores of each exit, (E,).
        times: of the exits.
        promise: what was asked for; None where the thresholds were given by hand.
        checkpoint_sha256: of the detector.
        data_sha256: of each split that shaped the router, by name.
    """

    exits: tuple[str, ...]
    confidence: Column | Benefit | Never
    thresholds: tuple[float, ...]
    calibrators: tuple[Raw | Isotonic | Platt, ...]
    times: Times
    promise: Budget | Guarantee | None
    checkpoint_sha256: str
    data_sha256: dict[str, str]

    def __post_init__(self):
        count = len(self.exits)
        if count < 2 or len(set(self.exits)) < count or not all(self.exits):
            raise RouterError(f"exits is {list(self.exits)}; expected two or more different names")
        if not isinstance(self.confidence, Column | Benefit | Never):
            raise RouterError(f"confidence is of type {type(self.confidence).__name__}, which no file can hold")
        lengths = {"thresholds": (self.thresholds, count - 1), "calibrators": (self.calibrators, count)}
        lengths |= {"times.exits": (self.times.exits, count)}
        if isinstance(self.confidence, Benefit):
            lengths["confidence.regressors"] = self.confidence.regressors, count - 1
        if isinstance(self.promise, Guarantee):
            lengths["promise.cuts"] = self.promise.cuts, count
        for key, (values, expected) in lengths.items():
            if len(values) != expected:
                raise RouterError(f"{key} has {len(values)} values; expected {expected} for {', '.join(self.exits)}")
        for position, value in enumerate(self.thresholds):
            _check_range(f"thresholds[{position}]", value)
        hashes = {"checkpoint_sha256": self.checkpoint_sha256}
        hashes |= {f"data_sha256.{split}": value for split, value in self.data_sha256.items()}
        for key, value in hashes.items():
            if not re.fullmatch("[0-9a-f]{64}", value):
                raise RouterError(f"{key} is {value!r}; expected a SHA-256 of 64 hexadecimal digits")
        if "test" in self.data_sha256:
            raise RouterError("data_sha256.test: nothing is ever tuned on test")

    def leaves(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """Whether each image leaves at an exit that it has come to, (N,).

        Args:
            evidence: (N, index + 1 or more, F), columns ``confidence.evidence``.
            index: of the exit; at the last one all leave.
        """
        if index == len(self.exits) - 1:
            return np.ones(len(evidence), bool)
        return first_exit(self.confidence.at(evidence, index)[:, None], self.thresholds[index : index + 1]) == 0

    def route(self, evidence: np.ndarray) -> np.ndarray:
        """Exit index of each image, (N,), from evidence (N, E, F) with the columns ``confidence.evidence``."""
        return first_exit(self.confidence(evidence), self.thresholds)

    def to_dict(self) -> dict:
        """Plain values of JSON; :meth:`from_dict` reads them."""
        return {"format": FORMAT} | _plain(self)

    @classmethod
    def from_dict(cls, values: object) -> "Router":
        """The router that :meth:`to_dict` wrote.

        Raises:
            RouterError: anything is missing, unknown, of another type or out of its range; the message names the key.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            version = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise RouterError(f"router: format is {version!r}; expected {FORMAT}")
        return _read(cls, {key: value for key, value in values.items() if key != "format"}, "router")


# What is stored under one key may be of several types; each is stored with its name.
KINDS = {
    "column": Column, "benefit": Benefit, "never": Never, "raw": Raw, "isotonic": Isotonic, "platt": Platt,
    "budget": Budget, "guarantee": Guarantee,
}  # fmt: skip
_NAMES = {kind: name for name, kind in KINDS.items()}


def _plain(value: object) -> object:
    """Dataclasses and tuples as dictionaries and lists."""
    if is_dataclass(value):
        kind = {"kind": _NAMES[type(value)]} if type(value) in _NAMES else {}
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(kind: object, value: object, key: str) -> object:
    """A value of JSON as the type of a field; :class:`RouterError` with the key where it is not of that type."""
    if is_dataclass(kind):
        return _read_fields(kind, value, key)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in inner:
            return None
        choices = {name: choice for name, choice in KINDS.items() if choice in inner}
        content = dict(value) if isinstance(value, dict) else {}
        name = content.pop("kind", None)
        if not isinstance(name, str) or name not in choices:
            raise RouterError(f"{key}.kind is {name!r}; expected one of {', '.join(choices)}")
        return _read_fields(choices[name], content, key)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(inner[0], item, f"{key}[{position}]") for position, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _read(inner[1], item, f"{key}.{name}") for name, item in value.items()}
    # a bool is an int to Python; NaN fails both comparisons
    if kind is float and type(value) in (int, float) and -1e300 < value < 1e300:
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    expected = {float: "a finite number", int: "a whole number", str: "text"}.get(kind)
    expected = expected or {tuple: "a list", dict: "an object"}[origin]
    raise RouterError(f"{key} is {value!r}; expected {expected}")


def _read_fields(kind: type, value: object, key: str) -> object:
    """An object of JSON as a dataclass with exactly its fields."""
    if not isinstance(value, dict):
        raise RouterError(f"{key} is {value!r}; expected an object")
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in (*names, *value):
        if name not in value or name not in names:
            state = "missing" if name not in value else f"unknown; expected {', '.join(names)}"
            raise RouterError(f"{key}.{name} is {state}")
    content = {name: _read(types[name], value[name], f"{key}.{name}") for name in names}
    try:
        return kind(**content)
    except RouterError as error:
        raise RouterError(f"{key}.{error}") from None
