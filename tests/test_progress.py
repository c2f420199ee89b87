"""What shows a training while it runs: a picture beside the CSV, and TensorBoard where it is asked for."""

import sys

import pytest
from PIL import Image
from test_fit import run

from eelib.files import InputError
from eelib.progress import draw_history, tensorboard

HISTORY = [{"epoch": k, "loss": 3 / k, "exit1_classification": 2 / k, "seconds": 1.0} for k in (1, 2, 3)]
MEASURED = [*HISTORY[:2], HISTORY[2] | {"exit1_AP": 0.1, "full_AP": 0.2}]


def test_the_picture_is_drawn_again_after_every_epoch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("eelib.fit.draw_history", lambda history, path: seen.append((len(history), path)))
    run(tmp_path)
    assert seen == [(epoch, tmp_path / "losses.png") for epoch in (1, 2, 3, 4)]


def test_the_picture_changes_with_the_history_and_with_nothing_else(tmp_path):
    pictures = {}
    for name, history in (("start", HISTORY[:1]), ("lost", HISTORY), ("all", MEASURED), ("again", MEASURED)):
        draw_history(history, tmp_path / f"{name}.png")
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(pictures.values())) == 3 and pictures["all"] == pictures["again"]
    assert Image.open(tmp_path / "all.png").size == (960, 384)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.png" for name in pictures)


def test_without_matplotlib_a_training_has_its_csv(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(tmp_path)
    assert (tmp_path / "losses.csv").exists() and not (tmp_path / "losses.png").exists()


def test_tensorboard_holds_what_the_csv_holds(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, history = run(tmp_path, loggers=[tensorboard(tmp_path)])
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(row["epoch"], pytest.approx(row["loss"])) for row in history]


def test_missing_tensorboard_is_named_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(InputError, match=r"--tensorboard: .* pip install '\.\[tensorboard\]'"):
        tensorboard(tmp_path)
