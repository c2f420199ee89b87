import json

import pytest

from eelib.config import ROOT, ConfigError
from studies.learning_curve import Curve, learning_curve, points_of
from studies.parameters import load_study

pytestmark = pytest.mark.slow  # `make slow`

PARAMS = ROOT / "params" / "learning_curve.yaml"
SMALL = {
    "data.root": str(ROOT / "tests" / "fixtures" / "coco"), "data.category": "chair", "data.size": 96,
    "model.start": None, "optim.batch_size": 2, "optim.compile": False, "optim.warmup_steps": 1,
    "curve.images": [4, None], "curve.steps": 3, "curve.resamples": 4,
}  # fmt: skip


def load(settings):
    return load_study(PARAMS, "curve", Curve, settings)


def test_every_point_takes_the_same_steps_and_a_stop_costs_nothing(tmp_path):
    lines = []
    result = learning_curve(*load(SMALL), tmp_path / "runs", tmp_path, log=lines.append)
    # epochs of two and of four steps, so that three steps are two epochs and one
    assert [(p["images"], p["steps"], p["passes"]) for p in result["points"]] == [(4, 4, 2), (8, 4, 1)]
    (gain,) = result["gains"]
    first, second = result["points"]
    assert gain["AP"] == second["AP"] - first["AP"] and gain["interval"][0] <= gain["interval"][1]
    assert json.loads((tmp_path / "metrics" / "learning_curve.json").read_text()) == result
    assert result["split"] == "val" and "checkpoint_sha256" not in result
    again = []
    repeated = learning_curve(*load(SMALL), tmp_path / "runs", tmp_path, log=again.append)
    for point in result["points"] + repeated["points"]:
        del point["checkpoint_sha256"]  # the weights are the same, the file is written again
    assert repeated == result
    assert sum(line.startswith("resumed after epoch") for line in again) == 2
    assert not any(line.startswith("epoch") for line in again) and any(line.startswith("epoch 2") for line in lines)


def test_the_last_gain_spans_the_curve(tmp_path):
    curve = load(SMALL | {"curve.images": [2, 4, None], "curve.steps": 2})
    *steps, whole = learning_curve(*curve, tmp_path / "runs", tmp_path, log=lambda _: None)["gains"]
    assert [(g["from"], g["to"]) for g in (*steps, whole)] == [(2, 4), (4, 8), (2, 8)]
    assert whole["AP"] == pytest.approx(sum(g["AP"] for g in steps))


def test_the_committed_curve_has_nearly_equal_steps():
    config, curve = load({})
    points = points_of(config, curve)
    steps = [point.optim.epochs * (point.data.limit // point.optim.batch_size) for point in points]
    assert len(points) == len(curve.images) and min(steps) >= curve.steps and max(steps) < 1.1 * curve.steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curve.images": [4, 9]}, r"curve.images: \[4, 9\]; expected at least a batch \(2\) and at most 8 images"),
        ({"curve.images": [1]}, r"curve.images: \[1\]"),
        ({"curve.images": []}, "learning_curve.yaml: curve: key 'images' is .*at least 1 item"),
        ({"curve.steps": 0}, "curve: key 'steps' is 0"),
        ({"curve.step": 3}, "unknown key 'step'; did you mean 'steps'"),
        ({"curve": None}, "key 'curve' is None; expected a group of images, steps, resamples"),
    ],
)
def test_bad_curves_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        learning_curve(*load(SMALL | settings), tmp_path, tmp_path)
