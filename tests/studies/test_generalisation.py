import json

import pytest

from eelib.checkpoints import load_released
from eelib.coco import DataError
from eelib.config import ROOT
from eelib.data import DetectionDataset, load_split
from eelib.evaluate import coco_ap, detect_exits
from studies.generalisation import generalisation

BASELINE = ROOT / "checkpoints" / "baseline.pth"
FIXTURE = ROOT / "tests" / "fixtures" / "coco"


def test_each_set_has_the_ap_of_pycocotools(tmp_path):
    sets = {"known": ("train", FIXTURE), "new": ("val", FIXTURE)}
    result = generalisation(BASELINE, sets, tmp_path / "records", tmp_path, resamples=5)
    assert json.loads((tmp_path / "metrics" / "generalisation.json").read_text()) == result
    model = load_released(BASELINE)
    for row, (name, (split, root)) in zip(result["sets"], sets.items(), strict=True):
        dataset = DetectionDataset(split, root, 320, keep_crowd=True)
        ap = coco_ap(load_split(split, root), detect_exits(model, dataset)["full"], dataset.image_ids)
        assert row["name"] == name and row["images"] == len(dataset)
        assert row["AP"] == pytest.approx(ap["AP"], abs=1e-6)
        assert row["interval"][0] <= row["interval"][1]
    first, second = result["sets"]
    assert [s["AP"] for s in result["steps"]] == [second["AP"] - first["AP"]]


def test_a_folder_without_renders_is_named(tmp_path):
    sets = {"known": ("train", FIXTURE), "rendered": ("train", tmp_path / "none")}
    with pytest.raises(DataError, match=f"{tmp_path}/none/train.json"):
        generalisation(BASELINE, sets, tmp_path / "records", tmp_path)
