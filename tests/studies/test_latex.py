"""Tables in LaTeX: every committed one fits the text of a page, and says what its CSV file says."""

import re
import shutil

import pandas as pd
import pytest

from eelib.config import ROOT, ConfigError
from studies.report import latex, thesis

TABLES = ROOT / "reports" / "tables"
FRAME = pd.DataFrame(
    {"phase": ["1.1", "1.2"], "what": ["50 % of a_b", ""], "value": ["0.25", "-12.5"], "met": ["True", "False"]}
)


def document(folder, names):
    """A page that shows tables, and what LaTeX says of it."""
    packages = f"\\usepackage[textwidth={latex.TEXT_WIDTH_CM}cm]{{geometry}}\\usepackage{{array,booktabs,longtable}}"
    inputs = "\n".join(f"\\input{{{folder}/{name}.tex}}" for name in names)
    path = folder / "all.tex"
    head = f"\\documentclass[11pt,a4paper]{{article}}{packages}\\begin{{document}}\\typeout{{WIDTH=\\the\\textwidth}}"
    path.write_text(f"{head}\n{inputs}\n\\end{{document}}\n")
    log = thesis.compile_latex(path, runs=2)
    return log, path.with_suffix(".aux").read_text()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="LaTeX is not installed")
def test_every_committed_table_is_as_wide_as_the_text_at_the_most(tmp_path):
    names = sorted(path.stem for path in TABLES.glob("*.csv"))
    for name in names:
        (tmp_path / f"{name}.tex").write_text(latex.table(latex.read(TABLES / f"{name}.csv"), name, "Caption."))
    log, aux = document(tmp_path, names)
    width = float(re.search(r"WIDTH=([\d.]+)pt", log)[1])
    assert width == pytest.approx(latex.TEXT_WIDTH_PT, abs=0.1)
    tables = [[float(w) for w in re.findall(r"\\LT@entry\s*{\d+}{([\d.]+)pt}", table)] for table in aux.split("\\gdef")]
    widths = [sum(columns) for columns in tables if columns]
    assert len(widths) >= len(names) and max(widths) <= width
    assert "Overfull \\hbox" not in log  # no word sticks out of its column


def test_committed_layouts_are_what_the_csv_files_give():
    captions = thesis.captions("tables")
    for path in sorted(TABLES.glob("*.csv")):
        text = latex.table(latex.read(path), path.stem, captions.get(path.stem, path.stem))
        assert path.with_suffix(".tex").read_text() == text, f"{path.stem}: run `eelib study report --reports reports`"


def test_every_committed_figure_and_table_has_a_caption():
    assert thesis.without_caption(ROOT / "reports") == []


def test_numbers_stand_on_their_decimal_point_and_names_of_phases_stay():
    text = latex.table(FRAME, "some", "A caption.")
    rows = [line for line in text.splitlines() if line.startswith("1.")]
    assert rows == [
        r"1.1 & 50 \% of a\_b & 0.250 & yes \\*",
        r"1.2 & -- & $-$12.5\phantom{00} & no \\*",
    ]
    assert r"\caption{A caption.}\label{tab:some}" in text


def test_a_wide_table_is_split_and_its_first_columns_stand_in_both_parts():
    frame = pd.DataFrame([{"name": "one"} | {f"quantity{k:02d}": "0.5" for k in range(24)}])
    text = latex.table(frame, "wide", "A caption.")
    assert text.count("\\begin{longtable}") >= 2 and text.count("\none &") == text.count("\\begin{longtable}")


def test_a_table_that_no_page_holds_names_its_file(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "bad.csv").write_text("word\n" + "w" * 300 + "\n")
    with pytest.raises(ConfigError, match="bad.csv: 1 columns need .* times the text's width"):
        latex.write_tables(tmp_path, {})


def test_the_document_names_what_is_there_and_what_has_no_caption(tmp_path):
    for path in ("tables/causal.csv", "tables/new_one.csv", "figures/causal.pdf"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("a\n1\n")
    text = thesis.source(tmp_path)
    assert "/figures/causal.pdf}" in text and "/tables/causal.tex}" in text and "/tables/new_one.tex}" in text
    assert "figures/ablation.pdf" not in text and thesis.without_caption(tmp_path) == ["tables/new_one.csv"]
