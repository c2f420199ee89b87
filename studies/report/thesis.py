"""One PDF of all figures and tables with their captions: ``make thesis``."""

import re
import shutil
import subprocess
from pathlib import Path

from eelib.config import ConfigError, read_yaml
from eelib.files import InputError, write_atomic
from studies.report import latex
from studies.report.reports import environment

CAPTIONS = Path(__file__).parent / "captions.yaml"
KINDS = {"figures": ("figures", "*.pdf"), "tables": ("tables", "*.csv")}  # of a chapter: folder and files in reports/


def chapters() -> dict[str, dict[str, dict[str, str]]]:
    """Title of a chapter to its ``figures`` and ``tables``, each name to its caption, in order."""
    return read_yaml(CAPTIONS)


def captions(kind: str) -> dict[str, str]:
    """Captions of all ``figures`` or ``tables`` by name, in LaTeX's letters."""
    return {name: latex.escaped(text) for part in chapters().values() for name, text in part[kind].items()}


def without_caption(reports: Path) -> list[str]:
    """Files of figures and tables of a folder of reports that have none."""
    return [
        str(path.relative_to(reports))
        for kind, (folder, pattern) in KINDS.items()
        for path in sorted((reports / folder).glob(pattern))
        if path.stem not in captions(kind)
    ]


def source(reports: Path) -> str:
    """The document: each chapter has the figures and tables that are there, then those that no chapter names."""
    parts = {**chapters(), "Others": {kind: {} for kind in KINDS}}
    for kind, (folder, pattern) in KINDS.items():
        there, told = {path.stem for path in (reports / folder).glob(pattern)}, captions(kind)
        for part in parts.values():
            part[kind] = {name: told[name] for name in part[kind] if name in there}
        parts["Others"][kind] = {name: latex.escaped(name) for name in sorted(there - told.keys())}
    document = {"parts": parts, "width": latex.TEXT_WIDTH_CM, "reports": reports.resolve()}
    return environment().get_template("thesis.tex.j2").render(document)


def build(reports: Path | str, out: Path | str) -> Path:
    """Lay out the tables of a folder of reports, write ``thesis.tex`` to the folder ``out``, and compile it to a PDF.

    Raises:
        InputError: pdflatex is not installed.
        ConfigError: LaTeX stopped; the message holds its first complaint.
    """
    if not shutil.which("pdflatex"):
        raise InputError("pdflatex is not installed: apt-get install texlive-latex-extra texlive-fonts-recommended")
    reports, folder = Path(reports), Path(out)
    latex.write_tables(reports, captions("tables"))
    text = source(reports)
    path = write_atomic(folder / "thesis.tex", lambda file: file.write(text.encode()))
    compile_latex(path, runs=3)  # longtable and the lists need three
    return path.with_suffix(".pdf")


def compile_latex(path: Path, runs: int) -> str:
    """Run pdflatex in the document's folder; its last log.

    Raises:
        ConfigError: LaTeX stopped.
    """
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", path.name]
    for _ in range(runs):
        done = subprocess.run(command, cwd=path.parent, capture_output=True, check=False)
        log = path.with_suffix(".log").read_text(errors="replace")
        if done.returncode:
            complaint = re.search(r"^! (.*)", log, re.MULTILINE)
            raise ConfigError(f"{path}: pdflatex stopped: {complaint[1] if complaint else 'see its log'}")
    return log
