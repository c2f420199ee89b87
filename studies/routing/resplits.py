"""Does the guarantee hold? Certify on one half of the images and look at the other, again and again."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.guarantee import fixed_sequence
from studies.plots import OURS_COLOUR, TEXT_WIDTH_IN
from studies.routing.answers import share_of


def naive(losses: np.ndarray, epsilon: float) -> int:
    """What tuning without a correction takes: the last setting whose mean loss is epsilon or less."""
    safe = np.flatnonzero(losses.mean(1) <= epsilon)
    return int(safe[-1]) if len(safe) else -1


def resplits(
    losses: np.ndarray, times: np.ndarray, scenes: np.ndarray, epsilon: float, delta: float, rounds: int = 100
) -> dict:
    """Split a pool in halves by scene again and again: certify on one, look at the other.

    A round is a violation when the mean loss on the other half is above epsilon. That half has
    noise of its own, which the guarantee does not speak of, so the rate errs on the strict side.

    Args:
        losses, times: (S, N) of calibrate and test together.
        scenes: (N,).

    Returns:
        ``certified`` and ``naive``: each with ``risk`` and ``time_ratio`` of every round on the
        other half, ``violations``, ``rate`` and ``interval`` (Clopper-Pearson, 95 %).
    """
    rng = np.random.default_rng(0)
    names, group = np.unique(scenes, return_inverse=True)
    picked: dict[str, dict[str, list[float]]] = {k: {"risk": [], "time_ratio": []} for k in ("certified", "naive")}
    for _ in range(rounds):
        here = (rng.permutation(len(names)) < len(names) // 2)[group]
        # in a random order, as a set drawn anew: a bound may look at images one by one
        order = rng.permutation(np.flatnonzero(here))
        indices = {
            "certified": fixed_sequence(losses[:, order], epsilon, delta)[0],
            "naive": naive(losses[:, order], epsilon),
        }
        for key, index in indices.items():
            picked[key]["risk"].append(0.0 if index < 0 else float(losses[index, ~here].mean()))
            picked[key]["time_ratio"].append(1.0 if index < 0 else float(times[index, ~here].mean()))
    answer = {}
    for key, values in picked.items():
        violations = int(np.sum(np.array(values["risk"]) > epsilon))
        rate, interval = share_of(violations, rounds, "exact")
        answer[key] = values | {"violations": violations, "rate": rate, "interval": interval}
    return answer


def resplit_risks(rounds: Mapping[str, Mapping], epsilon: float, delta: float) -> Figure:
    """Mean loss on the other half in every resplit: certified beside naively tuned thresholds.

    Args:
        rounds: of :func:`resplits`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH_IN, 2.6), width_ratios=(2, 1))
    risks = [v for r in rounds.values() for v in r["risk"]]
    edges = np.linspace(0, max(*risks, epsilon) * 1.05, 30)
    for position, ((name, values), colour) in enumerate(zip(rounds.items(), (OURS_COLOUR, "#D55E00"), strict=True)):
        axes[0].hist(values["risk"], edges, color=colour, alpha=0.6, label=name)
        low, high = values["interval"]
        rate = values["rate"]
        axes[1].errorbar(position, rate, [[rate - low], [high - rate]], color=colour, marker="o", capsize=3)
    axes[0].axvline(epsilon, color="black", linestyle="--", linewidth=0.8)
    axes[0].annotate(" ε", (epsilon, 1), xycoords=("data", "axes fraction"), va="top")
    axes[0].set_xlabel("mean loss on the other half")
    axes[0].set_ylabel("resplits")
    axes[0].legend()
    axes[1].axhline(delta, color="black", linestyle="--", linewidth=0.8)
    axes[1].annotate("δ", (0.5, delta), xycoords=("axes fraction", "data"), va="bottom")
    axes[1].set_xticks(range(len(rounds)), rounds)
    axes[1].set_xlim(-0.5, len(rounds) - 0.5)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("violation rate, 95 %")
    return figure
