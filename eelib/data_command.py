"""``eelib data``, the options ``--data --images --category``, and the speed of the index on a file of COCO's size."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from eelib.config import ConfigError, DataConfig
from eelib.sources import (
    COCO_PARTS,
    HOW_TO_OBTAIN,
    SPLITS,
    DataError,
    Source,
    missing_images,
    missing_parts,
    open_root,
    open_source,
    split_index,
)


def add_options(command: argparse.ArgumentParser) -> None:
    """The three options that name a data set; :func:`data_settings` reads them."""
    command.add_argument("--data", help="COCO JSON (train's when training, else test's) or a folder of splits")
    command.add_argument("--images", help="folder of a JSON's images; by default the one beside it with its name")
    command.add_argument("--category", help="category of the annotation file to look for; by default chair")


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
        DataError: there is nothing at ``--data``.
    """
    settings: dict[str, object] = {} if args.category is None else {"data.category": args.category}
    path = Path(args.data).resolve() if args.data else None
    if args.images and (path is None or path.is_dir()):
        raise ConfigError(f"--images {args.images}: needs --data with the COCO JSON that names them")
    if path is None:
        return settings
    if not path.exists():
        raise DataError(f"--data {args.data}: neither a COCO JSON nor a folder of splits")
    if path.is_dir():
        return settings | {"data.root": str(path), "data.files": {}}
    images = Path(args.images).resolve() if args.images else path.with_suffix("")
    files = {split: {"annotations": str(path), "images": str(images)}}
    return settings | {"data.root": DataConfig().root, "data.files": files}


def option_source(args: argparse.Namespace, split: str = "test") -> Source:
    """The data set that the options name; showroom without them."""
    settings = data_settings(args, split)
    return open_source(DataConfig(**{key.removeprefix("data."): value for key, value in settings.items()}))


def counts(split: str, source: Source) -> dict:
    """What a split holds, and which of its image files are missing."""
    index, (path, folder) = split_index(split, source), source.file_of(split)
    objects = [a for a in index.content["annotations"] if not a["iscrowd"]]
    missing = missing_images(folder, [image["file_name"] for image in index.content["images"]])
    return {
        "split": split,
        "images": len(index.content["images"]),
        "with_category": len({a["image_id"] for a in objects}),
        "boxes": len(objects),
        "crowd": len(index.content["annotations"]) - len(objects),
        "missing_files": len(missing),
        "first_missing": str(folder / missing[0]) if missing else None,
        "annotations": str(path),
        "kept_index": index.cached,
    }


def run(args: argparse.Namespace) -> int:
    """Run ``eelib data coco`` or ``eelib data check``; 0 whole, 1 image files are missing."""
    if args.what == "coco":
        missing = missing_parts(args.root)
        if missing:
            print(HOW_TO_OBTAIN.format(root=args.root))
            raise DataError(f"{args.root}: not COCO 2017 yet; missing {', '.join(missing)}")
        source, splits = open_root(args.root, args.category or DataConfig().category), SPLITS
    else:
        source = option_source(args)
        splits = [s for s in SPLITS if s in source.files or (args.data and "train" in source.files)]
    began = time.perf_counter()
    rows = [counts(split, source) for split in splits]
    seconds = time.perf_counter() - began
    if args.json:
        print(json.dumps(rows))
    else:
        print(table(rows, source.category))
        print(f"counted in {seconds:.1f} s; {'kept index' if rows[0]['kept_index'] else 'annotation files read'}")
    lacking = [row for row in rows if row["missing_files"]]
    for row in lacking:
        print(
            f"eelib: {row['split']}: {row['missing_files']} image files are missing, first {row['first_missing']}; "
            "training and evaluation refuse this split",
            file=sys.stderr,
        )
    if args.decode:
        for split in splits:
            _decode(split, source)
    return 1 if lacking else 0


def table(rows: list[dict], category: str) -> str:
    """Counts as aligned text, one line a split."""
    names = {"images": "images", "with_category": f"with {category}", "boxes": "boxes", "crowd": "crowd"}
    names["missing_files"] = "missing files"
    lines = ["  ".join(["split    ", *names.values(), "from"])]
    for row in rows:
        cells = [f"{row[key]:>{len(title)},}" for key, title in names.items()]
        lines.append("  ".join([f"{row['split']:9}", *cells, row["annotations"]]))
    return "\n".join(lines)


def _decode(split: str, source: Source) -> None:
    from eelib.data import DetectionDataset  # torch, which counting does without

    dataset = DetectionDataset(split, source, keep_crowd=True)
    for image in dataset.images:
        del image
    print(f"{split}: {len(dataset)} images decode, each of the size annotated")


def synthesise(path: Path, images: int = 118_000, annotations: int = 860_000, seed: int = 0) -> Path:
    """Write an instances file of COCO's size and shape: 80 categories, polygons, categories last.

    Args:
        path: written; 500 MB at the default numbers.
        images, annotations: how many of each.
        seed: of the random boxes.
    """
    rng = np.random.default_rng(seed)
    # COCO's chairs: 38,073 of 860,001; the other ids are all that matters of the rest
    category = np.where(rng.random(annotations) < 38_073 / 860_001, 62, rng.integers(1, 62, annotations))
    image, corner = rng.integers(1, images + 1, annotations), rng.integers(0, 300, (annotations, 2))
    size = rng.integers(4, 170, (annotations, 2))
    points = [rng.uniform(0, 480, 2 * rng.integers(8, 50)).round(2).tolist() for _ in range(2000)]
    shapes = [json.dumps([p]) for p in points]
    with path.open("w") as file:
        file.write('{"info": {"year": 2017}, "images": [')
        for i in range(1, images + 1):
            url = f'"coco_url": "http://images.example.org/{i:012}.jpg", "date_captured": "2013-11-14 11:18:45"'
            head = f'{{"license": 3, "file_name": "{i:012}.jpg", {url}, "height": 480, "width": 640, "id": {i}}}'
            file.write(head if i == 1 else f", {head}")
        file.write('], "annotations": [')
        rows = zip(category.tolist(), image.tolist(), corner.tolist(), size.tolist(), strict=True)
        for k, (kind, i, (x, y), (w, h)) in enumerate(rows, 1):
            shape = f'"segmentation": {shapes[k % len(shapes)]}, "area": {w * h / 2}, "iscrowd": 0'
            tail = f'"image_id": {i}, "bbox": [{x}.5, {y}.25, {w}, {h}], "category_id": {kind}, "id": {k}'
            file.write(f"{', ' if k > 1 else ''}{{{shape}, {tail}}}")
        names = ", ".join(f'{{"id": {i}, "name": "{"chair" if i == 62 else f"other {i}"}"}}' for i in range(1, 81))
        file.write(f'], "categories": [{names}]}}')
    return path


_TIMED = """
import re, sys, time
from pathlib import Path
from eelib import sources
sources.INDEX = Path(sys.argv[2])
began, cpu = time.perf_counter(), time.process_time()
found = sources.read_index(sys.argv[1])
seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
# Linux: getrusage's peak would be that of the parent where that was larger
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(seconds, cpu, peak, len(found.content["images"]), len(found.content["annotations"]))
"""


def print_index_speed() -> int:
    """Time and peak memory of indexing a synthetic file of COCO's size, from the file and from the kept index."""
    with tempfile.TemporaryDirectory() as folder:
        path = synthesise(Path(folder) / "instances_train2017.json")
        print(f"file: {path.stat().st_size / 2**20:.0f} MiB, shape of {COCO_PARTS['train']}")
        for what in ("from the file", "from the kept index"):
            call = [sys.executable, "-c", _TIMED, str(path), str(Path(folder) / "index")]
            answer = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
            seconds, cpu, peak = map(float, answer[:3])
            print(
                f"{what:20} {seconds:5.1f} s ({cpu:.1f} s of CPU), peak {peak:5.0f} MiB: "
                f"{answer[3]} images, {answer[4]} annotations of the category"
            )
    return 0
