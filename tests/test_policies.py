import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import annotations, noisy

from eelib.calibrate import CalibrationError
from eelib.config import ROOT, read_yaml
from eelib.curves import (
    auroc,
    choose,
    clear_of_hull,
    fastest,
    full_samples,
    gain_auroc,
    hull_mixture,
    oracle_curve,
    point,
    policy_curve,
    random_curve,
    read_times,
    recovered,
    static_hull,
)
from eelib.files import file_sha256
from eelib.gates import train_gates
from eelib.policies import (
    POLICIES,
    check_policy,
    fit_benefit,
    fit_gain,
    known_at,
    no_chair,
    ridge,
    settings_of,
    top_score,
)
from eelib.routed_ap import resample
from eelib.splits import PolicyError, Setting, prepare

COSTS = (0.5, 0.7, 1.0)
OPTIONS = read_yaml(ROOT / "params" / "report_policies.yaml") | {
    "grid": 5, "gates": {"budgets": [0.6, 0.8], "steps": 40, "lr": 0.1}
}  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    made = {s: noisy(50, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, COSTS)


def test_an_image_leaves_at_the_first_exit_that_is_sure(splits):
    values = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.1]])
    assert Setting((0.5, 0.5), lambda _: values).route(splits["test"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("thresholds", [(1.2, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_thresholds_outside_are_refused(thresholds):
    with pytest.raises(PolicyError, match=r"threshold of exit[12] is .*; expected \[0, 1\]"):
        Setting(thresholds, top_score)


def test_a_confidence_that_is_not_a_number_is_refused(splits):
    with pytest.raises(ValueError, match="confidence of image 0 at exit 1 is NaN"):
        Setting((0.5, 0.5), lambda _: np.full((50, 2), np.nan)).route(splits["test"])


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_settings_that_route(name, splits):
    settings = settings_of(name, splits["calibrate"], splits["val"], OPTIONS)
    for split in splits.values():
        confidence = settings[0].confidence(split)
        assert confidence.shape == (50, 2) and (confidence >= 0).all() and (confidence <= 1).all()
    chosen = choose(settings, splits["calibrate"], [0.75, 1.0])
    times = [splits["calibrate"].time(s.route(splits["calibrate"])) for s in chosen]
    assert times[0] <= 0.75 + 1e-9 and times[1] <= 1


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_is_fitted_on_test(name, splits):
    with pytest.raises(CalibrationError, match="nothing is ever tuned on test"):
        settings_of(name, splits["test"], splits["val"], OPTIONS)
    with pytest.raises(CalibrationError, match="nothing is ever tuned on test"):
        settings_of(name, splits["calibrate"], splits["test"], OPTIONS)


def test_swept_thresholds_reach_both_ends(splits):
    settings = settings_of("max_score", splits["calibrate"], splits["val"], OPTIONS)
    routings = [set(s.route(splits["calibrate"]).tolist()) for s in settings]
    assert {0} in routings and any(2 in r and 0 not in r for r in routings)


def test_no_chair_sends_empty_images_to_exit1(splits):
    test = splits["test"]
    confidence = no_chair(test)[:, 0]
    empty = test.evaluator.positives == 0
    assert auroc(confidence, empty) > 0.9


def test_the_benefit_is_learnt_and_cross_fitted(splits):
    hidden = {name: split.evidence[:, :2, 0] for name, split in splits.items()}  # gain is the top score itself
    confidence = fit_benefit([splits["val"], splits["calibrate"]], lambda s: hidden[s.name])
    for name in ("calibrate", "test"):
        assert np.corrcoef(confidence(splits[name])[:, 0], hidden[name][:, 0])[0, 1] < -0.8
    here, noise = splits["calibrate"], np.random.default_rng(0).normal(size=(50, 2))
    regressor = fit_gain([here], noise)
    fold, known = np.unique(here.scenes, return_inverse=True)[1] % 5, known_at(here, 0)
    without = ridge(known[fold != 2], noise[fold != 2, 0], regressor.penalty)
    assert regressor.held_out[fold == 2, 0] == pytest.approx(without(known[fold == 2]))
    fitted = fit_benefit([here], lambda _: noise)  # where it was fitted, it answers as of unseen images
    assert (np.argsort(-fitted(here)[:, 0]) == np.argsort(regressor.held_out[:, 0])).all()


def test_value_is_the_first_order_change_of_ap(splits):
    test = splits["test"]
    assert (test.value[:, 2] == 0).all()
    whole = test.evaluator.of_exit(0) - test.evaluator.of_exit(2)
    assert test.value[:, 0].mean() == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize("noise", [False, True])
def test_gates_learn_whom_full_helps(noise):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 2, 1))
    value = np.stack((np.where(features[:, 0, 0] > 0, 0.0, -1.0), np.full(200, -1.0), np.zeros(200)), 1)
    weights = train_gates(features, value, np.array(COSTS), [0.75], steps=120, lr=0.1, noise=noise)
    opened = features[:, 0, 0] * weights[0, 0, 0] + weights[0, 0, 1] > 0
    assert (opened == (features[:, 0, 0] > 0)).mean() > 0.9
    again = train_gates(features, value, np.array(COSTS), [0.75], steps=120, lr=0.1, noise=noise)
    assert (weights == again).all()


def test_hull_mixture_by_hand():
    costs, ap = np.array(COSTS), np.array([0.1, 0.1, 0.3])
    assert hull_mixture(costs, ap, 0.75) == pytest.approx([0.5, 0, 0.5])  # exit2 is below the line: skipped
    assert hull_mixture(costs, np.array([0.1, 0.29, 0.3]), 0.6) == pytest.approx([0.5, 0.5, 0])
    assert hull_mixture(costs, ap, 0.5) == pytest.approx([1, 0, 0])
    assert hull_mixture(costs, np.array([0.1, 0.4, 0.3]), 1.0) == pytest.approx([0, 1, 0])


def test_static_hull_and_the_points_clear_of_it():
    peers = [{"time_ratio": 0.4, "AP": 0.1}, {"time_ratio": 0.6, "AP": 0.12}, {"time_ratio": 1.0, "AP": 0.4}]
    assert static_hull(peers)(np.array([0.7, 1.2])) == pytest.approx([0.25, 0.4])
    assert static_hull(peers)(np.array([0.3]))[0] == -np.inf
    points = [{"time_ratio": 0.7, "AP_interval": [0.26, 0.3]}, {"time_ratio": 0.7, "AP_interval": [0.24, 0.3]}]
    faster = {"time_ratio": 0.3, "AP": 0.9, "AP_interval": [0.8, 1.0]}  # than any of the peers: no hull there
    twice = [{"AP": ap, **p} for ap, p in zip((0.28, 0.27), points, strict=True)] * 2 + [faster]
    assert clear_of_hull(twice, peers) == {"clear": 1, "of": 2}


def test_auroc_by_hand():
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), [0, 0, 1, 1]) == 0.75
    assert auroc(np.array([0.5, 0.5]), [0, 1]) == 0.5
    assert auroc(np.array([0.1, 0.2]), [1, 1]) is None


def test_recovered_area_by_hand():
    def line(a, b):
        return [{"time_ratio": 0.5, "AP": a}, {"time_ratio": 1.0, "AP": b}]

    assert recovered(line(0.2, 0.3), line(0.1, 0.3), line(0.3, 0.3), 0.5) == pytest.approx(0.5)
    assert recovered(line(0.1, 0.3), line(0.1, 0.3), line(0.3, 0.3), 0.5) == 0
    assert recovered(line(0.3, 0.3), line(0.1, 0.3), line(0.3, 0.3), 0.5) == pytest.approx(1)
    # as good as the oracle from 0.75 on, and no faster: a quarter of the area, however high its first point
    late = [{"time_ratio": 0.75, "AP": 0.3}, {"time_ratio": 1.0, "AP": 0.3}]
    assert recovered(late, line(0.1, 0.3), line(0.3, 0.3), 0.5) == pytest.approx(0.25, abs=0.01)


def test_bounds_enclose_a_policy(splits):
    here, test = splits["calibrate"], splits["test"]
    weights, budgets = resample(test.scenes, 12, 0), [0.6, 0.75, 0.9]
    random, oracle = random_curve(here, test, budgets, weights, draws=4), oracle_curve(test, budgets, weights)
    curve = policy_curve(settings_of("benefit", here, splits["val"], OPTIONS), here, test, budgets, weights)
    for low, high, mine in zip(random, oracle, curve, strict=True):
        assert low["AP"] < high["AP"] and mine["AP"] <= high["AP"] + 0.01
        assert high["time_ratio"] <= high["budget"] + 1e-9 and low["time_ratio"] <= low["budget"] + 0.02
        assert sum(mine["exit_shares"].values()) == pytest.approx(1)
        assert mine["AP_interval"][0] < mine["AP"] < mine["AP_interval"][1]
    assert set(gain_auroc(settings_of("max_score", here, splits["val"], OPTIONS)[0], test)) == {"exit1", "exit2"}


def test_full_differs_from_full_by_nothing(splits):
    test = splits["test"]
    weights = resample(test.scenes, 10, 0)
    found = point(test, np.full(50, 2), weights, full_samples(test, weights))
    assert found["AP_minus_full"] == 0 and found["AP_minus_full_interval"] == [0, 0] and found["time_ratio"] == 1


def test_a_policy_that_reads_boxes_pays_for_suppression_at_the_exits_passed():
    coco, made = noisy(12)
    records, cocos = {s: replace(made, split=s) for s in ("val", "calibrate")}, {"val": coco, "calibrate": coco}
    here = prepare(records, cocos, COSTS, "none", passing=(0.0, 0.01, 0.03))["calibrate"]
    chosen = np.array([0, 1, 2, 2])
    assert here.time(chosen) == pytest.approx((0.5 + 0.7 + 1 + 1) / 4)
    assert here.time(chosen, reads_boxes=True) == pytest.approx((0.5 + 0.71 + 1.03 + 1.03) / 4)
    reads = {name for name in POLICIES if settings_of(name, here, here, OPTIONS)[0].reads_boxes}
    assert reads == {"count_entropy", "patience", "gumbel", "benefit"}
    with pytest.raises(PolicyError, match="expected 3 shares of full from 0"):
        prepare(records, cocos, COSTS, "none", passing=(0.0, -0.1, 0.0))


def test_bad_input(tmp_path, splits):
    with pytest.raises(PolicyError, match="policy: 'best' is unknown; expected one of fixed,"):
        check_policy("best")
    with pytest.raises(PolicyError, match="no such file of times"):
        read_times(tmp_path / "none.json", ("exit1", "full"), tmp_path / "w.pth")
    times, weights = tmp_path / "times.json", tmp_path / "w.pth"
    times.write_text(json.dumps({"exits": {"full": {"ratio": 1, "passed_ratio": 0.1}}}))
    with pytest.raises(PolicyError, match="no keys exits.<name>.ratio and passed_ratio"):
        read_times(times, ("exit1", "full"), weights)
    weights.write_bytes(b"1")
    with pytest.raises(PolicyError, match="times of other weights than .*w.pth"):
        read_times(times, ("full",), weights)
    times.write_text(json.dumps(json.loads(times.read_text()) | {"checkpoint_sha256": file_sha256(weights)}))
    assert read_times(times, ("full",), weights) == ([1.0], [0.1])
    coco, made = noisy(5, split="val")
    with pytest.raises(PolicyError, match="records of 'val' are given as 'calibrate'"):
        prepare({"val": made, "calibrate": made}, {"val": coco, "calibrate": coco}, COSTS)
    here = replace(made, split="calibrate")
    with pytest.raises(PolicyError, match="are of several detectors"):
        prepare({"val": made, "calibrate": replace(here, checkpoint_sha256="another")}, {}, COSTS)
    with pytest.raises(PolicyError, match="expected shares of full that rise to 1"):
        prepare({"val": made, "calibrate": here}, {"val": coco, "calibrate": coco}, (0.7, 0.5, 1))
    with pytest.raises(CalibrationError, match="calibrating on 'test'"):
        prepare({"val": made}, {"val": coco}, COSTS, on="test")
    none = annotations(dict.fromkeys(made.image_ids, []))
    with pytest.raises(CalibrationError, match="5 images hold no object to learn from"):
        prepare({"val": made, "calibrate": here}, {"val": coco, "calibrate": none}, COSTS)


def test_the_fastest_setting_keeps_its_ap(splits):
    here = splits["calibrate"]
    settings = settings_of("max_score", here, splits["val"], OPTIONS)
    full = here.evaluator.of_exit(2)
    routing = fastest(settings, here, 0.05).route(here)
    assert here.evaluator.ap(routing) >= 0.95 * full and here.time(routing) < 1
    always_first = [Setting((0.0, 0.0), top_score)]
    assert fastest(always_first, here, 0.0) is always_first[0]  # nothing keeps it: the best there is
