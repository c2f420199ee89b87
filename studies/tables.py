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


def _cell(text: object) -> str:
    """Text that stays in its cell of a Markdown table, and is no HTML."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _no_formula(value: object) -> object:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, rounded, with a trailing newline."""
    header, *rows = ("| " + " | ".join(map(_cell, row)) + " |" for row in (frame.columns, *frame.map(rounded).values))
    return "\n".join([header, "|" + " --- |" * len(frame.columns), *rows]) + "\n"


def write(frame: pd.DataFrame, name: str, reports: Path | str) -> None:
    """Write ``tables/<name>.csv`` in a folder of reports, at full precision."""
    content = frame.map(_no_formula).rename(columns=_no_formula).to_csv(index=False)
    write_atomic(Path(reports) / "tables" / f"{name}.csv", lambda file: file.write(content.encode()))
