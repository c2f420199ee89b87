"""The static hull: what detectors without exits reach at any mean time, mixed two by two at random.

A routing pays where its whole interval lies above this hull. The difference is taken resample by resample, so that
the spread of the hull counts as the spread of the routing does: the one statistic for "above the hull".
"""

import numpy as np

from eelib.routing import hull_mixture


def hull_gap(time: float, samples: np.ndarray, costs: np.ndarray, static: np.ndarray) -> np.ndarray | None:
    """AP above the best mixture of static systems at a mean time, resample by resample.

    Args:
        time: mean time / full.
        samples: (R,) AP of the system.
        costs: (K,) times of the static systems.
        static: (R, K) their AP on the same resamples.

    Returns:
        (R,), or None where the system is faster than every static one: there is no hull there.
    """
    if time < costs.min() - 1e-9:
        return None
    return samples - np.array([hull_mixture(costs, row, time) @ row for row in static])
