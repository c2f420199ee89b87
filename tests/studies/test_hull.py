import numpy as np
import pytest

from studies.hull import hull_gap


def test_the_hull_of_two_static_systems_by_hand():
    costs, static = np.array([0.5, 1.0]), np.array([[0.2, 0.4], [0.3, 0.3]])
    # half way in time: (0.2 + 0.4) / 2, and 0.3 where the slower one gains nothing
    assert hull_gap(0.75, np.array([0.35, 0.25]), costs, static) == pytest.approx([0.05, -0.05])
    assert hull_gap(1.2, np.array([0.5, 0.5]), costs, static) == pytest.approx([0.1, 0.2])
    assert hull_gap(0.4, np.array([0.1, 0.1]), costs, static) is None
