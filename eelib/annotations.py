"""COCO annotation files, checked once at the door: what is read of them later has its type and range.

Entries of other categories than the wanted ones are counted and not looked at. No torch.
"""

import contextlib
import difflib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from eelib import segmentation
from eelib.faults import DataError, Problem, Problems
from eelib.files import shorten
from eelib.layouts import find_images
from eelib.preprocess import ImageError, read_sizes

LIMIT = 10**6  # pixels; no coordinate is beyond

Id = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, Meta(ge=0, le=LIMIT)]  # 0 is written where a tool does not know it
Number = int | float


class _Category(Struct):
    id: Id
    name: str | Number


class _Image(Struct):
    id: Id
    file_name: str
    width: Side | None = None
    height: Side | None = None


class _Annotation(Struct):
    image_id: Id
    category_id: Id
    bbox: tuple[Number, Number, Number, Number]
    id: Id | None = None
    area: Number | None = None
    iscrowd: Annotated[int, Meta(ge=0, le=1)] | bool | None = None
    segmentation: Raw = Raw(b"null")


EXPECTED = {
    "name": "text in UTF-8",
    "file_name": "text in UTF-8",
    "width": "a whole number of pixels",
    "height": "a whole number of pixels",
    "bbox": "[x, y, width, height]",
    "area": "a number of pixels",
    "iscrowd": "0 or 1",
}
KINDS = {"categories": _Category, "images": _Image, "annotations": _Annotation}
# strict=False: "62" is read as 62
DECODERS = {section: msgspec.json.Decoder(kind, strict=False) for section, kind in KINDS.items()}
BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_fields = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True)
class Contents:
    """What a COCO file says of the wanted categories.

    Attributes:
        content: COCO's ``images`` (all), ``annotations`` and ``categories`` (the wanted ones, in order), and
            whatever else the file holds. Annotations have a ``segmentation`` only where these were asked for.
        sha256: of the file.
        left_out: boxes of other categories by name.
    """

    content: dict
    sha256: str
    left_out: Counter[str]


def examine(
    path: Path | str, categories: str | Sequence[str] | None, images: Path | None, segmentations: str | None
) -> tuple[Contents, list[Problem]]:
    """A file's sound content and what is wrong with the rest.

    Args:
        path, categories, images: as for :func:`eelib.coco.read_coco`.
        segmentations: severity of a fault in one; None leaves them out unseen.

    Raises:
        DataError: the file is missing, not JSON or without one of COCO's three lists.
    """
    sections, content, digest = _sections(Path(path))
    reader = _Reader(categories, images, segmentations)
    reader.read_categories(sections["categories"])
    reader.read_images(sections["images"])
    annotations = reader.read_annotations(sections["annotations"])
    content |= {
        "images": list(reader.images.values()),
        "annotations": annotations,
        "categories": reader.merge_categories(annotations),
    }
    return Contents(content, digest, reader.left_out), list(reader.found.values())


def _sections(path: Path) -> tuple[dict[str, list[Raw]], dict, str]:
    """Entries of COCO's three lists as JSON text, the other keys of the file, and its SHA-256."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; expected COCO JSON") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; expected a COCO JSON file") from None
    try:
        fields = _fields.decode(raw.removeprefix(b"\xef\xbb\xbf"))
    except BAD:
        fields = _fields_of_odd_json(path, raw)
    sections = {}
    for key in KINDS:
        try:
            sections[key] = msgspec.json.decode(fields.pop(key), type=list[Raw])
        except (KeyError, *BAD):
            raise DataError(f"{path}: key '{key}' is missing or not a list; expected COCO JSON") from None
    try:
        rest = {key: msgspec.json.decode(value) for key, value in fields.items()}
    except BAD as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return sections, rest, hashlib.sha256(raw).hexdigest()


def _fields_of_odd_json(path: Path, raw: bytes) -> dict[str, Raw]:
    """What Python's own reader takes beyond JSON, such as NaN (left as text for the checks), or what is wrong."""
    try:
        return _fields.decode(json.dumps(json.loads(raw.decode("utf-8-sig"), parse_constant=str)).encode())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; expected COCO JSON") from None
    except msgspec.ValidationError:
        raise DataError(f"{path}: not an object with the keys {', '.join(KINDS)}; expected COCO JSON") from None
    except (ValueError, msgspec.DecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None


def all_categories(path: Path) -> tuple[str, ...]:
    """Names of all categories of a file; Roboflow's root, which stands above the others and has no boxes, left out."""
    reader = _Reader(None)
    reader.read_categories(_sections(path)[0]["categories"])
    return reader.wanted


def as_names(categories: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Categories as they may be given: one name, several, or None for all."""
    if categories is None:
        return None
    return (categories,) if isinstance(categories, str) else tuple(dict.fromkeys(categories))


class _Reader:
    """The pass through a file: what was read, and what was found to be wrong."""

    def __init__(
        self, categories: str | Sequence[str] | None, folder: Path | None = None, segmentations: str | None = None
    ):
        self.categories, self.folder, self.segmentations = as_names(categories), folder, segmentations
        self.found = Problems()
        self.named: dict[int, dict] = {}  # categories by id
        self.wanted: tuple[str, ...] = ()
        self.images: dict[int, dict] = {}
        self.refused: set[int] = set()  # images that had a fault: their annotations are not another one
        self.annotation_ids: set[int] = set()
        self.measured: set[int] = set()
        self.left_out: Counter[str] = Counter()

    def error(self, kind: str, where: str, message: str) -> None:
        """Note a fault."""
        self.found.add("error", kind, where, message)

    def entry(self, section: str, position: int, raw: Raw) -> Struct | None:
        """A typed entry; None where it has a fault, which is noted."""
        try:
            return DECODERS[section].decode(raw)
        except BAD:
            key, message = _fault(KINDS[section], raw)
            self.error(f"{section} {key}", f"{section}[{position}]", message)
            return None

    def extras(self, raw: Raw, entry: Struct, where: str) -> dict:
        """Keys that are not read here, such as a scene's number."""
        try:
            fields = _fields.decode(raw).items()
            return {k: msgspec.json.decode(v) for k, v in fields if k not in entry.__struct_fields__}
        except BAD as error:
            self.error("extras", where, f"cannot be read ({error})")
            return {}

    def read_categories(self, raws: list[Raw]) -> None:
        """Fill ``named`` and ``wanted``."""
        for position, raw in enumerate(raws):
            if (entry := self.entry("categories", position, raw)) is None:
                continue
            where, name = f"categories[{position}]", str(entry.name)
            if self.named.get(entry.id, {"name": name})["name"] != name:
                self.error("category twice", where, f"'id' {entry.id} is there twice; ids must be unique")
            else:
                self.named[entry.id] = {"id": entry.id, "name": name, **self.extras(raw, entry, where)}
        names = tuple(dict.fromkeys(row["name"] for row in self.named.values()))
        if self.categories is None:
            above = {row.get("supercategory") for row in self.named.values() if row["name"] != row.get("supercategory")}
            roots = {row["name"] for row in self.named.values() if row.get("supercategory") == "none"}
            self.wanted = tuple(name for name in names if name not in above & roots)
            return
        self.wanted = self.categories
        for name in self.wanted:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                listed = ", ".join(shorten(known) for known in names[:5]) or "none"
                hint = f"; did you mean {shorten(near[0])}?" if near else f"; the first of {len(names)}: {listed}"
                self.error(f"category {name}", "", f"'categories' has no {name!r}{hint}")

    def read_images(self, raws: list[Raw]) -> None:
        """Fill ``images`` and ``refused``."""
        if not raws:
            self.error("no image", "", "'images' is empty; a split needs at least one image")
        places = {}
        for position, raw in enumerate(raws):
            if (entry := self.entry("images", position, raw)) is None:
                self.refused.add(_id_of(raw))
                continue
            places[entry.id] = where = f"images[{position}] (id {entry.id})"
            if entry.id in self.images:
                message = f"'id' {entry.id} is there twice; ids must be unique"
                self.error("image twice", f"images[{position}]", message)
                continue
            row = {"id": entry.id, "file_name": entry.file_name, "width": entry.width, "height": entry.height}
            self.images[entry.id] = row | self.extras(raw, entry, where)
        names = [row["file_name"] for row in self.images.values()]
        files = find_images(self.folder, names) if self.folder else {}
        for row in list(self.images.values()):
            name, where = row["file_name"], places[row["id"]]
            row["file_name"] = files.get(name, name)
            if row["file_name"] != name:
                self.found.add("note", "found", where, f"file {shorten(name)} is found as {shorten(row['file_name'])}")
            if not row["width"] or not row["height"]:
                self.measure(row, where)

    def measure(self, row: dict, where: str) -> None:
        """Take an image's size from its file."""
        try:
            if self.folder is None:
                raise ImageError("the folder of the images is not known")
            (row["width"], row["height"]), _ = read_sizes(self.folder / row["file_name"])
            self.found.add("note", "size", where, "'width' and 'height' are taken from the image")
        except ImageError as error:
            self.error("size", where, f"'width' or 'height' is missing, and the image does not tell it ({error})")
            self.refused.add(row["id"])
            del self.images[row["id"]]

    def read_annotations(self, raws: list[Raw]) -> list[dict]:
        """Annotations of the wanted categories that are sound; those without an id get one."""
        rows = [row for position, raw in enumerate(raws) if (row := self.annotation(position, raw))]
        shift = 1 - min(self.annotation_ids | {1})  # pycocotools takes a match with id 0 for none
        free = itertools.count(max(self.annotation_ids | {0}) + 1)
        for row in rows if shift or any(row["id"] is None for row in rows) else ():
            row["id"] = (next(free) if row["id"] is None else row["id"]) + shift
        return rows

    def annotation(self, position: int, raw: Raw) -> dict | None:
        """One annotation, if it is of a wanted category and sound."""
        try:
            entry = DECODERS["annotations"].decode(raw)
            category = entry.category_id
        except BAD:
            entry, category = None, _id_of(raw, "category_id")
        name = self.named[category]["name"] if category in self.named else None
        if name is not None and name not in self.wanted:
            self.left_out[name] += 1
            return None
        if entry is None:
            return self.entry("annotations", position, raw)  # notes the fault
        where = f"annotations[{position}] (id {entry.id})"
        if name is None:
            return self.error("category", where, f"unknown category_id {category}")
        if entry.id in self.annotation_ids:
            self.error("annotation twice", where, f"'id' {entry.id} is there twice; ids must be unique")
            entry.id = None
        if entry.id is not None:
            self.annotation_ids.add(entry.id)
        if entry.image_id in self.refused:
            return None
        if entry.image_id not in self.images:
            return self.error("image", where, f"unknown image_id {entry.image_id}")
        image = self.images[entry.image_id]
        if (bbox := self.box(where, entry, image)) is None:
            return None
        area = bbox[2] * bbox[3] if entry.area is None else entry.area
        if not 0 <= area <= LIMIT**2:
            self.error("area", where, f"'area' is {shorten(area)}; expected {EXPECTED['area']} from 0")
            area = bbox[2] * bbox[3]
        row = {"id": entry.id, "image_id": entry.image_id, "category_id": category, "bbox": bbox}
        row |= {"area": area, "iscrowd": int(entry.iscrowd or 0)}
        if self.segmentations and (shape := self.shape(where, entry.segmentation, image)):
            row["segmentation"] = shape
        return row | self.extras(raw, entry, where)

    def box(self, where: str, entry: _Annotation, image: dict) -> list[Number] | None:
        """A box, cut at the edges of its image; None without area."""
        x, y, width, height = bbox = list(entry.bbox)
        if not all(-LIMIT < value < LIMIT for value in bbox):  # NaN as well
            return self.error("box", where, f"'bbox' is {shorten(bbox)}; expected finite numbers of pixels")
        if width <= 0 or height <= 0:
            return self.error("area of box", where, f"'bbox' {bbox} has no area; width and height must be positive")
        if not _inside(bbox, image):
            self.turn(image)
        if not _inside(bbox, image):
            size = f"{image['width']} x {image['height']} px"
            self.error("edge", where, f"'bbox' {bbox} leaves the image of {size}")
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
            return [left, top, right - left, bottom - top] if right > left and bottom > top else None
        return bbox

    def turn(self, image: dict) -> None:
        """Give an image the size of its upright form where the file states that of the stored one."""
        if self.folder is None or image["id"] in self.measured:
            return
        self.measured.add(image["id"])
        with contextlib.suppress(ImageError):
            upright, stored = read_sizes(self.folder / image["file_name"])
            if stored == (image["width"], image["height"]):
                image["width"], image["height"] = upright

    def shape(self, where: str, raw: Raw, image: dict) -> list | dict | None:
        """A checked segmentation, or None."""
        try:
            shape = segmentation.read(raw, (image["height"], image["width"]))
        except ValueError as error:
            message = f"'segmentation' is {shorten(bytes(raw))}: {error}; its mask cannot be drawn"
            return self.found.add(self.segmentations, "segmentation", where, message)
        if shape is None:
            self.found.add("note", "no shape", where, "no 'segmentation', so it has no mask")
        return shape

    def merge_categories(self, annotations: list[dict]) -> list[dict]:
        """The wanted categories in order, one a name: annotations of its other ids get the first that is used."""
        used = {row["category_id"] for row in annotations}
        rows, same = [], {}
        for name in self.wanted:
            ids = [key for key, row in self.named.items() if row["name"] == name]
            if not ids:
                continue  # a fault that is noted
            first = next((key for key in ids if key in used), ids[0])
            rows.append(self.named[first])
            same |= dict.fromkeys(ids, first)
            if len(ids) > 1:
                self.found.add("note", f"same {name}", "", f"{len(ids)} categories are named {name!r}: read as one")
        for row in annotations:
            row["category_id"] = same[row["category_id"]]
        return rows


def _id_of(raw: Raw, key: str = "id") -> int | None:
    try:
        return msgspec.json.decode(_fields.decode(raw)[key], type=Id, strict=False)
    except (KeyError, *BAD):
        return None


def _fault(kind: type[Struct], raw: Raw) -> tuple[str, str]:
    """The key of an entry that cannot be read as its kind, and what is wrong with it."""
    try:
        fields = _fields.decode(raw)
    except BAD:
        return "", f"entry is {shorten(bytes(raw))}; expected an object"
    for entry in msgspec.structs.fields(kind):
        key = entry.name
        if key not in fields:
            if entry.required:
                return key, f"key '{key}' is missing"
            continue
        try:
            msgspec.json.decode(fields[key], type=entry.type, strict=False)
        except BAD:
            return key, f"'{key}' is {shorten(bytes(fields[key]))}; expected {EXPECTED.get(key, 'a whole number')}"
    return "", f"entry is {shorten(bytes(raw))}; it cannot be read"


def _inside(bbox: list[Number], image: dict) -> bool:
    """Whether a box lies in its image; COCO rounds boxes, so that a pixel over the edge is tolerated."""
    x, y, width, height = bbox
    return x >= -1 and y >= -1 and x + width <= image["width"] + 1 and y + height <= image["height"] + 1
