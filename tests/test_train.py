"""Whole trainings on two images: exact resume, what is refused before the first epoch, any exits, any classes."""

import json

import numpy as np
import pytest
import torch

import eelib
from eelib.checkpoints import TrainingError, load_checkpoint
from eelib.config import ConfigError, parse
from eelib.data import DataError, DetectionDataset
from eelib.evaluate import coco_ap, detect_exits
from eelib.records import record
from eelib.routed_ap import RoutedAP
from eelib.train import compiled, train


def config(root, epochs=3, **groups):
    """A training of a few steps on the CPU, with mosaics."""
    values = {
        "name": "tiny",
        "model": {"exits": [8, 12], "weights": "none"},
        "data": {"root": str(root), "size": 96, "augment": "mosaic", "calm": 0.34},
        "optim": {"epochs": epochs, "batch_size": 2, "warmup_steps": 1, "accelerator": "cpu", "compile": False},
    }
    return parse(
        {key: values.get(key, {}) | groups.get(key, {}) for key in values | groups if key != "name"} | {"name": "tiny"}
    )


def silent(_):
    """No log."""


def weights(path):
    return load_checkpoint(path)["model"]


@pytest.mark.slow
def test_a_resumed_training_equals_an_uninterrupted_one_with_mosaics(tiny, tmp_path):
    class Killed(Exception):
        pass

    def kill_after_two(line):
        if "epoch 2" in line:
            raise Killed

    settings = config(tiny, epochs=4, model={"blank_gate": True}, loss={"distillation": 1.0})
    whole = train(settings, tmp_path / "whole", log=silent)
    with pytest.raises(Killed):
        train(settings, tmp_path / "parts", log=kill_after_two)
    parts = train(settings, tmp_path / "parts", resume=True, log=silent)
    assert load_checkpoint(whole)["history"][0].keys() == load_checkpoint(parts)["history"][0].keys()
    ours, theirs = weights(whole), weights(parts)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_folder_that_holds_a_run_is_refused_unless_it_is_said(tiny, tmp_path):
    path = train(config(tiny, epochs=1), tmp_path / "run", log=silent)
    before = weights(path)
    with pytest.raises(TrainingError, match="holds a run already; expected --resume to go on or --overwrite"):
        train(config(tiny, epochs=1), tmp_path / "run", log=silent)
    other = config(tiny, epochs=1, optim={"lr": 1e-4})
    with pytest.raises(TrainingError, match=r"config\.optim\.lr"):
        train(other, tmp_path / "run", resume=True, log=silent)
    assert all(torch.equal(before[key], value) for key, value in weights(path).items())
    train(other, tmp_path / "run", overwrite=True, log=silent)
    assert load_checkpoint(path)["config"]["optim"]["lr"] == 1e-4


def test_data_that_changed_is_another_run(tiny, tmp_path):
    train(config(tiny, epochs=1), tmp_path / "run", log=silent)
    content = json.loads((tiny / "val.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (tiny / "val.json").write_text(json.dumps(content))
    with pytest.raises(TrainingError, match="val_sha256"):
        train(config(tiny, epochs=1), tmp_path / "run", resume=True, log=silent)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"optim": {"batch_size": 1, "warmup_steps": 0}}, "'optim.batch_size': 1 image a step"),
    ],
)
def test_what_would_waste_a_training_is_refused_before_its_first_epoch(groups, message, tiny, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(config(tiny, **groups), tmp_path / "run", log=silent)
    assert not (tmp_path / "run" / "last.pth").exists()


def test_without_an_object_in_val_no_epoch_can_be_chosen(tiny, tmp_path):
    content = json.loads((tiny / "val.json").read_text())
    (tiny / "val.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises((ConfigError, DataError), match="val"):
        train(config(tiny, optim={"keep": "best"}), tmp_path / "run", log=silent)


def test_without_a_compiler_the_training_runs_as_it_is(monkeypatch):
    monkeypatch.setenv("PATH", "")
    told = []
    assert compiled(len, told.append) is len and "no C++ compiler found" in told[0]


def test_three_exits_are_trained_and_routed(tiny, tmp_path):
    """Cuts that no release has, named by order; images leave where the thresholds say."""
    path = train(config(tiny, model={"exits": [6, 9, 13]}), tmp_path / "run", log=silent)
    model = eelib.load(path)
    assert model.exit_names == ("exit1", "exit2", "exit3", "full")
    dataset = DetectionDataset("test", tiny, model.size, keep_crowd=True)
    found = record(model, dataset, "test", "", "")
    assert found.counts.shape == (4, 2)
    evaluator = RoutedAP(found, dataset.coco)
    results = detect_exits(model, dataset)
    for k, name in enumerate(model.exit_names):
        assert evaluator.of_exit(k) == pytest.approx(coco_ap(dataset.coco, results[name])["AP"], abs=1e-9)
    assert 0 <= evaluator.ap([0, 2]) <= 1
    image = tiny / "test" / "1.jpg"
    for name in model.exit_names[:-1]:
        assert model.predict(image, thresholds={name: 0.0}).exit_name == name
    assert model.predict(image, thresholds={"exit3": 1.0}).exit_name == "full"


def test_two_classes_are_trained_and_told_apart(tiny, tmp_path):
    for split in ("train", "val", "test"):
        content = json.loads((tiny / f"{split}.json").read_text())
        content["categories"].append({"id": 7, "name": "stool"})
        content["annotations"][1]["category_id"] = 7
        (tiny / f"{split}.json").write_text(json.dumps(content))
    model = eelib.load(train(config(tiny, epochs=1), tmp_path / "run", log=silent))
    assert model.classes == ("chair", "stool")  # in the order of the file
    found = model.predict(tiny / "test" / "1.jpg", min_score=0.0)
    assert set(np.unique(found.labels)) == {1, 2} and found.classes == model.classes
    one = eelib.load(train(config(tiny, epochs=1, data={"category": "stool"}), tmp_path / "one", log=silent))
    assert one.classes == ("stool",)
