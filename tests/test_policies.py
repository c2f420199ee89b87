import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from synthetic import noisy

from eelib.calibrate import CalibrationError
from eelib.policies import (
    NO_CHAIR,
    POLICIES,
    check_policy,
    evidence_features,
    fit_benefit,
    fit_gain,
    ridge,
    settings_of,
)
from eelib.routing import PolicyError, Setting, choose, fastest, prepare

OPTIONS = {"grid": 5}


@pytest.fixture(scope="module")
def splits():
    made = {s: noisy(50, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, (0.5, 0.7, 1.0))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_settings_that_route(name, splits):
    settings = settings_of(name, splits["calibrate"], splits["val"], OPTIONS)
    for split in splits.values():
        confidence = settings[0].on(split)
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


def test_an_unknown_policy_is_refused():
    with pytest.raises(PolicyError, match="policy: 'best' is unknown; expected fixed,"):
        check_policy("best")


def test_swept_thresholds_reach_both_ends(splits):
    settings = settings_of("max_score", splits["calibrate"], splits["val"], OPTIONS)
    routings = [set(s.route(splits["calibrate"]).tolist()) for s in settings]
    assert {0} in routings and any(2 in r and 0 not in r for r in routings)


def test_no_chair_is_surer_on_empty_images(splits):
    test = splits["test"]
    confidence, empty = Setting((), NO_CHAIR).on(test)[:, 0], test.evaluator.positives == 0
    assert roc_auc_score(empty, confidence) > 0.9


def test_ridge_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    features, target = rng.normal(2, 3, (60, 4)), rng.normal(size=60)
    scaled = (features - features.mean(0)) / features.std(0)
    weights = np.linalg.solve(scaled.T @ scaled + 5 * np.eye(4), scaled.T @ (target - target.mean()))
    expected = target.mean() + scaled @ weights
    assert ridge(features, target, 5.0)(features) == pytest.approx(expected, abs=1e-9)


def test_the_benefit_is_learnt_and_cross_fitted(splits):
    hidden = {name: split.columns(("top_score",))[:, :2, 0] for name, split in splits.items()}  # which is the gain
    setting = Setting((), *fit_benefit([splits["val"], splits["calibrate"]], lambda s: hidden[s.name]))
    for name in ("calibrate", "test"):
        assert np.corrcoef(setting.on(splits[name])[:, 0], hidden[name][:, 0])[0, 1] < -0.8
    here, noise = splits["calibrate"], np.random.default_rng(0).normal(size=(50, 2))
    knows = evidence_features(here.records.raw_names)
    regressor = fit_gain([here], noise, knows)
    fold, features = np.unique(here.scenes, return_inverse=True)[1] % 5, knows(here, 0)
    without = ridge(features[fold != 2], noise[fold != 2, 0], regressor.penalty)
    assert regressor.held_out[fold == 2, 0] == pytest.approx(without(features[fold == 2]))
    fitted = Setting((), *fit_benefit([here], lambda _: noise))  # where it was fitted, it answers as of unseen images
    assert (np.argsort(-fitted.on(here)[:, 0]) == np.argsort(regressor.held_out[:, 0])).all()


def test_the_fastest_setting_within_a_loss(splits):
    here = splits["calibrate"]
    settings = settings_of("max_score", here, splits["val"], OPTIONS)
    full, any_ = fastest(settings, here, 0.0), fastest(settings, here, 1.0)
    assert here.evaluator.ap(full.route(here)) >= here.evaluator.of_exit(2)
    assert here.time(any_.route(here)) == 0.5
    assert fastest(settings[:1], here, 0.0) is settings[0]  # none loses so little: the best there is
