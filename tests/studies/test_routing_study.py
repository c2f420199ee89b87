"""Bounds, experiments, honest scores and resplits: what 05d_policies tells."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import noisy

from eelib.calibrate import CalibrationError
from eelib.config import ROOT, read_yaml
from eelib.deploy.router import Times
from eelib.files import file_sha256
from eelib.policies import POLICIES, settings_of
from eelib.routed_ap import RoutedAP
from eelib.routing import choose, prepare
from studies.routing import times
from studies.routing.bounds import Area, Judge, along, areas, oracle_curve, policy_curve, recovered
from studies.routing.experiments import EXPERIMENTS, fit_temperature, train_exit_gates
from studies.routing.reliability import compare, d_ece, reliability
from studies.routing.resplits import naive, resplit_risks, resplits
from studies.routing.worth import Static

COSTS = (0.5, 0.7, 1.0)
OPTIONS = read_yaml(ROOT / "params" / "report_policies.yaml") | {
    "grid": 5, "exit_gates": {"budgets": [0.6, 0.8], "steps": 40, "lr": 0.1}
}  # fmt: skip


@pytest.fixture(scope="module")
def splits():
    made = {s: noisy(50, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, COSTS)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS.keys() - {"dynamic_det"}))
def test_every_experiment_gives_settings_that_route(name, splits, monkeypatch):
    monkeypatch.setitem(POLICIES, name, EXPERIMENTS[name])
    settings = settings_of(name, splits["calibrate"], splits["val"], OPTIONS)
    for split in splits.values():
        confidence = settings[0].on(split)
        assert confidence.shape == (50, 2) and (confidence >= 0).all() and (confidence <= 1).all()
    assert settings[0].confidence.reads_boxes == (name == "gumbel")
    times = [splits["calibrate"].time(s.route(splits["calibrate"])) for s in choose(settings, splits["calibrate"], [1])]
    assert times[0] <= 1
    with pytest.raises(CalibrationError, match="nothing is ever tuned on test"):
        settings_of(name, splits["test"], splits["val"], OPTIONS)


@pytest.mark.parametrize("noise", [False, True])
def test_exit_gates_learn_whom_full_helps(noise):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 2, 1))
    value = np.stack((np.where(features[:, 0, 0] > 0, 0.0, -1.0), np.full(200, -1.0), np.zeros(200)), 1)
    weights = train_exit_gates(features, value, np.array(COSTS), [0.75], steps=120, lr=0.1, noise=noise)
    opened = features[:, 0, 0] * weights[0, 0, 0] + weights[0, 0, 1] > 0
    assert (opened == (features[:, 0, 0] > 0)).mean() > 0.9
    second = train_exit_gates(features, value, np.array(COSTS), [0.75], steps=120, lr=0.1, noise=noise)
    assert (weights == second).all()


def test_temperature_is_found_and_clamped():
    rng = np.random.default_rng(1)
    z = rng.normal(0, 2, 5000)
    right = (rng.random(5000) < 1 / (1 + np.exp(-z))).astype(float)
    sharpened = 1 / (1 + np.exp(-2 * z))
    assert fit_temperature(sharpened, right, (0.5, 3.0)) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(sharpened, right, (0.5, 1.5)) == pytest.approx(1.5, rel=1e-3)


def test_a_curve_is_straight_between_its_points_and_level_beyond():
    times, ap = np.array([1.0, 0.5, 0.5]), np.array([[0.3, 0.1, 0.2], [1.0, 0.0, 0.0]])
    assert along(times, ap, np.array([0.4, 0.5, 0.75, 2.0])) == pytest.approx(
        np.array([[0.15, 0.15, 0.225, 0.3], [0, 0, 0.5, 1]])
    )


def test_recovered_area_by_hand():
    grid = np.linspace(0.5, 1, 201)
    area = Area(grid, np.linspace(0.1, 0.3, 201)[None], np.full((1, 201), 0.3))
    ends = np.array([0.5, 1.0])

    def share(times, *ap):
        return area.share(times, np.array([ap]))[0]

    assert share(ends, 0.2, 0.3) == pytest.approx(0.5)
    assert share(ends, 0.1, 0.3) == pytest.approx(0)
    assert share(ends, 0.3, 0.3) == pytest.approx(1)
    assert share(ends, 0.0, 0.3) == pytest.approx(-0.5)
    # as good as the oracle from 0.75 on, and no faster: a quarter of the area, however high its first point
    assert share(np.array([0.75, 1.0]), 0.3, 0.3) == pytest.approx(0.25, abs=0.01)
    # a bootstrap recovers for each resample what it would alone
    both = Area(grid, np.repeat(area.low, 2, 0), np.repeat(area.high, 2, 0))
    assert both.share(ends, np.array([[0.2, 0.3], [0.3, 0.3]])) == pytest.approx([0.5, 1])


def test_bounds_enclose_a_policy(splits):
    here, test = splits["calibrate"], splits["test"]
    judge, budgets = Judge(test, 12), [0.6, 0.75, 0.9]
    oracle = oracle_curve(judge, [0.5, *budgets])
    curve = policy_curve(settings_of("benefit", here, splits["val"], OPTIONS), here, judge, budgets)
    for high, mine in zip(oracle.points[1:], curve.points, strict=True):
        assert high["coin"] < high["AP"] and mine["AP"] <= high["AP"] + 0.01
        assert high["time_ratio"] <= high["budget"] + 1e-9
        assert sum(mine["exit_shares"].values()) == pytest.approx(1)
        assert mine["AP_interval"][0] < mine["AP"] < mine["AP_interval"][1]
    assert oracle.points[0]["exit_shares"]["exit1"] == 1 and curve.samples.shape == (12, 3)
    between = areas(judge, oracle)
    best, some = recovered(oracle, between), recovered(curve, between)
    assert best.share == pytest.approx(1) and best.samples == pytest.approx(np.ones(12))
    assert some.share < 1 and some.interval[0] < some.interval[1]


def test_the_coin_lies_on_the_line_between_two_exits(splits):
    judge = Judge(splits["test"], 5)
    assert [judge.coin_at(cost) for cost in COSTS] == pytest.approx(judge.ap.tolist())
    assert judge.coin_at(0.6) >= (judge.ap[0] + judge.ap[1]) / 2 - 1e-12 and np.isnan(judge.coin_at(0.4))
    point = judge.point(np.full(50, 1))
    assert (point["coin"], point["AP_minus_coin"]) == pytest.approx((judge.coin_at(0.7), point["AP"] - point["coin"]))
    assert point["above_coin"] is False  # an exit is no better than itself


def test_above_is_said_of_a_whole_split_alone(splits):
    test = splits["test"]
    oracle = oracle_curve(Judge(test, 30, [Static("plain", 0.1, test.evaluator)]), [0.6])
    assert oracle.points[0]["above_coin"] is True and oracle.points[0]["above_static"] is True
    part = replace(test, records=test.records.rows(range(40)), evaluator=test.evaluator.rows(range(40)))
    judge = Judge(part, 30, [Static("plain", 0.1, part.evaluator)])
    assert judge.hulls == {} and judge.point(np.zeros(40, int))["above_coin"] is None


def test_d_ece_by_hand():
    scores, right = np.array([0.11, 0.12, 0.9]), np.array([0.0, 1.0, 1.0])
    table = reliability(scores, right, bins=10)
    assert table["count"] == [2, 1] and table["right"] == [0.5, 1.0]
    assert d_ece(scores, right, bins=10) == pytest.approx((2 * abs(0.115 - 0.5) + 0.1) / 3)
    assert d_ece(np.array([1.0]), np.array([1.0])) == 0 and d_ece(np.zeros(0), np.zeros(0)) == 0


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


def test_resplits_hold_delta_where_naive_tuning_does_not():
    rng = np.random.default_rng(0)
    # the risk of setting s is s / 100: a naive choice sits at epsilon, so half of the time beyond it
    losses = (rng.random((20, 600)) < np.arange(20)[:, None] / 100).astype(float)
    answer = resplits(losses, np.ones_like(losses), np.arange(600), 0.1, 0.1, rounds=60)
    assert answer["certified"]["rate"] <= 0.1 < 0.2 < answer["naive"]["rate"]
    low, high = answer["certified"]["interval"]
    assert low <= answer["certified"]["rate"] <= high


def test_naive_tuning_takes_the_last_setting_that_looks_safe():
    safe, unsafe = np.zeros(100), np.ones(100)
    assert naive(np.array([safe, unsafe, safe]), 0.05) == 2 and naive(np.array([unsafe]), 0.05) == -1


def test_the_interval_of_a_rate_is_the_textbooks(splits):
    losses = np.zeros((1, 600))
    answer = resplits(losses, np.ones_like(losses), np.arange(600), 0.1, 0.1, rounds=100)
    low, high = answer["certified"]["interval"]
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert len(resplit_risks(answer, 0.1, 0.1).axes) == 2


def test_times_of_other_weights_are_measured_anew(tmp_path, monkeypatch):
    checkpoint, path, lines = tmp_path / "c.pth", tmp_path / "exits.json", []
    checkpoint.write_bytes(b"weights")
    rows = {name: {"ratio": ratio, "passed_ratio": 0.01} for name, ratio in (("exit1", 0.4), ("full", 1.1))}
    path.write_text(json.dumps({"exits": rows, "checkpoint_sha256": file_sha256(checkpoint)}))
    read = times.times_of(path, ("exit1", "full"), checkpoint, "root", lines.append)
    assert (read.exits, read.passing) == ((0.4, 1.1), (0.01, 0.01)) and not lines
    checkpoint.write_bytes(b"other weights")
    measured = Times((0.5, 1.2), (0.0, 0.02), (), "the plain detector", {})
    monkeypatch.setattr(times, "measured_times", lambda *_: measured)
    assert times.times_of(path, ("exit1", "full"), checkpoint, "root", lines.append) is measured
    assert "other weights" in lines[0] and "measured now" in lines[1]


def test_times_of_the_plane_are_on_its_axis(tmp_path):
    checkpoint, path = tmp_path / "c.pth", tmp_path / "exits.json"
    checkpoint.write_bytes(b"weights")
    sha256 = file_sha256(checkpoint)
    rows = {name: {"ratio": ratio, "passed_ratio": 0.12} for name, ratio in (("exit1", 0.4), ("full", 1.2))}
    path.write_text(json.dumps({"exits": rows, "checkpoint_sha256": sha256}))
    exits = {
        name: {"time_ratio": ratio, "median_ms": 10 * ratio, "p95_ms": 12 * ratio, "p99_ms": 20 * ratio}
        for name, ratio in (("exit1", 0.3), ("full", 0.8))
    }
    plane = {
        "machine": {"processor": "some"},
        "systems": [{"checkpoint_sha256": sha256, "int8": False, "exits": exits}],
    }
    common = times.common_times(plane, path, ("exit1", "full"), checkpoint, "root")
    assert common.costs.tolist() == [0.3, 0.8] and common.passing == pytest.approx([0.08, 0.08])
    assert common.tails == pytest.approx(np.array([[0.36, 0.6], [0.96, 1.6]])) and common.machine == "some"
    own = times.common_times(None, path, ("exit1", "full"), checkpoint, "root")
    assert own.costs.tolist() == [0.4, 1.2] and not own.committed and common.committed
