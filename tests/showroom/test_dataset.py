"""Scenes to files, without the renderer."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from showroom import ROOT, ShowroomError, dataset, render, roles
from showroom.__main__ import main


@pytest.fixture
def without_mitsuba(monkeypatch, entries):
    """A renderer that writes parts without rendering; scene 1 fails. Returns the scenes that were made."""
    made = []

    def fake(out, furniture, settings, scene_id):
        made.append(scene_id)
        if scene_id == 1:
            raise RuntimeError("no light")
        image = {"file_name": f"{scene_id}.jpg", "width": 320, "height": 320, "scene": scene_id, "view": 0}
        annotation = {"bbox": [0, 0, 9, 9], "iscrowd": 0}
        part = {"settings": vars(settings), "views": [{"image": image, "annotations": [annotation] * scene_id}]}
        path = dataset.part_path(out, settings.split, scene_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(part))
        return "hero"

    monkeypatch.setattr(render, "start", lambda: None)
    monkeypatch.setattr(dataset, "read_catalogue", lambda folder: entries)
    monkeypatch.setattr(dataset, "render_scene", fake)
    return made


def test_a_failing_scene_is_skipped_and_the_next_start_goes_on(without_mitsuba, archives, capsys):
    out = archives / "out"
    argv = ["render", "--split", "val", "--scenes", "3", "--seed", "4", "--out", str(out)]
    argv += ["--workers", "1", "--furniture", str(archives)]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert "2/3 scene 1: FAILED RuntimeError: no light" in printed.out and "1 scenes failed: [1]" in printed.err
    content = json.loads((out / "val.json").read_text())
    assert [(image["id"], image["scene"]) for image in content["images"]] == [(1, 0), (2, 2)]
    assert [(a["id"], a["image_id"]) for a in content["annotations"]] == [(1, 2), (2, 2)]
    assert (out / "ATTRIBUTION.csv").read_text().count("\n") == len(roles.all_models()) + 1
    assert without_mitsuba == [0, 1, 2]
    assert main(argv) == 1
    assert without_mitsuba == [0, 1, 2, 1]
    assert main([*argv, "--samples", "16"]) == 2  # other settings would mix two data sets in a folder
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mitsuba", "embreex", "cv2"])
def test_a_missing_extra_says_what_to_install(monkeypatch, name):
    for module in ("mitsuba", "embreex", "cv2", "pyoidn"):  # there or not, only one is missing now
        monkeypatch.setitem(sys.modules, module, None if module == name else object())
    with pytest.raises(ShowroomError, match=rf"{name} is not installed; run `pip install -r requirements-render.lock`"):
        render.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--split", "dev"],
            "argument --split: invalid choice: 'dev' (choose from 'train', 'val', 'calibrate', 'test')",
        ),
        (["--scenes", "0"], "argument --scenes: 0; expected a whole number from 1"),
        (["--quality", "high"], "argument --quality: high; expected a whole number from 1 to 100"),
        (["--scene"], "see `python -m showroom render --help`"),
        (["--furniture", "nowhere"], "no furniture archive"),
    ],
)
def test_bad_options_are_one_line_and_status_two(options, message, tmp_path, capsys):
    assert main(["render", "--split", "val", "--scenes", "1", "--out", str(tmp_path), *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("showroom: ") and printed.count("\n") == 1


FAKE_RENDERS = """
import os, time
from showroom.dataset import outcomes

def attempt(scene_id):
    os.write(1, f"{scene_id}\\n".encode())  # at once, so that the lines of two workers never mix
    time.sleep(600)

if __name__ == "__main__":
    list(outcomes(attempt, [0, 1], 2, start=int))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_workers_die_with_their_parent(name, tmp_path):
    script = tmp_path / "render.py"
    script.write_text(FAKE_RENDERS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, start_new_session=True)
    try:
        assert sorted(parent.stdout.readline() for _ in range(2)) == [b"0\n", b"1\n"]
        parent.send_signal(getattr(signal, name))
        # the pipe ends when the last process that can write to it has ended
        assert parent.communicate(timeout=60) == (b"", None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_worker_that_dies_fails_its_scenes_alone():
    results = list(dataset.outcomes(_die, [0, 1], 2, start=int))
    assert sorted(scene_id for scene_id, _, _ in results) == [0, 1]
    assert all("BrokenProcessPool" in error for _, _, error in results)


def _die(scene_id: int):
    os._exit(1)
