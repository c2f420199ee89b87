"""Data sets in COCO's format: their files, the categories that are looked for, and the splits that are made of them.

No torch, no pycocotools: this module says which images, boxes and categories a split has.
"""

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from eelib.annotations import Contents, all_categories, as_names, examine
from eelib.config import ROOT, DataConfig, resolve
from eelib.faults import DataError, Problem
from eelib.layouts import SPLITS, foreign_format, split_files, whole_file
from eelib.preprocess import read_image, read_sizes

SHOWROOM = ROOT / "data" / "showroom"
CATEGORY = "chair"
# Splits that have no file of their own are drawn from train's file, this share of its images each:
# 4,731 of COCO's 118,287, about as many as val2017 has; of a small file a tenth, up to so many images.
DRAWN, DRAWN_SHARE, SMALL_SHARE, SMALL = ("val", "calibrate", "test"), 0.04, 0.1, 50


@dataclass(frozen=True)
class Source:
    """A data set: the files of its splits, and the categories that are looked for.

    Attributes:
        files: split to (COCO JSON, folder of images). ``val``, ``calibrate`` and ``test`` may be absent:
            they are then drawn from train's file and left out of ``train``.
        categories: their names in the files, in the order of labels: label k + 1 is ``categories[k]``.
            None takes all of train's file, or of the first one; a name alone stands for itself.
    """

    files: dict[str, tuple[Path, Path]]
    categories: tuple[str, ...] | None = (CATEGORY,)

    def __post_init__(self):
        object.__setattr__(self, "categories", as_names(self.categories))

    @property
    def names(self) -> tuple[str, ...]:
        """The categories by name; reads a file where all of it are wanted."""
        return all_categories(self._first_file[0]) if self.categories is None else self.categories

    def category_rows(self) -> list[dict]:
        """``id`` and ``name`` of each category in the order of labels, from train's file or the first one."""
        path, images = self._first_file
        return [{"id": c["id"], "name": c["name"]} for c in read_coco(path, self.names, images).content["categories"]]

    @property
    def _first_file(self) -> tuple[Path, Path]:
        return self.files["train"] if "train" in self.files else next(iter(self.files.values()))

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


def open_root(root: "Path | str | Source", categories: str | Sequence[str] | None = CATEGORY) -> Source:
    """A data set by its folder: COCO 2017's layout, that of a known tool, or eelib's.

    Raises:
        DataError: the folder holds YOLO, Pascal VOC or LabelMe files.
    """
    if isinstance(root, Source):
        return root
    root = Path(root)
    files = {"train": whole} if (whole := whole_file(root)) else split_files(root)
    if not any(path.is_file() for path, _ in files.values()):
        refuse_foreign(root)
    return Source(files, categories)


def refuse_foreign(path: Path) -> None:
    """:class:`DataError` that names the converter, where a file or folder is of another tool's format."""
    if kind := foreign_format(path):
        folder = path if path.is_dir() else path.parent
        command = f"eelib data convert {folder} --from {kind} --out my.json"
        raise DataError(f"{path}: looks like {kind.upper()}, not COCO JSON; `{command}` converts it")


def open_source(data: DataConfig) -> Source:
    """The data set of a configuration.

    Examples:
        >>> source = eelib.open_source(eelib.load_config("params/exits_256.yaml").data)
        >>> list(source.names)
        ['chair']
    """
    if not data.files:
        return open_root(resolve(data.root), data.category)
    return Source({s: (resolve(f.annotations), resolve(f.images)) for s, f in data.files.items()}, data.category)


def read_coco(
    path: Path | str,
    categories: str | Sequence[str] | None = CATEGORY,
    images: Path | None = None,
    segmentations: bool = False,
) -> Contents:
    """Read and check a COCO annotation file.

    What is plain is put right: numbers as text, ``iscrowd`` and ``area`` that are missing (0, and the area of the
    box), ids of annotations below 1, several categories of one name. What is likely wrong is logged, once.

    Args:
        path: of the file.
        categories: names to look for, in the order of their labels; None takes all of the file.
        images: folder of the images. With it, a size that the file lacks is taken from the image, and names that
            are not there as they stand are looked for by their last part.
        segmentations: check them, and keep them.

    Raises:
        DataError: the first fault; :func:`inspect` lists all.
    """
    contents, found = examine(path, categories, images, "error" if segmentations else None)
    refuse(path, found)
    for doubt in _doubts(contents):
        _tell(f"{doubt.severity}: {path}: {doubt}")
    return contents


@functools.cache
def _tell(line: str) -> None:
    """Log a line once in a process, however often a file is read."""
    logging.getLogger(__name__).warning(line)


def refuse(path: Path | str, found: Sequence[Problem]) -> None:
    """:class:`DataError` that tells the first error of a file, if there is one, and how many others there are."""
    errors = [problem for problem in found if problem.severity == "error"]
    if errors:
        others = f"; and {len(errors) - 1} more, `eelib data check` lists them" if len(errors) > 1 else ""
        raise DataError(f"{path}: {errors[0]}{others}")


def inspect(
    path: Path | str, categories: str | Sequence[str] | None = CATEGORY, images: Path | None = None
) -> tuple[Contents | None, list[Problem]]:
    """The sound content of a file, if it is COCO JSON at all, and all problems, the errors first.

    These are the faults of the file and of its segmentations, what is likely wrong, and what the reader puts right.
    The arguments are those of :func:`read_coco`.
    """
    try:
        contents, found = examine(path, categories, images, segmentations="warning")
    except DataError as error:
        return None, [Problem("error", "", str(error).removeprefix(f"{path}: "))]
    listed, order = [*found, *_emptiness(contents), *_doubts(contents)], ("error", "warning", "note")
    return contents, sorted(listed, key=lambda problem: order.index(problem.severity))


def _emptiness(contents: Contents) -> Iterator[Problem]:
    """A warning where no object is left; whoever trains or evaluates on it is refused anyway."""
    annotations = contents.content["annotations"]
    names = ", ".join(repr(row["name"]) for row in contents.content["categories"])
    crowd = sum(row["iscrowd"] for row in annotations)
    if names and crowd == len(annotations):
        what = f"all {crowd} boxes are crowds ('iscrowd' 1)" if crowd else "there is no box"
        yield _warning(f"no object of {names} is left: {what}; nothing can be trained or evaluated")


def _doubts(contents: Contents) -> Iterator[Problem]:
    """Warnings of what is legal and likely wrong."""
    images, annotations = contents.content["images"], contents.content["annotations"]
    files = Counter(image["file_name"] for image in images)
    if twice := [name for name, count in files.items() if count > 1]:
        yield _warning(f"picture {twice[0]!r} is there under {files[twice[0]]} ids", len(twice))
    boxes = Counter(_place(row) for row in annotations)
    if twice := [box for box, count in boxes.items() if count > 1]:
        text = f"box {list(twice[0][2:])} is there {boxes[twice[0]]} times on image {twice[0][0]}"
        yield _warning(text, len(twice))
    if annotations and _normalised(annotations):
        yield _warning("every box lies in 0..1: shares of the image in place of pixels? `--fix` multiplies them")
    used = {row["category_id"] for row in annotations}
    if annotations and (empty := [row for row in contents.content["categories"] if row["id"] not in used]):
        yield _warning(f"category {empty[0]['name']!r} has no box", len(empty))
    if contents.left_out:
        listed = ", ".join(f"{name!r} {count}" for name, count in contents.left_out.most_common(5))
        others = f" and {len(contents.left_out) - 5} more" if len(contents.left_out) > 5 else ""
        yield _warning(f"{contents.left_out.total()} boxes of other categories are left out: {listed}{others}")


def _warning(message: str, count: int = 1) -> Problem:
    return Problem("warning", "", message, count)


def _place(row: dict) -> tuple:
    return (row["image_id"], row["category_id"], *row["bbox"])


def _normalised(annotations: Sequence[dict]) -> bool:
    return all(0 <= value <= 1 for row in annotations for value in row["bbox"])


def cleaned(path: Path | str, categories: str | Sequence[str] | None, images: Path | None = None) -> dict:
    """COCO content without the faults that :func:`inspect` lists.

    What cannot be read is dropped, boxes are cut at the edges of their image, those in 0..1 become pixels, one
    picture has one id and each box stands once. The arguments are those of :func:`read_coco`.
    """
    content = examine(path, categories, images, segmentations="warning")[0].content
    by_name: dict[str, dict] = {}
    first = {image["id"]: by_name.setdefault(image["file_name"], image)["id"] for image in content["images"]}
    boxes: dict[tuple, dict] = {}
    shares = _normalised(content["annotations"])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for row in content["annotations"]:
        row["image_id"] = first[row["image_id"]]
        if shares:
            row["bbox"] = [share * side for share, side in zip(row["bbox"], sizes[row["image_id"]] * 2, strict=True)]
            row["area"] = row["bbox"][2] * row["bbox"][3]
        boxes.setdefault(_place(row), row)
    return content | {"images": list(by_name.values()), "annotations": list(boxes.values())}


def read_picture(entry: dict, folder: Path, file: Path) -> Image.Image:
    """The upright RGB image of an entry of ``images``; ``file`` is where the entry was read, for the message.

    Where the file states the size of the stored image, which an EXIF rotation turns, the entry gets the upright
    one's: boxes and masks belong to that.

    Raises:
        DataError: the image has another size.
        ImageError: it is missing or broken.
    """
    path, stated = folder / entry["file_name"], (entry["width"], entry["height"])
    image = read_image(path)
    if image.size != stated and read_sizes(path)[1] != stated:
        size, other = (f"{width} x {height}" for width, height in (image.size, stated))
        raise DataError(f"{path}: image of {size} px; {file} says {other} (image id {entry['id']})")
    entry["width"], entry["height"] = image.size
    return image


def read_split(split: str, source: Source, segmentations: bool = False) -> Contents:
    """What a split holds; ``sha256`` is the split's identity.

    A split with a file of its own is the whole file, and its identity is the file's hash. From a
    shared file the drawn splits get :data:`DRAWN_SHARE` of the images each and ``train`` the
    rest, by the hash of the image's id: the same on every machine, whatever a run's seed.

    Raises:
        DataError: as :func:`read_coco`, the file has too few images or objects to be shared, or ``train`` has none.
    """
    (path, images), names = source.file_of(split), source.names
    return part_of(read_coco(path, names, images, segmentations), split, replace(source, categories=names))


def part_of(whole: Contents, split: str, source: Source) -> Contents:
    """A split's part of its file; arguments and errors as for :func:`read_split`."""
    sharing, names, identity, content = source.drawn_from(split), source.names, whole.sha256, whole.content
    if sharing or names != (CATEGORY,):
        looked_for = names[0] if len(names) == 1 else json.dumps(names)
        words = (whole.sha256, split, looked_for, *sharing, str(DRAWN_SHARE))
        identity = hashlib.sha256("\n".join(words).encode()).hexdigest()
    objects = {row["image_id"] for row in content["annotations"] if not row["iscrowd"]}
    path = source.file_of(split)[0]
    if split == "train" and not objects:
        raise DataError(f"{path}: no object of {', '.join(map(repr, names))}: there is nothing to train on")
    if sharing:
        ids = _draw([image["id"] for image in content["images"]], objects, sharing, path)[split]
        content = content | {
            "images": [image for image in content["images"] if image["id"] in ids],
            "annotations": [row for row in content["annotations"] if row["image_id"] in ids],
        }
    return replace(whole, content=content, sha256=identity)


def _draw(ids: Sequence[int], objects: set[int], sharing: Sequence[str], path: Path) -> dict[str, set[int]]:
    """Images of each drawn split and of ``train``; ``objects`` are the images with one, of which each gets some."""
    order = sorted(ids, key=lambda i: hashlib.sha256(str(i).encode()).digest())
    share = max(1, round(DRAWN_SHARE * len(order)), min(SMALL, round(SMALL_SHARE * len(order))))
    with_object = [i for i in order if i in objects]
    if len(order) <= share * len(sharing) or len(with_object) <= len(sharing):
        have = f"{len(order)} images, {len(with_object)} of them with an object,"
        raise DataError(f"{path}: {have} are too few to draw {', '.join(sharing)} from them")

    def cut(order: list[int]) -> dict[str, set[int]]:
        ends = {name: share * number for number, name in enumerate(sharing, 1)}
        parts = {name: set(order[end - share : end]) for name, end in ends.items()}
        return parts | {"train": set(order[share * len(sharing) :])}

    parts = cut(order)
    if any(part.isdisjoint(objects) for part in parts.values()):
        firsts = with_object[: len(parts)]
        order = [i for i in order if i not in firsts]
        for number, image in enumerate(firsts):  # each part begins with an image that has an object
            order.insert(share * number, image)
        parts = cut(order)
    return parts
