"""One command killed at points of its run: what each kill left, and whether the rerun ends as if nothing had been."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kill.points import DEATHS, Ended, Point, points, run_forked

MEASURED = {"seconds", "looks"}  # keys whose values differ from run to run


@dataclass(frozen=True)
class Command:
    """A command to be killed.

    Attributes:
        name: in the table.
        prepare: fills a folder with inputs and earlier results.
        run: the command, in that folder; its exit status.
        again: what a user does after a kill.
        results: patterns of what is written; everything else in the folder is an input.
        usable: raises where what is in the folder could not be used, after a kill as after the end.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], int | None]
    again: Callable[[Path], int | None] | None = None
    results: Sequence[str] = ()
    usable: Callable[[Path], None] = lambda folder: None


@dataclass
class Tally:
    """What became of a command's kills.

    Attributes:
        tried: points at which it was killed.
        half: files that had their name and were not whole, and strangers that nobody sweeps.
        lost: inputs that changed, and earlier results that were gone.
        unfinished: reruns that did not end with the same files.
    """

    name: str
    tried: int = 0
    half: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All of them."""
        return [*self.half, *self.lost, *self.unfinished]


HEADER = f"{'command':24}{'kill points':>12}{'half-written':>14}{'lost':>6}{'not resumed':>13}"


def line(tally: Tally) -> str:
    """A row of the table."""
    counts = len(tally.half), len(tally.lost), len(tally.unfinished)
    return f"{tally.name:24}{tally.tried:12}{counts[0]:14}{counts[1]:6}{counts[2]:13}"


def kill_everywhere(command: Command, scratch: Path, few: int | None = None) -> Tally:
    """Kill a command at each of its points, or at a few that are spread over them."""
    start, whole, tally = scratch / "start", scratch / "whole", Tally(command.name)
    start.mkdir(parents=True)
    prepared = run_forked(lambda: command.prepare(start), scratch)
    assert prepared.status == 0, f"{command.name}: cannot be prepared: {prepared.printed}"
    shutil.copytree(start, whole)
    finished = run_forked(lambda: command.run(whole), whole)
    assert finished.status in (0, 1), f"{command.name}: {finished.status}: {finished.printed}"
    problem = _unusable(command, whole)
    assert not problem and not (bad := _half(whole)), f"{command.name}: {problem or bad}"
    every = points(finished.opens)
    for point in every if few is None else every[:: math.ceil(len(every) / few)]:
        folder = scratch / "killed"
        shutil.copytree(start, folder)
        killed = run_forked(lambda folder=folder: command.run(folder), folder, point)
        if killed.status in DEATHS:
            tally.tried += 1
            _judge(command, tally, point, folder, start, whole, finished)
        elif killed.status != finished.status:  # a small file may be written whole within the limit of a torn one
            tally.unfinished.append(f"{point}: exit status {killed.status} in place of a kill: {killed.printed[-300:]}")
        shutil.rmtree(folder)
    return tally


def _judge(
    command: Command, tally: Tally, point: Point, folder: Path, start: Path, whole: Path, finished: Ended
) -> None:
    at = f"{point.number}{' within' if point.within else ''}"
    before, after, ends = _files(start), _files(folder), _files(whole)
    results = {name for pattern in command.results for name in _matching(start, pattern)}
    tally.half += [f"{at}: {problem}" for problem in _half(folder)]
    tally.half += [f"{at}: {name} is left" for name in after - before - ends if not _left_over(name)]
    if problem := _unusable(command, folder):
        tally.half.append(f"{at}: not usable: {problem}")
    changed = [name for name in before & after - results if not _equal(start / name, folder / name)]
    gone = before - after - (results - ends)
    tally.lost += [f"{at}: {name}" for name in (*changed, *gone)]
    again = run_forked(lambda: (command.again or command.run)(folder), folder)
    problems = []
    if again.status != finished.status:
        problems.append(f"exit status {again.status}: {again.printed[-500:]}")
    problems += [f"{name} is there" for name in _files(folder) - ends]
    problems += [f"{name} is missing" for name in ends - _files(folder)]
    problems += [f"{name} differs" for name in ends & _files(folder) if not alike(whole / name, folder / name)]
    if problems:
        tally.unfinished.append(f"{at}: {'; '.join(problems)}")


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def _matching(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob(pattern) if path.is_file()}


def _left_over(name: str) -> bool:
    return any(part.startswith(".") and "partial" in part for part in Path(name).parts)


def _equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _unusable(command: Command, folder: Path) -> str:
    ended = run_forked(lambda: command.usable(folder), folder)
    return "" if ended.status == 0 else ended.printed[-500:]


def _half(folder: Path) -> list[str]:
    """Files under their own name that are not whole."""
    return [
        f"{name}: {problem}" for name in sorted(_files(folder)) if not _left_over(name)
        for problem in filter(None, [broken(folder / name)])
    ]  # fmt: skip


def broken(path: Path) -> str:
    """Why a file is not whole; empty where it is."""
    try:
        READERS.get(path.suffix, _read_text)(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _read_text(path: Path) -> str:
    return path.read_bytes().decode()


def _read_json(path: Path) -> object:
    return json.loads(path.read_text())


def _read_lines(path: Path) -> list:
    """A stream: what a kill within a write leaves of its last line is no line yet."""
    return [json.loads(row) for row in path.read_text().splitlines(keepends=True) if row.endswith("\n")]


def _read_table(path: Path) -> list:
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    if not text.endswith("\n") or not rows or any(None in row or None in row.values() for row in rows):
        raise ValueError("a row is not whole")
    return rows


def _read_weights(path: Path) -> dict:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _read_arrays(path: Path) -> dict:
    with np.load(path) as file:
        return dict(file)


def _read_image(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def _read_video(path: Path) -> list[bytes]:
    import av

    with av.open(path) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]


def _read_graph(path: Path) -> bytes:
    import onnx

    onnx.checker.check_model(onnx.load(path))
    return path.read_bytes()


def _read_document(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"%PDF-") or not content.rstrip().endswith(b"%%EOF"):
        raise ValueError("a PDF that is not whole")
    return content


READERS = {
    ".json": _read_json, ".jsonl": _read_lines, ".csv": _read_table, ".pth": _read_weights, ".npz": _read_arrays,
    ".jpg": _read_image, ".png": _read_image, ".mp4": _read_video, ".onnx": _read_graph, ".ipynb": _read_json,
    ".pdf": _read_document,
}  # fmt: skip


def alike(one: Path, other: Path) -> bool:
    """Whether two files say the same; measured times may differ."""
    if _equal(one, other):
        return True
    if one.suffix not in (".json", ".jsonl", ".csv", ".pth"):
        return False
    return _alike(READERS[one.suffix](one), READERS[one.suffix](other))


def _alike(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = one.keys() - MEASURED
        return keys == other.keys() - MEASURED and all(_alike(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if hasattr(one, "equal"):  # a tensor
        return one.equal(other)
    return one == other or (one != one and other != other)
