"""What a policy is worth: AP against time, between the random and the oracle bound, and beside static detectors."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.plots import EXIT_COLOURS, OURS_COLOUR, TEXT_WIDTH_IN
from eelib.routed_ap import bootstrap, interval
from eelib.routing import Setting, Split, choose, full_samples, hull_mixture, point
from studies.hull import Hull

BOUND_COLOUR = "#4D4D4D"
# What the plane tells apart: Okabe and Ito again, none of them an exit's.
HIGHLIGHTS = {"benefit": OURS_COLOUR, "gumbel": "#D55E00", "max_score": "#CC79A7"}
OTHER_COLOUR = "#BBBBBB"
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")


def policy_curve(
    settings: Sequence[Setting], calibrate: Split, test: Split, budgets: Sequence[float], weights: np.ndarray
) -> list[dict]:
    """AP–time points of a policy: thresholds from ``calibrate``, everything else from ``test``."""
    full, points = full_samples(test, weights), []
    measured: dict[bytes, dict] = {}  # several budgets may get one routing
    for budget, setting in zip(budgets, choose(settings, calibrate, budgets), strict=True):
        chosen = setting.route(test)
        if chosen.tobytes() not in measured:
            measured[chosen.tobytes()] = point(test, chosen, weights, full, setting.confidence.reads_boxes)
        row = {"budget": float(budget), "thresholds": list(setting.thresholds)}
        points.append(row | measured[chosen.tobytes()])
    return points


def random_curve(
    calibrate: Split, test: Split, budgets: Sequence[float], weights: np.ndarray, draws: int = 20, seed: int = 0
) -> list[dict]:
    """The lower bound: exits drawn without looking, in the mixture that ``calibrate`` favours.

    AP is the mean over the draws; the interval holds the draws and the scenes.
    """
    rng, points, last = np.random.default_rng(seed), [], test.evaluator.exits - 1
    ap = np.array([calibrate.evaluator.of_exit(k) for k in range(last + 1)])
    full = np.full(len(test.records), last)
    draws = min(draws, len(weights))
    for budget in budgets:
        shares = hull_mixture(calibrate.costs, ap, budget)
        # the shares are kept to the image, so that a draw differs in who leaves and not in how many
        ends = np.floor(np.cumsum(shares) * len(full) + 1e-9).astype(int)
        base = np.searchsorted(ends, np.arange(len(full)), side="right").clip(max=last)
        drawn = [rng.permutation(base) for _ in range(draws)]
        samples = np.concatenate(
            [bootstrap(test.evaluator, [chosen, full], weights[k::draws]) for k, chosen in enumerate(drawn)]
        )
        per_iou = np.mean([test.evaluator.per_iou(chosen) for chosen in drawn], 0)
        counts = np.bincount(base, minlength=last + 1) / len(full)
        points.append(
            {
                "budget": float(budget),
                "time_ratio": test.time(base),
                "exit_shares": dict(zip(test.records.exit_names, counts.tolist(), strict=True)),
                "AP": float(per_iou.mean()),
                "AP_interval": interval(samples[:, 0]),
                "AP50": float(per_iou[0]),
                "AP_minus_full": float(per_iou.mean()) - test.evaluator.ap(full),
                "AP_minus_full_interval": interval(samples[:, 0] - samples[:, 1]),
            }
        )
    return points


def priced(value: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """The routing with most value for its time: one price of time for all images, just high enough for a budget.

    Args:
        value: worth of each exit on each image, (N, E).
        costs: (E,) time of each exit / full.
        budget: mean time to keep to.

    Returns:
        Exit index of each image, (N,).
    """
    low, high = 0.0, 1e4
    for _ in range(60):
        price = (low + high) / 2
        over = costs[(value - price * costs).argmax(1)].mean() > budget + 1e-9
        low, high = (price, high) if over else (low, price)
    return (value - high * costs).argmax(1)


def oracle_curve(test: Split, budgets: Sequence[float], weights: np.ndarray) -> list[dict]:
    """The upper bound: each image's gain known, most gain for its time first.

    Gains are first-order changes of AP (:attr:`Split.value`); as AP is not additive, the greedy
    choice is a strong routing in hindsight, not the proven best one.
    """
    full = full_samples(test, weights)
    return [{"budget": float(b)} | point(test, priced(test.value, test.costs, b), weights, full) for b in budgets]


def _at(curve: Sequence[Mapping], times: np.ndarray) -> np.ndarray:
    """AP of a curve at given times, straight between its points and level beyond them."""
    by_time: dict[float, list[float]] = {}
    for p in curve:
        by_time.setdefault(p["time_ratio"], []).append(p["AP"])
    measured = sorted(by_time)
    return np.interp(times, measured, [float(np.mean(by_time[t])) for t in measured])


def recovered(curve: Sequence[Mapping], random: Sequence[Mapping], oracle: Sequence[Mapping], first: float) -> float:
    """Share of the area between the random and the oracle curve that a policy recovers.

    A policy that cannot be as fast as ``first`` gets no more than the random curve below its own fastest point.

    Args:
        first: shortest time, that of leaving always at exit1; the longest is 1.
    """
    times = np.linspace(first, 1, 201)
    mine, low, high = (_at(c, times) for c in (curve, random, oracle))
    mine = np.where(times < min(p["time_ratio"] for p in curve), np.minimum(mine, low), mine)
    area = float((high - low).sum())
    return float((mine - low).sum()) / area if area else 0.0


def draw_curve(axis: plt.Axes, points: Sequence[Mapping], **how) -> None:
    """AP against time, points in the order of their times."""
    ordered = sorted(points, key=lambda p: p["time_ratio"])
    axis.plot([p["time_ratio"] for p in ordered], [p["AP"] for p in ordered], **how)


def ap_time_plane(
    curves: Mapping[str, Sequence[Mapping]],
    random: Sequence[Mapping],
    oracle: Sequence[Mapping],
    exits: Mapping[str, tuple[float, float]],
    peers: Sequence[Mapping] = (),
) -> Figure:
    """AP against mean time: policies between the bounds, exits and static detectors as points.

    Args:
        curves: policy to points with ``time_ratio``, ``AP`` and ``AP_interval``.
        random, oracle: the bounds, as such points.
        exits: exit to (time ratio, AP).
        peers: static detectors with ``name``, ``time_ratio`` and ``AP``, drawn with their hull.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 3.8))
    draw_curve(axis, oracle, color=BOUND_COLOUR, linestyle="--", linewidth=1, label="oracle (hindsight)")
    draw_curve(axis, random, color=BOUND_COLOUR, linestyle=":", linewidth=1, label="random")
    others = [name for name in curves if name not in HIGHLIGHTS]
    for marker, name in zip(MARKERS, others, strict=False):
        draw_curve(axis, curves[name], color=OTHER_COLOUR, marker=marker, markersize=3.5, linewidth=0.7,
              markeredgecolor="#666666", markeredgewidth=0.4, label=name.replace("_", " "))  # fmt: skip
    for name, colour in HIGHLIGHTS.items():
        if name in curves:
            ordered = sorted(curves[name], key=lambda p: p["time_ratio"])
            draw_curve(
                axis, ordered, color=colour, marker="o", markersize=3.5, linewidth=1.4, label=name.replace("_", " ")
            )
            if name == "benefit":
                low, high = np.array([p["AP_interval"] for p in ordered]).T
                axis.fill_between([p["time_ratio"] for p in ordered], low, high, color=colour, alpha=0.12, linewidth=0)
    for name, (time, ap) in exits.items():
        axis.plot(time, ap, marker="D", color=EXIT_COLOURS[name], markersize=7, linestyle="", label=name, zorder=5)
    if peers:
        draw_curve(axis, peers, color="black", marker="x", linestyle="", label="static detectors")
        hull = Hull(np.array([p["time_ratio"] for p in peers]), np.array([[p["AP"] for p in peers]]))
        times = np.linspace(hull.times.min(), 1.0, 200)
        axis.plot(times, [hull.at(time)[0] for time in times], color="black", linewidth=0.8, label="their hull")
    axis.set_xlabel("mean time / time of the same detector without exits")
    axis.set_ylabel("AP[.50:.95] on test")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def recovered_bars(shares: Mapping[str, float]) -> Figure:
    """Share of the area between random and oracle that each policy recovers, best first."""
    ordered = sorted(shares, key=lambda name: shares[name])
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 0.24 * len(ordered) + 0.7))
    colours = [HIGHLIGHTS.get(name, OTHER_COLOUR) for name in ordered]
    bars = axis.barh([n.replace("_", " ") for n in ordered], [shares[n] for n in ordered], color=colours)
    axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.12)  # room for the labels
    axis.set_xlabel("recovered share: 0 random, 1 oracle")
    return figure
