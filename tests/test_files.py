"""Files that are written whole or not at all, and results that come one by one."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from eelib.deploy.writing import Coco, Item, Lines
from eelib.detections import Detections
from eelib.files import InputError, partial_of, reserve, write_atomic

IDS = [62]


def found() -> Detections:
    boxes, scores, labels = np.array([[1.0, 2, 30, 40]]), np.array([0.5]), np.array([1])
    return Detections(boxes, scores, labels, ("chair",), "full")


def image(number: int) -> Item:
    return Item(f"{number}.jpg", number, (64, 48), None)


def test_what_a_kill_left_is_written_over(tmp_path):
    partial_of(tmp_path / "a.txt").write_text("half of something long")
    write_atomic(tmp_path / "a.txt", lambda file: file.write(b"whole"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "whole")]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.txt", "a.json", "a.images.jsonl", "a.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name)
    write_atomic(tmp_path / "a.txt", lambda file: file.write(b"whole"))
    for writer in (Coco(tmp_path / "a.json"), Lines(tmp_path / "a.jsonl")):
        writer.add(image(1), found(), IDS)
        writer.close(keep=True)
    assert all(path.is_symlink() for path in tmp_path.glob("a*"))
    names = {path.name for path in (tmp_path / "elsewhere").iterdir()}
    assert names == {"a.txt", "a.json", "a.images.jsonl", "a.jsonl"}


def test_two_writers_of_one_file_come_one_after_the_other(tmp_path):
    target = tmp_path / "a.txt"
    with reserve(partial_of(target)) as file:
        with pytest.raises(BlockingIOError):
            reserve(partial_of(target), wait=False)
        other = threading.Thread(target=write_atomic, args=(target, lambda file: file.write(b"second")))
        other.start()
        file.write(b"first")
        file.flush()
        partial_of(target).replace(target)
        assert target.read_text() == "first"
    other.join()
    assert target.read_text() == "second" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", [Coco, Lines])
def test_two_detections_into_one_file_are_refused(kind, tmp_path):
    out = tmp_path / ("a.json" if kind is Coco else "a.jsonl")
    first = kind(out)
    with pytest.raises(InputError, match="another process writes this file"):
        kind(out)
    first.add(image(1), found(), IDS)
    first.close(keep=True)
    assert json.loads(out.read_text())


def test_a_run_that_detects_nothing_leaves_earlier_results(tmp_path):
    """An error before the first image must not cost what is there; a run that ends with no image is an empty result."""
    for kind, name in ((Coco, "a.json"), (Lines, "a.jsonl"), (Lines, "none.jsonl")):
        if name != "none.jsonl":
            (tmp_path / name).write_text("[1]\n")
        kind(tmp_path / name).close(keep=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "[1]\n", "a.jsonl": "[1]\n"}
    Lines(tmp_path / "a.jsonl").close(keep=True)
    assert (tmp_path / "a.jsonl").read_text() == ""


def test_lines_are_on_the_disk_at_once(tmp_path):
    lines = Lines(tmp_path / "a.jsonl")
    for number in (1, 2):
        lines.add(image(number), found(), IDS)
        assert [json.loads(row)["image_id"] for row in Path(lines.path).read_text().splitlines()][-1] == number
    lines.close(keep=True)
