"""How well a router foresees what full would gain on an image, and how well it would have to.

One scale for all: the rank correlation of a foreseen gain with the true one
(:meth:`eelib.routed_ap.RoutedAP.gains`). A noisy oracle says what a correlation is worth under
its kind of noise. More images, richer evidence and other trainings say what can be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from eelib.data import DetectionDataset, batches
from eelib.deploy.evidence import OF_RAW_SCORES
from eelib.model import EarlyExitSSDLite
from eelib.policies import Features, evidence_features, fit_gain
from eelib.routing import Setting, Split, choose
from studies.compress.plane import load_flags
from studies.plots import SERIES_COLOURS, TEXT_WIDTH_IN
from studies.routing.bounds import Area, priced
from studies.routing.figures import BOUND_COLOUR, HIGHLIGHTS, MARKERS, OTHER_COLOUR

PEARSON = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of what a noisy oracle sees with the true gain
DRAWS = 5  # of its noise
LINES = (SERIES_COLOURS[3], "-."), (SERIES_COLOURS[5], ":"), (BOUND_COLOUR, "-")  # colour and dashes of each reference


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation, (N,) and (N,), in [-1, 1]; 0 where one of them is constant and so says nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


def correlations(foreseen: np.ndarray, gains: np.ndarray) -> list[float]:
    """Rank correlation at each early exit, (N, E - 1) and (N, E - 1)."""
    return [rank_correlation(a, b) for a, b in zip(foreseen.T, gains.T, strict=True)]


def noisy(gains: np.ndarray, pearson: float, rng: np.random.Generator) -> np.ndarray:
    """The best guess of gains that are seen through noise.

    Args:
        gains: (N, E - 1).
        pearson: correlation of what is seen with the gain, in [0, 1].
        rng: of the Gaussian noise.

    Returns:
        (N, E - 1): the linear estimate of each gain from what is seen of it.
    """
    mean, spread = gains.mean(0), gains.std(0)
    seen = pearson * (gains - mean) / (spread + 1e-12) + np.sqrt(1 - pearson**2) * rng.standard_normal(gains.shape)
    return mean + spread * pearson * seen


def noisy_oracle(test: Split, budgets: Sequence[float], area: Area, pearson: Sequence[float] = PEARSON) -> list[dict]:
    """What a router that foresees gains with a given correlation would recover between coin and oracle.

    It is spared what a real one pays: its view is free, and at exit1 it already has that of exit2. Its noise
    is Gaussian and the same for all images: a router whose errors fall otherwise may recover more or less.

    Args:
        area: between coin and oracle, as measured.
        pearson: correlations of what it sees with the true gain.

    Returns:
        For each of ``pearson`` the mean over draws of ``correlation``, of ranks and over the exits, and ``recovered``.
    """
    rng, gains, points = np.random.default_rng(0), test.gains, []
    for each in pearson:
        outcomes = []
        for _ in range(DRAWS):
            guess = noisy(gains, each, rng)
            value = np.hstack([-guess, np.zeros((len(guess), 1))])
            routings = [priced(value, test.costs, budget) for budget in budgets]
            times, ap = (np.array([of(r) for r in routings]) for of in (test.time, test.evaluator.ap))
            outcomes.append((np.mean(correlations(guess, gains)), area.share(times, ap[None])[0]))
        correlation, share = np.mean(outcomes, 0)
        points.append({"pearson": each, "correlation": float(correlation), "recovered": float(share)})
    return points


def without_passing(
    settings: Sequence[Setting], calibrate: Split, test: Split, budgets: Sequence[float], area: Area
) -> float:
    """What a policy would recover if suppression at the exits that it passes cost nothing."""
    free = replace(calibrate, passing=np.zeros(len(calibrate.costs)))
    routings = [setting.route(test) for setting in choose(settings, free, budgets)]
    times, ap = (np.array([of(r) for r in routings]) for of in (test.time, test.evaluator.ap))
    return float(area.share(times, ap[None])[0])


def needed(worth: Sequence[Mapping], goal: float) -> float | None:
    """Correlation from which on the noisy oracle recovers a share, straight between its points; None: it never does."""
    if worth[0]["recovered"] >= goal:
        return worth[0]["correlation"]
    for low, high in zip(worth, worth[1:], strict=False):
        if low["recovered"] < goal <= high["recovered"]:
            part = (goal - low["recovered"]) / (high["recovered"] - low["recovered"])
            return float(low["correlation"] + part * (high["correlation"] - low["correlation"]))
    return None


@torch.no_grad()
def pooled_features(model: EarlyExitSSDLite, dataset: DetectionDataset, batch_size: int = 16) -> list[np.ndarray]:
    """Mean and maximum over the image of every channel of the trunk at each early exit's cut: E - 1 of (N, 2 C)."""
    model.eval()
    pooled: list[list] = [[] for _ in model.early]
    for images, _ in batches(dataset, batch_size):
        maps: list[torch.Tensor] = []
        for rows, _ in zip(pooled, model.exits(images, maps), strict=False):  # stops before full is run
            rows.append(torch.cat((maps[-1].mean((2, 3)), maps[-1].amax((2, 3))), 1))
    return [torch.cat(rows).double().numpy() for rows in pooled]


# What an exit knows that costs next to nothing, without blank gates, which take time: (N, F).
free_evidence = evidence_features(OF_RAW_SCORES)


def with_pooled(pooled: Mapping[str, Sequence[np.ndarray]]) -> Features:
    """Evidence and pooled features of an exit and of all before it, by split name."""

    def features(split: Split, index: int) -> np.ndarray:
        return np.hstack([free_evidence(split, index), *pooled[split.name][: index + 1]])

    return features


def foreseen(fitted_on: Sequence[Split], test: Split, features: Features = free_evidence) -> dict:
    """Rank correlation on ``test`` of gains by a regressor fitted on other splits.

    Returns:
        ``images`` it was fitted on, ``penalty`` and ``correlation`` of each early exit.
    """
    regressor = fit_gain(fitted_on, np.concatenate([s.gains for s in fitted_on]), features)
    return {
        "images": sum(len(s.records) for s in fitted_on),
        "penalty": regressor.penalty,
        "correlation": correlations(regressor.gain(test), test.gains),
    }


def gains_of(reports: Path | str, plane: Mapping | None, name: str, test: Split) -> dict[str, np.ndarray]:
    """Gains on the images of ``test`` by the same network trained with several seeds, (N, E - 1) each.

    Of scores as they are: nothing is kept that could calibrate them.

    Args:
        reports: folder with the match flags of a plane.
        plane: its metrics; None where there are none.
        name: of the network in the plane.
        test: whose images count.
    """
    gains, image_ids = {}, set(test.records.image_ids)
    for (_, seed), flags in load_flags(reports, plane, name).items() if plane else ():
        rows = [place for place, image_id in enumerate(flags.image_ids) if image_id in image_ids]
        gains[f"seed {seed}"] = flags.rows(rows).gains()
    return gains


def between_trainings(gains: Mapping[str, np.ndarray]) -> list[float] | None:
    """Mean rank correlation, over all pairs of trainings, of their gains on the same images: one an early exit.

    Args:
        gains: training to (N, E - 1).

    Returns:
        None where there is one training alone.
    """
    pairs = [correlations(a, b) for a, b in combinations(gains.values(), 2)]
    return [float(value) for value in np.mean(pairs, 0)] if pairs else None


def worth_of_foresight(
    worth: Sequence[Mapping], policies: Mapping[str, tuple[float, float]], references: Mapping[str, float], goal: float
) -> Figure:
    """Share recovered against how well the gain is foreseen: a noisy oracle's curve, and policies.

    Args:
        worth: points of ``correlation`` and ``recovered``.
        policies: name to (correlation, share recovered).
        references: what else foresees the gain, to its correlation; drawn as vertical lines.
        goal: share to recover.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 3.6))
    x, y = ([p[key] for p in worth] for key in ("correlation", "recovered"))
    axis.plot(x, y, color=BOUND_COLOUR, linestyle="--", linewidth=1, label="noisy oracle")
    others = [name for name in policies if name not in HIGHLIGHTS]
    for marker, name in zip(MARKERS, others, strict=False):
        axis.plot(*policies[name], color=OTHER_COLOUR, marker=marker, markersize=5, linestyle="",
                  markeredgecolor="#666666", markeredgewidth=0.4, label=name.replace("_", " "))  # fmt: skip
    for name, colour in HIGHLIGHTS.items():
        if name in policies:
            axis.plot(*policies[name], color=colour, marker="o", linestyle="", label=name.replace("_", " "))
    for (name, value), (colour, dashes) in zip(references.items(), LINES, strict=False):
        axis.axvline(value, color=colour, linewidth=1, linestyle=dashes, label=name)
    axis.axhline(goal, color="0.7", linewidth=0.8, zorder=0)
    axis.annotate("goal", (0.005, goal), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
    axis.set_xlabel("rank correlation of foreseen and true gain")
    axis.set_ylabel("recovered: 0 coin of the exits, 1 oracle")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure
