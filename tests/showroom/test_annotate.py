"""Annotations from a buffer."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from showroom.annotate import annotate, is_crowd


@pytest.mark.parametrize(
    ("pixels", "visibility", "side_px", "crowd"),
    [(40, 0.06, 5, False), (39, 1.0, 6, True), (900, 0.059, 20, True), (400, 1.0, 4, True)],
)
def test_crowd_rule(pixels, visibility, side_px, crowd):
    assert is_crowd(pixels, visibility, side_px) is crowd


def test_annotations_of_a_buffer_by_hand():
    buffer = np.full((20, 30), -1)
    buffer[:10] = 0
    buffer[2:12, 0:8] = 3
    buffer[4:6, 2:4] = 0  # a hole
    buffer[15, 20] = 1
    lone, seen = annotate(buffer, {1: 10, 3: 75}, {1: "sc/chair", 3: "sc/armchair"})
    assert (seen["bbox"], seen["area"], seen["model"]) == ([0, 2, 8, 10], 76, "sc/armchair")
    assert (seen["visibility"], seen["iscrowd"], seen["touches_edge"]) == (1.0, 0, True)  # never above 1
    assert (coco_mask.decode(seen["segmentation"]) == (buffer == 3)).all()
    assert (lone["bbox"], lone["visibility"], lone["iscrowd"]) == ([20, 15, 1, 1], 0.1, 1)
    assert not lone["touches_edge"]
    assert annotate(np.zeros((4, 4), int), {}, {}) == []
    with pytest.raises(KeyError):
        annotate(buffer, {1: 10}, {1: "sc/chair"})
