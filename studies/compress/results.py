"""What ``plane.json`` says: tables, verdicts in words, goals, and the figure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from eelib.detections import exit_colour
from studies.goals import load_goals, met
from studies.hull import Hull
from studies.plots import OURS_COLOUR, TEXT_WIDTH_IN

INT8 = " int8"  # ends the names of quantised systems
STATIC_COLOUR = "black"
MARKERS = {"plain": "*", "input": "^", "width": "s", "search": "X", "truncated": "v"}
KINDS = {"plain": "plain detector", "input": "smaller input", "width": "fewer channels", "search": "searched"}
KINDS |= {"truncated": "truncated at an exit"}
ROUTERS = {  # markers of routed points, and their colours
    "no chair": ("P", "#D55E00"), "benefit": ("D", "#0072B2"), "best score": ("X", "#CC79A7"),
    "gates and benefit": ("h", "#7F5B3A"), "gates alone": (">", "#4D4D4D"), "best score ends": ("<", "#8A8D00"),
    "certified router": ("d", "#F0E442"), "certified best score": ("p", "#F0E442"), "certified coin": ("8", "#F0E442"),
}  # fmt: skip
NETWORKS = (OURS_COLOUR, "-"), ("#CC79A7", "--"), ("#D55E00", "-.")  # colour and line of each network with exits
MEMBERS = {"peers": "full-depth static detectors", "static": "all static detectors"}  # truncated ones too


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
        lines.append({
            "system": row["system"], "exit": row["exit"], "time": row["time_ratio"],
            "p95": exit_["p95_ms"] / plain_ms, "p99": exit_["p99_ms"] / plain_ms,
            "AP": row["AP"], "low": low, "high": high, "AP50": row["AP50"],
            "precision": row["precision"], "recall": row["recall"], "false alarms": row["false_alarms"],
            "MiB": system["size_mib"], "M parameters": system["parameters"] / 1e6, "MMAC": exit_["macs"] / 1e6,
        })  # fmt: skip
    return pd.DataFrame(lines)


def seeds_table(report: Mapping) -> pd.DataFrame:
    """AP of every exit that was trained with several seeds, a column each, and their mean."""
    by_exit: dict[tuple, dict[str, float]] = {}
    for row in rows_of(report, "exits", seed=None):
        by_exit.setdefault((row["system"], row["exit"]), {})[f"seed {row['seed']}"] = row["AP"]
    table = pd.DataFrame(
        {"system": system, "exit": exit_} | ap for (system, exit_), ap in by_exit.items() if len(ap) > 1
    )
    return table.assign(mean=table.filter(like="seed ").mean(axis=1))


def judged_table(report: Mapping, prevalence: float | None = None) -> pd.DataFrame:
    """Each network with exits at its exits and at coins of them, beside each hull.

    ``above`` counts the seeds that lie above a hull with their whole interval; the interval shown is the first
    seed's. Nothing is shown where no static detector is as fast.
    """
    groups, lines = {}, []
    exits = (row for row in rows_of(report, "exits", prevalence, None) if row["kind"] == "exits")
    for row in [*exits, *rows_of(report, "coins", prevalence, None)]:
        groups.setdefault((row["system"], row.get("exit", "coin"), row["time_ratio"]), []).append(row)
    for (system, place, time), rows in groups.items():
        line = {"system": system, "at": place, "time": time, "AP": rows[0]["AP"]}
        for hull, members in MEMBERS.items():
            low, high = rows[0][f"minus_{hull}"] or (None, None)
            compared = [row[f"above_{hull}"] for row in rows if row[f"above_{hull}"] is not None]
            line |= {f"minus {members}, low": low, f"minus {members}, high": high}
            line[f"above {members}"] = f"{sum(compared)} of {len(compared)}" if compared else None
        lines.append(line)
    return pd.DataFrame(lines, dtype=object)


def verdicts(report: Mapping, prevalence: float | None = None) -> list[dict]:
    """At how many latencies each network with exits, mixed by a coin, lies above each hull with every seed.

    Returns:
        Rows of ``system``, ``hull``, ``above`` and ``compared`` (numbers of latencies), ``latencies`` (those above),
        ``seeds``, and ``text``.
    """
    rows, coins = [], pd.DataFrame(rows_of(report, "coins", prevalence, None))
    for system, own in coins.groupby("system", sort=False) if len(coins) else ():
        seeds = own["seed"].nunique()
        for hull, members in MEMBERS.items():
            by_latency = own.dropna(subset=f"above_{hull}").groupby("time_ratio")[f"above_{hull}"].all()
            above, compared = int(by_latency.sum()), len(by_latency)
            text = f"{system} is above {members} at {above} of {compared} latencies with {seeds} of {seeds} seeds"
            row = {"system": system, "hull": hull, "above": above, "compared": compared, "seeds": seeds}
            rows.append(row | {"latencies": [time for time, always in by_latency.items() if always], "text": text})
    return rows


def check_goals(report: Mapping) -> pd.DataFrame:
    """The goals of the plane, AP and time together where one names both: what every seed gives, and if all meet it."""
    lines = []
    for goal, parts in _goals(report):
        values = "; ".join(", ".join(f"{value:.4g}" for value in values) for values, _, _ in parts)
        limits = " and ".join(f"{sign} {limit:g}" for _, sign, limit in parts)
        kept = all(met(value, sign, limit) for values, sign, limit in parts for value in values)
        lines.append({"goal": goal, "values": values, "limit": limits, "met": kept})
    return pd.DataFrame(lines, columns=["goal", "values", "limit", "met"])


def _goals(report: Mapping) -> Iterator[tuple[str, list[tuple[Sequence[float], str, float]]]]:
    """Each goal and its parts: the values of the seeds, and the limit that they keep to."""
    goals, exits = load_goals()["plane"], {}
    for row in rows_of(report, "exits", seed=None):
        exits.setdefault(f"{row['system']} {row['exit']}", {})[row["seed"]] = row
    for goal in goals["exits"]:
        rows, what, parts = exits.get(goal["exit"], {}), [], []
        if "AP" in goal:
            what, parts = ["AP"], [([row["AP"] for row in rows.values()], ">=", goal["AP"])]
        if "share" in goal and goal["of"] in exits:
            wholes = exits[goal["of"]]
            values = [row["AP"] / wholes.get(seed, wholes[0])["AP"] for seed, row in rows.items()]
            what, parts = [f"AP / {goal['of']}"], [(values, ">=", goal["share"])]
        if "time" in goal and rows:
            what, parts = [*what, "time"], [*parts, ([rows[0]["time_ratio"]], "<=", goal["time"])]
        if rows and parts:
            yield f"{goal['exit']}: {' and '.join(what)}", parts
    pairs: dict[str, list[dict]] = {}
    for row in rows_of(report, "alone", seed=None):
        pairs.setdefault(f"{row['system']} {row['exit']}", []).append(row)
    for name, rows in pairs.items():
        peer = rows[0]["peer"]
        if peer == "baseline":  # it has a goal above
            continue
        differences = ([row["AP_minus_peer"] for row in rows], ">=", goals["AP_minus_alone"])
        times = ([rows[0]["time_to_peer"]], "<=", goals["time_to_alone"])
        yield f"{name} beside {peer}: time ratio and AP difference", [times, differences]
    for row in verdicts(report):
        if row["hull"] == "peers":
            name = f"latencies at which {row['system']} is above {MEMBERS['peers']}, every seed"
            yield name, [([row["above"]], ">=", goals["latencies_above"])]


def alone_table(report: Mapping, prevalence: float | None = None) -> pd.DataFrame:
    """Each exit beside its truncated or static peer: AP less its AP, and time as a share of its time."""
    return pd.DataFrame(
        {"system": row["system"], "exit": row["exit"], "seed": row["seed"], "peer": row["peer"]}
        | {"AP minus peer": row["AP_minus_peer"], "low": row["interval"][0], "high": row["interval"][1]}
        | {"time / peer": row["time_to_peer"]}
        for row in rows_of(report, "alone", prevalence, None)
    )


def routed_points(blank: Mapping, guarantees: Mapping) -> list[dict]:
    """Routers, gates and systems certified to lose 0.05 of F1, of 05f_blank, as :func:`plane_figure` draws them."""
    certified = [
        row | {"system": f"certified {row['system']}"}
        for row in guarantees["curves"]
        if row["loss"] == "F1" and row["epsilon"] == 0.05 and row["certified"]
    ]
    return [row for row in blank["worth"] if row["system"] in ROUTERS] + certified


def plane_figure(report: Mapping, prevalence: float | None = None, routed: Sequence[Mapping] = ()) -> Figure:
    """AP against time, float on the left and int8 on the right: static detectors, their hulls, and networks with exits.

    Coins of a network's exits lie on the line that joins them. Bars and bands are 95 % intervals over scenes, each
    system's own: a verdict is about the difference, which is paired. The hulls are those of all static detectors,
    float and int8, so they are the same in both panels. ``routed`` are points of the float 256 px network, of
    :func:`routed_points`, each without its interval, which stands in the table.
    """
    share = prevalences(report)[0] if prevalence is None else prevalence
    rows = rows_of(report, "exits", share)
    static = [row for row in rows if row["kind"] != "exits"]
    wide = any(row["system"].endswith(INT8) for row in rows)
    figure, axes = plt.subplots(1, 1 + wide, figsize=(TEXT_WIDTH_IN, 4.4), sharex=True, sharey=True, squeeze=False)
    for axis, int8 in zip(axes.flat, (False, True), strict=False):
        _draw_hulls(axis, static)
        drawn = [row for row in rows if row["system"].endswith(INT8) == int8]
        _draw_static(axis, [row for row in drawn if row["kind"] != "exits"])
        _draw_networks(axis, [row for row in drawn if row["kind"] == "exits"])
        for row in () if int8 else routed:
            if abs(row["prevalence"] - share) < 5e-3:
                marker, colour = ROUTERS[row["system"]]
                axis.plot(row["time"], row["AP"], marker=marker, color=colour, markersize=4, linestyle="", zorder=4,
                          markeredgecolor="black", markeredgewidth=0.3, label=f"router: {row['system']}")  # fmt: skip
        axis.grid(color="#E5E5E5", linewidth=0.5)
        axis.set(title="int8" if int8 else "float", xlabel="time / time of the plain detector", axisbelow=True)
    first = axes.flat[0]
    first.set_xlim(0)
    first.xaxis.set_major_locator(MultipleLocator(0.25))
    first.xaxis.set_major_formatter("{x:g}")
    first.set_ylabel(f"AP[.50:.95] on {report['split']}")
    figure.suptitle(f"{100 * share:.0f} % of the images are empty; onnxruntime, one thread", fontsize=9)
    unique = {}
    for axis in axes.flat:
        unique |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = {"hull": 0, "exits": 1, "exit": 2, "full": 2}  # of the first word; static detectors come last
    labels = sorted(unique, key=lambda label: order.get(label.split()[0].rstrip(":0123456789"), 3))
    figure.legend([unique[label] for label in labels], labels, loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _draw_hulls(axis: Axes, static: Sequence[Mapping]) -> None:
    peers = [row for row in static if row["kind"] != "truncated"]
    for members, name, colour, width in ((peers, "peers", "#BBBBBB", 3), (static, "static", "#4D4D4D", 1)):
        hull = Hull(np.array([row["time_ratio"] for row in members]), np.array([[row["AP"] for row in members]]))
        times = np.linspace(hull.times.min(), max(1.05, hull.times.max()), 300)
        best = [hull.at(time)[0] for time in times]
        axis.plot(times, best, label=f"hull: {MEMBERS[name]}", zorder=1, color=colour, linewidth=width)


def _draw_static(axis: Axes, rows: Sequence[Mapping]) -> None:
    """Static detectors, each kind by its marker and in full by its colour: both say the same."""
    for row in rows:
        reach = np.abs(np.array([row["AP_interval"]]).T - row["AP"])
        axis.errorbar(row["time_ratio"], row["AP"], reach, color=STATIC_COLOUR, marker=MARKERS[row["kind"]],
                      markersize=9 if row["kind"] == "plain" else 5.5, markeredgecolor="white", markeredgewidth=0.5,
                      elinewidth=0.6, linestyle="", label=KINDS[row["kind"]])  # fmt: skip


def _draw_networks(axis: Axes, rows: Sequence[Mapping]) -> None:
    """Networks with exits: a line and a band each, the exits on it in their own colours."""
    names = list(dict.fromkeys(row["system"] for row in rows))
    for name, (colour, style) in zip(names, NETWORKS, strict=False):
        points = [row for row in rows if row["system"] == name]
        times, ap = [row["time_ratio"] for row in points], [row["AP"] for row in points]
        label = f"{name.removesuffix(INT8).replace('_', ' ')} px, and its coin"
        axis.plot(times, ap, color=colour, linewidth=1.4, linestyle=style, label=label)
        low, high = np.array([row["AP_interval"] for row in points]).T
        axis.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
        for row in points:
            exit_ = row["exit"]
            axis.plot(row["time_ratio"], row["AP"], marker="o", markersize=6, linestyle="", color=exit_colour(exit_),
                      markeredgecolor="black", markeredgewidth=0.6, label=exit_, zorder=3)  # fmt: skip
