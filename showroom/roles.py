"""What each furniture model may be in a scene, and which split a chair model belongs to: ``roles.toml``."""

import tomllib
from pathlib import Path

_ROLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SPLITS: dict[str, int] = _ROLES["splits"]
CHAIRS: dict[str, list[str]] = _ROLES["chairs"]  # by type
DISTRACTORS: dict[str, list[str]] = _ROLES["distractors"]  # by the place that they take in a scene
AMBIGUOUS: list[str] = _ROLES["ambiguous"]
HELD_OUT: dict[str, list[str]] = _ROLES["held_out"] | {"calibrate": _ROLES["held_out"]["test"]}


def flatten(groups: dict[str, list[str]]) -> list[str]:
    """The models of all groups in order; one that is in two groups is listed twice."""
    return [key for keys in groups.values() for key in keys]


def chairs_of(split: str) -> dict[str, list[str]]:
    """The chair models of a split by type; a type that the split lacks draws from all of its models.

    Raises:
        ValueError: the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    allowed = HELD_OUT.get(split) or set(flatten(CHAIRS)) - set(flatten(HELD_OUT))
    chairs = {kind: [key for key in keys if key in allowed] for kind, keys in CHAIRS.items()}
    return {kind: keys or flatten(chairs) for kind, keys in chairs.items()}


def all_models() -> list[str]:
    """Every model that a scene can show, sorted: what ATTRIBUTION.csv must list."""
    return sorted({*flatten(CHAIRS), *flatten(DISTRACTORS)})
