"""What metrics say, made ready for the written reports: names in words, tables without keys of code."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from studies import tables
from studies.compress import results
from studies.goals import load_goals
from studies.metrics import read_metrics
from studies.phases.config import EXIT_NAMES
from studies.phases.mechanisms import quantity, wanted
from studies.report import comparison

# Systems of the plane, as its parameter file calls them, in words.
WORDS = (
    (r"\bexits_(\d+)", r"exits at \1 px"),
    (r"\btruncated_(\d+)_(exit\d)", r"truncated at \2, \1 px"),
    (r"\bstatic_(\d+)", r"input of \1 px"),
    (r"\bwidth_(\d+)", r"\1 % of the channels"),
    (r"\bsearched\b", "found by search"),
    (r"\bbaseline\b", "plain detector"),
    (r" int8\b", ", int8"),
    (r"(?<! at) (exit\d|full)\b(?!-depth)", r", \1"),
)


# Rungs of the ladder and defects of the ablation, as their parameter files call them, where that says too little.
REPAIRS = {
    "as recorded": "nothing (as recorded)", "matching": "matching by overlap", "layout": "layout of the class loss",
    "matching + layout": "matching and layout", "both + encoded": "matching, layout and encoded boxes",
    "all": "every defect",
}  # fmt: skip
DEFECTS = {
    "class layout": "class loss in the wrong layout", "class index": "class outputs in the wrong order",
    "random matching": "positives drawn at random", "all background": "every box labelled background",
    "boxes without truth": "boxes trained without a true box", "boxes in pixels": "box targets in pixels",
    "flip without boxes": "images mirrored without their boxes", "single map": "one map in place of six",
    "truncated full": "full truncated", "exits untrained at first": "early exits untrained in the first epochs",
    "teacher twice": "the teacher's loss counted twice", "no mining": "no hard negatives",
    "decision of four images": "one decision for four images",
    "threshold below the rule": "threshold below the least value of the rule",
    "mean probability": "mean probability as the confidence", "hard gate": "hard gate of 1.8",
    "gate of a hard count": "gate on a hard count of 1.9",
}  # fmt: skip


def named(text: str) -> str:
    """A text with the systems of a plane in words."""
    for key, words in WORDS:
        text = re.sub(key, words, text)
    return text


def paying(plane: Mapping) -> dict:
    """What the plane says of networks with exits beside static detectors.

    Returns:
        ``processor``; ``images``; ``verdicts``: a table, a row a network and a
        share of empty images, at how many latencies it lies above each hull; ``above``: by hull, the networks with the
        latencies and shares at which they do, in words;
        ``missing``: systems that were not trained; ``seeds``: systems with several; ``alternatives``; ``goals``: a
        table of those that were missed, and ``met`` of ``of``.
    """
    lines: dict[tuple, dict] = {}
    places: dict[str, dict[tuple, list[str]]] = {hull: {} for hull in results.MEMBERS}  # shares, by network and time
    for share in results.prevalences(plane):
        for verdict in results.verdicts(plane, share):
            for time in verdict["latencies"]:
                places[verdict["hull"]].setdefault((verdict["system"], time), []).append(f"{100 * share:.0f} %")
            line = {"network": named(verdict["system"]), "seeds": verdict["seeds"]}
            line |= {"empty images": f"{100 * share:.0f} %"}
            line = lines.setdefault((verdict["system"], share), line)
            line[f"above {results.MEMBERS[verdict['hull']]}"] = f"{verdict['above']} of {verdict['compared']}"
    above = {
        hull: [
            f"{named(system)} at {time:.2f} of the plain detector's time with {' and '.join(shares)} empty images"
            for (system, time), shares in of_hull.items()
        ]
        for hull, of_hull in places.items()
    }
    goals = results.check_goals(plane)
    missed = goals[~goals["met"].astype(bool)].drop(columns="met")
    return {
        "processor": plane["machine"]["processor"], "images": plane["images"], "verdicts": list(lines.values()),
        "above": above,
        "missing": [named(name) for name in plane.get("missing", ())], "seeds": _seeds(plane),
        "alternatives": alternatives(plane),
        "goals": missed.assign(goal=missed["goal"].map(named)), "met": len(goals) - len(missed), "of": len(goals),
    }  # fmt: skip


def _seeds(plane: Mapping) -> dict[str, int]:
    """Systems that were trained with several seeds, in words, and how many."""
    count = Counter(row["name"] for row in plane["systems"] if not row.get("int8"))
    return {named(name): seeds for name, seeds in count.items() if seeds > 1}


def exits_beside_goals(plane: Mapping | None, detector: str = "exits_256") -> list[dict]:
    """The exits of a released detector as a plane has them, a row each, with their goals, None where there is none."""
    if plane is None:
        return []
    goals = {goal["exit"]: goal for goal in load_goals()["plane"]["exits"]}
    rows = []
    for row in results.rows_of(plane, "exits"):
        if row["system"] == detector:
            goal = goals.get(f"{detector} {row['exit']}", {})
            rows.append(row | {"AP_goal": goal.get("AP"), "time_goal": goal.get("time")})
    return rows


def kept_of_baseline(plane: Mapping | None) -> float | None:
    """AP of full of the released detector with exits at 320 px, as a share of the baseline's."""
    full = (
        {row["system"]: row["AP"] for row in results.rows_of(plane, "exits") if row["exit"] == "full"} if plane else {}
    )
    return full["exits_320"] / full["baseline"] if {"exits_320", "baseline"} <= full.keys() else None


def certified(guarantees: Mapping | None, epsilon: float) -> pd.DataFrame | None:
    """What is certified to lose ``epsilon`` of F1, beside coin and static detectors, by share of empty images."""
    if guarantees is None:
        return None
    return pd.DataFrame(
        {
            "certified": row["system"], "empty images": f"{100 * row['prevalence']:.0f} %", "time": row["time"],
            "AP": row["AP"], "AP minus a coin of the same time": _pair(row.get("minus_coin")),
            "AP minus all static detectors": _pair(row["minus_static"]),
        }
        for row in guarantees["curves"]
        if row["loss"] == "F1" and row["epsilon"] == epsilon and row["certified"]
    )  # fmt: skip


def _pair(interval: Sequence[float] | None) -> str | None:
    return None if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def int8_elsewhere(metrics: Path) -> str:
    """What int8 is worth on the processors that were met: in the bench's run, and in one of an earlier version.

    Nothing where there is no bench, or one without int8, as a quick one is.
    """
    if not (metrics / "bench.json").exists():
        return ""
    bench = read_metrics(metrics / "bench.json")
    ms = {(r["runtime"], r["exit"]): r["median_ms"] for r in bench["times"] if r["batch"] == r["threads"] == 1}
    exits = "exit1", "exit2"
    if any(("onnxruntime int8", name) not in ms for name in exits):
        return ""
    ratios = {name: ms["onnxruntime int8", name] / ms["onnxruntime", name] for name in exits}
    met = [(ratios, bench["machine"]["processor"], ms["onnxruntime", "baseline"], "the run of `eelib bench`")]
    if (metrics / "int8_elsewhere.json").exists():
        other = read_metrics(metrics / "int8_elsewhere.json")
        met.append((other["ratios"], other["processor"], other["baseline_ms"], "the plane of version 0.2.0"))
    parts = [
        f"{ratio['exit1']:.2f} and {ratio['exit2']:.2f} in {where} ({processor}, the baseline taking {baseline:.1f} ms)"
        for ratio, processor, baseline, where in met
    ]
    shares = "as shares of their time in float, exit1 and exit2 of `exits_256` took"
    return f"What int8 is worth depends on the machine: {shares} {' and '.join(parts)}."


def alternatives(plane: Mapping) -> pd.DataFrame:
    """Every detector of a plane, a line an exit: AP with its interval and time, in float and in int8."""
    frame, lines = results.exits_table(plane), {}
    for row in frame.to_dict("records"):
        name = row["system"].removesuffix(results.INT8)
        kind = " in int8" if name != row["system"] else ""
        place = row["exit"] if name.startswith("exits") else None
        line = lines.setdefault((name, row["exit"]), {"detector": named(name), "exit": place})
        line |= {f"AP{kind}": f"{row['AP']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", f"time{kind}": row["time"]}
    return pd.DataFrame(lines.values())


def causal_means(causal: Mapping) -> pd.DataFrame:
    """Means over seeds of each variant of the causal ladder, a row a variant."""
    lines = []
    for row in causal["variants"]:
        shares = {name: row[f"share_{name}"] for name in EXIT_NAMES}
        c1 = [run["confidence_mean"]["exit1"] for run in causal["runs"] if run["variant"] == row["variant"]]
        line = {"variant": row["variant"], "outcome": comparison.outcome(shares)}
        line |= {f"{name} %": 100 * share for name, share in shares.items()}
        line |= {"c1": sum(c1) / len(c1), "std c1": row["spread_exit1"]}
        lines.append(line | {"AP full": row["AP_full"], "AP routed": row["AP"]})
    return pd.DataFrame(lines)


def ladder(causal: Mapping | None) -> dict | None:
    """The causal ladder for a reader: ``table``, ``rows``, and on what it was measured."""
    if causal is None:
        return None
    means, runs = causal_means(causal), causal["runs"]
    words = {"variant": "what was repaired", "AP full": "AP of full", "AP routed": "AP as routed"}
    words |= {"c1": "exit1's confidence", "std c1": "its spread"}
    return {
        "rows": means.to_dict("records"),
        "table": means.replace({"variant": REPAIRS}).rename(columns=words),
        "images": runs[0]["images"], "steps": runs[0]["steps"], "seeds": len({run["seed"] for run in runs}),
    }  # fmt: skip


def defects(ablation: Mapping | None) -> dict | None:
    """The ablation for a reader: which single defects destroy detection, force one way, or help; and a table.

    Names lose the defect's number in brackets.
    """
    if ablation is None:
        return None
    rows, lines, pairs = ablation["variants"], [], []
    for row in rows:
        pairs.append((re.sub(r" \([\d, ]+\)", "", row["variant"]), row))
        (low, high), (less, more) = row["AP_full_interval"], row["AP_full_minus_working_interval"]
        lines.append({
            "defect switched on": DEFECTS.get(pairs[-1][0], pairs[-1][0]) if lines else "none (all repaired)",
            "AP of full": f"{row['AP_full']:.3f} [{low:.3f}, {high:.3f}]",
            "AP minus that without a defect": f"{row['AP_full_minus_working']:+.3f} [{less:+.3f}, {more:+.3f}]",
            "share of the most used exit": row["largest_share"], "spread of exit1's confidence": row["spread"],
        })  # fmt: skip
    del pairs[0]  # the working configuration
    destroy = [name for name, row in pairs if row["destroys_detection"]]
    return {
        "table": lines, "destroy": destroy,
        "one_way": [name for name, row in pairs if row["all_or_nothing"]],
        "both": [name for name, row in pairs if row["all_or_nothing"] and row["destroys_detection"]],
        "worse": [
            name for name, row in pairs if name not in destroy and row["AP_full_minus_working_interval"][1] < 0
        ],
        "better": [(name, row) for name, row in pairs if row["AP_full_minus_working_interval"][0] > 0],
        "working": rows[0], "seeds": len(rows[0]["seeds"]), "epochs": ablation["common"].get("optim.epochs"),
    }  # fmt: skip


def _words(value: object) -> str | None:
    """A measured value or a predicted interval in words; None for what has too many parts to be said."""
    if isinstance(value, list):
        return " to ".join(map(tables.rounded, dict.fromkeys(value))) if len(value) <= 2 else None
    return "never" if value is None else tables.rounded(value)


def check_lines(run: Mapping) -> list[dict]:
    """The checks of a run: ``prediction``, ``holds``, and ``numbers``: each measured value beside the predicted one."""
    lines = []
    for check in run["mechanisms"]:
        numbers, predicted = [], check.get("predicted", {})
        for key, value in check.get("measured", {}).items():
            if (said := _words(value)) is not None:
                expected = wanted(check, key) if key in predicted else None
                numbers.append(f"{quantity(key)} {said}" + (f" (predicted {expected})" if expected else ""))
        lines.append({"prediction": check["prediction"], "holds": check["holds"], "numbers": "; ".join(numbers)})
    return lines


def counts(reports: Path) -> Sequence[Mapping] | None:
    """Images, boxes and scenes of each split, where 01_data counted them."""
    path = reports / "tables" / "data_counts.csv"
    return pd.read_csv(path).to_dict("records") if path.exists() else None
