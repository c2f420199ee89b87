"""Folders of data sets as tools write them: which COCO file is which split, and where its images lie."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

SPLITS = ("train", "val", "calibrate", "test")
COCO_PARTS = {"train": "train2017", "test": "val2017"}
ROBOFLOW, ROBOFLOW_PARTS = "_annotations.coco.json", {"train": "train", "val": "valid", "test": "test"}
CVAT_PARTS = {"train": ("train", "Train"), "val": ("val", "validation", "Validation"), "test": ("test", "Test")}
# One file for all images, and the folder that they lie in: CVAT, FiftyOne, Label Studio, LabelMe's labelme2coco.
WHOLE = {
    "annotations/instances_default.json": "images",
    "labels.json": "data",
    "result.json": "images",
    "annotations.json": "JPEGImages",
}
FOREIGN = {"yolo": ("data.yaml", "data.yml", "obj.names", "labels/**/*.txt", "*/labels/*.txt"), "voc": ("**/*.xml",)}

Files = dict[str, tuple[Path, Path]]


def split_files(root: Path) -> Files:
    """The COCO JSON and the folder of images of each split: COCO 2017's, Roboflow's, CVAT's or eelib's layout.

    eelib's own, ``test.json`` beside ``test/``, is the answer where nothing is recognised.
    """
    notes, roboflow, cvat = root / "annotations", {}, {}
    for split, part in ROBOFLOW_PARTS.items():
        if (path := root / part / ROBOFLOW).is_file():
            roboflow[split] = (path, path.parent)
    for split, part in ((split, part) for split, parts in CVAT_PARTS.items() for part in parts):
        if (path := notes / f"instances_{part}.json").is_file():
            cvat[split] = (path, root / "images" / part)
    if roboflow or cvat:
        return roboflow or cvat
    if notes.is_dir():
        return {split: (notes / f"instances_{part}.json", root / part) for split, part in COCO_PARTS.items()}
    return {split: (root / f"{split}.json", root / split) for split in SPLITS}


def whole_file(root: Path) -> tuple[Path, Path] | None:
    """The COCO JSON and the folder of images where a tool wrote all images into one file, or None."""
    if len(parts := [root / part for part in ROBOFLOW_PARTS.values() if (root / part / ROBOFLOW).is_file()]) == 1:
        return parts[0] / ROBOFLOW, parts[0]
    for name, images in WHOLE.items():
        if (root / name).is_file():
            return root / name, root / images if (root / images).is_dir() else root
    return None


def images_beside(path: Path) -> Path:
    """The folder of a COCO JSON's images where none is given: the one with its name, or the tool's, or its own."""
    beside, above, part = path.parent, path.parent.parent, path.stem.removeprefix("instances_")
    folders = [path.with_suffix("")]
    if beside.name == "annotations":
        folders += [above / part, above / "images" / part, above / "images"]
    folders += [beside / images for name, images in WHOLE.items() if name == path.name]
    if path.name != ROBOFLOW:
        folders.append(beside / "images")
    return next((folder for folder in folders if folder.is_dir()), beside)


def foreign_format(path: Path) -> str | None:
    """``yolo``, ``voc`` or ``labelme`` where a file or folder is of that format, which a converter reads; else None."""
    if path.is_file():
        return {".yaml": "yolo", ".yml": "yolo", ".txt": "yolo", ".names": "yolo", ".xml": "voc"}.get(path.suffix)
    for name, patterns in FOREIGN.items():
        if any(next(path.glob(pattern), None) for pattern in patterns):
            return name
    first = next(path.glob("*.json"), None)
    return "labelme" if first and b'"shapes"' in first.read_bytes() else None


def find_images(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Where the images that a COCO file names lie in a folder.

    A name that is there as it stands is taken. Of others, such as ``images\\a.jpg``, ``C:/photos/a.jpg`` or
    ``a%20b.JPG``, the last part is looked for in the folder and below it, in any case and Unicode form. Of several
    files the one counts whose folders agree best; none counts where two agree equally or two names ask for one file.

    Returns:
        Name to path relative to the folder, of the names that are there; one listing, not a look at each file.
    """
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return {}
    names = set(names)
    found = {name: name for name in names if name in present or os.path.isfile(folder / name)}
    lost = names - found.keys()
    if not lost:
        return found
    files = defaultdict(list)
    for root, _, below in os.walk(folder):
        for name in below:
            files[_parts(name)[0]].append(os.path.relpath(os.path.join(root, name), folder))
    guesses = {}
    for name in lost:
        for form in (name, unquote(name), unquote(name.partition("?")[0])):
            wanted = _parts(form)
            agreeing = [(len(os.path.commonprefix([wanted, _parts(file)])), file) for file in files.get(wanted[0], ())]
            best = [file for agreement, file in agreeing if agreement == max(agreeing)[0]]
            if len(best) == 1:
                guesses[name] = best[0]
                break
    asked = Counter([*found.values(), *guesses.values()])
    return found | {name: path for name, path in guesses.items() if asked[path] == 1}


def _parts(name: str) -> list[str]:
    """A path's parts in one Unicode form and case, the last one first."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().split("/")[::-1]
