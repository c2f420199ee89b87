"""Exit records and annotations without images, for the tests of routing."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO

from eelib.deploy.evidence import EVIDENCE
from eelib.detections import Detections
from eelib.records import ExitRecords

NAMES = ("exit1", "exit2", "full")


def annotations(boxes_by_image: dict[int, list], crowds: set = frozenset(), scenes: dict | None = None) -> COCO:
    """COCO annotations: ``boxes_by_image[id]`` is a list of [x, y, w, h]; ``crowds`` holds (id, position)."""
    rows = []
    for image_id, boxes in boxes_by_image.items():
        for position, box in enumerate(boxes):
            rows.append(
                {
                    "id": len(rows) + 1, "image_id": image_id, "category_id": 62, "bbox": list(box),
                    "area": box[2] * box[3], "iscrowd": int((image_id, position) in crowds),
                }
            )  # fmt: skip
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": 320, "height": 320} | ({"scene": scenes[i]} if scenes else {})
        for i in boxes_by_image
    ]
    coco = COCO()
    coco.dataset = {"images": images, "annotations": rows, "categories": [{"id": 62, "name": "chair"}]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detections_of(rows: list, exit_name: str = "full") -> Detections:
    """Detections from rows (x1, y1, x2, y2, score), the best first."""
    values = np.array(sorted(rows, key=lambda row: -row[4]), np.float32).reshape(-1, 5)
    return Detections(values[:, :4], values[:, 4], np.ones(len(values), np.int64), exit_name)


def records(detections: list[dict], split: str = "calibrate", evidence: np.ndarray | None = None) -> ExitRecords:
    """Records from ``detections[exit][image id] = [(x1, y1, x2, y2, score), ...]``."""
    ids, best_first = sorted(detections[0]), {}
    for name, by_image in zip(NAMES, detections, strict=False):
        best_first[name] = [detections_of(by_image[i], name) for i in ids]
    if evidence is None:
        evidence = np.zeros((len(ids), len(detections), len(EVIDENCE)), np.float32)
        for k, by_image in enumerate(detections):
            for row, i in enumerate(ids):
                evidence[row, k, 0] = max((d[4] for d in by_image[i]), default=0.0)
    return ExitRecords.of((split, "data", "weights"), ids, best_first, evidence)


def noisy(
    images: int = 40, seed: int = 0, split: str = "calibrate", sigma: tuple = (9.0, 4.0, 1.5), empty: float = 0.2
):
    """Annotations and records of three exits that place and score boxes better the deeper they are."""
    rng = np.random.default_rng(seed)
    objects = {
        i: [] if rng.random() < empty else [
            [*rng.uniform(0, 200, 2).round(), *rng.uniform(20, 100, 2).round()] for _ in range(rng.integers(1, 4))
        ]
        for i in range(1, images + 1)
    }  # fmt: skip
    hard = {i: rng.uniform(0.2, 2.0) for i in objects}
    detections = []
    for spread in sigma:
        by_image = {}
        for i, boxes in objects.items():
            rows = []
            for x, y, w, h in boxes:
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, spread * hard[i], 4)
                moved = np.concatenate((np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])))
                rows.append((*moved, float(np.clip(rng.normal(0.8 - 0.03 * spread * hard[i], 0.1), 0.01, 0.99))))
            for _ in range(rng.integers(0, 4)):
                x, y = rng.uniform(0, 200, 2)
                rows.append((x, y, x + 40, y + 40, float(rng.uniform(0.01, 0.2 + 0.02 * spread))))
            by_image[i] = rows
        detections.append(by_image)
    return annotations(objects), records(detections, split)
