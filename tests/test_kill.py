"""Commands killed at a few of their writes (`make kill`: at all), and that the campaign sees what goes wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kill.campaign import Command, kill_everywhere
from kill.points import Point, Watch, points, run_forked

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_a_few_kills_of_each_command_lose_nothing():
    names = ["train", "detect --out .json"]  # of the others, `make kill`
    command = [sys.executable, "-m", "kill", "--few", "1", *names]
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        assert re.search(rf"^{re.escape(name)} +[1-9]\d* +0 +0 +0$", done.stdout, re.MULTILINE), done.stdout


def _prepare(folder: Path) -> None:
    (folder / "input.json").write_text('{"mine": 1}')
    (folder / "out.json").write_text("[1]")


TEXT = f"[{', '.join(map(str, range(100)))}]\n"


def _well(folder: Path) -> None:
    (folder / ".out.json.partial").write_text(TEXT)
    (folder / ".out.json.partial").replace(folder / "out.json")


def _in_place(folder: Path) -> None:
    (folder / "out.json").write_text(TEXT)


def _removes_first(folder: Path) -> None:
    (folder / "out.json").unlink()
    _well(folder)


def _spoils_its_input(folder: Path) -> None:
    (folder / "input.json").write_text('{"mine": 2}')
    _well(folder)


def _leaves_strangers(folder: Path) -> None:
    (folder / f"{os.getpid()}.tmp").write_text(TEXT)
    (folder / f"{os.getpid()}.tmp").replace(folder / "out.json")


def _never_sweeps(folder: Path) -> None:
    (folder / f".{os.getpid()}.partial").write_text(TEXT)
    (folder / f".{os.getpid()}.partial").replace(folder / "out.json")


def _is_locked_for_ever(folder: Path) -> int:
    (folder / "lock.partial").touch(exist_ok=False)
    _well(folder)
    (folder / "lock.partial").unlink()
    return 0


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (_well, None), (_in_place, "half"), (_removes_first, "lost"), (_spoils_its_input, "lost"),
        (_leaves_strangers, "half"), (_never_sweeps, "unfinished"), (_is_locked_for_ever, "unfinished"),
    ],
)  # fmt: skip
def test_the_campaign_sees_what_goes_wrong(run, fault, tmp_path):
    tally = kill_everywhere(Command("demo", _prepare, run, results=["out.json"]), tmp_path)
    assert tally.tried >= 2
    if fault is None:
        assert not tally.faults
    else:
        assert getattr(tally, fault)


def test_points_are_before_every_change_and_within_what_is_opened(tmp_path):
    ended = run_forked(lambda: _well(tmp_path), tmp_path)
    assert ended.status == 0 and ended.opens == [True, False]
    assert points(ended.opens) == [Point(1), Point(1, True), Point(2)]
    killed = run_forked(lambda: _well(tmp_path), tmp_path, Point(1, True))
    assert killed.status == -25 and (tmp_path / ".out.json.partial").read_text() == TEXT[:50]
    assert run_forked(lambda: _well(tmp_path), tmp_path, Point(2)).status == -9


def test_only_changes_below_the_folder_count(tmp_path):
    (tmp_path / "in").mkdir()
    watch = Watch(tmp_path / "in")
    for path in (tmp_path / "out.txt", tmp_path / "in" / "a.txt"):
        watch("open", (str(path), "w", os.O_WRONLY | os.O_CREAT))
    watch("open", (str(tmp_path / "in" / "a.txt"), "r", os.O_RDONLY))
    assert watch.opens == [True]
