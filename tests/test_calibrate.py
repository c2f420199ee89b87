import numpy as np
import pytest
from synthetic import annotations, noisy, records

from eelib.calibrate import CalibrationError, calibrated, fit_calibrators, fit_isotonic, fit_platt
from eelib.records import RecordsError
from eelib.routed_ap import RoutedAP


def test_violators_are_pooled_by_hand():
    fit = fit_isotonic(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1, 0, 1]))
    assert fit.x == pytest.approx([0, 0.1, 0.25, 0.4, 1]) and fit.y == pytest.approx([0, 0, 0.5, 1, 1])
    fit = fit_isotonic(np.array([0.2, 0.2, 0.8]), np.array([1.0, 0, 0]))  # tied scores are one point
    assert fit.x == pytest.approx([0, 0.4, 1]) and fit.y == pytest.approx([0, 1 / 3, 1])


@pytest.mark.parametrize("fit", [fit_isotonic, fit_platt])
def test_a_calibrator_rises_and_learns_the_shares(fit):
    rng = np.random.default_rng(0)
    true = rng.uniform(0.05, 0.95, 4000)
    right = (rng.random(4000) < true).astype(float)
    overstated = true**0.5
    calibrator = fit(overstated, right)
    mapped = calibrator(np.linspace(0, 1, 101))
    assert (np.diff(mapped) > 0).all() and mapped.min() >= 0 and mapped.max() <= 1
    assert abs(calibrator(overstated) - true).mean() < 0.03 < abs(overstated - true).mean()


def test_platt_never_turns_a_ranking_around():
    scores = np.linspace(0.1, 0.9, 50)
    assert (np.diff(fit_platt(scores, (scores < 0.5).astype(float))(scores)) > 0).all()


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
    _, made = noisy(10)
    with pytest.raises(RecordsError, match="scores of exit1: expected the best first"):
        made.with_scores([np.roll(s, 1) for s in made.scores])


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
