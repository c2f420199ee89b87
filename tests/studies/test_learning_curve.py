import collections
import json

import pytest

from eelib.__main__ import main
from eelib.config import ROOT, ConfigError
from studies.learning_curve import learning_curve, load_curve, stream

COCO = "tests/fixtures/coco"
SMALL = {
    "data.root": COCO, "data.image_sizes": [[0, 64]], "optim.batch_size": 2, "optim.workers": 0, "loss.mask": 0.0,
    "model.start": None, "optim.compile": False,
    "curve.images": [4, None], "curve.steps": 3, "curve.resamples": 4,
}  # fmt: skip


def test_a_stream_shows_every_image_once_a_pass():
    whole = stream(5, 0, 20, seed=1)
    assert [i for k in range(5) for i in stream(5, 4 * k, 4, seed=1)] == whole
    assert all(sorted(whole[k : k + 5]) == list(range(5)) for k in (0, 5, 10, 15))
    assert whole != stream(5, 0, 20, seed=2) and whole[:5] != whole[5:10]
    assert collections.Counter(stream(3, 2, 6, seed=0)) == {0: 2, 1: 2, 2: 2}


def test_every_point_takes_the_same_steps_and_a_stop_costs_nothing(tmp_path):
    config, curve = load_curve(ROOT / "params" / "learning_curve.yaml", SMALL)
    lines = []
    result = learning_curve(config, curve, tmp_path / "runs", tmp_path, log=lines.append)
    # rounds of two steps (four images in batches of two), so three steps are two rounds
    assert [(p["images"], p["steps"], p["passes"]) for p in result["points"]] == [(4, 4, 2.0), (8, 4, 1.0)]
    (gain,) = result["gains"]
    first, second = result["points"]
    assert gain["AP"] == second["AP"] - first["AP"] and gain["interval"][0] <= gain["interval"][1]
    assert json.loads((tmp_path / "metrics" / "learning_curve.json").read_text()) == result
    assert result["split"] == "val" and "checkpoint_sha256" not in result
    again = []
    assert learning_curve(config, curve, tmp_path / "runs", tmp_path, log=again.append) == result
    assert sum(line.startswith("resumed after epoch 2 of 2") for line in again) == 2
    assert not any(line.startswith("epoch") for line in again) and any(line.startswith("epoch 2") for line in lines)


def test_the_last_gain_spans_the_curve(tmp_path):
    config, curve = load_curve(ROOT / "params" / "learning_curve.yaml", SMALL | {"curve.images": [2, 4, None]})
    *steps, whole = learning_curve(config, curve, tmp_path / "runs", tmp_path, log=lambda _: None)["gains"]
    assert [(g["from"], g["to"]) for g in (*steps, whole)] == [(2, 4), (4, 8), (2, 8)]
    assert whole["AP"] == pytest.approx(sum(g["AP"] for g in steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curve.images": [4, 9]}, r"curve.images: \[4, 9\]; expected at least a batch \(2\) and at most 8 images"),
        ({"curve.images": [1]}, r"curve.images: \[1\]"),
        ({"curve.images": []}, "a list of images and whole numbers above 0"),
        ({"curve.steps": 0}, "whole numbers above 0"),
        ({"curve.step": 3}, "expected a group of images, steps, resamples"),
        ({"curve": None}, "key 'curve' is None"),
    ],
)
def test_bad_curves_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        learning_curve(*load_curve(ROOT / "params" / "learning_curve.yaml", SMALL | settings), tmp_path, tmp_path)


def test_the_command_writes_metrics(tmp_path, capsys):
    sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    folders = ["--out", str(tmp_path / "runs"), "--reports", str(tmp_path)]
    assert main(["learning-curve", str(ROOT / "params" / "learning_curve.yaml"), *folders, *sets]) == 0
    assert "4 to 8 images: AP" in capsys.readouterr().out
    assert (tmp_path / "metrics" / "learning_curve.json").exists()
