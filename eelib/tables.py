"""Tables of results: CSV files at full precision, Markdown with one rounding rule."""

from pathlib import Path

import pandas as pd

from eelib.files import write_atomic


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
    """Write ``tables/<name>.csv`` in a folder of reports, at full precision."""
    path = Path(reports) / "tables" / f"{name}.csv"
    write_atomic(path, lambda file: file.write(frame.to_csv(index=False).encode()))
