"""Frozen dataclasses as plain values of JSON and back, with the key of whatever is wrong."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import get_args, get_origin, get_type_hints

from eelib.files import InputError, shorten


def to_plain(value: object, kinds: Mapping[str, type]) -> object:
    """Dataclasses and tuples as dictionaries and lists; one of ``kinds`` states its name as ``kind``."""
    if is_dataclass(value):
        names = [("kind", name) for name, kind in kinds.items() if type(value) is kind]
        return dict(names) | {field.name: to_plain(getattr(value, field.name), kinds) for field in fields(value)}
    return [to_plain(item, kinds) for item in value] if isinstance(value, tuple) else value


def from_plain(kind: object, value: object, key: str, kinds: Mapping[str, type]) -> object:
    """A value of JSON as the type of a field.

    Args:
        kind: a dataclass, ``tuple[X, ...]``, ``dict[str, X]``, a union of ``kinds`` or one other type with None,
            float, int, str, or object for anything.
        value: of JSON.
        key: where it stands, for the message.
        kinds: types that share a key, by the name that is stored with them.

    Raises:
        InputError: anything is missing, unknown, of another type or out of its range.
    """
    if is_dataclass(kind):
        return _fields(kind, value, key, kinds)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in inner:
            return None
        choices = {name: choice for name, choice in kinds.items() if choice in inner}
        if not choices:
            return from_plain(inner[0], value, key, kinds)
        content = dict(value) if isinstance(value, dict) else {}
        name = content.pop("kind", None)
        if not isinstance(name, str) or name not in choices:
            raise InputError(f"{key}.kind is {shorten(name)}; expected one of {', '.join(choices)}")
        return _fields(choices[name], content, key, kinds)
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(inner[0], item, f"{key}[{position}]", kinds) for position, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: from_plain(inner[1], item, f"{key}.{name}", kinds) for name, item in value.items()}
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


def _fields(kind: type, value: object, key: str, kinds: Mapping[str, type]) -> object:
    """An object of JSON as a dataclass with exactly its fields."""
    if not isinstance(value, dict):
        raise InputError(f"{key} is {shorten(value)}; expected an object")
    types = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for name in (*names, *value):
        if name not in value or name not in names:
            state = "missing" if name not in value else f"unknown; expected {', '.join(names)}"
            raise InputError(f"{key}.{shorten(name)[1:-1]} is {state}")
    content = {name: from_plain(types[name], value[name], f"{key}.{name}", kinds) for name in names}
    try:
        return kind(**content)
    except InputError as error:
        raise InputError(f"{key}.{error}") from None
