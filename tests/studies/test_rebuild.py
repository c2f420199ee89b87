"""What the Snakefile asks of Python, and what it makes of it."""

import fcntl
import os
import re
import subprocess
import sys

import pytest

from eelib.config import ROOT
from studies import batch, rebuild


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout as the working folder."""
    for folder in ("eelib/deploy", "studies/one", "studies/two", "params/base"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in {
        "eelib/a.py": "from studies.two import far",  # a command of the library: not followed
        "eelib/deploy/b.py": "",
        "studies/one/__init__.py": "",
        "studies/one/main.py": "import json\nfrom studies.one.other import thing\nfrom studies import shared",
        "studies/one/other.py": "def late():\n    from studies.one import main",
        "studies/shared.py": "",
        "studies/two/far.py": "",
        "n.ipynb": '{"cells": [{"cell_type": "markdown", "source": ["from studies import no"]}, '
        '{"cell_type": "code", "source": ["import numpy\\n", "from studies.one import main as m"]}]}',
        "params/top.yaml": "extends: base/near.yaml\na: 1",
        "params/base/near.yaml": "extends: ../far.yaml",
        "params/far.yaml": "b: 1",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_is_the_library_and_what_is_imported_beside_it(checkout):
    library = ["eelib/a.py", "eelib/deploy/b.py"]
    one = [f"studies/one/{name}.py" for name in ("__init__", "main", "other")]
    assert rebuild.code("n.ipynb") == [*library, *one, "studies/shared.py"]
    assert rebuild.code("studies/two/far.py") == [*library, "studies/two/far.py"] and rebuild.code() == library


def test_a_parameter_file_comes_with_its_bases(checkout):
    assert rebuild.parameters("params/top.yaml") == ["params/top.yaml", "params/base/near.yaml", "params/far.yaml"]


def test_committed_results_are_copied_where_there_is_none_as_new(checkout):
    source, copy = (
        checkout / "reports" / "metrics" / "long.json",
        checkout / "runs" / "reports" / "metrics" / "long.json",
    )
    source.parent.mkdir(parents=True)
    source.write_text("committed")
    assert rebuild.committed(["metrics/long.json", "metrics/none.json"]) == ["runs/reports/metrics/long.json"]
    copy.write_text("ours")
    rebuild.committed(["metrics/*.json"])
    assert copy.read_text() == "ours"
    os.utime(source, (copy.stat().st_mtime + 9,) * 2)
    rebuild.committed(["metrics/*.json"])
    assert copy.read_text() == "committed"


def test_caches_older_than_the_code_are_deleted(checkout):
    for index, name in enumerate(("old.pt", "eelib/a.py", "new.pt")):
        (checkout / name).write_text("")
        os.utime(checkout / name, (index, index))
    os.utime(checkout / "eelib/deploy/b.py", (0, 0))
    subprocess.run(["bash", "-euc", rebuild.forget(["*.pt", "none/*.json"], rebuild.code())], check=True)
    assert sorted(path.name for path in checkout.glob("*.pt")) == ["new.pt"]


def test_the_lock_of_a_dead_process_is_removed_and_that_of_a_living_one_stays(checkout):
    (checkout / "locks").mkdir()
    script = "from studies.rebuild import alone; file = alone('alive', 'none'); print(1, flush=True); input()"
    living = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    living.stdout.readline()
    rebuild.alone("alive", "locks").close()
    assert (checkout / "locks").exists()
    living.kill()
    living.wait()
    file = rebuild.alone("alive", "locks")
    assert not (checkout / "locks").exists()
    with open("alive") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the caller counts as living from now on
    file.close()


def test_executed_notebooks_are_written_whole_or_not_at_all(tmp_path):
    """What a kill left beside one is taken over by the next write, as with every file of the library."""
    (tmp_path / ".a.ipynb.partial").write_text("{ half")
    batch.papermill_io.write("{}", str(tmp_path / "a.ipynb"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.ipynb", "{}")]


def test_no_output_of_a_rule_is_tracked():
    command = [sys.executable, "-m", "snakemake", "--summary", "--cores", "2", "all", "ablation"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    outputs = [line.split("\t")[0] for line in done.stdout.splitlines()[1:]]
    assert len(outputs) > 20 and all(path.startswith("runs/") for path in outputs)


@pytest.mark.parametrize(("target", "check", "unpack"), [
    ("pretrained", "sha512sum --check --strict", "tar xzf"), ("furniture", "sha256sum --check --strict", "dpkg-deb -x"),
])  # fmt: skip
def test_a_download_is_checked_against_the_repository_before_it_is_unpacked(target, check, unpack, tmp_path):
    command = ["make", "--dry-run", "--always-make", target, "PYTHON=true", f"VENV={tmp_path}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    first = {word: next(k for k, line in enumerate(lines) if word in line) for word in (check, unpack)}
    assert first[check] < first[unpack]
    listed = ROOT / lines[first[check]].split()[-1]
    assert listed.is_relative_to(ROOT) and re.match(r"[0-9a-f]{64,128}  \S+", listed.read_text())
