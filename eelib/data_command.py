"""``eelib data``, and the options ``--data --images --category`` of the commands that read a data set."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from eelib.coco import (
    CATEGORY,
    DRAWN,
    HOW_TO_OBTAIN,
    Source,
    cleaned,
    inspect,
    missing_parts,
    open_root,
    open_source,
    part_of,
    read_picture,
    refuse,
    refuse_foreign,
)
from eelib.config import ConfigError, DataConfig
from eelib.faults import DataError, Problem, Problems
from eelib.files import write_atomic
from eelib.layouts import SPLITS, find_images, images_beside, whole_file
from eelib.preprocess import ImageError


def add_options(command: argparse.ArgumentParser) -> None:
    """The three options that name a data set; :func:`data_settings` reads them."""
    command.add_argument("--data", help="COCO JSON (train's when training, else test's) or a folder of splits")
    command.add_argument("--images", help="folder of a JSON's images; by default the one beside it with its name")
    add_category(command)


def add_category(command: argparse.ArgumentParser) -> None:
    """The option that names what to look for."""
    command.add_argument(
        "--category", action="append", help="category of the annotation file to look for, one or more; by default chair"
    )


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The kinds of ``eelib data`` and their options."""
    kinds = command.add_subparsers(dest="what", required=True)
    kind = kinds.add_parser("coco", help="COCO 2017 in a folder; how to obtain what is missing")
    kind.add_argument("--root", required=True, help="folder of annotations/, train2017/ and val2017/")
    add_category(kind)
    kind = kinds.add_parser("check", help="any COCO JSON and its images, or a folder of splits; showroom by default")
    add_options(kind)
    kind.add_argument("--fix", metavar="OUT.json", help="write the --data JSON without its faults")
    for kind in kinds.choices.values():
        kind.add_argument("--decode", action="store_true", help="decode every image too")
        kind.add_argument("--json", action="store_true", help="a JSON list for machines")
    kind = kinds.add_parser("convert", help="YOLO, Pascal VOC or LabelMe files as one COCO JSON")
    kind.add_argument("folder", help="folder of the annotations, and of the images unless --images names theirs")
    kind.add_argument("--from", dest="kind", required=True, choices=("yolo", "voc", "labelme"))
    kind.add_argument("--images", help="folder of the images")
    kind.add_argument("--out", required=True, help="COCO JSON that is written")


def given(args: argparse.Namespace) -> bool:
    """Whether any of the three options was."""
    return bool(args.data or args.images or args.category)


def data_settings(args: argparse.Namespace, split: str) -> dict[str, object]:
    """The options as dotted keys of a configuration; paths are the caller's, not the repository's.

    Args:
        args: with ``data``, ``images`` and ``category``, each None where it was not given.
        split: which split a JSON is.

    Raises:
        ConfigError: ``--images`` without a JSON.
        DataError: there is nothing at ``--data``, or files of another format.
    """
    settings: dict[str, object] = {} if args.category is None else {"data.category": args.category}
    path = Path(args.data).resolve() if args.data else None
    if args.images and (path is None or path.is_dir()):
        raise ConfigError(f"--images {args.images}: needs --data with the COCO JSON that names them")
    if path is None:
        return settings
    if not path.exists():
        raise DataError(f"--data {args.data}: neither a COCO JSON nor a folder of splits")
    if path.is_file():
        refuse_foreign(path)
        files = (path, Path(args.images).resolve() if args.images else images_beside(path))
    else:
        files = whole_file(path)
    if files is None:
        open_root(path)  # refuses a folder of another format
        return settings | {"data.root": str(path), "data.files": {}}
    named = {split: {"annotations": str(files[0]), "images": str(files[1])}}
    return settings | {"data.root": DataConfig().root, "data.files": named}


def option_source(args: argparse.Namespace, split: str = "test") -> Source:
    """The data set that the options name; showroom without them."""
    settings = data_settings(args, split)
    return open_source(DataConfig(**{key.removeprefix("data."): value for key, value in settings.items()}))


def counts(source: Source, split: str, content: dict) -> dict:
    """What a split holds, and which of its image files are missing.

    Args:
        source, split: whose it is.
        content: as :func:`eelib.coco.part_of` gives it.
    """
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


def undecodable(source: Source, split: str, content: dict) -> list[Problem]:
    """Images of a split that are there, and that are broken or of another size than annotated."""
    (path, folder), found = source.file_of(split), Problems()
    for entry in content["images"]:
        try:
            if (folder / entry["file_name"]).exists():
                read_picture(entry, folder, path)
        except (DataError, ImageError) as error:
            found.add("error", type(error).__name__, f"image {entry['id']}", str(error))
    return list(found.values())


def run(args: argparse.Namespace) -> int:
    """Run ``eelib data``; 0 whole, 1 image files are missing."""
    if args.what == "convert":
        from eelib.convert import convert

        images = Path(args.images) if args.images else None
        print(f"wrote {args.out}: {convert(Path(args.folder), args.kind, Path(args.out), images)}")
        return 0
    if args.what == "coco":
        missing = missing_parts(args.root)
        if missing:
            print(HOW_TO_OBTAIN.format(root=args.root))
            raise DataError(f"{args.root}: not COCO 2017 yet; missing {', '.join(missing)}")
        source, splits = open_root(args.root, args.category or CATEGORY), SPLITS
    else:
        source = option_source(args)
        splits = [s for s in SPLITS if s in source.files or (s in DRAWN and "train" in source.files)]
        if args.fix:
            return _fix(args, source)
    return _check(args, replace(source, categories=source.names), splits)


def _check(args: argparse.Namespace, source: Source, splits: Sequence[str]) -> int:
    began = time.perf_counter()
    files = {source.file_of(split)[0]: source.file_of(split)[1] for split in splits}
    inspected = {path: inspect(path, source.names, folder) for path, folder in files.items()}
    broken = {path for path, (_, found) in inspected.items() for problem in found if problem.severity == "error"}
    rows = []
    for split in splits:
        contents, found = inspected[path := source.file_of(split)[0]]
        rows.append({"split": split, "annotations": str(path), "problems": found})
        if path in broken:
            continue
        try:
            content = part_of(contents, split, source).content
        except DataError as error:  # it cannot be drawn
            found.append(Problem("error", "", str(error).removeprefix(f"{path}: ")))
            continue
        rows[-1] |= counts(source, split, content)
        if split in DRAWN and not rows[-1]["boxes"]:
            text = f"'{split}' has no object: no epoch can be chosen by it, and nothing calibrated"
            found.append(Problem("warning", "", text))
        found += undecodable(source, split, content) if args.decode else ()
    if args.json:
        print(json.dumps([row | {"problems": [problem._asdict() for problem in row["problems"]]} for row in rows]))
    else:
        print(table([row for row in rows if "images" in row], source.names))
        print(f"counted{' and decoded' if args.decode else ''} in {time.perf_counter() - began:.1f} s")
        for path, (_, found) in inspected.items():
            for problem in found:
                print(f"{problem.severity}: {path}: {problem}")
    for path, (_, found) in inspected.items():
        refuse(path, found)
    lacking = [row for row in rows if row["missing_files"]]
    for row in lacking:
        print(
            f"eelib: {row['split']}: {row['missing_files']} image files are missing, first {row['first_missing']}; "
            "training and evaluation refuse this split",
            file=sys.stderr,
        )
    return 1 if lacking else 0


def _fix(args: argparse.Namespace, source: Source) -> int:
    if not args.data or Path(args.data).is_dir() and whole_file(Path(args.data)) is None:
        raise ConfigError("--fix: needs --data with one COCO JSON")
    (path, folder), out = source.file_of("test"), Path(args.fix)
    if out.exists() and out.samefile(path):
        raise ConfigError(f"--fix {out}: is the file that is read; expected another one")
    content = cleaned(path, args.category, folder)
    write_atomic(out, lambda file: file.write(msgspec.json.encode(content)))
    boxes = len(content["annotations"])
    print(f"wrote {out}: {len(content['images'])} images, {boxes} boxes; `--images {folder}` has its images")
    return 0


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
