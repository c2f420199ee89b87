from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import annotations, noisy, records

from eelib import routed_ap
from eelib.evaluate import coco_ap
from eelib.routed_ap import AREAS, RoutedAP, bootstrap, interval, resample, scenes_of


def by_pycocotools(coco, made, chosen) -> dict:
    results = [
        r for row, (i, k) in enumerate(zip(made.image_ids, chosen, strict=True))
        for r in made.detections(int(k), row).to_coco(i, [62])
    ]  # fmt: skip
    return coco_ap(coco, results, made.image_ids)


# Coarse coordinates and five scores make ties, exact IoUs and double matches frequent.
box = st.tuples(*[st.integers(0, 6).map(lambda v: 10 * v)] * 2, *[st.integers(1, 4).map(lambda v: 10 * v)] * 2)
detection = st.tuples(box, st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])).map(
    lambda d: (d[0][0], d[0][1], d[0][0] + d[0][2], d[0][1] + d[0][3], d[1])
)


@st.composite
def routed_splits(draw):
    images = range(1, draw(st.integers(1, 5)) + 1)
    objects = {i: draw(st.lists(box, max_size=4)) for i in images}
    crowds = {(i, k) for i, boxes in objects.items() for k in range(len(boxes)) if draw(st.integers(0, 4)) == 0}
    found = [{i: draw(st.lists(detection, max_size=6)) for i in images} for _ in range(3)]
    chosen = [draw(st.integers(0, 2)) for _ in images]
    return annotations(objects, crowds), records(found), chosen


@settings(max_examples=60, deadline=None)
@given(routed_splits())
def test_any_routing_equals_pycocotools(case):
    coco, made, chosen = case
    evaluator = RoutedAP(made, coco)
    per_iou = evaluator.per_iou(chosen)
    if not any(len(made.detections(k, row).scores) for row, k in enumerate(chosen)):
        assert (per_iou == (0 if evaluator.positives.sum() else -1)).all()  # pycocotools fails on no result
        return
    expected = by_pycocotools(coco, made, chosen)
    assert abs(evaluator.ap(chosen) - expected["AP"]) < 1e-9
    assert abs(per_iou[0] - expected["AP50"]) < 1e-9 and abs(per_iou[5] - expected["AP75"]) < 1e-9


def test_ap_by_size_equals_pycocotools():
    coco, made = noisy(30)
    chosen = np.arange(30) % 3
    expected = by_pycocotools(coco, made, chosen)
    for name, area in AREAS.items():
        assert abs(RoutedAP(made, coco, area).ap(chosen) - expected[f"AP_{name}"]) < 1e-9


def test_a_weighted_image_is_that_image_repeated():
    coco, made = noisy(8, seed=3)
    weights = np.array([0, 3, 1, 2, 0, 1, 1, 2])
    copies = [(row, i) for row, i in enumerate(made.image_ids) for _ in range(weights[row])]
    objects = {k + 1: [a["bbox"] for a in coco.imgToAnns[i]] for k, (_, i) in enumerate(copies)}
    found = []
    for k in range(3):
        at = [made.detections(k, row) for row, _ in copies]
        found.append({j + 1: [(*b, s) for b, s in zip(d.boxes_xyxy.tolist(), d.scores.tolist(), strict=True)]
                      for j, d in enumerate(at)})  # fmt: skip
    repeated = RoutedAP(records(found), annotations(objects))
    chosen = np.arange(8) % 3
    evaluator = RoutedAP(made, coco)
    expected = repeated.ap([chosen[row] for row, _ in copies])
    assert abs(evaluator.ap(chosen, weights) - expected) < 1e-12
    assert abs(evaluator.ap(chosen, weights / 4) - expected) < 1e-12  # shares weight images as counts do


def test_f1_by_hand():
    coco = annotations({1: [[0, 0, 10, 10], [50, 50, 10, 10]], 2: []})
    sure, miss = (0, 0, 10, 10, 0.9), (200, 200, 210, 210, 0.6)
    made = records([{1: [sure, miss], 2: []}, {1: [sure], 2: [miss]}])
    evaluator = RoutedAP(made, coco)
    assert evaluator.f1((0.5, 0.5)).tolist() == [[2 / 4, 2 / 3], [1, 0]]
    assert evaluator.f1((0.7, 0.7)).tolist() == [[2 / 3, 2 / 3], [1, 1]]
    assert evaluator.f1((0.95, 0.95)).tolist() == [[0, 0], [1, 1]]
    claimed, right = evaluator.claims((0.5, 0.5))
    assert claimed.tolist() == [[2, 1], [0, 1]] and right.tolist() == [[1, 1], [0, 0]]


def test_marginal_gain_is_the_change_of_ap():
    coco, made = noisy(10)
    evaluator = RoutedAP(made, coco)
    moved = np.zeros(10, int)
    moved[4] = 2
    assert evaluator.marginal(0, 2)[4] == pytest.approx(10 * (evaluator.ap(moved) - evaluator.of_exit(0)))


def test_scenes_are_drawn_with_all_their_views():
    coco = annotations({1: [], 2: [], 3: []}, scenes={1: 7, 2: 7, 3: 8})
    weights = resample(scenes_of(coco, (1, 2, 3)), 50, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 0] + weights[:, 2] == 2).all()
    assert len(np.unique(weights, axis=0)) == 3
    assert (weights == resample(scenes_of(coco, (1, 2, 3)), 50, seed=0)).all()
    assert len(set(scenes_of(annotations({1: [], 2: []}), (1, 2)))) == 2


def test_a_bootstrap_is_paired(monkeypatch):
    coco, made = noisy(20)
    evaluator = RoutedAP(made, coco)
    same = np.full(20, 2)
    samples = bootstrap(evaluator, [same, same, np.zeros(20, int)], resample(np.arange(20), 40, 0))
    assert (samples[:, 0] == samples[:, 1]).all()
    weights, mixed = resample(np.arange(20), 9, 1), np.arange(20) % 4  # from 3 on an image has no detections
    one_by_one = [evaluator.ap(mixed, row) for row in weights]
    for cells in (routed_ap.MOST_CELLS, 0):  # with a table of ranks, and without it
        monkeypatch.setattr(routed_ap, "MOST_CELLS", cells)
        assert bootstrap(evaluator, [mixed], weights)[:, 0] == pytest.approx(one_by_one, abs=1e-12)
    low, high = interval(samples[:, 0] - samples[:, 2])
    assert 0 < low < high and low < evaluator.of_exit(2) - evaluator.of_exit(0) < high


def test_a_routing_of_another_split_is_refused():
    evaluator = RoutedAP(noisy(5)[1], noisy(5)[0])
    for wrong in ([0, 1], [0, 1, 2, -1, 0]):
        with pytest.raises(ValueError, match="expected 5 exit indices from 0"):
            evaluator.ap(wrong)


def test_ap_of_several_classes_is_pycocotools_mean_over_them(tmp_path):
    coco, made = noisy(30)
    rng = np.random.default_rng(0)
    categories = [{"id": 62, "name": "chair"}, {"id": 63, "name": "stool"}, {"id": 64, "name": "never seen"}]
    coco.dataset["categories"] = categories
    for annotation in coco.dataset["annotations"]:
        annotation["category_id"] = 62 + int(annotation["id"] % 3 == 0)
    coco.createIndex()
    made = replace(made, labels=tuple(rng.integers(1, 4, len(labels)) for labels in made.labels))
    evaluator = RoutedAP(made, coco)
    loaded = RoutedAP.load(evaluator.save(tmp_path / "matches.npz", "data", "weights"), "data", "weights")
    half = np.arange(0, 30, 2)
    for chosen in (np.full(30, 1), rng.integers(0, 3, 30)):
        rows = zip(made.image_ids, chosen.tolist(), strict=True)
        results = [r for row, (i, k) in enumerate(rows) for r in made.detections(k, row).to_coco(i, [62, 63, 64])]
        expected = coco_ap(coco, results, made.image_ids)["AP"]
        assert evaluator.ap(chosen) == pytest.approx(expected, abs=1e-9) and expected > 0
        assert loaded.ap(chosen) == pytest.approx(expected, abs=1e-6)
        weights = resample(np.arange(30), 5, 0)
        one_by_one = [evaluator.ap(chosen, row) for row in weights]
        assert bootstrap(evaluator, [chosen], weights)[:, 0] == pytest.approx(one_by_one, abs=1e-12)
        some = coco_ap(coco, results, [made.image_ids[row] for row in half])["AP"]
        assert evaluator.rows(half).ap(chosen[half]) == pytest.approx(some, abs=1e-9)
    assert evaluator.positives.tolist() == [len(coco.imgToAnns[i]) for i in made.image_ids]
