"""The rule for "above", the hull and its coins, and prevalence, by hand."""

import numpy as np
import pytest

from studies.hull import Hull, above, at_prevalence


def test_the_hull_of_two_static_systems_by_hand():
    hull = Hull(np.array([0.5, 1.0]), np.array([[0.2, 0.4], [0.3, 0.2]]))
    # half way in time: (0.2 + 0.4) / 2, and 0.3 where the slower one is worse
    assert hull.at(0.75) == pytest.approx([0.3, 0.3])
    assert hull.gap(0.75, np.array([0.35, 0.25])) == pytest.approx([0.05, -0.05])
    assert hull.gap(1.2, np.array([0.5, 0.5])) == pytest.approx([0.1, 0.2])
    assert hull.at(0.5) == pytest.approx([0.2, 0.3])
    assert hull.at(0.4) is None and hull.gap(0.4, np.array([0.1, 0.1])) is None


def test_a_system_below_the_line_between_two_others_changes_nothing():
    two = Hull(np.array([0.2, 1.0]), np.array([[0.1, 0.5]]))
    three = Hull(np.array([0.2, 0.6, 1.0]), np.array([[0.1, 0.25, 0.5]]))
    for time in (0.2, 0.4, 0.6, 0.9, 1.0):
        assert three.at(time) == pytest.approx(two.at(time))
    better = Hull(np.array([0.2, 0.6, 1.0]), np.array([[0.1, 0.4, 0.5]]))
    assert better.at(0.8) == pytest.approx([0.45]) and better.at(0.4) == pytest.approx([0.25])


def test_the_hull_of_one_system_is_that_system():
    hull = Hull(np.array([0.5]), np.array([[0.2], [0.3]]))
    assert hull.at(0.7) == pytest.approx([0.2, 0.3]) and hull.at(0.3) is None


def test_above_needs_the_whole_interval():
    a, b = np.linspace(0.3, 0.4, 101), np.full(101, 0.29)
    assert above(a - b) and not above(b - a)
    assert not above(np.linspace(-0.01, 0.1, 101)) and above(np.linspace(0.001, 0.1, 101))
    assert not above(a - a)


def test_empty_images_reach_a_prevalence_in_every_resample():
    empty = np.array([True, False, False, True])
    weights = np.array([[1, 1, 1, 1], [0, 2, 1, 1], [0, 2, 2, 0]])
    for prevalence in (0.5, 0.89):
        weighted = at_prevalence(weights, empty, prevalence)
        assert (weighted[:, ~empty] == weights[:, ~empty]).all()
        share = weighted[:2, empty].sum(1) / weighted[:2].sum(1)
        assert share == pytest.approx([prevalence] * 2)
        assert (weighted[2] == weights[2]).all()  # there is none to weight
    assert at_prevalence(weights, empty, 0.0)[0].tolist() == [0, 1, 1, 0]
