"""The tables of a folder of reports in LaTeX: each is as wide as the text of an A4 page at the most.

A table is a ``longtable`` of columns with fixed widths, so that it breaks across pages and text wraps in its
column. Widths are found here, from what stands in the cells; ``tests/studies/test_latex.py`` compiles all tables
and compares their width with the page's. The layout needs the packages ``booktabs``, ``longtable`` and ``array``.
"""

import itertools
import re
from pathlib import Path

import pandas as pd
from scipy.optimize import brentq

from eelib.config import ConfigError
from eelib.files import write_atomic
from studies import tables

TEXT_WIDTH_CM = 16.0  # of A4 with margins of 2.5 cm, the one width that every table is made for
TEXT_WIDTH_PT = TEXT_WIDTH_CM / 2.54 * 72.27
# Letters in a class of 11 pt: their size and the gap on both sides of a column, in points; the first that fits.
SIZES = {"footnotesize": (9.0, 3.0), "scriptsize": (8.0, 2.0)}
NAMES = ("phase", "seed", "number")  # columns whose numbers are names
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"\u00a0": "~", "–": "--"}
SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
SPECIAL |= {"×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "<": r"\textless{}", ">": r"\textgreater{}"}
# Widths of Computer Modern's letters in ems, rounded up; what is not named has DEFAULT_EM.
EMS = dict.fromkeys("ijl.,;:!'|", 0.31) | dict.fromkeys("frst()-[]/", 0.43) | dict.fromkeys("mwMW%", 1.06)
EMS |= dict.fromkeys("ABCDEFGHKLNOPQRUVXYZ&+<>=×≥≤–", 0.82)
DEFAULT_EM = 0.57
PHRASE_EM = 8.5  # a cell that is shorter wraps only where the table would not fit otherwise
TOGETHER = 14  # rows that stay on one page


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cells(column: pd.Series) -> tuple[list[str], bool]:
    """Texts of a column as they are printed, and whether they are numbers."""
    values = [_number(text) for text in column]
    numeric = column.name not in NAMES and all(v is not None for v, text in zip(values, column, strict=True) if text)
    if numeric and all(v is None or v == int(v) for v in values):
        return ["–" if v is None else f"{int(v)}" for v in values], True
    words = {"": "–", "True": "yes", "False": "no"}
    return [
        tables.rounded(v) if v is not None and (numeric or re.search(r"\.\d{4}|e", text))
        else words.get(text, text).replace(" / ", "\u00a0/\u00a0")
        for v, text in zip(values, column, strict=True)
    ], numeric  # fmt: skip


def escaped(text: str) -> str:
    """Text in LaTeX's letters."""
    return text.translate(str.maketrans(SPECIAL))


def _aligned(texts: list[str]) -> list[str]:
    """Numbers that stand on one decimal point when they are set to the right."""
    most, lines = _decimals(texts), []
    for text in texts:
        line, missing = re.sub("^-", "$-$", escaped(text)), most - _decimals([text])
        if missing and "e" not in text and text != "–":
            line += rf"\phantom{{{'.' * (missing == most)}{'0' * missing}}}"
        lines.append(line)
    return lines


def _decimals(texts: list[str]) -> int:
    return max((len(text.partition(".")[2]) for text in texts if "e" not in text), default=0)


def _em(text: str) -> float:
    return sum(EMS.get(letter, DEFAULT_EM) for letter in text)


def _longest_word(text: str) -> float:
    return max(map(_em, text.split(" ")), default=0.0)


def _widths(headers: list[str], columns: list[list[str]], numeric: list[bool]) -> tuple[str, list[float]]:
    """The largest size of letters at which the columns fit, and the width of each in points.

    Narrow columns get what they need; wide ones share the rest so that their cells have equally many lines.

    Raises:
        ValueError: the longest words of the columns need more than the text's width.
    """
    words, phrases, most = [], [], []
    for head, cells, is_number in zip(headers, columns, numeric, strict=True):
        whole, longest = max(map(_em, cells), default=0.0), max(map(_longest_word, cells), default=0.0)
        if is_number:  # each as wide as with all decimals; a minus is wider than a hyphen
            point = (decimals := _decimals(cells)) and EMS["."] + DEFAULT_EM * decimals
            longest = max(_em(text if "e" in text else text.partition(".")[0]) + 0.4 * ("-" in text) for text in cells)
            whole = longest = longest + point
        words.append(max(_longest_word(head), longest))
        phrases.append(max(words[-1], min(whole, PHRASE_EM)))
        most.append(max(words[-1], whole, min(_em(head), 7.0)))
    for least, (size, (points, gap)) in itertools.product((phrases, words), SIZES.items()):
        room = (TEXT_WIDTH_PT - 2 * gap * (len(headers) - 1) - 1) / points
        if sum(most) <= room:
            return size, [width * points for width in most]
        if sum(least) <= room:
            # the share of what wide columns want at which all together fill the room
            share = brentq(
                lambda part, least=least, room=room: sum(map(max, least, (part * m for m in most))) - room, 0, 1
            )
            return size, [max(a, share * b) * points for a, b in zip(least, most, strict=True)]
    raise ValueError(f"{len(headers)} columns need {sum(words) * points / TEXT_WIDTH_PT:.2f} times the text's width")


def table(frame: pd.DataFrame, name: str, caption: str) -> str:
    """A ``longtable``.

    Args:
        frame: texts as they stand in a CSV file.
        name: label, after ``tab:``.
        caption: in LaTeX's own letters.

    Raises:
        ValueError: the table is too wide for a page, whatever is wrapped.
    """
    columns, numeric = zip(*(_cells(frame[column]) for column in frame), strict=True)
    headers = [str(column) for column in frame]
    try:
        size, widths = _widths(headers, list(columns), list(numeric))
    except ValueError:
        names = numeric.index(True) if True in numeric else 1  # the columns in front say what a row is
        if len(headers) < names + 2:
            raise
        half = (names + len(headers) + 1) // 2
        first, rest = frame.iloc[:, :half], frame.iloc[:, [*range(names), *range(half, len(headers))]]
        again = table(rest, f"{name}:more", f"{caption} Further columns.")
        return table(first, name, caption) + "\\addtocounter{table}{-1}\n" + again
    points, gap = SIZES[size]
    wraps = any(max(map(_em, cells), default=0) * points > width for cells, width in zip(columns, widths, strict=True))
    columns = [_aligned(c) if n else [escaped(t) for t in c] for c, n in zip(columns, numeric, strict=True)]
    sides = ("left" if n else "right" for n in numeric)
    spec = " ".join(rf">{{\ragged{s}\arraybackslash}}p{{{w:.1f}pt}}" for s, w in zip(sides, widths, strict=True))
    head = " & ".join(escaped(text) for text in headers) + r" \\"
    # where cells wrap, space tells the rows apart
    end = r" \\" + "*" * (len(frame) <= TOGETHER) + r" \addlinespace[2pt]" * wraps
    rows = "\n".join(" & ".join(row) + end for row in zip(*columns, strict=True))
    return (
        f"{{\\{size}\\setlength{{\\tabcolsep}}{{{gap:g}pt}}\\setlength{{\\LTcapwidth}}{{\\textwidth}}\n"
        f"\\begin{{longtable}}{{@{{}}{spec}@{{}}}}\n\\caption{{{caption}}}\\label{{tab:{name}}}\\\\\n"
        f"\\toprule\n{head}\n\\midrule\n\\endfirsthead\n\\toprule\n{head}\n\\midrule\n\\endhead\n"
        f"\\bottomrule\n\\endfoot\n{rows}\n\\end{{longtable}}}}\n"
    )  # fmt: skip


def read(path: Path) -> pd.DataFrame:
    """A CSV file as texts."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def write_tables(reports: Path | str, captions: dict[str, str]) -> list[Path]:
    """Lay out every table of a folder of reports: ``tables/<name>.tex`` from ``tables/<name>.csv``.

    Args:
        captions: by name; a table without one gets its name.

    Raises:
        ConfigError: a table is too wide for a page.
    """
    written = []
    for path in sorted((Path(reports) / "tables").glob("*.csv")):
        caption = captions.get(path.stem, escaped(path.stem.replace("_", " ")))
        try:
            text = table(read(path), path.stem, caption)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; leave columns out or shorten their words") from None
        written.append(write_atomic(path.with_suffix(".tex"), lambda file, t=text: file.write(t.encode())))
    return written
