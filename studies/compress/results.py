"""What ``plane.json`` says: tables, verdicts in words, goals, and the figure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.detections import exit_colour
from eelib.plots import OURS_COLOUR, TEXT_WIDTH_IN
from studies.goals import load_goals
from studies.hull import Hull

HULL_COLOUR = "#4D4D4D"
MARKERS = {"plain": "*", "input": "^", "width": "s", "search": "X", "truncated": "v"}
SYSTEM_COLOURS = (OURS_COLOUR, "#D55E00", "#CC79A7", "#999999")
MEMBERS = {"peers": "widths and sizes", "static": "all static detectors"}  # of each hull; all: truncated ones, too


def prevalences(report: Mapping) -> list[float]:
    """The shares of empty images that were judged, the split's own first."""
    return list(dict.fromkeys(row["prevalence"] for row in report["exits"]))


def rows_of(report: Mapping, kind: str, prevalence: float | None = None, seed: int | None = 0) -> list[dict]:
    """Rows of ``exits``, ``coins`` or ``alone`` under a share of empty images.

    Args:
        prevalence: None is the split's own.
        seed: None is all of them.
    """
    prevalence = prevalences(report)[0] if prevalence is None else prevalence
    return [row for row in report[kind] if row["prevalence"] == prevalence and seed in (None, row["seed"])]


def exits_table(report: Mapping, prevalence: float | None = None) -> pd.DataFrame:
    """Every system and exit of the first seed: times as shares of the plain detector's median, AP, answers and size."""
    systems, lines = {row["name"]: row for row in report["systems"] if row["seed"] == 0}, []
    plain_ms = next(row["exits"]["full"]["median_ms"] for row in systems.values() if row["kind"] == "plain")
    for row in rows_of(report, "exits", prevalence):
        system, (low, high) = systems[row["system"]], row["AP_interval"]
        exit_ = system["exits"][row["exit"]]
        line = {"system": row["system"], "exit": row["exit"], "time": row["time_ratio"]}
        line |= {"p95": exit_["p95_ms"] / plain_ms, "p99": exit_["p99_ms"] / plain_ms}
        line |= {"AP": row["AP"], "low": low, "high": high, "AP50": row["AP50"]}
        line |= {"precision": row["precision"], "recall": row["recall"], "false alarms": row["false_alarms"]}
        line |= {"MiB": system["size_mib"], "M parameters": system["parameters"] / 1e6, "MMAC": exit_["macs"] / 1e6}
        lines.append(line)
    return pd.DataFrame(lines)


def peers_of(report: Mapping, size: int) -> list[dict]:
    """Float static detectors beside the exits of a network at some input: ``name``, ``AP`` and ``time_ratio``.

    Args:
        size: side of the network's input; the time of the plain detector at this input is 1. Without such a detector
            there are no peers.
    """
    systems = {row["name"]: row for row in report["systems"] if row["seed"] == 0 and not row["int8"]}
    static = [row for row in rows_of(report, "exits") if row["kind"] != "exits" and row["system"] in systems]
    units = [
        row["time_ratio"]
        for row in static
        if row["kind"] in ("plain", "input") and systems[row["system"]]["input_px"] == size
    ]
    return [
        {"name": row["system"], "AP": row["AP"], "time_ratio": row["time_ratio"] / unit}
        for unit in units[:1]
        for row in static
    ]


def seeds_table(report: Mapping) -> pd.DataFrame:
    """AP of every exit that was trained with several seeds, a column each, and their mean."""
    by_exit: dict[tuple, dict[str, float]] = {}
    for row in rows_of(report, "exits", seed=None):
        by_exit.setdefault((row["system"], row["exit"]), {})[f"seed {row['seed']}"] = row["AP"]
    return pd.DataFrame(
        {"system": system, "exit": exit_} | ap | {"mean": float(np.mean(list(ap.values())))}
        for (system, exit_), ap in by_exit.items()
        if len(ap) > 1
    )


def judged_table(report: Mapping, prevalence: float | None = None) -> pd.DataFrame:
    """Each network with exits at its exits and at coins of them, beside each hull.

    ``above`` counts the seeds that lie above a hull with their whole interval; the interval shown is the first
    seed's. Nothing is shown where no static detector is as fast.
    """
    groups: dict[tuple, list[dict]] = {}
    exits = (row for row in rows_of(report, "exits", prevalence, None) if row["kind"] == "exits")
    for row in [*exits, *rows_of(report, "coins", prevalence, None)]:
        groups.setdefault((row["system"], row.get("exit", "coin"), row["time_ratio"]), []).append(row)
    lines = []
    for (system, place, time), rows in groups.items():
        line = {"system": system, "at": place, "time": time, "AP": rows[0]["AP"]}
        for hull, members in MEMBERS.items():
            low, high = rows[0][f"minus_{hull}"] or (None, None)
            compared = [row[f"above_{hull}"] for row in rows if row[f"above_{hull}"] is not None]
            line |= {f"minus {members}": low, "to" if hull == "peers" else "up to": high}
            line[f"above {members}"] = f"{sum(compared)} of {len(compared)}" if compared else None
        lines.append(line)
    return pd.DataFrame(lines, dtype=object)


def verdicts(report: Mapping, prevalence: float | None = None) -> list[dict]:
    """At how many latencies each network with exits, mixed by a coin, lies above each hull with every seed.

    Returns:
        Rows of ``system``, ``hull``, ``above`` and ``compared`` (latencies), ``seeds``, and ``text``.
    """
    rows, coins = [], rows_of(report, "coins", prevalence, None)
    for system in dict.fromkeys(row["system"] for row in coins):
        seeds = len({row["seed"] for row in coins if row["system"] == system})
        for hull, members in MEMBERS.items():
            by_latency: dict[float, list[bool]] = {}
            for row in (row for row in coins if row["system"] == system and row[f"above_{hull}"] is not None):
                by_latency.setdefault(row["time_ratio"], []).append(row[f"above_{hull}"])
            above, compared = sum(map(all, by_latency.values())), len(by_latency)
            text = f"{system} is above {members} at {above} of {compared} latencies with {seeds} of {seeds} seeds"
            row = {"system": system, "hull": hull, "above": above, "compared": compared, "seeds": seeds}
            rows.append(row | {"text": text})
    return rows


def check_goals(report: Mapping) -> pd.DataFrame:
    """The goals of the plane: the value of every seed, and whether all of them meet it."""
    lines = [
        {"goal": goal, "values": ", ".join(f"{v:.3f}" for v in values), "limit": f"{sign} {limit:g}"}
        | {"met": all(value <= limit if sign == "<=" else value >= limit for value in values)}
        for goal, values, sign, limit in _goals(report)
    ]
    return pd.DataFrame(lines, columns=["goal", "values", "limit", "met"])


def _goals(report: Mapping) -> Iterator[tuple[str, Sequence[float], str, float]]:
    goals, exits = load_goals()["plane"], {}
    for row in rows_of(report, "exits", seed=None):
        exits.setdefault(f"{row['system']} {row['exit']}", {})[row["seed"]] = row
    for goal in goals["exits"]:
        rows = exits.get(goal["exit"], {})
        if "AP" in goal and rows:
            yield f"AP of {goal['exit']}", [row["AP"] for row in rows.values()], ">=", goal["AP"]
        if "share" in goal and rows and goal["of"] in exits:
            wholes = exits[goal["of"]]
            values = [row["AP"] / wholes.get(seed, wholes[0])["AP"] for seed, row in rows.items()]
            yield f"AP of {goal['exit']} / {goal['of']}", values, ">=", goal["share"]
        if "time" in goal and rows:
            yield f"time of {goal['exit']}", [rows[0]["time_ratio"]], "<=", goal["time"]
    pairs: dict[str, list[dict]] = {}
    for row in rows_of(report, "alone", seed=None):
        pairs.setdefault(f"{row['system']} {row['exit']}", []).append(row)
    for name, rows in pairs.items():
        peer = rows[0]["peer"]
        yield f"AP of {name} - {peer}", [row["AP_minus_peer"] for row in rows], ">=", goals["AP_minus_alone"]
        yield f"time of {name} / {peer}", [rows[0]["time_to_peer"]], "<=", goals["time_to_alone"]
    for row in verdicts(report):
        if row["hull"] == "peers":
            name = f"latencies at which {row['system']} is above {MEMBERS['peers']}, every seed"
            yield name, [row["above"]], ">=", goals["latencies_above"]


def plane_figure(report: Mapping, prevalence: float | None = None) -> Figure:
    """AP against time: static detectors with their hulls, and networks with exits, which coins of the exits join.

    Open markers are int8. Bars and bands are 95 % intervals over scenes, each system's own: a verdict is about the
    difference, which is paired.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 4.0))
    rows = rows_of(report, "exits", prevalence)
    static = [row for row in rows if row["kind"] != "exits"]
    for row in static:
        int8 = row["system"].endswith(" int8")
        axis.errorbar(row["time_ratio"], row["AP"], np.abs(np.array([row["AP_interval"]]).T - row["AP"]), color="black",
                      marker=MARKERS[row["kind"]], markerfacecolor="white" if int8 else "black", markersize=5,
                      elinewidth=0.5, linestyle="", label=None if int8 else row["kind"])  # fmt: skip
    for members, line, label in ((static, "-", MEMBERS["static"]), (_peers(static), "--", MEMBERS["peers"])):
        hull = Hull(np.array([row["time_ratio"] for row in members]), np.array([[row["AP"] for row in members]]))
        times = np.linspace(hull.times.min(), 1.1, 200)
        best = [hull.at(time)[0] for time in times]
        axis.plot(times, best, color=HULL_COLOUR, linestyle=line, linewidth=0.8, label=f"hull: {label}")
    networks = list(dict.fromkeys(row["system"] for row in rows if row["kind"] == "exits"))
    for name, colour in zip(networks, SYSTEM_COLOURS, strict=False):
        points = [row for row in rows if row["system"] == name]
        times, ap = [row["time_ratio"] for row in points], [row["AP"] for row in points]
        line = "--" if name.endswith(" int8") else "-"
        axis.plot(times, ap, color=colour, linewidth=1.2, linestyle=line, label=name.replace("_", " "))
        axis.fill_between(
            times, *np.array([row["AP_interval"] for row in points]).T, color=colour, alpha=0.1, linewidth=0
        )
        axis.scatter(times, ap, s=18, zorder=3, color=[exit_colour(row["exit"]) for row in points], edgecolors=colour)
    axis.set_xlabel("time / time of the plain detector (onnxruntime, one thread)")
    axis.set_ylabel(f"AP[.50:.95] on {report['split']}")
    share = prevalences(report)[0] if prevalence is None else prevalence
    axis.set_title(f"{100 * share:.0f} % of the images are empty")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside right center", fontsize=7)
    return figure


def _peers(static: Sequence[Mapping]) -> list[Mapping]:
    return [row for row in static if row["kind"] != "truncated"]
