"""Ending empty images: certified thresholds by hand, and worth on made-up splits."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy.stats import rankdata
from synthetic import noisy

from eelib.deploy.evidence import EVIDENCE
from eelib.guarantee import GuaranteeError
from eelib.policies import settings_of
from eelib.routed_ap import RoutedAP
from eelib.routing import prepare
from studies.report import reports
from studies.routing import blank, worth

TIMES = (0.3, 0.5, 1.0)
AXIS = worth.Times(np.array(TIMES), np.array(TIMES) + 0.02, np.array([0.2]), {}, "none")


@pytest.fixture(scope="module")
def splits():
    """Three splits with one gate, which sees a little less than the best score of the last exit."""
    records, cocos = {}, {}
    for seed, name in enumerate(("val", "calibrate", "test")):
        cocos[name], made = noisy(150, seed, name, empty=0.4)
        shows = RoutedAP(made, cocos[name]).positives > 0
        gate = np.clip(0.3 + 0.5 * shows + np.random.default_rng(seed).normal(0, 0.1, len(shows)), 0, 1)
        columns = np.concatenate((made.evidence, np.repeat(gate[:, None, None], 3, 1)), 2).astype(np.float32)
        records[name] = dataclasses.replace(made, evidence=columns, evidence_names=(*EVIDENCE, "blank1"))
    return prepare(records, cocos, TIMES, "none")


def test_a_threshold_ends_what_can_be_certified_and_no_more():
    view = np.linspace(0.2, 1, 400)
    threshold = blank.certified_threshold(view, view, 0.05, 0.1)
    assert 0.2 < threshold < np.quantile(view, 0.05)
    with pytest.raises(GuaranteeError, match="epsilon"):
        blank.certified_threshold(view, view, 0.001, 0.1)  # 400 images cannot show so little
    assert blank.certified_threshold(view, view * 0.5, 0.05, 0.1) < 0.2  # calibrate decides, not val


def test_views_end_few_images_with_objects(splits):
    rows = blank.ended(splits["val"], splits["calibrate"], splits["test"], 0.1, 0.1)
    early = [f"{view}, {name}" for name in ("exit1", "exit2") for view in ("best score", "count", "benefit")]
    assert list(rows) == ["blank1", *early, "best score, full", "count, full", blank.BOTH]
    shows = splits["test"].evaluator.positives > 0
    (seen,) = blank.views(splits["val"], [splits["test"]])
    for name, row in rows.items():
        assert row["lost"] == row["ends"][shows].mean() and row["blank_ended"] == row["ends"][~shows].mean()
        assert row["lost_interval"][0] <= row["lost"] <= row["lost_interval"][1]
        if name != blank.BOTH:
            ranks = rankdata(seen[name])[shows].sum() - shows.sum() * (shows.sum() + 1) / 2  # Mann and Whitney's U
            assert row["AUROC"] == pytest.approx(ranks / (shows.sum() * (~shows).sum()))
    assert rows["blank1"]["blank_ended"] > 0.5 and rows["blank1"]["lost"] < 0.1
    assert rows["blank1"]["objects_lost"] <= 0.1


def test_ending_empty_images_saves_time_and_costs_no_ap(splits):
    test = splits["test"]
    empty = test.evaluator.positives == 0
    static = [worth.Static("truncated", 0.15, test.evaluator)]  # its first exit
    cases = [worth.Beside(test, TIMES, static, share, 50) for share in (None, 0.9)]
    assert [round(case.prevalence, 2) for case in cases] == [round(empty.mean(), 2), 0.9]
    ends, paid = np.where(empty, 3, 2), np.array([*TIMES, 0.1])
    own, rare = (case.routed(ends, paid) for case in cases)
    assert own["time"] == pytest.approx(empty.mean() * 0.1 + 1 - empty.mean()) and own["minus_full"][0] >= 0
    assert rare["time"] == pytest.approx(0.9 * 0.1 + 0.1) and rare["above_static"] and rare["minus_coin"] is None
    assert own["AP"] == test.evaluator.ap(ends) and own["above_coin"]


def test_a_coin_is_on_the_line_and_above_nothing(splits):
    case = worth.Beside(splits["test"], TIMES, [], None, 50)
    row = case.mixed(np.array([0.5, 0.0, 0.5]), np.array(TIMES))
    assert row["time"] == 0.65 and row["AP"] == pytest.approx((case.ap[0] + case.ap[2]) / 2)
    assert not row["above_coin"] and "above_static" not in row


def test_a_router_is_chosen_for_its_share_of_empty_images(splits):
    calibrate = splits["calibrate"]
    settings = settings_of("no_chair", calibrate, splits["val"], {"grid": 5})
    for share in (None, 0.9):
        for setting, budget in zip(worth.best_within(settings, calibrate, (0.4, 0.8), share), (0.4, 0.8), strict=True):
            case = worth.Beside(calibrate, TIMES, [], share, 2)
            assert case.routed(setting.route(calibrate), calibrate.paid(False))["time"] <= budget + 1e-9
    assert worth.best_within(settings, calibrate, (0.1,), None) == []
    assert len(worth.best_within(settings, calibrate, (0.8, 0.8), None)) == 1  # a routing is counted once


def test_gates_are_promised_beside_a_coin(splits):
    cases = [worth.Beside(splits["test"], TIMES, [], share, 20) for share in (None, 0.9)]
    rows = blank.gate_curve(splits, AXIS, (0.1, 0.2), 0.1, cases)
    gates = [row for row in rows if row["system"] == blank.BOTH]
    assert len(rows) == 12 and gates[0]["blank_ended"] <= gates[-1]["blank_ended"]
    own, rare = gates[0], gates[1]
    assert rare["time"] < own["time"] and own["risk_on_test"] == rare["risk_on_test"]
    coin = next(row for row in rows if row["system"] == "coin")
    assert coin["time"] == 0.9 and coin["AP"] == pytest.approx(0.9 * cases[0].ap[-1]) and not coin["above_coin"]
    shown = [row | {"system": "gates alone"} for row in gates]
    figure = blank.worth_figure(shown, None, {case.prevalence: (TIMES, case.ap) for case in cases})
    assert [axis.get_title()[-7:] for axis in figure.axes] == ["% empty"] * 2
    plt.close(figure)


def test_goals_are_judged_by_the_metrics(splits):
    row = {"prevalence": 0.15, "above_coin": True, "above_static": False, "AP": 0.4, "time": 0.5}
    rare = row | {"prevalence": 0.89, "AP": 0.3}
    rows = [row | {"system": "benefit"}, rare | {"system": "full alone", "time": 0.8}]
    rows += [rare | {"system": "gates and benefit", "AP": 0.298, "time": 0.44, "above_static": True}]
    blank_metrics = {"epsilon": 0.02, "delta": 0.1, "views": {"blank1": {"blank_ended": 0.51}}, "worth": rows}
    met = worth.check_goals(blank_metrics)["met"].tolist()
    assert met == [True, True, False, False, False, True]
    assert not worth.check_goals(blank_metrics | {"epsilon": 0.05})["met"].iloc[0]  # another promise than the goal's


def test_times_with_gates_come_from_04_and_those_without_from_the_plane():
    plain = {"name": "baseline", "kind": "plain", "int8": False, "seed": 0, "input_px": 320, "checkpoint_sha256": "b"}
    exit_ = {"median_ms": 10.0, "p95_ms": 11.0, "p99_ms": 12.0, "time_ratio": 1.0}
    half = {"median_ms": 6.0, "p95_ms": 7.0, "p99_ms": 8.0, "time_ratio": 0.6}
    systems = [plain | {"exits": {"full": exit_}}]
    systems += [plain | {"name": "static_256", "kind": "input", "input_px": 256, "exits": {"full": half}}]
    network = {"name": "e", "kind": "exits", "checkpoint_sha256": "e"}
    systems += [plain | network | {"exits": {"exit1": half, "full": exit_}}]
    measured = {"exits": {"exit1": {"ratio": 0.9}, "full": {"ratio": 2.0}}, "gates": {"blank1": 0.5}}
    times = worth.common_times({"systems": systems, "machine": {"processor": "p"}}, measured, "e", 256)
    assert times.exits.tolist() == [0.6, 1.0] and times.told["exit1"] == {"median": 0.6, "p95": 0.7, "p99": 0.8}
    assert times.gated.tolist() == pytest.approx([0.54, 1.2]) and times.gates.tolist() == pytest.approx([0.3])


def test_other_seeds_stand_beside_the_first(tmp_path):
    def row(system, static, coin=True):
        return {"prevalence": 0.89, "system": system, "above_coin": coin, "above_static": static}

    first, second = [row("no chair", True), row("no chair", False), row("full alone", None)], [row("no chair", None)]
    plane = {"systems": [
        {"name": "net", "seed": seed, "int8": int8, "checkpoint_sha256": sha}
        for seed, int8, sha in ((0, False, "a"), (1, False, "b"), (2, False, "c"), (1, True, "b"))
    ]}  # fmt: skip
    (tmp_path / "metrics").mkdir()
    for seed, sha in ((1, "b"), (2, "of other weights")):
        path = tmp_path / "metrics" / f"blank_seed{seed}.json"
        path.write_text(json.dumps({"checkpoint_sha256": sha, "worth": second}))
    others = worth.other_seeds(tmp_path, plane, "a")
    assert others == {1: second} and worth.other_seeds(tmp_path, plane, "unknown") == {}
    table = worth.seeds_table({0: first} | others)
    assert table["seed 0 above all static detectors"].tolist() == ["1 of 2"]
    assert table["seed 1 above the coin"].tolist() == ["1 of 1"]
    assert reports.routers_above(table) == "No router lies above the hull of all static detectors with every seed"
    assert reports.routers_above(worth.seeds_table({0: first, 1: first})) == (
        "Leaving where no chair is seen lies above the hull of all static detectors at 1 of 2 and 1 of 2 times that "
        "were tried, counted for each seed, where 89 % of the images are empty; no other router does with every seed"
    )
    assert reports.routers_above(worth.seeds_table({0: first})).endswith("are empty; no other router does")
