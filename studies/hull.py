"""One rule for "above", and what a system is compared with: static detectors and coins.

A coin chooses one of two systems at random for a whole run, so its expected AP and its expected time lie exactly on
the straight line between the two. The hull is the best that static detectors and their coins reach at each time; the
same function over the exits of one network is the coin that a router has to beat. A coin that is tossed image by image
mixes scores of two networks in one ranking: on ``val`` its AP lay from 0.004 below that line to 0.002 above it.

All comparisons are paired: AP on the same resamples of scenes, the times as measured.
"""

from dataclasses import dataclass

import numpy as np

from eelib.routed_ap import interval


def above(gap: np.ndarray) -> bool:
    """Whether AP is higher, as this project claims it: the 95 % interval of differences on resamples lies above 0."""
    return interval(gap)[0] > 0


@dataclass(frozen=True)
class Hull:
    """Systems and every coin between two of them.

    The best one is taken resample by resample, which favours the hull: it may choose another pair in each.

    Attributes:
        times: (K,) mean time of each system on the common axis.
        samples: (R, K) AP of each on R resamples of scenes; R is 1 for AP as measured.
    """

    times: np.ndarray
    samples: np.ndarray

    def at(self, time: float) -> np.ndarray | None:
        """Highest AP at a mean time, (R,); None where every system is slower."""
        fast = self.times <= time + 1e-9
        if not fast.any():
            return None
        start, end = self.times[fast][:, None], self.times[~fast][None]
        share = (time - start) / (end - start)  # (fast, slow): how often the slower one is taken
        mixed = (1 - share) * self.samples[:, fast, None] + share * self.samples[:, None, ~fast]
        return np.concatenate((self.samples[:, fast], mixed.reshape(len(mixed), -1)), 1).max(1)

    def gap(self, time: float, samples: np.ndarray) -> np.ndarray | None:
        """AP (R,) of a system of this mean time less the hull's, resample by resample; None as in :meth:`at`."""
        best = self.at(time)
        return None if best is None else samples - best


def at_prevalence(weights: np.ndarray, empty: np.ndarray, prevalence: float) -> np.ndarray:
    """Weights under which empty images are a given share, in each resample exactly.

    Empty images are weighted and not drawn, so that no further chance comes in. Images with objects keep their
    weights: AP and precision change by the false alarms on empty images alone.

    Args:
        weights: (R, N) how often each image counts; a resample without an empty image keeps its weights.
        empty: (N,) bool, images without an object.
        prevalence: share of empty images, in [0, 1).
    """
    empties, others = weights @ empty, weights @ ~empty
    factor = prevalence / (1 - prevalence) * others / np.maximum(empties, 1)
    return np.where(empty, weights * factor[:, None], weights.astype(float))
