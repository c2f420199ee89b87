"""What metrics say, made ready for the written reports: names in words, tables without keys of code."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from eelib import tables
from studies.compress import results
from studies.phases.ablation import ladder_table
from studies.phases.config import EXIT_NAMES
from studies.phases.mechanisms import quantity
from studies.report import comparison

# Systems of the planes, as their parameter files call them, in words.
WORDS = (
    (r"\bexits_(\d+)", r"exits at \1 px"),
    (r"\btruncated_(\d+)_(exit\d)", r"\2 alone at \1 px"),
    (r"\bstatic_(\d+)", r"input of \1 px"),
    (r"\bwidth_(\d+)", r"\1 % of the channels"),
    (r"\bsearched\b", "found by search"),
    (r"\bbaseline\b", "plain detector"),
    (r" int8\b", ", int8"),
    (r" (exit\d|full)\b(?! alone)", r", \1"),
)


def named(text: str) -> str:
    """A text with the systems of a plane in words."""
    for key, words in WORDS:
        text = re.sub(key, words, text)
    return text


def paying(planes: Mapping[str, Mapping]) -> list[dict]:
    """What planes say of networks with exits beside static detectors, a row each.

    Returns:
        ``title``; ``figure``: its file's name; ``processor``; ``images``; ``verdicts``: a table, a row a network, at
        how many latencies it lies above each hull; ``above``: at how many any does, by hull; ``alternatives``;
        ``goals``: a table of those that were missed, and ``met`` of ``of``.
    """
    rows = []
    for title, plane in planes.items():
        lines: dict[str, dict] = {}
        above = dict.fromkeys(results.MEMBERS, 0)
        for share in results.prevalences(plane):
            for verdict in results.verdicts(plane, share):
                name = verdict["system"]
                line = lines.setdefault(name, {"network": named(name), "seeds": verdict["seeds"]})
                heading = f"{results.MEMBERS[verdict['hull']]}, {100 * share:.0f} % empty"
                line[heading] = f"{verdict['above']} of {verdict['compared']}"
                above[verdict["hull"]] += verdict["above"]
        goals = results.check_goals(plane)
        missed = goals[~goals["met"].astype(bool)].drop(columns="met")
        rows.append({
            "title": title, "figure": plane["plane"]["name"], "processor": plane["machine"]["processor"],
            "images": plane["images"], "verdicts": list(lines.values()), "above": above,
            "alternatives": alternatives(plane),
            "goals": missed.assign(goal=missed["goal"].map(named)), "met": len(goals) - len(missed), "of": len(goals),
        })  # fmt: skip
    return rows


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
    frame = ladder_table(causal["runs"]).drop(columns="seed")
    means = frame.groupby("variant", sort=False).mean().reset_index()
    shares = [{name: row[f"{name} %"] / 100 for name in EXIT_NAMES} for _, row in means.iterrows()]
    means.insert(1, "outcome", [comparison.outcome(s) for s in shares])
    return means


def ladder(causal: Mapping | None) -> dict | None:
    """The causal ladder for a reader: ``table``, ``rows``, and on what it was measured."""
    if causal is None:
        return None
    means, runs = causal_means(causal), causal["runs"]
    words = {"c1": "confidence", "std c1": "spread", "AP full": "AP of full"}
    return {
        "rows": means.to_dict("records"),
        "table": means.rename(columns=words).drop(columns=["AP exit1", "AP exit2"]),
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
            "one defect": pairs[-1][0], "AP of full": f"{row['AP_full']:.3f} [{low:.3f}, {high:.3f}]",
            "difference": f"{row['AP_full_minus_working']:+.3f} [{less:+.3f}, {more:+.3f}]",
            "share of the largest exit": row["largest_share"], "spread": row["spread"],
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
        "working": rows[0], "seeds": len(rows[0]["seeds"]), "images": ablation["common"].get("data.eval_limit"),
        "epochs": ablation["common"].get("optim.epochs"),
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
                wanted = _words(predicted[key]) if key in predicted else None
                numbers.append(f"{quantity(key)} {said}" + (f" (predicted {wanted})" if wanted else ""))
        lines.append({"prediction": check["prediction"], "holds": check["holds"], "numbers": "; ".join(numbers)})
    return lines


def counts(reports: Path) -> Sequence[Mapping] | None:
    """Images, boxes and scenes of each split, where 01_data counted them."""
    path = reports / "tables" / "data_counts.csv"
    return pd.read_csv(path).to_dict("records") if path.exists() else None
