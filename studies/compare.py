"""Reproduced results beside the committed ones: ``python -m studies.compare runs/reports reports``.

Every metrics file and every table is compared by key group, which is the first key of a metrics file and a
column of a table. A group is ``equal``; ``within`` the tolerance of its file; ``machine`` where what differs is
a time, or says where it was measured; or ``different``, with an example.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERDICTS = ("equal", "within", "machine", "different")
# Tolerance of a number, relative above 1 and absolute below, by file and keys: the first that fits. Measured on one
# processor with and without AVX-512: the AP of released weights moved by less than 1e-6; of a phase that was trained
# for 20 epochs shares, AP and verdicts stayed, and its confidences and temperatures moved by up to 0.037.
TOLERANCES = (
    (r"standard_errors$", 3.0),  # how far a random draw lies from its expectation: another draw each time
    (r"^(phase|scorecard|detector)", 0.05),  # trained again
    (r"", 0.001),
)
# Keys anywhere, and files or keys of one file, that say where or how fast something ran.
MACHINE_KEYS = re.compile(r"(^|[ _])ms($|[ _])|time|second|machine|versions|passed|ratio$")
MACHINE_PLACES = re.compile(r"^(bench|acceleration|exits\.(gates|eager))")
# The weights of a trained phase hold the seconds of its epochs, so that their hash is new with every training.
TRAINED = re.compile(r"phase|detector")
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


class Difference(NamedTuple):
    """What came out of one value: a verdict, and how to show it."""

    verdict: str
    size: float
    example: str


def leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Single values of a nested mapping with their paths."""
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
    if items is None:
        yield path, value
    for key, item in items or ():
        yield from leaves(item, (*path, str(key)))


def read(path: Path) -> dict[tuple[str, ...], object]:
    """Values of a metrics file or a table by path."""
    if path.suffix == ".json":
        return dict(leaves(json.loads(path.read_text())))
    with path.open(newline="") as file:
        return {(key, str(row)): text for row, line in enumerate(csv.DictReader(file)) for key, text in line.items()}


def distance(ours: object, committed: object) -> float:
    """Largest difference of two values' numbers, relative above 1; infinite where other text stands around them."""
    texts = [NUMBER.split(str(value)) for value in (ours, committed)]
    if texts[0] != texts[1]:
        return float("inf")
    pairs = zip(*([float(n) for n in NUMBER.findall(str(value))] for value in (ours, committed)), strict=True)
    return max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)


def judge(name: str, path: tuple[str, ...], ours: object, committed: object) -> Difference:
    """Compare one value of the file ``name``."""
    if ours == committed:
        return Difference("equal", 0.0, "")
    size, keys = distance(ours, committed), ".".join(path)
    tolerance = next(value for pattern, value in TOLERANCES if re.search(pattern, f"{name}.{keys}"))
    example = f"{keys}: {ours} against {committed}"
    machine = MACHINE_PLACES.search(f"{name}.{keys}") or any(MACHINE_KEYS.search(key) for key in path)
    if machine or (path[-1] == "checkpoint_sha256" and TRAINED.search(name)):
        return Difference("machine", size, example)
    return Difference("within" if size <= tolerance else "different", size, example)


def compare(ours: Path, committed: Path) -> dict[str, dict[str, Difference]]:
    """The worst value of each key group of one file; a path that only one file has is a difference."""
    new, old, groups = read(ours), read(committed), {}
    for path in dict.fromkeys([*new, *old]):
        found = judge(ours.stem, path, new.get(path, "nothing"), old.get(path, "nothing"))
        groups[path[0]] = max(groups.get(path[0], found), found, key=lambda d: (VERDICTS.index(d.verdict), d.size))
    return groups


def report(groups: dict[str, Difference]) -> list[str]:
    """Lines on one file: a verdict with its key groups, and how far the worst of them is apart."""
    lines = []
    for verdict in VERDICTS:
        found = {key: one for key, one in groups.items() if one.verdict == verdict}
        if found:
            worst = max(found.values(), key=lambda one: one.size)
            lines.append(f"  {verdict}: {', '.join(found)}" + (f" ({worst.example})" if worst.example else ""))
    return lines


def main(ours: str = "runs/reports", committed: str = "reports") -> int:
    """Print every file with its key groups by verdict; 1 if a group is different, 0 otherwise."""
    status = 0
    for path in sorted([*Path(ours).glob("metrics/**/*.json"), *Path(ours).glob("tables/*.csv")]):
        name = path.relative_to(ours)
        if not (Path(committed) / name).exists():
            print(f"{name}: new")
            continue
        groups = compare(path, Path(committed) / name)
        verdicts = {one.verdict for one in groups.values()}
        print(f"{name}: equal" if verdicts == {"equal"} else "\n".join([f"{name}", *report(groups)]))
        status |= "different" in verdicts
    print("different: see above" if status else "nothing is different")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
