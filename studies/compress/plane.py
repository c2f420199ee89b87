"""The plane of exits and their alternatives: data in, a Figure out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.plots import OURS_COLOUR, TEXT_WIDTH_IN
from studies.routing.bounds import BOUND_COLOUR, draw_curve, static_hull

KIND_MARKERS = {"full": "*", "width": "s", "input": "^", "int8": "D", "distilled": "P", "search": "X", "mixed": "v"}
SYSTEM_COLOURS = (OURS_COLOUR, "#D55E00", "#CC79A7", "#56B4E9", "#009E73")


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
        draw_curve(axis, ordered, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
        low, high = np.array([p["AP_interval"] for p in ordered]).T
        axis.fill_between([p["time_ratio"] for p in ordered], low, high, color=colour, alpha=0.1, linewidth=0)
    axis.set_xlabel("mean time / time of the detector without exits")
    axis.set_ylabel("AP[.50:.95] on test")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure
