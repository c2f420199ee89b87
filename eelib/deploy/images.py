"""Image files for the deployed detector: any size and mode in, COCO results and drawings out.

numpy and Pillow alone, like :mod:`eelib.deploy.runtime`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from eelib.deploy.runtime import DeploymentError, Detections, EarlyExitSession, Policy
from eelib.preprocess import ImageError, read_image, to_input

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
# Okabe and Ito's colour-blind palette, one colour an exit throughout.
EXIT_COLOURS = {"exit1": "#E69F00", "exit2": "#56B4E9", "full": "#009E73"}


class Source(NamedTuple):
    """An image file and the id that its results carry."""

    path: Path
    image_id: int


def find_images(path: Path | str) -> list[Source]:
    """The images of a folder, sorted by name, or one file.

    Ids come from the COCO file beside the folder (``test.json`` beside ``test/``), if there is
    one that lists the file; they are 1, 2, … in the order of names otherwise.

    Raises:
        DeploymentError: no such path, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        raise DeploymentError(f"{path}: no such image or folder")
    if not files:
        raise DeploymentError(f"{path}: folder without images; expected files named {', '.join(sorted(SUFFIXES))}")
    ids = _coco_ids(files[0].parent)
    if not all(file.name in ids for file in files):
        ids = {file.name: number for number, file in enumerate(files, 1)}
    return [Source(file, ids[file.name]) for file in files]


def _coco_ids(folder: Path) -> dict[str, int]:
    beside = folder.resolve().with_suffix(".json")
    try:
        return {image["file_name"]: image["id"] for image in json.loads(beside.read_text())["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # no annotations beside the folder: nothing to agree with


def to_results(source: Source, size_wh: tuple[int, int], found: Detections, category_id: int, size: int) -> list[dict]:
    """COCO results in pixels of the upright image; ``exit`` says where it left.

    Args:
        size_wh: width and height of the upright image in pixels.
        size: side of the network input in pixels.
    """
    boxes = found.boxes_xyxy * (np.array([*size_wh, *size_wh], np.float32) / size)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": source.image_id,
            "category_id": category_id,
            "bbox": [round(v, 3) for v in box],
            "score": score,
            "exit": found.exit_name,
            "file_name": source.path.name,
        }
        for box, score in zip(boxes.tolist(), found.scores.tolist(), strict=True)
    ]


def write_results(path: Path, results: Sequence[dict]) -> None:
    """Write COCO results whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(list(results)) + "\n")
    partial.replace(path)


def draw(image: Image.Image, results: Sequence[dict], exit_name: str, least_score: float) -> Image.Image:
    """A copy of an image with its boxes and the exit used."""
    image = image.copy()
    pen, colour = ImageDraw.Draw(image), EXIT_COLOURS.get(exit_name, "#D55E00")
    for result in results:
        if result["score"] >= least_score:
            x, y, width, height = result["bbox"]
            pen.rectangle((x, y, x + width, y + height), outline=colour, width=2)
            pen.text((x + 3, y + 1), f"{result['score']:.2f}", fill=colour)
    pen.rectangle((0, 0, 10 + 6 * len(exit_name), 13), fill=colour)
    pen.text((4, 1), exit_name, fill="black")
    return image


def detect_files(
    session: EarlyExitSession,
    sources: Sequence[Source],
    policy: Policy,
    *,
    batch_size: int = 8,
    on_broken: Callable[[ImageError], None],
) -> Iterator[tuple[Source, Image.Image, Detections, list[dict]]]:
    """Detect in files, a batch at a time; a broken one is reported and skipped.

    Yields:
        The source, its upright image, its detections in the network's pixels and its results.
    """
    category_id = session.manifest["categories"][0]["id"]
    for first in range(0, len(sources), batch_size):
        batch = []
        for source in sources[first : first + batch_size]:
            try:
                batch.append((source, read_image(source.path)))
            except ImageError as error:
                on_broken(error)
        if not batch:
            continue
        inputs = np.stack([to_input(image, session.size) for _, image in batch])
        for (source, image), found in zip(batch, session.detect(inputs, policy), strict=True):
            yield source, image, found, to_results(source, image.size, found, category_id, session.size)
