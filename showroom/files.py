"""Files of a data set: written whole or not at all, read with checks, never looked for outside their folder."""

import contextlib
import fcntl
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from showroom import ShowroomError

_PLAIN_NAME = re.compile(r"[^./\\\0][^/\\\0]*")
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "[x, y, width, height]"}
_IMAGE = dict(id=int, file_name=str, width=int, height=int, scene=int, view=int, recipe=str, dark=bool, blur=float)
_SEEN = dict(visibility=float, touches_edge=bool, model=str)
_KEYS = {
    "images": _IMAGE,
    "annotations": dict(id=int, image_id=int, bbox=list, area=float, iscrowd=int) | _SEEN,
    "categories": dict(id=int, name=str),
}


def write_atomic(path: Path, content: bytes) -> Path:
    """Write to a neighbour first, then rename it over the target; what a killed process left there is written over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder, created, that no other process renders into meanwhile; the lock ends with this process.

    Raises:
        ShowroomError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShowroomError(f"{folder}: another process renders into this folder") from None
        yield


def write_image(path: Path, image: Image.Image, **options) -> Path:
    """Write an image with Pillow's options of the format."""
    encoded = io.BytesIO()
    image.save(encoded, **options)
    return write_atomic(path, encoded.getvalue())


def file_inside(folder: Path, *names: str) -> Path:
    """The file that plain names lead to from a folder.

    The names may come from somebody else's JSON, so they may neither leave the folder nor go by a
    link. The folder itself is the user's choice and may be one.

    Raises:
        ShowroomError: a name holds a path, or it names a link or no file.
    """
    path = folder
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise ShowroomError(f"{path}: file name {name!r:.100}; expected a plain name, without a folder")
        path = path / name
        if path.is_symlink():
            raise ShowroomError(f"{path}: is a link; expected a file of the data set itself")
    if not path.is_file():
        raise ShowroomError(f"{path}: no such file")
    return path


def read_text(path: Path) -> str:
    """A text file; an error that names it where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ShowroomError(f"{path}: not UTF-8 text (byte {error.start}: {error.reason})") from None


def read_json(path: Path) -> object:
    """Content of a JSON file; an error that names it where it is something else."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShowroomError(f"{path}: not JSON ({error})") from None


def read_coco(folder: Path, split: str) -> dict:
    """The annotations of a split, with all that the renderer writes.

    Raises:
        ShowroomError: the file is missing or no COCO JSON; the message names the key.
    """
    path = file_inside(folder, f"{split}.json")
    content = read_json(path)
    for section, keys in _KEYS.items():
        rows = content.get(section) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ShowroomError(f"{path}: key '{section}' is missing or no list; expected COCO JSON")
        for position, row in enumerate(rows):
            for key, kind in keys.items():
                value = row.get(key) if isinstance(row, dict) else None
                if not _is(value, kind):
                    where = f"{path}: {section}[{position}]: key '{key}'"
                    raise ShowroomError(f"{where} is {value!r:.100}; expected {_WORDS[kind]}")
        if len({row["id"] for row in rows}) < len(rows):
            raise ShowroomError(f"{path}: {section}: an 'id' is there twice; ids must be unique")
    if not isinstance(content.setdefault("info", {}), dict):
        raise ShowroomError(f"{path}: key 'info' is {content['info']!r:.100}; expected an object")
    images = {image["id"] for image in content["images"] if min(image["width"], image["height"]) > 0}
    if not images or len(images) < len(content["images"]):
        raise ShowroomError(f"{path}: there is no image, or one whose width or height is not positive")
    if not images.issuperset(annotation["image_id"] for annotation in content["annotations"]):
        raise ShowroomError(f"{path}: the 'image_id' of an annotation is no image's 'id'")
    return content


def _is(value: object, kind: type) -> bool:
    if kind is list:
        return type(value) is list and len(value) == 4 and all(_is(v, float) for v in value) and min(value[2:]) >= 0
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e9  # neither infinite nor NaN
    return type(value) is kind
