"""Metrics that an earlier notebook left."""

import json

from eelib.files import file_sha256
from studies.metrics import current_metrics


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
