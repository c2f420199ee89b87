"""What ``eelib detect`` is given: images, folders, patterns, videos and cameras, and the ids that its results carry."""

import glob
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eelib.files import InputError
from eelib.layouts import ROBOFLOW, find_images
from eelib.preprocess import ImageError, read_sizes

VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"))
# Formats that Pillow opens and cannot decode by itself, or only by another program.
STUBS = frozenset(("BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"))


class Picture(NamedTuple):
    """An image file.

    Attributes:
        name: as results call it: its place in the folder that was given, or its file name.
        path: where it is.
        image_id: that its results carry.
    """

    name: str
    path: Path
    image_id: int


@dataclass
class Inputs:
    """All that is to be detected in, in order.

    Attributes:
        pictures, videos, cameras: image files, video files, numbers of cameras.
        skipped: what the folders hold besides, by reason.
        about_ids: what has to be said of the image ids; empty where all come from COCO files.
    """

    pictures: list[Picture] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    about_ids: str = ""

    @property
    def files(self) -> set[Path]:
        """Every file that is read, links followed."""
        return {path.resolve() for path in (*(picture.path for picture in self.pictures), *self.videos)}

    def skipped_lines(self) -> list[str]:
        """A line for each reason."""
        return [
            f"skipped {reason}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for reason, names in self.skipped.items()
        ]


def find(given: Sequence[str], recursive: bool = False) -> Inputs:
    """Look up what the command line names.

    Args:
        given: image files, video files, folders, patterns such as ``photos/*.jpg``, and ``camera:0``.
        recursive: look for images below the folders, too.

    Raises:
        InputError: nothing of that name, or a folder or a pattern without images.
    """
    inputs, files = Inputs(), {}  # of the files the path, the name, and the folder that was given
    for text in given:
        if camera := re.fullmatch(r"camera:(\d{1,4})", text):
            inputs.cameras.append(int(camera[1]))
            continue
        path = Path(text)
        if not text:
            raise InputError("an empty name; expected an image, a video, a folder, a pattern or camera:0")
        if path.is_dir():
            rows = list(_in_folder(path, recursive, inputs.skipped))
            if not rows:
                beside = "; ".join(inputs.skipped_lines())
                raise InputError(f"{path}: no image in this folder" + (f"; {beside}" if beside else ""))
        elif path.is_file():
            rows = [(path, path.name, path.parent)]
        elif glob.has_magic(text):
            matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
            rows = [(match, match.name, match.parent) for match in matches if match.is_file()]
            if not rows:
                raise InputError(f"{text}: no file matches this pattern")
        else:
            raise InputError(f"{text}: no such image, video or folder")
        for row in rows:
            files.setdefault(row[0].resolve(), row)  # what is named twice is detected in once
    rows = list(files.values())
    inputs.videos = [path for path, *_ in rows if path.suffix.lower() in VIDEOS]
    _number(inputs, [row for row in rows if row[0].suffix.lower() not in VIDEOS])
    return inputs


def _in_folder(root: Path, recursive: bool, skipped: dict[str, list[str]]) -> Iterable[tuple[Path, str, Path]]:
    """Images of a folder by name; what else there is goes to ``skipped``, hidden files aside."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if below and not recursive:
            skipped["folders below, which --recursive reads"] += below
            below.clear()
        for path in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in VIDEOS:
                skipped["videos, which are given by name"].append(path.name)
            elif _is_image(path):
                yield path, path.relative_to(root).as_posix(), root
            else:
                skipped["files that are no image"].append(path.name)


def _is_image(path: Path) -> bool:
    """Whether the suffix is an image's, or, where it is none that Pillow knows, the content."""
    formats = Image.registered_extensions()
    kind = formats.get(path.suffix.lower())
    if kind is not None:
        return kind in Image.OPEN and kind not in STUBS
    try:
        return path.is_file() and bool(read_sizes(path))
    except ImageError:
        return False


def _number(inputs: Inputs, rows: Sequence[tuple[Path, str, Path]]) -> None:
    """Make pictures of files: their ids are those of the COCO files beside their folders, else new ones."""
    folders = dict.fromkeys(folder for path, _, given in rows for folder in (given, path.parent))
    by_path, sources = {}, []
    for folder in folders:
        source, ids = _coco_ids(folder, [path for path, _, given in rows if folder in (given, path.parent)])
        sources += [source] if ids else []
        by_path = ids | by_path
    # two files of one id: the first keeps it
    firsts = {by_path[path]: path for path, *_ in reversed(rows) if path in by_path}
    known = {path: number for number, path in firsts.items()}
    free = itertools.count(max(firsts, default=0) + 1)
    inputs.pictures = [Picture(name, path, known[path] if path in known else next(free)) for path, name, _ in rows]
    unknown = [picture for picture in inputs.pictures if picture.path not in known]
    if unknown:
        where = f"not in {', '.join(map(str, sources))}" if sources else "in no COCO file beside their folder"
        inputs.about_ids = (
            f"image ids: {len(unknown)} of {len(rows)} images are {where} (first {unknown[0].name}): "
            f"theirs are made up, from {unknown[0].image_id} on"
        )


def _coco_ids(folder: Path, paths: Sequence[Path]) -> tuple[Path | None, dict[Path, int]]:
    """The COCO file that lists a folder's images, if there is one, and the ids of those that it lists."""
    place, beside = folder.resolve(), folder.resolve().parent
    names = (folder / ROBOFLOW, beside / f"{place.name}.json", beside / "annotations" / f"{place.name}.json",
             beside / "annotations" / f"instances_{place.name}.json",
             beside.parent / "annotations" / f"instances_{place.name}.json")  # fmt: skip
    source = next((path for path in names if path.is_file()), None)
    if source is None:
        return None, {}
    try:
        rows = json.loads(source.read_text("utf-8-sig"))["images"]
        ids = {row["file_name"]: int(row["id"]) for row in rows}
        listed = {name: number for name, number in ids.items() if abs(number) < 2**63}  # what readers of results take
        places = find_images(folder, [name for name in listed if isinstance(name, str)])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, {}  # no COCO file: nothing to agree with
    by_place = {os.path.normpath(place): listed[name] for name, place in places.items()}
    found = ((path, by_place.get(os.path.normpath(os.path.relpath(path, folder)))) for path in paths)
    return source, {path: number for path, number in found if number is not None}
