import math

import numpy as np
import pytest

from eelib.data import DetectionDataset, load_split, split_sha256
from eelib.detections import Detections
from eelib.evaluate import coco_ap, provenance


def test_perfect_detections_have_ap_one(tiny):
    coco = load_split("test", tiny)
    data = DetectionDataset("test", tiny)
    scores, labels = np.array([0.9, 0.8]), np.array([1, 1])
    results = Detections(data.objects(0).numpy(), scores, labels, "full").to_coco(1, data.category_ids)
    ap = coco_ap(coco, results)
    assert math.isclose(ap["AP"], 1.0, abs_tol=1e-6)


def test_no_detection_is_zero(tiny):
    assert coco_ap(load_split("test", tiny), [])["AP"] == 0


def test_a_score_that_is_not_a_number_is_refused(tiny):
    results = [{"image_id": 1, "category_id": 62, "bbox": [0, 0, 1, 1], "score": float("nan")}]
    with pytest.raises(ValueError, match="score of a detection in image 1 is nan"):
        coco_ap(load_split("test", tiny), results)


def test_provenance_names_everything(tmp_path):
    from eelib.config import Config

    (tmp_path / "w").write_bytes(b"weights")
    keys = {"split", "split_sha256", "checkpoint_sha256", "config", "versions"}
    own = provenance("test", Config(name="x"), tmp_path / "w")
    assert own.keys() == keys and own["split_sha256"] == split_sha256("test")
    other = provenance("val", Config(name="x"), tmp_path / "w", "tests/fixtures/coco")
    assert other["split_sha256"] == split_sha256("val", "tests/fixtures/coco")  # of what was evaluated
