"""COCO annotations from an instance buffer.

A box is the extent of the visible pixels. A chair that is hardly visible is annotated as a crowd:
COCO's evaluation ignores detections of it, and training leaves it out.
"""

from collections.abc import Mapping

import numpy as np
from pycocotools import mask as coco_mask

CATEGORY_ID = 62  # chair in COCO
LEAST_PIXELS = 40
LEAST_VISIBILITY = 0.06
LEAST_SIDE_PX = 5


def is_crowd(pixels: int, visibility: float, side_px: int) -> bool:
    """Too little to be asked for: few pixels, hardly visible, or a sliver.

    Args:
        pixels: number of visible pixels.
        visibility: visible share of the whole silhouette, in [0, 1].
        side_px: the box's shorter side.
    """
    return pixels < LEAST_PIXELS or visibility < LEAST_VISIBILITY or side_px < LEAST_SIDE_PX


def annotate(instances: np.ndarray, silhouettes: Mapping[int, int], models: Mapping[int, str]) -> list[dict]:
    """One annotation for each chair of which a pixel is visible, without ids.

    Args:
        instances: (H, W) int, the chair that is seen first at a pixel; 0 or less for none.
        silhouettes: pixels of each chair with everything else removed, inside the image.
        models: the catalogue key of each chair.

    Raises:
        KeyError: the buffer shows a chair that the mappings lack.
    """
    height, width = instances.shape
    annotations = []
    for instance in np.unique(instances[instances > 0]).tolist():
        visible = instances == instance
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        x, y, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        pixels = int(visible.sum())
        # rays graze edges: a lone silhouette may lose a pixel that the full scene has
        visibility = min(1.0, pixels / max(silhouettes[instance], 1))
        segmentation = coco_mask.encode(np.asfortranarray(visible, np.uint8))
        annotations.append(
            {
                "category_id": CATEGORY_ID,
                "bbox": [x, y, right - x, bottom - y],
                "area": pixels,
                "iscrowd": int(is_crowd(pixels, visibility, min(right - x, bottom - y))),
                "segmentation": {"size": [height, width], "counts": segmentation["counts"].decode()},
                "visibility": round(visibility, 3),
                "touches_edge": x == 0 or y == 0 or right == width or bottom == height,
                "model": models[instance],
            }
        )
    return annotations
