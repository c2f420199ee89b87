"""What ``compress.json`` says: exits and their alternatives in tables and verdicts."""

from collections.abc import Mapping, Sequence

import pandas as pd

PEERS = ("full", "width", "input")  # kinds of the static peers: what a user would do without any of this


def table(report: Mapping) -> pd.DataFrame:
    """The closing table: AP, AP50, time, size, parameters and operations of every system and exit."""
    lines = [
        {"system": row["name"], "kind": row["kind"], "exit": "–"} | _line(row, row) for row in report["static"]
    ] + [
        {"system": system["name"], "kind": "exits", "exit": name} | _line(values, system)
        for system in report["with_exits"]
        for name, values in system["exits"].items()
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _line(values: Mapping, system: Mapping) -> dict:
    low, high = values["AP_interval"]
    return {
        "AP": values["AP"], "low": low, "high": high, "AP50": values["AP50"], "time / full": values["time_ratio"],
        "MiB": system["size_mib"], "M parameters": system["parameters"] / 1e6, "MMAC": values["macs"] / 1e6,
    }  # fmt: skip


def winners(report: Mapping, budgets: Sequence[float]) -> pd.DataFrame:
    """The system with the best AP on ``test`` within each budget of time: a description, not a choice."""
    systems = [(row["name"], row["time_ratio"], row["AP"]) for row in report["static"]]
    for system in report["with_exits"]:
        systems += [(f"{system['name']}, routed", p["time_ratio"], p["AP"]) for p in system["points"]]
    lines = []
    for budget in budgets:
        inside = [entry for entry in systems if entry[1] <= budget]
        name, time, ap = max(inside, key=lambda entry: (entry[2], -entry[1]), default=(None, None, None))
        lines.append({"time / full at most": budget, "system": name, "time / full": time, "AP": ap})
    return pd.DataFrame(lines)


def clear(points: Sequence[Mapping], key: str) -> tuple[list[Mapping], int]:
    """Points at which a routing lies above a hull with its whole interval, and how many there are to judge.

    Args:
        points: of :func:`studies.compress.study.routed_rows`.
        key: ``minus_peers`` or ``minus_all``.
    """
    judged = [p for p in points if p[key] is not None]
    return [p for p in judged if p[key][0] > 0], len(judged)


def verdict(points: Sequence[Mapping], key: str) -> str:
    """At how many latencies a routing lies above a hull with its whole interval, in words; as :func:`clear`."""
    above, judged = clear(points, key)
    below = sum(p[key] is not None and p[key][1] < 0 for p in points)
    times = ", ".join(f"{p['time_ratio']:.2f}" for p in above)
    where = f" (time / full {times})" if above else ""
    return (
        f"above the hull, interval clear of it, at {len(above)} of {judged} latencies{where}; "
        f"below it, clear, at {below}; {len(points) - judged} are faster than any of the static systems"
    )


def of_every_seed(report: Mapping, name: str) -> dict[int, Mapping]:
    """A system with exits as each seed trained it; the released exits have the first alone."""
    (first,) = (system for system in report["with_exits"] if system["name"] == name)
    others = {row["seed"]: system for row in report["seeds"] for system in row["with_exits"] if system["name"] == name}
    return {report["compress"]["seed"]: first} | others


def seeds(report: Mapping) -> pd.DataFrame:
    """Systems with exits that were trained with several seeds: AP of each exit, latencies clear of both hulls."""
    static = {report["compress"]["seed"]: report["static"]} | {row["seed"]: row["static"] for row in report["seeds"]}
    lines = []
    for name in (system["name"] for system in report["with_exits"]):
        trained = of_every_seed(report, name)
        for seed, system in trained.items() if len(trained) > 1 else ():
            (alone,) = (row["AP"] for row in static[seed] if row["name"] == name.removeprefix("exits on "))
            line = {"system": name, "seed": seed, "AP without exits": alone}
            line |= {f"AP {exit_name}": values["AP"] for exit_name, values in system["exits"].items()}
            for hull, key in (("peers", "minus_peers"), ("all static", "minus_all")):
                above, judged = clear(system["points"], key)
                line[f"above {hull}"] = f"{len(above)} of {judged}"
            lines.append(line)
    return pd.DataFrame(lines)
