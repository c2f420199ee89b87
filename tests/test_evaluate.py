import json
import math

import numpy as np
import pytest

from eelib.data import DetectionDataset, load_coco, split_sha256
from eelib.detections import Detections
from eelib.evaluate import coco_ap, current_metrics, precision_recall, provenance
from eelib.files import file_sha256


def test_perfect_detections_have_ap_one(tiny):
    coco = load_coco(tiny / "test.json")
    data = DetectionDataset("test", tiny)
    scores, labels = np.array([0.9, 0.8]), np.array([1, 1])
    results = Detections(data.objects(0).numpy(), scores, labels, "full").to_coco(1, data.category_ids)
    ap = coco_ap(coco, results)
    assert math.isclose(ap["AP"], 1.0, abs_tol=1e-6)


def test_no_detection_is_zero(tiny):
    assert coco_ap(load_coco(tiny / "test.json"), [])["AP"] == 0


def test_a_score_that_is_not_a_number_is_refused(tiny):
    results = [{"image_id": 1, "category_id": 62, "bbox": [0, 0, 1, 1], "score": float("nan")}]
    with pytest.raises(ValueError, match="score of a detection in image 1 is nan"):
        coco_ap(load_coco(tiny / "test.json"), results)


def test_precision_and_recall_at_a_score(tiny):
    """Two objects and a crowd: one hit, one miss, one false alarm, one detection on the crowd, one below the score."""
    coco = load_coco(tiny / "test.json")
    boxes = [[4, 6, 20, 30], [40, 30, 5, 5], [0, 0, 3, 3], [30, 10, 20, 20]]
    scores = [0.9, 0.8, 0.7, 0.4]
    results = [
        {"image_id": 1, "category_id": 62, "bbox": box, "score": score}
        for box, score in zip(boxes, scores, strict=True)
    ]
    values = precision_recall(coco, results, [1, 2], score=0.5)
    assert values == {"score": 0.5, "precision": 0.5, "recall": 0.5, "detections_per_image": 1.5}
    assert precision_recall(coco, results, [1, 2], score=0.3)["recall"] == 1.0
    assert precision_recall(coco, [], [1, 2])["precision"] == 0.0


def test_provenance_names_everything(tmp_path):
    from eelib.config import Config

    (tmp_path / "w").write_bytes(b"weights")
    keys = {"split", "split_sha256", "checkpoint_sha256", "config", "versions"}
    own = provenance("test", Config(name="x"), tmp_path / "w")
    assert own.keys() == keys and own["split_sha256"] == split_sha256("test")
    other = provenance("val", Config(name="x"), tmp_path / "w", "tests/fixtures/coco")
    assert other["split_sha256"] == split_sha256("val", "tests/fixtures/coco")  # of what was evaluated


def test_metrics_of_other_weights_are_not_used(tmp_path):
    weights, path, told = tmp_path / "w.pth", tmp_path / "m.json", []
    weights.write_bytes(b"1")
    assert current_metrics(path, told.append, checkpoint_sha256=weights) is None
    path.write_text(json.dumps({"AP": 0.5}))
    assert current_metrics(path) == {"AP": 0.5}
    assert current_metrics(path, told.append, checkpoint_sha256=weights) is None
    path.write_text(json.dumps({"checkpoint_sha256": file_sha256(weights)}))
    assert current_metrics(path, checkpoint_sha256=weights) is not None
    assert told == [
        "m.json: not measured yet",
        "m.json: measured with other weights (checkpoint_sha256), so it is not used",
    ]
