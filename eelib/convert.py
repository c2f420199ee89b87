"""YOLO, Pascal VOC and LabelMe files as one COCO JSON; globox reads their boxes (``pip install '.[convert]'``)."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import yaml
from PIL import Image as PillowImage

from eelib.faults import DataError
from eelib.files import read_text, shorten, write_json
from eelib.layouts import find_images
from eelib.preprocess import read_sizes

MAX_TEXT_BYTES = 16 * 2**20  # of the boxes of an image, or of the classes; both have some kB
# An image's place under the folder of images, and its boxes: category and [left, top, width, height] in pixels.
Image = tuple[str, list[tuple[str, tuple[float, float, float, float]]]]
Boxes = tuple[list[str], Iterable[Image]]  # with the classes in order, where the format lists them


def convert(folder: Path, kind: str, out: Path, images: Path | None = None) -> str:
    """Write the annotations of a folder, at any depth, as COCO JSON.

    Args:
        folder: of the annotations; of one split, where each split is to be a file.
        kind: ``yolo`` (boxes or polygons, whose boxes are taken), ``voc`` or ``labelme`` (rectangles and polygons).
        out: JSON that is written; its ``file_name`` are relative to the folder of the images.
        images: folder of the images; None is ``folder``.

    Returns:
        What was written, in words.

    Raises:
        DataError: an annotation cannot be read, or has no image.
    """
    try:
        import globox  # noqa: F401 - the readers below need it
    except ImportError:
        raise DataError("converting needs the package globox: pip install '.[convert]'") from None
    images = images or folder
    if not folder.is_dir() or not images.is_dir():
        raise DataError(f"{folder if images.is_dir() else images}: no such folder")
    classes, boxes = {"yolo": _yolo, "voc": _voc, "labelme": _labelme}[kind](folder, images)
    boxes = list(boxes)
    classes = classes or sorted({category for _, rows in boxes for category, _ in rows})
    labels = {name: label for label, name in enumerate(classes, 1)}
    content: dict[str, list] = {"images": [], "annotations": []}
    for number, (name, rows) in enumerate(boxes, 1):
        width, height = read_sizes(images / name)[0]
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for category, bbox in rows:
            row = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": labels[category]}
            content["annotations"].append(row | {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
    if not boxes:
        raise DataError(f"{folder}: no {kind} annotation with an image under {images}")
    content["categories"] = [{"id": label, "name": name} for name, label in labels.items()]
    write_json(out, content)
    names = ", ".join(classes) or "no category"
    return f"{len(boxes)} images, {len(content['annotations'])} boxes of {names}; --images {images} has its images"


def _yolo(folder: Path, images: Path) -> Boxes:
    """Each image and its boxes: ``images/…/a.jpg`` has them in ``labels/…/a.txt``, any other in ``a.txt`` beside it."""
    from globox import BoundingBox

    names = _yolo_names(folder)
    labels = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.txt")}
    by_stem = {path.stem: path for path in labels.values()}

    def read(image: Path) -> Image:
        place = image.relative_to(images)
        there = Path(*("labels" if part == "images" else part for part in place.parts)).with_suffix("")
        path = labels.get(there) or labels.get("labels" / there) or by_stem.get(image.stem)
        rows, size = [], read_sizes(image)[0]
        for number, line in enumerate(_text(path).splitlines() if path else [], 1):
            parse = BoundingBox.from_yolo_v5 if len(line.split()) < 7 else BoundingBox.from_yolo_seg
            try:
                if line.strip():
                    box = parse(line, image_size=size)
                    rows.append((names[int(box.label)] if names else box.label, box.ltwh))
            except Exception as error:  # globox raises what it meets, assertions among them
                raise DataError(f"{path}: line {number} is {shorten(line)}: not a box of YOLO ({error!r})") from None
        return place.as_posix(), rows

    suffixes = set(PillowImage.registered_extensions())
    return names, (read(path) for path in sorted(images.rglob("*")) if path.suffix.lower() in suffixes)


def _yolo_names(folder: Path) -> list[str]:
    """Names of the classes, from data.yaml, classes.txt or obj.names in the folder or up to two above."""
    for place in (folder, *folder.resolve().parents[:2]):
        for path in (place / "data.yaml", place / "data.yml"):
            if path.is_file():
                try:
                    names = yaml.safe_load(_text(path))["names"]
                    return [str(names[k]) for k in range(len(names))]
                except (yaml.YAMLError, KeyError, TypeError, IndexError, RecursionError):
                    raise DataError(f"{path}: key 'names' is not a list of classes") from None
        for path in (place / "classes.txt", place / "obj.names"):
            if path.is_file():
                return _text(path).rstrip().replace("\r\n", "\n").split("\n")
    return []


def _voc(folder: Path, images: Path) -> Boxes:
    from globox import BoundingBox

    def read(path: Path) -> Image:
        root = ElementTree.parse(path).getroot()
        boxes = [BoundingBox.from_xml(node) for node in root.iter("object")]
        return root.findtext("filename") or path.stem, [(box.label, box.ltwh) for box in boxes]

    return [], _with_images(folder.rglob("*.xml"), images, read)


def _labelme(folder: Path, images: Path) -> Boxes:
    from globox import Annotation

    def read(path: Path) -> Image:
        annotation = Annotation.from_labelme(path, include_poly=True)
        return annotation.image_id, [(box.label, box.ltwh) for box in annotation.boxes]

    return [], _with_images(folder.rglob("*.json"), images, read)


def _with_images(paths: Iterable[Path], images: Path, read: Callable[[Path], Image]) -> Iterator[Image]:
    """Annotations of one file an image, each with the image's place under ``images``."""
    rows = {}
    for path in sorted(paths):
        try:
            rows[path] = read(path)
        except Exception as error:
            raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    places = find_images(images, [name for name, _ in rows.values()])
    for path, (name, boxes) in rows.items():
        if name not in places:
            raise DataError(f"{path}: its image {shorten(name)} is not under {images}")
        yield places[name].replace(os.sep, "/"), boxes


def _text(path: Path) -> str:
    return read_text(path, MAX_TEXT_BYTES, "boxes or classes of YOLO", DataError)
