"""Tables with one rounding rule: CSV, LaTeX (booktabs), and Markdown for those that a page links to."""

from pathlib import Path

import pandas as pd

from eelib.files import write_atomic

# What README.md and the reports link to; tests/test_links.py holds the two together.
LINKED = (
    *("acceleration_goals", "alternatives", "alternatives_seeds", "baseline_stages", "baseline_starts", "exits"),
    *("exits_seeds", "phases_quick_reference", "policies", "policies_predictability", "record_architecture"),
    *("record_claims", "trainings", "validation"),
)


def rounded(value: object) -> str:
    """Three decimals below 10 in size, one above, two digits below 0.001; text as it is; a dash for nothing."""
    if value is None or value == "" or value != value:
        return "–"
    if isinstance(value, float):
        if 0 < abs(value) < 1e-3:  # a spread of 2e-4 is not zero
            return f"{value:.1e}"
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, rounded, with a trailing newline."""
    header = "| " + " | ".join(map(str, frame.columns)) + " |"
    rule = "|" + " --- |" * len(frame.columns)
    lines = [header, rule, *("| " + " | ".join(row) + " |" for row in frame.map(rounded).itertuples(index=False))]
    return "\n".join(lines) + "\n"


def write(frame: pd.DataFrame, name: str, reports: Path | str) -> None:
    """Write ``tables/<name>.csv`` (full precision), ``.tex`` and, of what is linked to, ``.md`` (rounded)."""
    folder = Path(reports) / "tables"
    text = frame.map(rounded)
    tex = text.replace("–", "--").style.hide(axis=0).format(escape="latex").format_index(escape="latex", axis=1)
    contents = {"csv": frame.to_csv(index=False), "tex": tex.to_latex(hrules=True)}
    if name in LINKED:
        contents["md"] = markdown(frame)
    for suffix, content in contents.items():
        write_atomic(folder / f"{name}.{suffix}", lambda file, c=content: file.write(c.encode()))


def scorecard(summary: dict) -> pd.DataFrame:
    """One run: recorded value beside ours, a line a quantity.

    Args:
        summary: of :func:`studies.phases.scorecard.summarise`.
    """
    old, lines = summary["recorded"], []
    pairs = {"exit_shares": "exit_shares", "confidence": "confidence_mean", "confidence_std": "confidence_std"}
    pairs |= {"temperature": "temperature", "thresholds": "thresholds", "loss": "loss"}
    for key, ours in pairs.items():
        for name, value in summary[ours].items():
            recorded = old.get(key, {}).get("total" if name == "loss" else name)
            lines.append({"quantity": f"{key} {name}", "recorded": recorded, "ours": value})
    for kind in ("soft", "hard"):
        for name, value in old.get(f"{kind}_rates", {}).items():
            ours = summary["train_rates"].get(f"{kind}_{name}")
            lines.append({"quantity": f"{kind} rate {name}", "recorded": value, "ours": ours})
    lines.append({"quantity": "ms a call of four", "recorded": old.get("ms_per_batch_of_four"),
                  "ours": summary["time"]["four_images_ms"]})  # fmt: skip
    lines.append({"quantity": "ms an image", "recorded": old.get("ms_per_image"),
                  "ours": summary["time"]["one_image_ms"]})  # fmt: skip
    lines.append({"quantity": "AP", "recorded": None, "ours": summary["AP"]})
    return pd.DataFrame(lines).astype({"recorded": object, "ours": object})


def scorecard_overview(phases: list[dict]) -> pd.DataFrame:
    """All phases, a line each: shares, confidence, spread, AP, and how many seeds agree and hold.

    Args:
        phases: entries of ``phases.json``.
    """
    lines = []
    for entry in phases:
        old, run = entry["recorded"], entry["runs"][0]
        shares = [" / ".join(f"{100 * s:.0f}" for s in card["exit_shares"].values()) for card in (old, run)]
        lines.append(
            {
                "phase": entry["phase"],
                "recorded exits %": shares[0],
                "ours %": shares[1],
                "recorded c1": old["confidence"]["exit1"],
                "c1": run["confidence_mean"]["exit1"],
                "std c1": run["confidence_std"]["exit1"],
                "threshold": run["thresholds"]["exit1"],
                "AP": run["AP"],
                "agrees": f"{entry['agree']} of {entry['seeds']}",
                "holds": f"{entry['mechanism_holds']} of {entry['seeds']}",
            }
        )
    return pd.DataFrame(lines)


def causal(rows: list[dict]) -> pd.DataFrame:
    """The ladder of repairs, a line a variant and seed."""
    lines = []
    for row in rows:
        line = {"variant": row["variant"], "seed": row["seed"]}
        line |= {f"{name} %": 100 * share for name, share in row["exit_shares"].items()}
        line |= {"c1": row["confidence_mean"]["exit1"], "std c1": row["confidence_std"]["exit1"]}
        line |= {f"AP {name}": value for name, value in row["AP_exits"].items()}
        lines.append(line)
    return pd.DataFrame(lines)


def ablation(rows: list[dict]) -> pd.DataFrame:
    """One defect at a time, a line a variant: what it does to AP and routing, with intervals.

    Args:
        rows: of :func:`studies.phases.ablation.summarise`.
    """
    lines = []
    for row in rows:
        (low, high), (less, more) = row["AP_full_interval"], row["AP_full_minus_working_interval"]
        lines.append(
            {
                "one defect": row["variant"],
                "seeds": len(row["seeds"]),
                "AP full": row["AP_full"],
                "low": low,
                "high": high,
                "minus working": row["AP_full_minus_working"],
                "from": less,
                "to": more,
                "AP routed": row["AP"],
                "largest share": row["largest_share"],
                "std c1": row["spread"],
                "destroys detection": "yes" if row["destroys_detection"] else "",
                "all or nothing": "yes" if row["all_or_nothing"] else "",
            }
        )
    return pd.DataFrame(lines)


def seeds(rows: list[dict]) -> pd.DataFrame:
    """One training with several seeds: AP and shares of each exit a seed, their mean and sample standard deviation.

    Args:
        rows: of :func:`studies.breakdown.compare_detectors`.
    """
    columns: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["training"] != "baseline":
            columns.setdefault(row["exit"], {})[row["training"]] = row["AP"]
            of = "baseline" if row["exit"] == "full" else "full"
            columns.setdefault(f"{row['exit']} / {of}", {})[row["training"]] = row[f"share_of_{of}"]
    table = pd.DataFrame(columns, dtype=float)
    spread = table.agg(["mean", "std"]).rename(index={"std": "standard deviation"})
    return pd.concat([table, spread]).rename_axis("seed").reset_index()


def trainings(rows: list[dict]) -> pd.DataFrame:
    """Detectors side by side, a line an exit: AP with interval, shares, difference to the first.

    Args:
        rows: of :func:`studies.breakdown.compare_detectors`.
    """
    lines = []
    for row in rows:
        low, high = row["AP_interval"]
        at_least, at_most = row["share_of_baseline_interval"] or (None, None)
        less, more = row.get("minus_first_interval") or (None, None)
        lines.append(
            {
                "training": row["training"],
                "exit": row["exit"],
                "AP": row["AP"],
                "low": low,
                "high": high,
                "AP50": row["AP50"],
                "/ own full": row["share_of_full"],
                "/ baseline": row["share_of_baseline"],
                "at least": at_least,
                "at most": at_most,
                "minus first": row.get("minus_first"),
                "from": less,
                "to": more,
            }
        )
    return pd.DataFrame(lines).astype({key: object for key in ("minus first", "from", "to")})
