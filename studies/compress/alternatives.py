"""What ``compress.json`` says: exits and their alternatives in tables and verdicts."""

from collections.abc import Mapping, Sequence

import pandas as pd

PEERS = ("full", "width", "input")  # kinds of the static peers: what a user would do without any of this


def table(report: Mapping) -> pd.DataFrame:
    """The closing table: AP, AP50, time, size, parameters and operations of every system and exit."""
    lines = []
    for row in report["static"]:
        lines.append({"system": row["name"], "kind": row["kind"], "exit": "–"} | _line(row, row))
    for one in report["with_exits"]:
        for name, values in one["exits"].items():
            lines.append({"system": one["name"], "kind": "exits", "exit": name} | _line(values, one))
    return pd.DataFrame(lines)


def _line(values: Mapping, one: Mapping) -> dict:
    return {
        "AP": values["AP"], "low": values["AP_interval"][0], "high": values["AP_interval"][1], "AP50": values["AP50"],
        "time / full": values["time_ratio"], "MiB": one["size_mib"], "M parameters": one["parameters"] / 1e6,
        "MMAC": values["macs"] / 1e6,
    }  # fmt: skip


def winners(report: Mapping, budgets: Sequence[float]) -> pd.DataFrame:
    """The system with the best AP on ``test`` within each budget of time: a description, not a choice."""
    known = [(row["name"], row["time_ratio"], row["AP"]) for row in report["static"]]
    for one in report["with_exits"]:
        known += [(f"{one['name']}, routed", p["time_ratio"], p["AP"]) for p in one["points"]]
    lines = []
    for budget in budgets:
        inside = [entry for entry in known if entry[1] <= budget]
        name, time, ap = max(inside, key=lambda e: (e[2], -e[1]), default=(None, None, None))
        lines.append({"time / full at most": budget, "system": name, "time / full": time, "AP": ap})
    return pd.DataFrame(lines)


def clear(points: Sequence[Mapping], key: str) -> tuple[list[Mapping], int]:
    """Points at which a routing lies above a hull with its whole interval, and how many there are to judge.

    Args:
        points: of :func:`studies.compress.study.routed_rows`.
        key: ``minus_peers`` or ``minus_all``.
    """
    met = [p for p in points if p[key] is not None]
    return [p for p in met if p[key][0] > 0], len(met)


def verdict(points: Sequence[Mapping], key: str) -> str:
    """At how many latencies a routing lies above a hull with its whole interval, in words; as :func:`clear`."""
    above, met = clear(points, key)
    below = sum(p[key] is not None and p[key][1] < 0 for p in points)
    times = ", ".join(f"{p['time_ratio']:.2f}" for p in above)
    where = f" (time / full {times})" if above else ""
    return (
        f"above the hull, interval clear of it, at {len(above)} of {met} latencies{where}; "
        f"below it, clear, at {below}; {len(points) - met} are faster than any of the static systems"
    )


def of_every_seed(report: Mapping, name: str) -> dict[int, Mapping]:
    """A system with exits as each seed trained it; the released exits have the first alone."""
    (first,) = (one for one in report["with_exits"] if one["name"] == name)
    others = {row["seed"]: one for row in report["seeds"] for one in row["with_exits"] if one["name"] == name}
    return {report["compress"]["seed"]: first} | others


def seeds(report: Mapping) -> pd.DataFrame:
    """Systems with exits that were trained with several seeds: AP of each exit, latencies clear of both hulls."""
    lines = []
    for system in report["with_exits"]:
        trained = of_every_seed(report, system["name"])
        for seed, one in trained.items() if len(trained) > 1 else ():
            line = {"system": one["name"], "seed": seed, "AP without exits": _without_exits(report, seed, one["name"])}
            line |= {f"AP {k}": v["AP"] for k, v in one["exits"].items()}
            for hull, key in (("peers", "minus_peers"), ("all static", "minus_all")):
                above, met = clear(one["points"], key)
                line[f"above {hull}"] = f"{len(above)} of {met}"
            lines.append(line)
    return pd.DataFrame(lines)


def _without_exits(report: Mapping, seed: int, name: str) -> float:
    """AP of the static system that the exits of a seed are trained on."""
    rows = {row["seed"]: row["static"] for row in report["seeds"]} | {report["compress"]["seed"]: report["static"]}
    return next(row["AP"] for row in rows[seed] if row["name"] == name.removeprefix("exits on "))
