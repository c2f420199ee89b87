"""Figures of the routing study: data in, a Figure out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.curves import static_hull
from eelib.plots import EXIT_COLOURS, OURS_COLOUR, RECORDED_COLOUR, TEXT_WIDTH_IN

BOUND_COLOUR = "#4D4D4D"
# What the plane tells apart: Okabe and Ito again, none of them an exit's.
HIGHLIGHTS = {"benefit": OURS_COLOUR, "gumbel": "#D55E00", "max_score": "#CC79A7"}
OTHER_COLOUR = "#BBBBBB"
KIND_MARKERS = {"full": "*", "width": "s", "input": "^", "int8": "D", "distilled": "P", "search": "X", "mixed": "v"}
SYSTEM_COLOURS = (OURS_COLOUR, "#D55E00", "#CC79A7", "#56B4E9", "#009E73")
MIN_COUNT = 10  # a bin with fewer detections says nothing about a share
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")


def _line(axis, points: Sequence[Mapping], **how) -> None:
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
    _line(axis, oracle, color=BOUND_COLOUR, linestyle="--", linewidth=1, label="oracle (hindsight)")
    _line(axis, random, color=BOUND_COLOUR, linestyle=":", linewidth=1, label="random")
    others = [name for name in curves if name not in HIGHLIGHTS]
    for marker, name in zip(MARKERS, others, strict=False):
        _line(axis, curves[name], color=OTHER_COLOUR, marker=marker, markersize=3.5, linewidth=0.7,
              markeredgecolor="#666666", markeredgewidth=0.4, label=name.replace("_", " "))  # fmt: skip
    for name, colour in HIGHLIGHTS.items():
        if name in curves:
            ordered = sorted(curves[name], key=lambda p: p["time_ratio"])
            _line(axis, ordered, color=colour, marker="o", markersize=3.5, linewidth=1.4, label=name.replace("_", " "))
            if name == "benefit":
                low, high = np.array([p["AP_interval"] for p in ordered]).T
                axis.fill_between([p["time_ratio"] for p in ordered], low, high, color=colour, alpha=0.12, linewidth=0)
    for name, (time, ap) in exits.items():
        axis.plot(time, ap, marker="D", color=EXIT_COLOURS[name], markersize=7, linestyle="", label=name, zorder=5)
    if peers:
        _line(axis, peers, color="black", marker="x", linestyle="", label="static detectors")
        times = np.linspace(min(p["time_ratio"] for p in peers), 1.0, 200)
        axis.plot(times, static_hull(peers)(times), color="black", linewidth=0.8, label="their hull")
    axis.set_xlabel("mean time / time of full")
    axis.set_ylabel("AP[.50:.95] on test")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def alternatives_plane(
    static: Sequence[Mapping], curves: Mapping[str, Sequence[Mapping]], peers: Sequence[str]
) -> Figure:
    """AP against measured time: static systems with their hulls, and routings of systems with exits.

    Args:
        static: rows of ``name``, ``kind``, ``time_ratio``, ``AP`` and ``AP_interval``.
        curves: name of a routing to points of the same keys.
        peers: kinds whose hull is drawn dashed; that of all static systems is solid.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 4.0))
    for kind in dict.fromkeys(row["kind"] for row in static):
        rows = [row for row in static if row["kind"] == kind]
        time, ap = ([row[key] for row in rows] for key in ("time_ratio", "AP"))
        reach = np.abs(np.array([row["AP_interval"] for row in rows]).T - ap)
        axis.errorbar(time, ap, reach, color="black", marker=KIND_MARKERS.get(kind, "o"), linestyle="", markersize=5,
                      elinewidth=0.6, label=kind)  # fmt: skip
    for rows, style_, label in (
        ([row for row in static if row["kind"] in peers], "--", "hull of static peers"),
        (static, "-", "hull of all static"),
    ):
        times = np.linspace(min(row["time_ratio"] for row in rows), 1.15, 200)
        axis.plot(times, static_hull(rows)(times), color=BOUND_COLOUR, linestyle=style_, linewidth=0.8, label=label)
    for (name, points), colour in zip(curves.items(), SYSTEM_COLOURS, strict=False):
        ordered = sorted(points, key=lambda p: p["time_ratio"])
        _line(axis, ordered, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
        low, high = np.array([p["AP_interval"] for p in ordered]).T
        axis.fill_between([p["time_ratio"] for p in ordered], low, high, color=colour, alpha=0.1, linewidth=0)
    axis.set_xlabel("mean time / time of the detector without exits")
    axis.set_ylabel("AP[.50:.95] on test")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def reliability_diagrams(before: Mapping[str, Mapping], after: Mapping[str, Mapping]) -> Figure:
    """Share of right detections against their score, an exit a column, before and after.

    Bins with fewer than :data:`MIN_COUNT` detections are left out of the upper row.

    Args:
        before, after: exit to ``score``, ``right``, ``count`` (bins) and ``d_ece``.
    """
    names = list(before)
    figure, axes = plt.subplots(
        2, len(names), figsize=(TEXT_WIDTH_IN, 4.2), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1)
    )
    for column, name in enumerate(names):
        top, bottom = axes[0, column], axes[1, column]
        top.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
        for table, colour, marker, label in (
            (before[name], RECORDED_COLOUR, "s", "raw score"),
            (after[name], EXIT_COLOURS[name], "o", "calibrated"),
        ):
            score, right, count = (np.array(table[key]) for key in ("score", "right", "count"))
            shown = count >= MIN_COUNT
            top.plot(score[shown], right[shown], color=colour, marker=marker, markersize=3.5, label=label)
            bottom.plot(score, count, color=colour, marker=marker, markersize=3)
        top.set_title(f"{name}: D-ECE {before[name]['d_ece']:.3f} → {after[name]['d_ece']:.3f}", fontsize=8)
        top.legend(loc="upper left", fontsize=7)
        top.set_xlim(0, 1)
        top.set_ylim(0, 1)
        bottom.axhline(MIN_COUNT, color="0.7", linewidth=0.8, linestyle=":")
        bottom.set_yscale("log")
        bottom.set_xlabel("score")
    axes[0, 0].set_ylabel("share right at IoU 0.5")
    axes[1, 0].set_ylabel("detections")
    return figure


def resplit_risks(rounds: Mapping[str, Mapping], epsilon: float, delta: float) -> Figure:
    """Mean loss on the other half in every resplit: certified beside naively tuned thresholds.

    Args:
        rounds: of :func:`eelib.guarantee.resplits`.
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


def predictability(
    worth: Sequence[Mapping], policies: Mapping[str, tuple[float, float]], known: Mapping[str, float], goal: float
) -> Figure:
    """Share recovered against how well the gain is foreseen: a noisy oracle's curve, and policies.

    Args:
        worth: points of ``correlation`` and ``recovered``.
        policies: name to (correlation, share recovered).
        known: what else foresees the gain, to its correlation; drawn as vertical lines.
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
    for (name, value), colour in zip(known.items(), [*SYSTEM_COLOURS[3:], BOUND_COLOUR], strict=False):
        axis.axvline(value, color=colour, linewidth=1, linestyle="-.", label=name)
    axis.axhline(goal, color="0.7", linewidth=0.8, zorder=0)
    axis.annotate("goal", (0.005, goal), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
    axis.set_xlabel("rank correlation of the foreseen with the true gain, mean of the exits")
    axis.set_ylabel("recovered share: 0 random, 1 oracle")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def ap_dots(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]], baseline: float | None = None, of: str = "test"
) -> Figure:
    """AP with its 95 % interval, a line a group and a colour a system.

    Args:
        values: ``values[group][system]`` is AP and the ends of its interval; what is no exit is black.
        baseline: AP of the detector without exits, drawn as a line.
        of: the images that AP is measured on.
    """
    systems = list(dict.fromkeys(system for row in values.values() for system in row))
    height = 0.5 if len(values) < 8 else 0.3
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, height * len(values) + 1.0))
    if baseline is not None:
        axis.axvline(baseline, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axis.annotate(" baseline", (baseline, 1), xycoords=("data", "axes fraction"), va="bottom", fontsize=7)
    for k, system in enumerate(systems):
        colour = EXIT_COLOURS.get(system, "black")
        shift = (k - (len(systems) - 1) / 2) * 0.7 / len(systems)
        known = [(y + shift, *row[system]) for y, row in enumerate(values.values()) if system in row]
        for y, _, low, high in known:
            axis.plot([low, high], [y, y], color=colour, linewidth=1.2)
        axis.scatter([ap for _, ap, _, _ in known], [y for y, *_ in known], color=colour, s=16, zorder=3, label=system)
    axis.set_yticks(range(len(values)), values)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"AP[.50:.95] on {of}")
    if len(systems) > 1:
        figure.legend(*axis.get_legend_handles_labels(), ncols=len(systems), loc="outside upper left")
    return figure
