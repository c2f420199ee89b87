import numpy as np
import pytest
from synthetic import annotations, noisy, records

from eelib.calibrate import (
    CalibrationError,
    calibrated,
    compare,
    d_ece,
    fit_calibrators,
    fit_temperature,
    isotonic,
    platt,
    pool_adjacent_violators,
    reliability,
)
from eelib.routed_ap import RoutedAP


def test_violators_are_pooled_by_hand():
    x, y = pool_adjacent_violators(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1, 0, 1]))
    assert x.tolist() == pytest.approx([0.1, 0.25, 0.4]) and y.tolist() == pytest.approx([0, 0.5, 1])
    x, y = pool_adjacent_violators(np.array([0.2, 0.2, 0.8]), np.array([1.0, 0, 0]))  # tied scores are one point
    assert x.tolist() == pytest.approx([0.4]) and y.tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("fit", [isotonic, platt])
def test_a_calibrator_rises_and_learns_the_shares(fit):
    rng = np.random.default_rng(0)
    true = rng.uniform(0.05, 0.95, 4000)
    right = (rng.random(4000) < true).astype(float)
    overstated = true**0.5
    calibrator = fit(overstated, right)
    mapped = calibrator(np.linspace(0, 1, 101))
    assert (np.diff(mapped) > 0).all() and mapped.min() >= 0 and mapped.max() <= 1
    assert d_ece(calibrator(overstated), right) < 0.05 < d_ece(overstated, right)


def test_platt_never_turns_a_ranking_around():
    scores = np.linspace(0.1, 0.9, 50)
    assert (np.diff(platt(scores, (scores < 0.5).astype(float))(scores)) > 0).all()


def test_temperature_is_found_and_clamped():
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, 5000)
    right = (rng.random(5000) < 1 / (1 + np.exp(-z))).astype(float)
    sharpened = 1 / (1 + np.exp(-2 * z))
    assert fit_temperature(sharpened, right, (0.5, 3.0)) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(sharpened, right, (0.5, 1.5)) == pytest.approx(1.5, rel=1e-3)


def test_d_ece_by_hand():
    scores, right = np.array([0.11, 0.12, 0.9]), np.array([0.0, 1.0, 1.0])
    table = reliability(scores, right, bins=10)
    assert table["count"] == [2, 1] and table["right"] == [0.5, 1.0]
    assert d_ece(scores, right, bins=10) == pytest.approx((2 * abs(0.115 - 0.5) + 0.1) / 3)
    assert d_ece(np.array([1.0]), np.array([1.0])) == 0 and d_ece(np.zeros(0), np.zeros(0)) == 0


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibration_keeps_the_order_inside_an_exit(method):
    coco, made = noisy(40)
    evaluator = RoutedAP(made, coco)
    mapped = calibrated(made, fit_calibrators(made, evaluator, method))
    again, quick = RoutedAP(mapped, coco), evaluator.rescored(mapped)
    for name in ("image", "exit", "score", "matched", "ignored"):
        assert (getattr(again, name) == getattr(quick, name)).all()
    for k in range(3):
        assert quick.of_exit(k) == pytest.approx(evaluator.of_exit(k), abs=2e-3)


def test_scores_in_another_order_are_refused():
    coco, made = noisy(10)
    with pytest.raises(ValueError, match="same order inside every image"):
        RoutedAP(made, coco).rescored(made.with_scores([s.flip(0) for s in made.scores]))


def test_a_mix_gains_where_one_exit_overstates():
    coco, made = noisy(60)
    scores = [made.scores[0] ** 0.2, *made.scores[1:]]
    other_coco, other = noisy(60, seed=1, split="test")
    other = other.with_scores([other.scores[0] ** 0.2, *other.scores[1:]])
    made = made.with_scores(scores)
    mixes = [np.arange(60) % 3]
    report = compare(made, RoutedAP(made, coco), other, RoutedAP(other, other_coco), mixes)
    assert report["isotonic"]["AP_mix"] > report["none"]["AP_mix"] + 0.005
    for name in ("exit1", "exit2", "full"):
        assert report["isotonic"]["exits"][name]["d_ece"] < report["none"]["exits"][name]["d_ece"] / 2


def test_bad_input():
    coco, made = noisy(5, split="test")
    with pytest.raises(CalibrationError, match="nothing is ever tuned on test"):
        fit_calibrators(made, RoutedAP(made, coco))
    empty = records([{1: [(0, 0, 9, 9, 0.5)]}])
    with pytest.raises(CalibrationError, match="calibrating on 'calibrate': 1 images hold no object"):
        fit_calibrators(empty, RoutedAP(empty, annotations({1: []})))
    silent = records([{1: []}])
    with pytest.raises(CalibrationError, match="exit1 has no detections"):
        fit_calibrators(silent, RoutedAP(silent, annotations({1: [[0, 0, 9, 9]]})))
    coco, made = noisy(5)
    with pytest.raises(CalibrationError, match="'beta' is unknown"):
        fit_calibrators(made, RoutedAP(made, coco), "beta")
