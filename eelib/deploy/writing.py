"""What ``eelib detect`` writes: results as they come, and drawings."""

import fcntl
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eelib.deploy.inputs import VIDEOS, Inputs
from eelib.detections import Detections
from eelib.files import InputError, partial_of, reserve, write_atomic

LARGEST_JPEG = 65_500  # pixels a side


class Item(NamedTuple):
    """An image to detect in.

    Attributes:
        name, image_id: as results call it.
        size_wh: width and height of the upright image in pixels.
        image: the image itself; None where nothing is drawn.
        frame, seconds, rate: of a frame of a video its number from 0, its time, and the video's frames a second.
    """

    name: str
    image_id: int
    size_wh: tuple[int, int]
    image: Image.Image | None
    frame: int | None = None
    seconds: float | None = None
    rate: Fraction | None = None


def about(item: Item, found: Detections) -> dict:
    """An image, and where it left."""
    frame = {} if item.frame is None else {"frame": item.frame, "seconds": item.seconds}
    size = {"width": item.size_wh[0], "height": item.size_wh[1]}
    return {"image_id": item.image_id, "file_name": item.name} | frame | size | {"exit": found.exit_name}


def results(item: Item, found: Detections, category_ids: list[int]) -> list[dict]:
    """COCO results of one image; boxes in pixels of the upright image, to a thousandth."""
    rows = found.to_coco(item.image_id, category_ids)
    return [row | {"bbox": [round(value, 3) for value in row["bbox"]]} for row in rows]


class Lines:
    """Results as JSON Lines, a line an image, boxes or none; each is on the disk at once.

    What the file held is replaced by the first line, not before: a run that finds nothing to do loses nothing.

    Raises:
        InputError: another process writes the same file.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file, self.begun = path, path.open("a", encoding="utf-8", buffering=1), False
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"--out {path}: another process writes this file") from None

    def add(self, item: Item, found: Detections, category_ids: list[int]) -> None:
        """Write an image's line."""
        self._begin()
        rows = zip(results(item, found, category_ids), found.labels.tolist(), strict=True)
        listed = [
            {"category": found.classes[label - 1]} | {key: row[key] for key in ("category_id", "bbox", "score")}
            for row, label in rows
        ]
        self.file.write(json.dumps(about(item, found) | {"detections": listed}) + "\n")

    def _begin(self) -> None:
        if not self.begun:
            self.file.truncate(0)
            self.begun = True

    def close(self, keep: bool) -> None:
        """Close the file; where nothing was written and nothing is to be kept, leave what was there before."""
        if keep:
            self._begin()
        self.file.close()
        if not keep and not self.path.stat().st_size:
            self.path.unlink()


class Coco:
    """Results as a COCO list, and beside it every image with its exit as JSON Lines; named once they are whole."""

    def __init__(self, path: Path):
        self.targets = path.resolve(), path.with_suffix(".images.jsonl").resolve()
        self.partials = [partial_of(target) for target in self.targets]
        try:
            self.rows, self.lines = (reserve(partial, wait=False) for partial in self.partials)
        except BlockingIOError:
            raise InputError(f"--out {path}: another process writes this file") from None
        self.between = "[\n"

    def add(self, item: Item, found: Detections, category_ids: list[int]) -> None:
        """Write an image's boxes, and its line."""
        for row in results(item, found, category_ids):
            text = json.dumps(row | {"exit": found.exit_name, "file_name": item.name})
            self.rows.write((self.between + text).encode())
            self.between = ",\n"
        self.lines.write((json.dumps(about(item, found) | {"detections": len(found)}) + "\n").encode())

    def close(self, keep: bool) -> None:
        """Complete both files and give them their names, or drop them."""
        try:
            if keep:
                self.rows.write(b"[]\n" if self.between == "[\n" else b"\n]\n")
            self.rows.flush()
            self.lines.flush()
            for partial, target in zip(self.partials, self.targets, strict=True) if keep else ():
                partial.replace(target)
        except BaseException:
            keep = False
            raise
        finally:
            for partial in () if keep else self.partials:
                partial.unlink(missing_ok=True)
            self.rows.close()
            self.lines.close()


class Drawings:
    """Drawn images in a folder of their own, under their whole names; frames as a video.

    Args:
        where: the folder, or a video file where one video or camera is the only input.
        inputs: what is read, which is never written over.
        min_score: least score that is drawn.

    Raises:
        InputError: the place is an input or the folder of one, or a video is to be made of several inputs.
    """

    def __init__(self, where: Path, inputs: Inputs, min_score: float):
        self.where, self.read, self.min_score, self.video = where, inputs.files, min_score, None
        self.names: dict[str, int] = {}
        if where.resolve() in self.read | {path.parent for path in self.read}:
            raise InputError(f"--draw {where}: is what is read, or the folder of it; expected another place")
        self.one_video = where.suffix.lower() in VIDEOS
        if not self.one_video and where.is_file():
            raise InputError(f"--draw {where}: is a file; expected a folder")
        if not self.one_video:
            where.mkdir(parents=True, exist_ok=True)
        elif inputs.pictures or len(inputs.videos) + len(inputs.cameras) != 1:
            raise InputError(f"--draw {where}: a video is drawn of one video or camera; expected a folder")

    def add(self, item: Item, found: Detections) -> None:
        """Draw one image."""
        drawn = found.plot(self.min_score, item.image)
        if item.frame is None:
            kind = "JPEG" if max(drawn.size) < LARGEST_JPEG else "PNG"
            whole = io.BytesIO()  # into a file Pillow writes by itself, and takes no notice of a disk that is full
            drawn.save(whole, kind, quality=90)
            write_atomic(self._place(item.name, ".jpg"), lambda file: file.write(whole.getbuffer()))
            return
        if item.frame == 0:
            from eelib.deploy.video import VideoWriter

            self.close(keep=True)
            self.video = VideoWriter(self.where if self.one_video else self._place(item.name, ".mp4"), item.rate)
        self.video.add(drawn)

    def _place(self, name: str, suffix: str) -> Path:
        """Where a drawing goes: under the whole name of its image, numbered where several have the same."""
        whole = name if name.lower().endswith((suffix, ".jpeg")) else name + suffix
        self.names[whole] = count = self.names.get(whole, 0) + 1
        path = self.where / whole
        path = path if count == 1 else path.with_name(f"{path.stem}_{count}{path.suffix}")
        if path.resolve() in self.read:
            raise InputError(f"--draw {self.where}: would write over the input {path}; expected another folder")
        return path

    def close(self, keep: bool) -> None:
        """Finish the video that is being written, or drop it."""
        if self.video:
            self.video.close(keep)
            self.video = None
