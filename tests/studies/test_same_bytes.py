"""The same metrics give the same files, byte for byte, whatever order a process keeps its sets in."""

import hashlib
import os
import subprocess
import sys

import pytest

from eelib.config import ROOT

pytestmark = pytest.mark.slow  # `make slow`

DRAW = """
import json, sys
from pathlib import Path
import matplotlib
matplotlib.use("agg")
from studies import plots, tables
from studies.compress import results
from studies.report import latex

out, report = Path(sys.argv[1]), json.loads(Path("reports/metrics/plane.json").read_text())
plots.style()
plots.save(results.plane_figure(report), "plane", out)
tables.write(results.exits_table(report), "exits", out)
tables.write(results.judged_table(report), "judged", out)
latex.write_tables(out, {})
"""


def test_two_processes_write_the_same_bytes(tmp_path):
    drawn = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", DRAW, str(out)], cwd=ROOT, env=environment, check=True)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        drawn.append({str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    kinds = {name.rsplit(".", 1)[1] for name in drawn[0]}
    assert drawn[0] == drawn[1] and kinds == {"pdf", "png", "csv", "tex"}
    assert all(b"CreationDate" not in path.read_bytes() for path in tmp_path.rglob("*.pdf"))
