from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from synthetic import annotations, noisy

from eelib.calibrate import CalibrationError
from eelib.deploy.evidence import Confidence, RouterError, first_exit
from eelib.policies import BEST_SCORE, POLICIES, settings_of
from eelib.routed_ap import bootstrap, resample
from eelib.routing import (
    PolicyError,
    Setting,
    exit_shares,
    hull_mixture,
    point,
    prepare,
)

COSTS = (0.5, 0.7, 1.0)


@dataclass(frozen=True)
class Given(Confidence):
    """The same values whatever the evidence is."""

    values: np.ndarray
    evidence = ("top_score",)

    def at(self, evidence, index):
        return self.values[:, index]


@pytest.fixture(scope="module")
def splits():
    made = {s: noisy(50, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, COSTS)


def test_first_exit_that_reaches_its_threshold():
    confidences = np.array([[0.6, 0.1, 0], [0.5, 0.9, 0], [0.1, 0.2, 0]])
    assert first_exit(confidences, (0.6, 0.5)).tolist() == [0, 1, 2]
    assert first_exit(confidences.astype(np.float32), (0.6, 0.5)).tolist() == [0, 1, 2]  # 0.6 is 0.6 in float32, too


def test_extreme_thresholds_are_first_and_last_exit():
    confidences = np.random.default_rng(0).random((20, 3))
    assert (first_exit(confidences, (0.0, 0.0)) == 0).all()
    assert (first_exit(confidences, (1.1, 1.1)) == 2).all()


def test_an_image_leaves_at_the_first_exit_that_is_sure(splits):
    values = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.1]])
    assert Setting((0.5, 0.5), Given(values)).route(splits["test"]).tolist() == [0, 1, 2]


def test_a_confidence_that_is_not_a_number_is_refused(splits):
    with pytest.raises(RouterError, match="confidence of image 0 at exit 1 is NaN"):
        Setting((0.5, 0.5), Given(np.full((50, 2), np.nan))).route(splits["test"])
    with pytest.raises(RouterError, match="image 1 at exit 1 is NaN"):
        first_exit(np.array([[0.1, 0.2], [np.nan, 0.1]]), (0.5,))


@pytest.mark.parametrize("thresholds", [(1.2, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_thresholds_outside_are_refused(thresholds):
    with pytest.raises(PolicyError, match=r"threshold of exit[12] is .*; expected \[0, 1\]"):
        Setting(thresholds, BEST_SCORE)


def test_shares():
    assert exit_shares(np.array([0, 0, 2, 0])) == exit_shares(torch.tensor([0, 0, 2, 0])) == [0.75, 0, 0.25]


def test_value_is_the_first_order_change_of_ap(splits):
    test = splits["test"]
    assert (test.value[:, 2] == 0).all()
    gain = test.evaluator.of_exit(0) - test.evaluator.of_exit(2)
    assert test.value[:, 0].mean() == pytest.approx(gain, rel=0.5)


def test_full_differs_from_full_by_nothing(splits):
    test = splits["test"]
    full = np.full(50, 2)
    samples = bootstrap(test.evaluator, [full, full], resample(test.scenes, 10, 0))
    measured = point(test, full, False, *samples.T)
    assert measured["AP_minus_full"] == 0 and measured["AP_minus_full_interval"] == [0, 0]
    assert measured["time_ratio"] == 1


def test_hull_mixture_by_hand():
    costs, ap = np.array(COSTS), np.array([0.1, 0.1, 0.3])
    assert hull_mixture(costs, ap, 0.75) == pytest.approx([0.5, 0, 0.5])  # exit2 is below the line: skipped
    assert hull_mixture(costs, np.array([0.1, 0.29, 0.3]), 0.6) == pytest.approx([0.5, 0.5, 0])
    assert hull_mixture(costs, ap, 0.5) == pytest.approx([1, 0, 0])
    assert hull_mixture(costs, np.array([0.1, 0.4, 0.3]), 1.0) == pytest.approx([0, 1, 0])


def test_a_policy_that_reads_boxes_pays_for_suppression_at_the_exits_passed():
    coco, made = noisy(12)
    records, cocos = {s: replace(made, split=s) for s in ("val", "calibrate")}, {"val": coco, "calibrate": coco}
    here = prepare(records, cocos, COSTS, "none", passing=(0.0, 0.01, 0.03))["calibrate"]
    chosen = np.array([0, 1, 2, 2])
    assert here.time(chosen) == pytest.approx((0.5 + 0.7 + 1 + 1) / 4)
    assert here.time(chosen, reads_boxes=True) == pytest.approx((0.5 + 0.71 + 1.03 + 1.03) / 4)
    confidences = {name: settings_of(name, here, here, {"grid": 5})[0].confidence for name in POLICIES}
    reads = {name for name, confidence in confidences.items() if confidence.reads_boxes}
    assert reads == {"count_entropy", "patience"}  # the benefit reads what costs next to nothing
    with pytest.raises(PolicyError, match="expected 3 numbers from 0"):
        prepare(records, cocos, COSTS, "none", passing=(0.0, -0.1, 0.0))


def test_records_and_times_that_do_not_fit_are_refused():
    coco, made = noisy(5, split="val")
    with pytest.raises(PolicyError, match="records of 'val' are given as 'calibrate'"):
        prepare({"val": made, "calibrate": made}, {"val": coco, "calibrate": coco}, COSTS)
    here = replace(made, split="calibrate")
    with pytest.raises(PolicyError, match="are of several detectors"):
        prepare({"val": made, "calibrate": replace(here, checkpoint_sha256="another")}, {}, COSTS)
    with pytest.raises(PolicyError, match="expected numbers that rise, above 0"):
        prepare({"val": made, "calibrate": here}, {"val": coco, "calibrate": coco}, (0.7, 0.5, 1))
    with pytest.raises(CalibrationError, match="calibrating on 'test'"):
        prepare({"val": made}, {"val": coco}, COSTS, on="test")
    none = annotations(dict.fromkeys(made.image_ids, []))
    with pytest.raises(CalibrationError, match="5 images hold no object to learn from"):
        prepare({"val": made, "calibrate": here}, {"val": coco, "calibrate": none}, COSTS)
