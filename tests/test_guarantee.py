import math
from dataclasses import replace

import numpy as np
import pytest
from mapie.risk_control import control_fwer
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binom
from synthetic import noisy

from eelib.calibrate import CalibrationError
from eelib.guarantee import (
    BOUNDS,
    GuaranteeError,
    betting,
    binomial,
    certified,
    fixed_sequence,
    hoeffding_bentkus,
    loss_against_full,
    losses_of,
    sequence,
    smallest_set,
)
from eelib.routing import prepare


def test_p_value_by_hand():
    # no loss in 45 images: Hoeffding's part is (1 - 0.05)^45, the smaller of the two
    assert hoeffding_bentkus(np.zeros(45), 0.05) == pytest.approx(0.95**45)
    # 2 losses of 100 at 0.1: Bentkus' part is e times the binomial tail
    losses = np.r_[1.0, 1.0, np.zeros(98)]
    assert hoeffding_bentkus(losses, 0.1) == pytest.approx(
        min(math.e * binom.cdf(2, 100, 0.1), math.exp(-100 * (0.02 * math.log(0.2) + 0.98 * math.log(0.98 / 0.9))))
    )
    assert hoeffding_bentkus(np.full(100, 0.5), 0.1) == 1


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_p_value_is_valid_where_the_hypothesis_is_true(bound):
    rng = np.random.default_rng(0)
    # mean loss exactly epsilon: the share of p-values at delta or below must not exceed delta
    p = np.array([BOUNDS[bound]((rng.random(200) < 0.1).astype(float), 0.1) for _ in range(1000)])
    assert (p <= 0.1).mean() <= 0.1 + 2.5 * math.sqrt(0.1 * 0.9 / 1000)
    assert (p <= 0.5).mean() <= 0.5 + 2.5 * math.sqrt(0.25 / 1000)


def test_betting_certifies_small_steady_losses_sooner():
    losses = np.full(200, 0.02)
    assert betting(losses, 0.05) < hoeffding_bentkus(losses, 0.05)


@pytest.mark.parametrize("n", [60, 200, 450])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.3])
def test_p_values_and_what_they_certify_are_those_of_mapie(n, epsilon):
    # MAPIE certifies a classifier's own scores and takes no table of losses; its p-values and its walk do
    rng = np.random.default_rng(n)
    losses = rng.random((30, n)) * (rng.random((30, n)) < np.linspace(0.01, 0.4, 30)[:, None])
    zero_one = (losses > 0).astype(float)
    for values, bound, binary in ((losses, hoeffding_bentkus, False), (zero_one, binomial, True)):
        # a mean times n may come out a hair above a whole number, which MAPIE counts as one loss more
        means = np.maximum(values.mean(1) - 1e-12, 0)
        theirs = compute_hoeffding_bentkus_p_value(means, n, epsilon, binary)[:, 0]
        ours = np.array([bound(row, epsilon) for row in values])
        if binary:  # theirs is the least of this tail and of Hoeffding's bound, which is never below it
            assert ours == pytest.approx(theirs, rel=1e-6)
        else:
            assert ours == pytest.approx(np.minimum(theirs, 1), rel=1e-6)
        for delta in (0.03, 0.1):
            safe = control_fwer(theirs, delta, "fixed_sequence")
            if n >= smallest_set(epsilon, delta):
                assert fixed_sequence(values, epsilon, delta, bound.__name__)[0] == len(safe) - 1


def test_the_binomial_tail_is_for_losses_of_0_or_1_and_sharper():
    losses = np.r_[1.0, 1.0, 1.0, np.zeros(377)]
    assert binomial(losses, 0.02) == binom.cdf(3, 380, 0.02) < hoeffding_bentkus(losses, 0.02)
    with pytest.raises(GuaranteeError, match="bound 'binomial': expected losses of 0 or 1"):
        fixed_sequence(np.full((1, 200), 0.5), 0.1, 0.1, "binomial")


def test_the_walk_stops_at_the_first_failure():
    safe, unsafe = np.zeros(100), np.ones(100)
    assert fixed_sequence(np.array([safe, safe, unsafe, safe]), 0.05, 0.1)[0] == 1  # the last is never reached
    assert fixed_sequence(np.array([unsafe, safe]), 0.05, 0.1) == (-1, 1.0)


def test_too_small_a_set_is_refused_with_the_number_that_would_do():
    assert smallest_set(0.05, 0.1) == 45
    assert hoeffding_bentkus(np.zeros(45), 0.05) <= 0.1 < hoeffding_bentkus(np.zeros(44), 0.05)
    with pytest.raises(GuaranteeError, match="44 images cannot certify epsilon 0.05 at delta 0.1; at least 45"):
        fixed_sequence(np.zeros((1, 44)), 0.05, 0.1)


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1.5), (math.nan, 0.1)])
def test_levels_outside_are_refused(epsilon, delta):
    with pytest.raises(GuaranteeError, match="expected a number between 0 and 1"):
        fixed_sequence(np.zeros((1, 100)), epsilon, delta)


def test_other_bad_input():
    with pytest.raises(GuaranteeError, match="bound: 'clt' is unknown"):
        fixed_sequence(np.zeros((1, 100)), 0.1, 0.1, "clt")
    with pytest.raises(GuaranteeError, match="losses: expected numbers in"):
        fixed_sequence(np.full((1, 100), np.nan), 0.1, 0.1)


def test_loss_is_the_drop_of_f1_and_never_negative():
    f1 = np.array([[0.2, 0.6, 1.0], [0.9, 0.6, 0.5]])
    assert loss_against_full(f1, np.array([0, 0])).tolist() == pytest.approx([0.8, 0])
    assert loss_against_full(f1, np.array([2, 2])).tolist() == [0, 0]


def test_certify_on_splits():
    made = {s: noisy(60, seed=k, split=s) for k, s in enumerate(("val", "calibrate", "test"))}
    splits = prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, (0.5, 0.7, 1), "none")
    settings = sequence(splits["val"], steps=10)
    losses, times = losses_of(settings, splits["calibrate"])
    assert losses.shape == times.shape == (len(settings), 60)
    assert times.mean(1)[0] >= times.mean(1)[-1]  # from the safest down
    stated = certified(splits["calibrate"], settings, 0.2, 0.1)
    assert stated["n"] == 60 and stated["p_value"] <= 0.1 and stated["risk"] < 0.2
    none = certified(splits["calibrate"], [settings[-1]], 0.04, 0.1) if losses[-1].mean() > 0.04 else None
    assert none and none["thresholds"] is None and none["time_ratio"] == 1
    with pytest.raises(CalibrationError, match="certifying thresholds on 'test'"):
        certified(splits["test"], settings, 0.2, 0.1)
    with pytest.raises(GuaranteeError, match="certifying on 'val': it shaped the detector or the sequence"):
        certified(splits["val"], settings, 0.2, 0.1)
    several = replace(splits["calibrate"])
    several.__dict__["scenes"] = np.arange(60) // 2
    with pytest.raises(GuaranteeError, match="60 images of 30 scenes; expected one image a scene"):
        certified(several, settings, 0.2, 0.1)
    with pytest.raises(CalibrationError, match="fixing the sequence on 'test'"):
        sequence(splits["test"])
