from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import noisy as synthetic_records

from eelib.data import DetectionDataset, as_input
from eelib.model import EarlyExitSSDLite
from eelib.policies import FEW_UNDECIDED, PENALTIES, fit_gain, swept
from eelib.routed_ap import RoutedAP
from eelib.routing import prepare
from studies.compress.plane import flags_of
from studies.routing import predictability
from studies.routing.bounds import Judge, areas, oracle_curve, policy_curve, priced, recovered
from studies.routing.predictability import (
    between_trainings,
    correlations,
    foreseen,
    free_evidence,
    gains_of,
    needed,
    noisy,
    noisy_oracle,
    pooled_features,
    rank_correlation,
    with_pooled,
    without_passing,
)

COSTS = (0.5, 0.7, 1.0)


@pytest.fixture(scope="module")
def splits():
    made = {s: synthetic_records(50, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, COSTS)


def test_rank_correlation_by_hand():
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 10, 100])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert rank_correlation(np.array([0.0, 5, 5, 9]), np.array([1.0, 2, 3, 4])) == pytest.approx(np.sqrt(0.9))
    assert rank_correlation(np.zeros(3), np.array([1.0, 2, 3])) == 0


def test_noise_leaves_the_correlation_asked_for():
    gains = np.random.default_rng(0).normal(size=(20_000, 2)) * [1.0, 3.0] + [0.5, -1]
    for share in (0.0, 0.5, 1.0):
        guess = noisy(gains, share, np.random.default_rng(1))
        assert guess.mean(0) == pytest.approx(gains.mean(0), abs=0.05)
        assert guess.std(0) == pytest.approx(share * gains.std(0), rel=0.03)
        if share:
            assert np.corrcoef(guess[:, 1], gains[:, 1])[0, 1] == pytest.approx(share, abs=0.02)
    assert noisy(gains, 1.0, np.random.default_rng(1)) == pytest.approx(gains)


def test_a_price_of_time_keeps_to_the_budget():
    value = np.array([[-3.0, -1, 0], [-0.1, -0.1, 0], [-2.0, 0, 0], [0.0, 0, 0]])
    costs = np.array(COSTS)
    assert priced(value, costs, 1.0).tolist() == [2, 2, 1, 0]  # no more than it needs even where time is free
    for budget in (0.5, 0.6, 0.8):
        assert costs[priced(value, costs, budget)].mean() <= budget + 1e-9


def test_the_noisy_oracle_recovers_more_the_better_it_sees(splits):
    test, budgets = splits["test"], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    judge = Judge(test, 2)
    area, _ = areas(judge, oracle_curve(judge, budgets))
    blind, half, clear = noisy_oracle(test, budgets, area, (0.0, 0.6, 1.0))
    assert abs(blind["correlation"]) < 0.2 < half["correlation"] < clear["correlation"] == pytest.approx(1)
    assert blind["recovered"] < half["recovered"] < clear["recovered"]
    assert clear["recovered"] > 0.9  # it is the oracle, by its own curve


def test_what_a_goal_needs_lies_between_two_points():
    worth = [{"correlation": c, "recovered": r} for c, r in ((0.0, -0.1), (0.5, 0.3), (1.0, 0.7))]
    assert needed(worth, 0.5) == pytest.approx(0.75)
    assert needed(worth, 0.8) is None
    assert needed(worth, -0.2) == 0.0


def test_the_penalty_is_the_one_that_foresees_best_where_it_was_not_fitted(splits):
    here = [splits["val"], splits["calibrate"]]
    hidden = np.concatenate([s.columns(("top_score",))[:, :2, 0] for s in here])
    learnt = fit_gain(here, hidden, free_evidence)
    assert learnt.error < 0.1 * hidden.var() and learnt.penalty == PENALTIES[0]
    noise = np.random.default_rng(0).normal(size=hidden.shape)
    assert fit_gain(here, noise, free_evidence).penalty >= 100


def test_pooled_features_are_those_of_the_trunk_at_the_cuts(tiny):
    torch.manual_seed(0)
    model = EarlyExitSSDLite().eval()
    dataset = DetectionDataset("test", tiny, 320, limit=2)
    found = pooled_features(model, dataset, batch_size=1)
    with torch.no_grad():
        features = (as_input(dataset[1][0][None]) - 0.5) / 0.5
        features = model.segment(features, 0, model.cuts["exit1"])
        first = torch.cat((features.mean((2, 3)), features.amax((2, 3))), 1)
        features = model.segment(features, model.cuts["exit1"], model.cuts["exit2"])
    assert found[0][1] == pytest.approx(first[0].numpy(), abs=1e-5)
    assert found[1].shape == (2, 2 * features.shape[1])
    assert found[1][1, -1] == pytest.approx(float(features[0, -1].max()), abs=1e-5)


def test_richer_features_that_hold_the_gain_foresee_it(splits):
    pooled = {name: [s.gains[:, :1], s.gains[:, 1:]] for name, s in splits.items()}
    here, test = [splits["val"], splits["calibrate"]], splits["test"]
    without, with_ = foreseen(here, test), foreseen(here, test, with_pooled(pooled))
    assert without["images"] == 100 and len(without["correlation"]) == 2
    assert min(with_["correlation"]) > 0.8 > max(without["correlation"])
    assert with_pooled(pooled)(test, 1).shape[1] == free_evidence(test, 1).shape[1] + 2


def test_gains_of_other_seeds_are_of_the_same_images(splits, tmp_path):
    test = splits["test"]
    few = replace(test, records=test.records.rows(range(20)))
    plane = {"plane": {"name": "plane"}, "split_sha256": "data", "systems": []}
    for seed in (0, 1):
        RoutedAP(test.records, test.coco).save(flags_of(tmp_path, "net", seed), "data", f"graphs {seed}")
        plane["systems"].append({"name": "net", "seed": seed, "graphs_sha256": f"graphs {seed}"})
    found = gains_of(tmp_path, plane, "net", few)
    assert list(found) == ["seed 0", "seed 1"] and gains_of(tmp_path, None, "net", few) == {}
    for gains in found.values():
        assert gains == pytest.approx(RoutedAP(few.records, few.coco).gains(), abs=1e-6)


def test_a_look_at_boxes_costs_a_policy_that_needs_them(splits):
    slow = {name: replace(split, passing=np.full(3, 0.1)) for name, split in splits.items()}
    known = {split.images: 1 / (1 + np.exp(split.gains)) for split in slow.values()}
    settings = swept(FEW_UNDECIDED, slow["calibrate"], 5, known)
    budgets, judge = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], Judge(slow["test"], 2)
    between = areas(judge, oracle_curve(judge, budgets))
    paid = recovered(policy_curve(settings, slow["calibrate"], judge, budgets), between).share
    assert without_passing(settings, slow["calibrate"], slow["test"], budgets, between[0]) > paid


def test_the_figure_names_what_it_draws():
    worth = [{"correlation": 0.0, "recovered": 0.0}, {"correlation": 1.0, "recovered": 1.0}]
    drawn = predictability.worth_of_foresight(
        worth, {"benefit": (0.4, 0.1), "fixed": (-0.2, -0.5)}, {"another seed": 0.5}, 0.6
    )
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels == ["noisy oracle", "fixed", "benefit", "another seed"]


def test_correlation_between_trainings_is_the_mean_over_pairs():
    a, b, c = (np.array([[1.0], [2], [3]]), np.array([[1.0], [2], [3]]), np.array([[3.0], [2], [1]]))
    assert between_trainings({"a": a, "b": b, "c": c}) == pytest.approx([-1 / 3])
    assert correlations(a, c) == pytest.approx([-1])
    assert between_trainings({"a": a}) is None
