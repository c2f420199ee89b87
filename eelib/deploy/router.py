"""A router as a file: all that decides where an image leaves, as plain values of JSON, checked when it is read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

import numpy as np

from eelib.deploy.evidence import (
    Benefit,
    Column,
    Function,
    Isotonic,
    Never,
    Platt,
    Raw,
    RouterError,
    first_exit,
)
from eelib.files import InputError, read_json, shorten, write_json

FORMAT = 1


def check_range(key: str, value: float, high: float = 1.0) -> None:
    """:class:`RouterError` unless a number lies in [0, high]."""
    if not 0 <= value <= high:
        raise RouterError(f"{key} is {value}; expected a number from 0 to {high:g}")


@dataclass(frozen=True)
class Gate:
    """A blank gate: it ends an image without boxes, before the exits behind it run.

    Attributes:
        before: exits that are computed before it.
        threshold: the image ends where the probability that it holds an object is below, in [0, 1]; 0 ends none.
    """

    before: int
    threshold: float


@dataclass(frozen=True)
class Rule:
    """Where an image leaves: what a session asks, whether it was given by hand or is a router's.

    Attributes:
        exits: E names in the order in which they are computed.
        confidence: of each exit but the last; its ``evidence`` names the columns that :meth:`leaves` is given.
        thresholds: of each exit but the last; a confidence that reaches it leaves.
        calibrators: of the scores of each exit, (E,).
        gates: all blank gates of the detector in the order in which they run, or none.
    """

    exits: tuple[str, ...]
    confidence: Column | Benefit | Never | Function
    thresholds: tuple[float, ...]
    calibrators: tuple[Raw | Isotonic | Platt, ...]
    gates: tuple[Gate, ...]

    def __post_init__(self):
        count = len(self.exits)
        if not count or len(set(self.exits)) < count or not all(self.exits):
            raise RouterError(f"exits is {shorten(list(self.exits))}; expected different names")
        lengths = {"thresholds": (self.thresholds, count - 1), "calibrators": (self.calibrators, count)}
        if isinstance(self.confidence, Benefit):
            lengths["confidence.regressors"] = self.confidence.regressors, count - 1
        self._expect_lengths(lengths)

    def _expect_lengths(self, lengths: Mapping[str, tuple[Sequence, int]]) -> None:
        for key, (values, expected) in lengths.items():
            if len(values) != expected:
                raise RouterError(f"{key} has {len(values)} values; expected {expected} for {', '.join(self.exits)}")

    @property
    def early(self) -> bool:
        """Whether an image can leave before the last exit."""
        never = isinstance(self.confidence, Never) and all(value > 0 for value in self.thresholds)
        return not never or any(gate.threshold > 0 for gate in self.gates)

    @property
    def reads_gates(self) -> bool:
        """Whether blank gates have to run, to end images or as evidence."""
        return bool(self.gates) or any(name.startswith("blank") for name in self.confidence.evidence)

    def leaves(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """Whether each image leaves at an exit that it has come to, (N,).

        Args:
            evidence: (N, index + 1 or more, F), columns ``confidence.evidence``.
            index: of the exit; at the last one all leave.
        """
        if index == len(self.exits) - 1:
            return np.ones(len(evidence), bool)
        return self.confidence.at(evidence, index) >= self.thresholds[index]

    def route(self, evidence: np.ndarray, holds: np.ndarray | None = None) -> np.ndarray:
        """Where each image leaves, (N,): the index of an exit, or E + k where gate k ends it.

        Args:
            evidence: (N, E, F), columns ``confidence.evidence``.
            holds: (N, G) probability by each gate that the image holds an object; None where there are no gates.
        """
        return ended(first_exit(self.confidence(evidence), self.thresholds), holds, self.gates, len(self.exits))


def ended(chosen: np.ndarray, holds: np.ndarray | None, gates: Sequence[Gate], exits: int) -> np.ndarray:
    """A routing with gates: E + k for an image that gate k ends before it comes to the exit that was chosen.

    Args:
        chosen: exit index of each image, (N,).
        holds: (N, G) probability by each gate that the image holds an object; None where there are no gates.
        gates: G gates, the first one to run first.
        exits: E, how many there are.
    """
    for k, gate in reversed(list(enumerate(gates))):
        chosen = np.where((holds[:, k] < gate.threshold) & (chosen >= gate.before), exits + k, chosen)
    return chosen


@dataclass(frozen=True)
class Times:
    """Time of leaving at each exit, on one machine.

    Attributes:
        exits: as shares of :attr:`unit`, (E,), rising.
        passing: what suppression at the exits passed adds for evidence that is read from boxes, (E,).
        gates: time of ending at each gate, (G,).
        unit: what 1.000 is, see :data:`eelib.timing.UNIT`.
        machine: what they were measured on, as :func:`eelib.timing.machine` says.
    """

    exits: tuple[float, ...]
    passing: tuple[float, ...]
    gates: tuple[float, ...]
    unit: str
    machine: dict[str, str]

    def __post_init__(self):
        if not self.exits or self.exits[0] <= 0 or not (np.diff(self.exits) > 0).all():
            raise RouterError("exits: expected times that rise, above 0")
        if len(self.passing) != len(self.exits) or min(self.passing) < 0:
            raise RouterError(f"passing: expected {len(self.exits)} times from 0")
        if min(self.gates, default=1) <= 0:
            raise RouterError("gates: expected times above 0")


@dataclass(frozen=True)
class Budget:
    """Promise of a mean time: ``budget`` was asked for, ``time_ratio`` kept on the split of the thresholds."""

    budget: float
    time_ratio: float

    def __post_init__(self):
        check_range("budget", self.budget, 2)
        check_range("time_ratio", self.time_ratio, 2)


@dataclass(frozen=True)
class Guarantee:
    """Promise that, with probability 1 - ``delta``, the mean loss of an image is ``epsilon`` or less.

    Attributes:
        loss: ``f1``, the drop of an image's F1 against full; or ``objects``, the share of its objects that a gate
            loses, over the images that hold an object.
        images: of the split that it was certified on.
        bound: name of the test, and its ``p_value``.
        cuts: score of each exit from which a box counts in the F1; none for ``objects``.
        risk: mean loss on the same split.
    """

    loss: str
    epsilon: float
    delta: float
    images: int
    bound: str
    p_value: float
    cuts: tuple[float, ...]
    risk: float

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise RouterError(f"loss is {shorten(self.loss)}; expected one of {', '.join(LOSSES)}")
        for key in ("epsilon", "delta", "p_value", "risk"):
            check_range(key, getattr(self, key))
        for position, cut in enumerate(self.cuts):
            check_range(f"cuts[{position}]", cut)
        if self.images < 1:
            raise RouterError(f"images is {self.images}; expected 1 or more")


LOSSES = ("f1", "objects")


@dataclass(frozen=True)
class Router(Rule):
    """A routing rule with the detector, data and times for which it was made; other detectors refuse it.

    Attributes:
        times: time of each exit.
        promise: what was asked for; None where the thresholds were given by hand.
        gates_promise: what the gates may lose; None where there are none, or none ends an image.
        size: side of the network input in pixels.
        checkpoint_sha256: of the detector.
        data_sha256: of each split that shaped the router, by name.

    Examples:
        >>> text = eelib.Router.load("deploy/router.json").describe()
    """

    times: Times
    promise: Budget | Guarantee | None
    gates_promise: Guarantee | None
    size: int
    checkpoint_sha256: str
    data_sha256: dict[str, str]

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.confidence, Column | Benefit | Never | Function):
            raise RouterError(f"confidence is of type {type(self.confidence).__name__}, which no file can hold")
        count = len(self.exits)
        lengths = {"times.exits": (self.times.exits, count)}
        if self.gates:
            lengths["times.gates"] = self.times.gates, len(self.gates)
        if isinstance(self.promise, Guarantee):
            lengths["promise.cuts"] = self.promise.cuts, count
        self._expect_lengths(lengths)
        for position, value in enumerate(self.thresholds):
            check_range(f"thresholds[{position}]", value)
        for position, gate in enumerate(self.gates):
            check_range(f"gates[{position}].threshold", gate.threshold)
        hashes = {"checkpoint_sha256": self.checkpoint_sha256}
        hashes |= {f"data_sha256.{split}": value for split, value in self.data_sha256.items()}
        for key, value in hashes.items():
            if not re.fullmatch("[0-9a-f]{64}", value):
                raise RouterError(f"{key} is {shorten(value)}; expected a SHA-256 of 64 hexadecimal digits")
        if "test" in self.data_sha256:
            raise RouterError("data_sha256.test: nothing is ever tuned on test")

    def describe(self) -> str:
        """One line: what decides, and what was promised."""
        parts = [f"by {', '.join(self.confidence.evidence) or 'nothing'}"]
        if isinstance(self.promise, Budget):
            parts.append(f"mean time {self.promise.time_ratio:.3f} for a budget of {self.promise.budget:g}")
        for promise, what in ((self.promise, "F1 lost"), (self.gates_promise, "objects lost by the blank gates")):
            if isinstance(promise, Guarantee):
                parts.append(f"{what} <= {promise.epsilon:g} with probability {1 - promise.delta:g}")
        return ", ".join(parts)

    def to_dict(self) -> dict:
        """Plain values of JSON; :meth:`from_dict` reads them."""
        return {"format": FORMAT} | to_plain(self)

    @classmethod
    def from_dict(cls, values: object) -> "Router":
        """The router that :meth:`to_dict` wrote.

        Raises:
            RouterError: anything is missing, unknown, of another type or out of its range; the message names the key.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            version = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise RouterError(f"router: format is {shorten(version)}; expected {FORMAT}")
        try:
            return from_plain(cls, {k: v for k, v in values.items() if k != "format"}, "router")
        except InputError as error:
            raise RouterError(str(error)) from None

    def save(self, path: Path | str) -> Path:
        """Write the router as JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> "Router":
        """Read the file that :meth:`save` wrote.

        Raises:
            RouterError: no such file, no JSON, or what :meth:`from_dict` refuses; the message names the file.
        """
        try:
            values = read_json(path, RouterError)
        except FileNotFoundError:
            raise RouterError(f"{path}: no such router; `eelib route --out {path}` writes one") from None
        try:
            return cls.from_dict(values)
        except RouterError as error:
            raise RouterError(f"{path}: {error}") from None


# What is stored under one key may be of several types; each is stored with its name.
KINDS = {
    "column": Column, "benefit": Benefit, "never": Never, "function": Function, "raw": Raw, "isotonic": Isotonic,
    "platt": Platt, "budget": Budget, "guarantee": Guarantee,
}  # fmt: skip


def to_plain(value: object) -> object:
    """Dataclasses and tuples as dictionaries and lists; one of :data:`KINDS` states its name as ``kind``."""
    if is_dataclass(value):
        names = [("kind", name) for name, kind in KINDS.items() if type(value) is kind]
        return dict(names) | {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    return [to_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(kind: object, value: object, key: str) -> object:
    """A value of JSON as the type of a field.

    Args:
        kind: a dataclass, ``tuple[X, ...]``, ``dict[str, X]``, a union of :data:`KINDS` or one other type with None,
            float, int, str, or object for anything.
        value: of JSON.
        key: where it stands, for the message.

    Raises:
        InputError: anything is missing, unknown, of another type or out of its range.
    """
    if is_dataclass(kind):
        return _fields(kind, value, key)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in inner:
            return None
        choices = {name: choice for name, choice in KINDS.items() if choice in inner}
        if not choices:
            return from_plain(inner[0], value, key)
        content = dict(value) if isinstance(value, dict) else {}
        name = content.pop("kind", None)
        if not isinstance(name, str) or name not in choices:
            raise InputError(f"{key}.kind is {shorten(name)}; expected one of {', '.join(choices)}")
        return _fields(choices[name], content, key)
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(inner[0], item, f"{key}[{position}]") for position, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: from_plain(inner[1], item, f"{key}.{name}") for name, item in value.items()}
    if kind is object:
        return value
    # a bool is an int to Python; NaN fails both comparisons
    if kind is float and type(value) in (int, float) and -1e300 < value < 1e300:
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    expected = {float: "a finite number", int: "a whole number", str: "text"}.get(kind)
    expected = expected or {tuple: "a list", dict: "an object"}[origin]
    raise InputError(f"{key} is {shorten(value)}; expected {expected}")


def _fields(kind: type, value: object, key: str) -> object:
    """An object of JSON as a dataclass with exactly its fields."""
    if not isinstance(value, dict):
        raise InputError(f"{key} is {shorten(value)}; expected an object")
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in (*names, *value):
        if name not in value or name not in names:
            state = "missing" if name not in value else f"unknown; expected {', '.join(names)}"
            raise InputError(f"{key}.{shorten(name)[1:-1]} is {state}")
    content = {name: from_plain(types[name], value[name], f"{key}.{name}") for name in names}
    try:
        return kind(**content)
    except InputError as error:
        raise InputError(f"{key}.{error}") from None
