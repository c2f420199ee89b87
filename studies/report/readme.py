"""The numbers in the README: each stands between two marks, and code writes what is between them."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eelib import tables
from eelib.files import write_atomic
from eelib.release import CHECKPOINTS, read_manifest
from studies.compress import results
from studies.report.metrics_files import Values, read_metrics
from studies.report.reports import planes_of


def released_table(manifest: Mapping, plane: Values) -> pd.DataFrame:
    """Each exit of each released detector: AP on ``test``, and the time of its graph as the plane measured it.

    The plane times systems of the same graphs; what it says of AP is about other, equally trained weights.
    """
    timed = {row["name"]: row["exits"] for row in plane["systems"] if row["seed"] == 0}
    lines = []
    for file, entry in manifest.items():
        if (name := Path(file).stem) not in timed:
            continue
        for exit_, ap in entry["test"].items():
            time, int8 = timed[name][exit_], timed.get(f"{name} int8", {}).get(exit_, {})
            line = {"detector": f"`{name}`", "exit": exit_, "AP": ap["AP"], "AP50": ap["AP50"]}
            line |= {
                "ms": round(time["median_ms"], 1),
                "time": time["time_ratio"],
                "time in int8": int8.get("time_ratio"),
            }
            lines.append(line)
    return pd.DataFrame(lines)


def blocks(reports: Path | str, checkpoints: Path | str = CHECKPOINTS) -> dict[str, str]:
    """Name of a block to its text in Markdown."""
    metrics, manifest = Path(reports) / "metrics", read_manifest(checkpoints)
    plane = read_metrics(metrics / "plane_released.json")
    processor = plane["machine"]["processor"]
    about = f"AP[.50:.95] on {plane['images']} rendered images of `test`; time on {processor}."
    answer = ""
    for title, report in planes_of(metrics, plane["checkpoint_sha256"]).items():
        verdicts = results.verdicts(report, results.prevalences(report)[0])
        answer += f"In the plane of {title}:\n\n" + "".join(f"- {row['text']}.\n" for row in verdicts) + "\n"
    return {
        "released": f"{about}\n\n{tables.markdown(released_table(manifest, plane))}",
        "answer": answer.strip() + "\n",
    }


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
