"""Data sets: eelib's layout, COCO 2017 or any COCO files, filtered to one category.

An instances file of COCO holds 80 categories and 450 MB. Annotations of the others are dropped
while the JSON is parsed, and what is left is kept in a small index beside the runs. No torch,
no pycocotools: this module only says which images and boxes a split has.
"""

import hashlib
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eelib.config import ROOT, DataConfig, resolve
from eelib.files import write_atomic

SHOWROOM = ROOT / "data" / "showroom"
SPLITS = ("train", "val", "calibrate", "test")
CATEGORY = "chair"
COCO_PARTS = {"train": "train2017", "test": "val2017"}
# Splits that have no file of their own are drawn from train's file, this share of its images each:
# 4,731 of COCO's 118,287, about as many as val2017 has.
DRAWN, DRAWN_SHARE = ("val", "calibrate"), 0.04
INDEX = ROOT / "runs" / "index"  # filtered indices, which may be deleted at any time
INDEX_FROM_BYTES = 16 * 2**20  # a smaller annotation file is read in a fraction of a second
INDEX_VERSION = 1  # raised when what an index holds changes
HOW_TO_OBTAIN = """COCO 2017 comes from its official site, cocodataset.org (Download); eelib downloads nothing.
  annotations_trainval2017.zip  241 MB  annotations/instances_train2017.json, annotations/instances_val2017.json
  train2017.zip                  18 GB  train2017/, 118,287 images
  val2017.zip                     1 GB  val2017/, 5,000 images
Unpack all three into {root}, then run this command again. Mind the images' own licences (Flickr)."""


class DataError(ValueError):
    """The data set is not what it should be; the message names the file and the key."""


@dataclass(frozen=True)
class Source:
    """A data set: the files of its splits, and the category that is looked for.

    Attributes:
        files: split to (COCO JSON, folder of images). ``val`` and ``calibrate`` may be absent:
            they are then drawn from train's file and left out of ``train``.
        category: its name in the files.
    """

    files: dict[str, tuple[Path, Path]]
    category: str = CATEGORY

    def file_of(self, split: str) -> tuple[Path, Path]:
        """The COCO JSON that a split is in, and its folder of images.

        Raises:
            DataError: the split is unknown or has no file.
        """
        if split not in SPLITS:
            raise DataError(f"split: {split!r} is unknown; expected one of {', '.join(SPLITS)}")
        name = "train" if split in DRAWN and split not in self.files else split
        if name not in self.files:
            given = ", ".join(self.files)
            raise DataError(f"data.files: no '{split}'; given: {given}" + ("" if split == name else f", no '{name}'"))
        return self.files[name]

    def drawn_from(self, split: str) -> tuple[str, ...]:
        """The splits that share this split's file, so that each has a part of its images alone."""
        if split not in ("train", *DRAWN) or (split in DRAWN and split in self.files):
            return ()
        return tuple(name for name in DRAWN if name not in self.files)


def open_root(root: "Path | str | Source", category: str = CATEGORY) -> Source:
    """A data set by its folder: COCO 2017's layout where there is a folder ``annotations``, eelib's otherwise."""
    if isinstance(root, Source):
        return root
    root = Path(root)
    if (root / "annotations").is_dir():
        files = {s: (root / "annotations" / f"instances_{p}.json", root / p) for s, p in COCO_PARTS.items()}
    else:
        files = {split: (root / f"{split}.json", root / split) for split in SPLITS}
    return Source(files, category)


def open_source(data: DataConfig) -> Source:
    """The data set of a configuration."""
    if not data.files:
        return open_root(resolve(data.root), data.category)
    return Source({s: (resolve(f.annotations), resolve(f.images)) for s, f in data.files.items()}, data.category)


def missing_parts(root: Path | str) -> list[str]:
    """What a folder lacks of COCO 2017: annotation files and image folders, relative to it."""
    parts = [f"annotations/instances_{part}.json" for part in COCO_PARTS.values()]
    return [p for p in [*parts, *(f"{part}/" for part in COCO_PARTS.values())] if not (Path(root) / p).exists()]


@dataclass(frozen=True)
class Index:
    """What a COCO file says of one category.

    Attributes:
        content: COCO's ``images`` (all), ``annotations`` and ``categories`` (of the category alone).
        sha256: of the file.
        others: annotations of other categories, which were dropped.
        cached: the index was on disk already.
    """

    content: dict
    sha256: str
    others: int
    cached: bool = field(default=False, compare=False)


def read_index(path: Path | str, category: str = CATEGORY) -> Index:
    """Read and check a COCO annotation file; a large one is indexed once.

    The index of a file over :data:`INDEX_FROM_BYTES` is kept in :data:`INDEX` and used again
    while the file's size and time of change stay as they were. ``iscrowd`` and ``area`` get
    COCO's meaning where an annotation lacks them: 0, and the area of the box. Annotations of
    other categories are not looked at (COCO's own train2017 has boxes without area among them).

    Raises:
        DataError: the file is missing, is not JSON, lacks a key, holds no image, does not name
            the category, holds an id twice, or a box without area, beyond the image's edge by
            more than a pixel, or with an unknown image or category.
    """
    path = Path(path)
    try:
        state = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; expected COCO JSON") from None
    key = [INDEX_VERSION, str(path.resolve()), category, state.st_size, state.st_mtime_ns]
    name = hashlib.sha256(json.dumps(key[1:3]).encode()).hexdigest()[:16]
    kept = INDEX / f"{path.stem}_{name}.json"
    if state.st_size >= INDEX_FROM_BYTES and (found := _kept_index(kept, key)):
        return found
    content, others, digest = _parse(path, category)
    _check(path, content, category)
    if state.st_size >= INDEX_FROM_BYTES:
        text = json.dumps({"key": key, "sha256": digest, "others": others, "content": content}, separators=(",", ":"))
        write_atomic(kept, lambda file: file.write(text.encode()))
    return Index(content, digest, others)


def _kept_index(path: Path, key: list) -> Index | None:
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # none yet, or damaged: it is made again
    if not isinstance(kept, dict) or kept.get("key") != key:
        return None
    return Index(kept["content"], kept["sha256"], kept["others"], cached=True)


def _parse(path: Path, category: str) -> tuple[dict, int, str]:
    """JSON without the annotations of other categories (None in their place), their number, and the file's hash."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    try:
        text = raw.decode()
        del raw  # as large as the text
        foreign = _foreign_categories(text, category)
        try:
            content, others = _filtered(*_without_polygons(text), foreign)
        except ValueError:  # once more as it is, so that the message names the file's own line
            content, others = _filtered(text, lambda held: held, foreign)
    except (ValueError, TypeError) as error:  # TypeError: an id that cannot be one, such as a list
        raise DataError(f"{path}: not valid JSON ({error})") from None
    return content, others, digest


def _filtered(text: str, polygons: Callable[[object], object], foreign: set) -> tuple[dict, int]:
    others = 0

    def drop(entry: dict) -> dict | None:
        nonlocal others
        if "bbox" in entry and "image_id" in entry and entry.get("category_id") in foreign:
            others += 1
            return None
        if "segmentation" in entry:
            entry["segmentation"] = polygons(entry["segmentation"])
        return entry

    return json.loads(text, object_hook=drop), others


def _without_polygons(text: str) -> tuple[str, Callable[[object], object]]:
    """The text with a mark for each list of polygons, and what reads the polygons of a mark.

    Polygons are nine tenths of an instances file, and most are of other categories. A key is
    never inside a string, whose quotes are escaped; lists of numbers hold neither quote nor
    brace, so the last bracket before the next of these ends the polygons.
    """
    pieces, at, starts, ends = [], 0, array("q"), array("q")
    for match in re.finditer(r'"segmentation"\s*:\s*(?=\[)', text):
        start = match.end()
        quote = text.find('"', start)
        brace = text.find("}", start, quote if quote >= 0 else len(text))
        end = text.rfind("]", start, brace if brace >= 0 else quote) + 1
        pieces.append(f'{text[at:start]}"@{len(starts)}"')
        starts.append(start)
        ends.append(end)
        at = end
    pieces.append(text[at:])

    def polygons(held: object) -> object:
        if not isinstance(held, str) or not held.startswith("@"):
            return held  # RLE
        number = int(held[1:])
        return json.loads(text[starts[number] : ends[number]])

    return "".join(pieces), polygons


def _foreign_categories(text: str, category: str) -> set:
    """Ids of the other categories, read ahead: COCO's files name them after the annotations."""
    for match in reversed(list(re.finditer(r'"categories"\s*:\s*(?=\[)', text))):
        try:
            entries, _ = json.JSONDecoder().raw_decode(text, match.end())
            return {e["id"] for e in entries} - {e["id"] for e in entries if e["name"] == category}
        except (ValueError, KeyError, TypeError):
            continue  # no list of categories: the checks will say so
    return set()


def _check(path: Path, content: dict, category: str) -> None:
    keys = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for section, required in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise DataError(f"{path}: key '{section}' is missing or not a list; expected COCO JSON")
        ids = set()
        for position, entry in enumerate(content[section]):
            if entry is None:
                continue  # of another category
            for key in required:
                if not isinstance(entry, dict) or key not in entry:
                    raise DataError(f"{path}: {section}[{position}] has no key '{key}'")
            if not isinstance(entry["id"], int):
                raise DataError(f"{path}: {section}[{position}]: 'id' is {entry['id']!r}; expected a whole number")
            if entry["id"] in ids:
                raise DataError(f"{path}: {section}[{position}]: 'id' {entry['id']} is there twice; ids must be unique")
            ids.add(entry["id"])
    if not content["images"]:
        raise DataError(f"{path}: 'images' is empty; a split needs at least one image")
    names = [entry["name"] for entry in content["categories"]]
    if category not in names:
        known = ", ".join(map(str, names[:5])) or "none"
        raise DataError(f"{path}: 'categories' has no '{category}'; the first of {len(names)}: {known}")
    images = {image["id"]: image for image in content["images"]}
    category_ids = {entry["id"] for entry in content["categories"]}
    for position, annotation in enumerate(content["annotations"]):
        if annotation is None:
            continue
        where = f"{path}: annotations[{position}] (id {annotation['id']})"
        if annotation["image_id"] not in images:
            raise DataError(f"{where}: unknown image_id {annotation['image_id']}")
        if annotation["category_id"] not in category_ids:
            raise DataError(f"{where}: unknown category_id {annotation['category_id']}")
        _check_box(where, annotation["bbox"], images[annotation["image_id"]])
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation is not None]
    if any(annotation["id"] == 0 for annotation in content["annotations"]):
        for annotation in content["annotations"]:
            annotation["id"] += 1  # pycocotools takes a match with id 0 for none
    content["categories"] = [entry for entry in content["categories"] if entry["name"] == category]


def _check_box(where: str, bbox: object, image: dict) -> None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        raise DataError(f"{where}: 'bbox' is {bbox!r}; expected [x, y, width, height]")
    x, y, width, height = bbox
    if not all(math.isfinite(v) for v in bbox) or width <= 0 or height <= 0:
        raise DataError(f"{where}: 'bbox' {bbox} has no area; width and height must be positive")
    # COCO rounds its boxes to a hundredth of a pixel, so one pixel over the edge is tolerated.
    if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        raise DataError(f"{where}: 'bbox' {bbox} leaves the image of {image['width']} x {image['height']} px")


def split_index(split: str, source: Source) -> Index:
    """What a split holds; ``sha256`` is the split's identity.

    A split with a file of its own is the whole file, and its identity is the file's hash. From a
    shared file ``val`` and ``calibrate`` get :data:`DRAWN_SHARE` of the images each and ``train`` the
    rest, by the hash of the image's id: the same on every machine, whatever a run's seed.

    Raises:
        DataError: as :func:`read_index`, or the file has too few images to be shared.
    """
    path, _ = source.file_of(split)
    whole = read_index(path, source.category)
    sharing, identity = source.drawn_from(split), whole.sha256
    if sharing or source.category != CATEGORY:
        words = (whole.sha256, split, source.category, *sharing, str(DRAWN_SHARE))
        identity = hashlib.sha256("\n".join(words).encode()).hexdigest()
    if not sharing:
        return Index(whole.content, identity, whole.others, whole.cached)
    order = sorted((i["id"] for i in whole.content["images"]), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    share = max(1, round(DRAWN_SHARE * len(order)))
    if len(order) <= share * len(sharing):
        raise DataError(f"{path}: {len(order)} images are too few to draw {' and '.join(sharing)} from them")
    parts = {name: order[k * share : (k + 1) * share] for k, name in enumerate(sharing)}
    ids = set(parts.get(split, order[share * len(sharing) :]))
    content = whole.content | {
        "images": [i for i in whole.content["images"] if i["id"] in ids],
        "annotations": [a for a in whole.content["annotations"] if a["image_id"] in ids],
    }
    return Index(content, identity, whole.others, whole.cached)


def missing_images(folder: Path, names: Iterable[str]) -> list[str]:
    """The image files that a folder lacks; one listing instead of a look at each file."""
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError:
        present = set()
    # a name with a folder in it, or in another Unicode form on disk, is not in the listing
    return [name for name in names if name not in present and not (folder / name).is_file()]
