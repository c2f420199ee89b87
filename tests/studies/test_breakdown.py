"""AP in parts equals pycocotools on the same images; detectors side by side are paired."""

import numpy as np
import pytest
from synthetic import NAMES, annotations, noisy, records

from eelib.evaluate import coco_ap
from eelib.routed_ap import RoutedAP, resample
from eelib.routing import prepare
from studies.routing import breakdown

COSTS = (0.5, 0.7, 1.0)


@pytest.fixture(scope="module")
def split():
    """Twelve tagged images of three exits."""
    coco, made = noisy(24, split="test")
    val_coco, val = noisy(12, split="val")
    for k, image in enumerate(coco.dataset["images"]):
        image |= {"dark": k % 2 == 0, "recipe": "office", "clutter": k / 24, "blur": (0.0, 0.4, 0.7)[k % 3]}
    for k, annotation in enumerate(coco.dataset["annotations"]):
        annotation["model"] = f"m{k % 2}"
    return prepare({"val": val, "test": made}, {"val": val_coco, "test": coco}, COSTS, "none", on="val")["test"]


@pytest.fixture(scope="module")
def rows(split):
    mixed = np.arange(24) % 3
    systems = {name: np.full(24, k) for k, name in enumerate(NAMES)} | {"routed": mixed}
    return breakdown.breakdown(split, systems, resample(split.scenes, 20, 0)), systems


def results(split, chosen, ids):
    records = split.records
    return [
        r for row, i in enumerate(records.image_ids) if i in ids
        for r in records.detections(int(chosen[row]), row).to_coco(i, [62])
    ]  # fmt: skip


def test_every_tag_equals_pycocotools_on_its_images(split, rows):
    parts, systems = rows
    groups = breakdown.groups_of(split)
    assert groups["dark: yes"].sum() == 12 and groups["clutter: high"].sum() == 12 and groups["blur: 0.7 px"].sum() == 8
    for row in parts:
        if row["group"] not in groups:
            continue
        ids = [i for i, inside in zip(split.records.image_ids, groups[row["group"]], strict=True) if inside]
        reference = coco_ap(split.coco, results(split, systems[row["system"]], set(ids)), ids)
        assert row["AP"] == pytest.approx(reference["AP"], abs=1e-9), row["group"]
        assert row["AP50"] == pytest.approx(reference["AP50"], abs=1e-9)


def test_every_size_equals_pycocotools(split, rows):
    parts, systems = rows
    ids = set(split.records.image_ids)
    for row in parts:
        if row["group"].startswith("size "):
            reference = coco_ap(split.coco, results(split, systems[row["system"]], ids))
            expected = reference["AP_" + row["group"].removeprefix("size ")]
            if row["objects"]:
                assert row["AP"] == pytest.approx(expected, abs=1e-9)
            else:
                assert row["AP"] is None and expected == -1  # pycocotools' word for no object
    assert sum(row["objects"] > 0 for row in parts if row["group"].startswith("size ")) >= 8  # two sizes, four systems


def test_groups_hold_the_objects_and_differences_are_paired(rows):
    by_group = {(row["group"], row["system"]): row for row in rows[0]}
    whole = by_group["all", "full"]
    assert whole["objects"] == by_group["dark: yes", "full"]["objects"] + by_group["dark: no", "full"]["objects"]
    assert whole["objects"] == by_group["model m0", "full"]["objects"] + by_group["model m1", "full"]["objects"]
    assert whole["minus full"] == 0 and (whole["minus full low"], whole["minus full high"]) == (0, 0)
    exit1 = by_group["all", "exit1"]
    assert exit1["minus full"] == pytest.approx(exit1["AP"] - whole["AP"])
    # paired: narrower than the two intervals apart
    width = exit1["minus full high"] - exit1["minus full low"]
    assert width < (exit1["AP high"] - exit1["AP low"]) + (whole["AP high"] - whole["AP low"])


def test_detectors_side_by_side(split, monkeypatch):
    """The first is the reference; full's share of the baseline is a ratio on the same scenes."""
    records = split.records
    better = records.with_scores(records.scores)
    alone = records.rows(range(24))
    object.__setattr__(alone, "exit_names", ("full",))
    for field in ("boxes_xyxy", "scores", "labels"):
        object.__setattr__(alone, field, getattr(alone, field)[2:])
    object.__setattr__(alone, "counts", alone.counts[2:])
    by_path = {"b.pth": alone, "f.pth": records, "j.pth": better}
    monkeypatch.setattr(breakdown, "records_of", lambda _, path, *__: by_path[path.name])
    monkeypatch.setattr(breakdown, "load_split", lambda *_: split.coco)
    found = breakdown.compare_detectors({"frozen": "f.pth", "joint": "j.pth"}, "b.pth", "", "", resamples=10)
    assert [(row["training"], row["exit"]) for row in found] == [
        ("baseline", "full"), *(("frozen", n) for n in NAMES), *(("joint", n) for n in NAMES)
    ]  # fmt: skip
    full = found[3]
    assert full["share_of_baseline"] == 1 and full["share_of_baseline_interval"] == [1, 1]
    assert "minus_first" not in full and found[-1]["minus_first"] == 0 and found[-1]["minus_first_interval"] == [0, 0]
    assert found[1]["share_of_full"] == pytest.approx(found[1]["AP"] / full["AP"])
    table = breakdown.trainings_table(found)
    assert table["training"].tolist() == [row["training"] for row in found] and table["low"][1] <= table["AP"][1]
    dots = {
        t: {r["exit"]: (r["AP"], *r["AP_interval"]) for r in found if r["training"] == t} for t in ("frozen", "joint")
    }
    (axis,) = breakdown.ap_dots(dots, found[0]["AP"]).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["frozen", "joint"]


def test_chairs_of_other_models_are_neither_right_nor_wrong():
    coco = annotations({1: [[0, 0, 10, 10], [50, 50, 10, 10]]})
    for annotation, model in zip(coco.dataset["annotations"], ("a", "b"), strict=True):
        annotation["model"] = model
    made = records([{1: [(0, 0, 10, 10, 0.5), (50, 50, 60, 60, 0.9)]}])
    evaluator = RoutedAP(made, breakdown.only_model(coco, "a"))
    assert evaluator.positives.tolist() == [1] and evaluator.ap([0]) == pytest.approx(1)
    assert RoutedAP(made, coco).positives.tolist() == [2]  # the annotations given stay as they are
