"""What ``eelib data`` prints and fixes, and the options ``--data --images --category`` of all commands; no torch."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from eelib.annotations import Contents
from eelib.coco import (
    CATEGORY,
    DRAWN,
    Source,
    cleaned,
    inspect,
    open_root,
    open_source,
    part_of,
    read_picture,
    refuse,
    refuse_foreign,
)
from eelib.config import ConfigError, DataConfig
from eelib.door import say
from eelib.faults import DataError, Problem, Problems
from eelib.files import write_atomic
from eelib.layouts import COCO_PARTS, SPLITS, find_images, images_beside, whole_file
from eelib.preprocess import ImageError

HOW_TO_OBTAIN = """COCO 2017 comes from its official site, cocodataset.org (Download); eelib downloads nothing.
  annotations_trainval2017.zip  241 MB  annotations/instances_train2017.json, annotations/instances_val2017.json
  train2017.zip                  18 GB  train2017/, 118,287 images
  val2017.zip                     1 GB  val2017/, 5,000 images
Unpack all three into {root}, then run this command again. Mind the images' own licences (Flickr)."""


def data_settings(
    data: Path | None, images: Path | None, category: Sequence[str] | None, split: str
) -> dict[str, object]:
    """The options ``--data --images --category`` as dotted keys of a configuration, with paths of the caller's.

    Args:
        data: COCO JSON or a folder of splits.
        images: folder of the JSON's images; None is the one beside it.
        category: names to look for, in the order of labels.
        split: which split a JSON is.

    Raises:
        ConfigError: ``--images`` without a JSON.
        DataError: there is nothing at ``--data``, or files of another format.
    """
    settings: dict[str, object] = {} if category is None else {"data.category": list(category)}
    if images and (data is None or data.is_dir()):
        raise ConfigError(f"--images {images}: needs --data with the COCO JSON that names them")
    if data is None:
        return settings
    path = data.resolve()
    if not path.exists():
        raise DataError(f"--data {data}: neither a COCO JSON nor a folder of splits")
    if path.is_file():
        refuse_foreign(path)
        files = (path, images.resolve() if images else images_beside(path))
    else:
        files = whole_file(path)
    if files is None:
        open_root(path)  # refuses a folder of another format
        return settings | {"data.root": str(path), "data.files": {}}
    named = {split: {"annotations": str(files[0]), "images": str(files[1])}}
    return settings | {"data.root": DataConfig().root, "data.files": named}


def chosen_source(settings: dict[str, object], default: DataConfig | None = None) -> Source:
    """The data set of :func:`data_settings`, over the default one; showroom where there is none."""
    values = (default or DataConfig()).model_dump()
    return open_source(DataConfig(**values | {key.removeprefix("data."): value for key, value in settings.items()}))


def counts(source: Source, split: str, content: dict) -> dict:
    """What a split with such content holds, and which of its image files are missing."""
    path, folder = source.file_of(split)
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    files = [image["file_name"] for image in content["images"]]
    missing = sorted(set(files) - find_images(folder, files).keys())
    by_id = Counter(a["category_id"] for a in objects)
    return {
        "split": split,
        "images": len(files),
        "with_category": len({a["image_id"] for a in objects}),
        "boxes": len(objects),
        "crowd": len(content["annotations"]) - len(objects),
        "missing_files": len(missing),
        "first_missing": str(folder / missing[0]) if missing else None,
        "annotations": str(path),
        "categories": {category["name"]: by_id[category["id"]] for category in content["categories"]},
    }


def check_coco(root: Path, category: Sequence[str] | None, decode: bool, as_json: bool) -> int:
    """``eelib data coco``: what COCO 2017 in a folder holds, or how to obtain what is missing; the exit status."""
    needed = [f"annotations/instances_{part}.json" for part in COCO_PARTS.values()]
    needed += [f"{part}/" for part in COCO_PARTS.values()]
    if missing := [name for name in needed if not (root / name).exists()]:
        print(HOW_TO_OBTAIN.format(root=root))
        raise DataError(f"{root}: not COCO 2017 yet; missing {', '.join(missing)}")
    return check(open_root(root, category or CATEGORY), decode, as_json)


def check(source: Source, decode: bool, as_json: bool) -> int:
    """``eelib data check``: print what the splits of a data set hold and all that is wrong with them.

    Args:
        decode: decode every image, too.
        as_json: print one JSON list.

    Returns:
        The exit status: 0, or 1 where image files are missing.

    Raises:
        DataError: the first error; all are printed before.
    """
    began, source = time.perf_counter(), replace(source, categories=source.names)
    splits = [s for s in SPLITS if s in source.files or (s in DRAWN and "train" in source.files)]
    files = dict(source.file_of(split) for split in splits)
    inspected = {path: inspect(path, source.names, folder) for path, folder in files.items()}
    broken = {path for path, (_, found) in inspected.items() for problem in found if problem.severity == "error"}
    rows = []
    for split in splits:
        contents, found = inspected[path := source.file_of(split)[0]]
        rows.append({"split": split, "annotations": str(path), "problems": found})
        if path not in broken:
            rows[-1] |= _held(source, split, contents, found, decode)
    if as_json:
        print(json.dumps([row | {"problems": [problem._asdict() for problem in row["problems"]]} for row in rows]))
    else:
        print(table([row for row in rows if "images" in row], source.names))
        print(f"counted{' and decoded' if decode else ''} in {time.perf_counter() - began:.1f} s")
        for path, (_, found) in inspected.items():
            for problem in found:
                print(f"{problem.severity}: {path}: {problem}")
    for path, (_, found) in inspected.items():
        refuse(path, found)
    lacking = [row for row in rows if row["missing_files"]]
    for row in lacking:
        say(
            f"{row['split']}: {row['missing_files']} image files are missing, first {row['first_missing']}; "
            "training and evaluation refuse this split"
        )
    return 1 if lacking else 0


def _held(source: Source, split: str, contents: Contents, found: list[Problem], decode: bool) -> dict:
    """Counts of a split; what is wrong with it as a part of its file is added to ``found``."""
    path, folder = source.file_of(split)
    try:
        content = part_of(contents, split, source).content
    except DataError as error:  # it cannot be drawn
        found.append(Problem("error", "", str(error).removeprefix(f"{path}: ")))
        return {}
    row = counts(source, split, content)
    if split in ("val", "calibrate") and not row["boxes"]:
        text = f"'{split}' has no object: no epoch can be chosen by it, and nothing calibrated"
        found.append(Problem("warning", "", text))
    broken = Problems()  # images that are there, and that cannot be decoded or are of another size than annotated
    for entry in content["images"] if decode else ():
        try:
            if (folder / entry["file_name"]).exists():
                read_picture(entry, folder, path)
        except (DataError, ImageError) as error:
            broken.add("error", type(error).__name__, f"image {entry['id']}", str(error))
    found += broken.values()
    return row


def fix(source: Source, category: Sequence[str] | None, out: Path) -> None:
    """``eelib data check --fix``: write the one COCO JSON of a source without its faults."""
    if "test" not in source.files or len(source.files) > 1:
        raise ConfigError("--fix: needs --data with one COCO JSON")
    path, folder = source.file_of("test")
    if out.exists() and out.samefile(path):
        raise ConfigError(f"--fix {out}: is the file that is read; expected another one")
    content = cleaned(path, category, folder)
    write_atomic(out, lambda file: file.write(msgspec.json.encode(content)))
    boxes = len(content["annotations"])
    print(f"wrote {out}: {len(content['images'])} images, {boxes} boxes; `--images {folder}` has its images")


def table(rows: list[dict], categories: Sequence[str]) -> str:
    """Counts as aligned text, one line a split, and the objects of each category where there are several."""
    what = categories[0] if len(categories) == 1 else "an object"
    names = {"images": "images", "with_category": f"with {what}", "boxes": "boxes", "crowd": "crowd"}
    names["missing_files"] = "missing files"
    lines = ["  ".join(["split    ", *names.values(), "from"])]
    for row in rows:
        cells = [f"{row[key]:>{len(title)},}" for key, title in names.items()]
        lines.append("  ".join([f"{row['split']:9}", *cells, row["annotations"]]))
    for row in rows if len(categories) > 1 else ():
        objects = ", ".join(f"{name} {count:,}" for name, count in row["categories"].items())
        lines.append(f"{row['split']:9}  objects: {objects}")
    return "\n".join(lines)
