"""Image files for a deployed detector: which there are, and their detections as COCO results.

numpy and Pillow alone, like :mod:`eelib.deploy.runtime`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from eelib.deploy.manifest import DeploymentError
from eelib.deploy.router import Rule
from eelib.deploy.runtime import Session
from eelib.detections import Detections
from eelib.preprocess import ImageError, read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


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


def detect_files(
    session: Session,
    sources: Sequence[Source],
    rule: Rule | None = None,
    *,
    batch_size: int = 8,
    min_score: float = 0.0,
    on_broken: Callable[[ImageError], None],
) -> Iterator[tuple[Source, Detections]]:
    """Detect in files, a batch at a time; a broken one is reported and skipped.

    Args:
        rule, min_score: as in :meth:`eelib.deploy.runtime.Session.detect`.

    Yields:
        The source, and its detections in pixels of the upright image.
    """
    for first in range(0, len(sources), batch_size):
        batch, images = [], []
        for source in sources[first : first + batch_size]:
            try:
                images.append(read_image(source.path))
                batch.append(source)
            except ImageError as error:
                on_broken(error)
        yield from zip(batch, session.detect(images, rule=rule, min_score=min_score), strict=True)


def to_results(source: Source, found: Detections, category_ids: Sequence[int]) -> list[dict]:
    """COCO results in pixels of the upright image; ``exit`` says where it left."""
    rows = found.to_coco(source.image_id, category_ids)
    return [
        row | {"bbox": [round(v, 3) for v in row["bbox"]], "exit": found.exit_name, "file_name": source.path.name}
        for row in rows
    ]
