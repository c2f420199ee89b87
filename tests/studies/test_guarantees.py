"""Certificates as curves: by hand on made-up splits, and that the check of a promise can fail."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import noisy

from eelib import guarantee
from eelib.deploy.evidence import OF_RAW_SCORES
from eelib.routing import Setting, prepare
from studies.routing import guarantees, worth

TIMES = (0.3, 0.5, 1.0)


@pytest.fixture(scope="module")
def splits():
    made = {name: noisy(150, seed, name, empty=0.3) for seed, name in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, TIMES, "none")


def test_a_walk_goes_from_full_down_and_a_coin_loses_its_expectation(splits):
    walks = guarantees.walks(splits["val"], guarantee.f1_of, OF_RAW_SCORES)
    assert list(walks) == ["router", "best score", "coin"]
    assert walks["coin"][0].tolist() == [0, 0, 1] and walks["coin"][-1].tolist() == [1, 0, 0]
    calibrate = splits["calibrate"]
    losses = guarantees.losses_of(walks["coin"], calibrate, guarantee.f1_of)
    assert losses[0].max() == 0
    drop = np.maximum(0, calibrate.f1[:, -1:] - calibrate.f1)
    assert losses[-1] == pytest.approx(drop[:, 0])
    ours = guarantees.losses_of(walks["router"], calibrate, guarantee.f1_of)
    assert ours == pytest.approx(guarantee.losses_of(walks["router"], calibrate)[0])


def test_a_promise_at_another_share_of_empty_images_counts_them_by_their_weight():
    empty, rng = np.arange(900) % 9 == 0, np.random.default_rng(0)
    losses = np.stack([np.zeros(900), np.where(empty, rng.random(900) < 0.15, 0.0)])
    assert guarantees.certified_step(losses, 0.05, 0.1, empty)[0] == 1  # a loss of 0.017
    assert guarantees.certified_step(losses, 0.05, 0.1, empty, 0.9)[0] == 0  # there it is 0.135
    assert guarantees.certified_step(losses[:, :90], 0.05, 0.1, empty[:90], 0.9) == (-1, 1.0)  # too few to say


def test_curves_have_a_row_for_each_promise(splits):
    cases = [worth.Beside(splits["test"], TIMES, [], share, 10) for share in (None, 0.8)]
    for loss in guarantees.QUALITIES:
        rows = guarantees.curve(splits, loss, OF_RAW_SCORES, (0.1, 0.3), 0.1, cases)
        assert len(rows) == 3 * 2 * 2
        for system in ("router", "best score", "coin"):
            own = [row for row in rows if row["system"] == system and row["prevalence"] == cases[0].prevalence]
            assert own[1]["time"] <= own[0]["time"] and all(row["risk"] <= row["epsilon"] for row in own)
        objects = (splits["calibrate"].evaluator.positives > 0).sum()
        assert rows[0]["n"] == (objects if loss == "recall" else 150)
    assert not guarantees.table(rows).empty and len(guarantees.sentences(rows)) == 4
    figure = guarantees.curves_figure([row for row in rows if row["prevalence"] == cases[0].prevalence])
    assert figure.axes
    plt.close(figure)


def test_recall_is_lost_by_images_with_objects_alone(splits):
    recall, empty = guarantees.recall_of(splits["test"]), splits["test"].evaluator.positives == 0
    assert (recall[empty] == 1).all() and recall.min() >= 0 and recall.max() <= 1
    assert guarantees.drops(recall)[empty].max() == 0


def test_the_check_finds_rules_that_promise_nothing():
    rng = np.random.default_rng(0)
    # a loss that is seldom and then whole: many small samples hold none of it, which fools a test of means
    losses = (rng.random((1, 2000)) < np.linspace(0.01, 0.12, 12)[:, None]).astype(float)
    rows = list(guarantees.redrawn(losses, 0.05, (0.03, 0.1), (100,), 200, guarantees.RULES))
    by_rule = {(row["rule"], row["delta"]): row for row in rows}
    for rule in ("Hoeffding-Bentkus", "betting", "binomial"):
        assert not by_rule[rule, 0.03]["fails"] and not by_rule[rule, 0.1]["fails"]
    assert by_rule["naive", 0.03]["fails"] and by_rule["naive", 0.1]["fails"] and by_rule["normal", 0.03]["fails"]
    assert by_rule["binomial", 0.1]["violations"] > 0  # so sharp that it is wrong at times, as it may be
    low, high = by_rule["naive", 0.1]["interval"]
    assert low < by_rule["naive", 0.1]["rate"] < high
    figure = guarantees.redrawn_figure([row | {"loss": "objects"} for row in rows])
    assert len(figure.axes) == 2
    plt.close(figure)


def test_every_step_is_a_setting_or_a_coin(splits):
    walks = guarantees.walks(splits["val"], guarantees.recall_of, OF_RAW_SCORES)
    kinds = {name: {isinstance(step, Setting) for step in steps} for name, steps in walks.items()}
    assert kinds == {"router": {True}, "best score": {True}, "coin": {False}}
