"""Figures of 05d_policies: policies in the plane of AP and time, and what each recovers."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from studies.hull import Hull
from studies.plots import EXIT_COLOURS, OURS_COLOUR, TEXT_WIDTH_IN
from studies.routing.bounds import Curve, Judge, Recovered
from studies.routing.published import SOURCES

BOUND_COLOUR = "#4D4D4D"
# What the plane tells apart: Okabe and Ito again, none of them an exit's.
HIGHLIGHTS = {"benefit": OURS_COLOUR, "no_chair": "#D55E00", "max_score": "#CC79A7"}
OTHER_COLOUR = "#BBBBBB"
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*", "p", "h")


def ap_time_plane(
    curves: Mapping[str, Curve], oracle: Curve, judge: Judge, unit: str, static: Sequence[Mapping] = ()
) -> Figure:
    """AP against mean time: policies, the exits and their coin, the oracle, and static detectors with their hull.

    The band is the 95 % interval of the benefit's AP. Verdicts rest on paired differences, which are narrower.

    Args:
        curves: of the policies by name.
        oracle: of hindsight.
        judge: that measured them.
        unit: what a time of 1.00 is.
        static: detectors with ``time_ratio`` and ``AP``.
    """
    drawn, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 4.6))
    costs, names = judge.test.costs, judge.test.records.exit_names
    _line(axis, oracle, color=BOUND_COLOUR, linestyle="--", linewidth=1, label="oracle (hindsight)")
    grid = np.linspace(costs[0], costs[-1], 100)
    coin = [judge.coin_at(time) for time in grid]
    axis.plot(grid, coin, color=BOUND_COLOUR, linestyle=":", linewidth=1.2, label="coin of the exits")
    if static:
        times, ap = (np.array([row[key] for row in static]) for key in ("time_ratio", "AP"))
        axis.plot(times, ap, color="black", marker="x", markersize=4, linestyle="", label="static detectors")
        hull, reach = Hull(times, ap[None]), np.linspace(times.min(), max(1.0, costs[-1]), 200)
        axis.plot(reach, [hull.at(t)[0] for t in reach], color="black", linewidth=0.8, label="their hull")
    others = [name for name in curves if name not in HIGHLIGHTS]
    for marker, name in zip(MARKERS, others, strict=False):
        _line(axis, curves[name], color=OTHER_COLOUR, marker=marker, markersize=3.5, linewidth=0.7,
              markeredgecolor="#666666", markeredgewidth=0.4, label=name.replace("_", " "))  # fmt: skip
    for name, colour in HIGHLIGHTS.items():
        if name in curves:
            _line(axis, curves[name], color=colour, marker="o", markersize=3.5, linewidth=1.4,
                  label=name.replace("_", " "))  # fmt: skip
    if "benefit" in curves:
        points = sorted(curves["benefit"].points, key=lambda p: p["time_ratio"])
        low, high = np.array([p["AP_interval"] for p in points]).T
        axis.fill_between([p["time_ratio"] for p in points], low, high, color=OURS_COLOUR, alpha=0.1, linewidth=0)
    for name, time, ap in zip(names, costs, judge.ap, strict=True):
        axis.plot(time, ap, marker="D", color=EXIT_COLOURS[name], markersize=7, linestyle="", label=name, zorder=5)
    axis.set_xlabel(f"mean time; 1.00 is {unit}")
    axis.set_ylabel("AP[.50:.95] on test")
    drawn.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return drawn


def _line(axis: plt.Axes, curve: Curve, **how) -> None:
    """AP against time, points in the order of their times."""
    order = np.argsort(curve.times, kind="stable")
    axis.plot(curve.times[order], curve.ap[0, order], **how)


def recovered_bars(shares: Mapping[str, Recovered]) -> Figure:
    """What each policy recovers of the area between coin and oracle, best first, with 95 % intervals."""
    ordered = sorted(shares, key=lambda name: shares[name].share)
    drawn, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 0.24 * len(ordered) + 0.8))
    values = np.array([shares[name].share for name in ordered])
    reach = np.abs(np.array([shares[name].interval for name in ordered]).T - values)
    names = [name.replace("_", " ") + (" †" if name in SOURCES else "") for name in ordered]
    colours = [HIGHLIGHTS.get(name, OTHER_COLOUR) for name in ordered]
    axis.barh(names, values, color=colours, xerr=reach, error_kw={"elinewidth": 0.8, "capsize": 2})
    for place, (value, (low, high)) in enumerate(zip(values, (shares[n].interval for n in ordered), strict=True)):
        right = value >= 0
        axis.annotate(f"{value:.2f}", (high if right else low, place), (4 if right else -4, 0), fontsize=7,
                      textcoords="offset points", va="center", ha="left" if right else "right")  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.8)
    axis.margins(x=0.1)  # room for the labels
    axis.set_xlabel("recovered: 0 is the coin, 1 the oracle; 95 % over scenes; † published")
    return drawn
