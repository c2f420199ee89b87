"""The numbers in the README: each stands between two marks, and code writes what is between them."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eelib.files import write_atomic
from eelib.hub import read_manifest
from eelib.release import CHECKPOINTS
from studies import tables
from studies.compress import results
from studies.metrics import Values, load_entries, read_metrics
from studies.phases.analysis import final_values
from studies.phases.verdicts import headline
from studies.report.facts import int8_elsewhere, named
from studies.report.reports import routers_above, routers_by_seed


def released_table(manifest: Mapping, plane: Values) -> pd.DataFrame:
    """Each exit of each released detector: AP on ``test``, and the time of its graph as the plane measured it."""
    timed = {row["name"]: row["exits"] for row in plane["systems"] if row["seed"] == 0}
    lines = []
    for file, entry in manifest.items():
        if (name := Path(file).stem) not in timed:
            continue
        for exit_, ap in entry["test"].items():
            time, int8 = timed[name][exit_], timed.get(f"{name} int8", {}).get(exit_, {})
            line = {"detector": f"`{name}`", "exit": exit_, "AP": ap["AP"], "AP50": ap["AP50"]}
            line |= {"ms": f"{time['median_ms']:.1f}", "time / baseline": time["time_ratio"]}
            lines.append(line | {"int8 time / baseline": int8.get("time_ratio")})
    return pd.DataFrame(lines)


def plane_sentences(report: Mapping) -> list[str]:
    """What the plane says of networks with exits, at the split's own share of empty images."""
    sentences, verdicts = [], results.verdicts(report, results.prevalences(report)[0])
    for hull, members in results.MEMBERS.items():
        rows = [row for row in verdicts if row["hull"] == hull]
        above = [
            f"{named(row['system'])} lies above the hull of {members} at {row['above']} of {row['compared']} latencies"
            + (", as long as int8 is faster than float" if results.INT8 in row["system"] else "")
            for row in rows
            if row["above"]
        ]
        none = f"No network with exits, mixed by a coin, lies above the hull of {members} at any latency"
        text = " and ".join(above) or none
        sentences.append(text[0].upper() + text[1:])
    beside = [row for row in results.rows_of(report, "exits") if row.get("minus_peers")]
    nearest = max(beside, key=lambda row: sum(row["minus_peers"]))
    low, high = nearest["minus_peers"]
    sentences.append(
        f"Among single exits, {nearest['exit']} of {named(nearest['system'])} compares best with the "
        f"full-depth static detectors: at {nearest['time_ratio']:.2f} of the time, its AP differs from their hull by "
        f"{low:+.3f} to {high:+.3f} (95 % interval)"
    )
    return sentences


def study_sentences(metrics: Path) -> list[str]:
    """What the phases showed, and what routing and blank gates add, where they were measured."""
    sentences = []
    if (metrics / "phases.json").exists():
        recorded = final_values().index  # without the lost first version of 1.1
        entries = [row for phase, row in load_entries(metrics / "phases.json").items() if phase in recorded]
        sentences.append(headline(entries))
    if (metrics / "routing.json").exists():
        policies = read_metrics(metrics / "routing.json")["policies"]
        best = max(policies, key=lambda name: policies[name]["recovered"])
        share, (low, high) = policies[best]["recovered"], policies[best]["recovered_interval"]
        below = sum(row["recovered_interval"][1] < 0 for row in policies.values())
        sentences.append(
            f"The best router, {best}, recovers {share:.2f} ({low:.2f} to {high:.2f}) of what lies between a coin of "
            f"the exits and an oracle, which knows every result in advance; {below} of {len(policies)} routers recover "
            "less than the coin, interval included"
        )
    if (metrics / "blank.json").exists():
        blank, plane = (read_metrics(metrics / f"{name}.json") for name in ("blank", "plane"))
        sentences.append(routers_above(routers_by_seed(metrics, blank, plane)))
        views = blank["views"]
        ended, early = 100 * views["both gates"]["blank_ended"], 100 * views["best score, exit1"]["blank_ended"]
        sentences.append(
            f"With thresholds certified, with probability {1 - blank['delta']:g}, to lose at most "
            f"{100 * blank['epsilon']:.0f} % of the images with chairs, the two blank gates end {ended:.0f} % of the "
            f"empty images early, and a threshold on exit1's best score {early:.0f} %"
        )
    return sentences


def blocks(reports: Path | str, checkpoints: Path | str = CHECKPOINTS) -> dict[str, str]:
    """Name of a block to its text in Markdown."""
    metrics, manifest = Path(reports) / "metrics", read_manifest(checkpoints)
    plane = read_metrics(metrics / "plane.json")
    processor = plane["machine"]["processor"]
    about = f"AP[.50:.95] on {plane['images']} rendered images of `test`; time on {processor}, without blank gates."
    about += f" {int8_elsewhere(metrics)}"
    answer = "".join(f"- {text}.\n" for text in [*plane_sentences(plane), *study_sentences(metrics)])
    return {"released": f"{about}\n\n{tables.markdown(released_table(manifest, plane))}", "answer": answer}


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The README with its blocks replaced.

    Raises:
        ValueError: a block has no marks in the text.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md: no marks '<!-- {name} -->' and '<!-- /{name} -->'")
        text = pattern.sub(lambda match, part=part: f"{match[1]}\n{part}\n{match[2]}", text)
    return text


def write(readme: Path | str, reports: Path | str) -> Path:
    """Fill the blocks of a README from a folder of reports."""
    path = Path(readme)
    text = filled(path.read_text(), blocks(reports))
    return write_atomic(path, lambda file: file.write(text.encode()))
