"""Runs of recorded phases: exact restart, what a run depends on, and the scorecard's checks."""

import json

import pytest
import torch

from eelib.config import ROOT, ConfigError, override
from studies.phases import trainer as phases
from studies.phases.ablation import ladder
from studies.phases.config import EXIT_NAMES, load, parse
from studies.phases.detector import RecordedDetector
from studies.phases.images import PhaseImages
from studies.phases.mechanisms import check_mechanisms, explain_difference, explain_unmet
from studies.phases.scorecard import join_runs, recorded_card, summarise

SMALL = {"model.start": None, "optim.epochs": 3, "optim.batch_size": 1, "data.val_limit": None}


def small(phase, root, **keys):
    """A phase on the two-image data set; the empty image is kept, so an epoch has two steps."""
    values = load(ROOT / "params" / f"phase_{phase}.yaml").model_dump(mode="json")
    return parse(override(values, SMALL | {"data.root": str(root), "data.negatives": True} | keys))


class Killed(Exception):
    pass


@pytest.mark.parametrize("phase", ["1_6", "1_7"])
def test_a_killed_run_ends_as_an_uninterrupted_one(phase, tiny, tmp_path, monkeypatch):
    """Thresholds, temperatures, random positives and Gumbel noise follow (seed, epoch) alone."""
    monkeypatch.setattr("studies.phases.scorecard.phase_times", lambda *_: {})
    config = small(phase, tiny)
    whole = phases.train_phase(config, tmp_path / "whole", log=lambda _: None)
    loss = phases.recorded_loss

    def killed(outputs, targets, temperatures, thresholds, config, epoch, generator):
        if epoch >= 1.5:
            raise Killed
        return loss(outputs, targets, temperatures, thresholds, config, epoch, generator)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "recorded_loss", killed)
        with pytest.raises(Killed):
            phases.train_phase(config, tmp_path / "cut", log=lambda _: None)
    lines = []
    again = phases.train_phase(config, tmp_path / "cut", resume=True, log=lines.append)
    assert lines[0] == "resumed after epoch 1 of 3"
    summaries = []
    for run, folder in ((whole, "whole"), (again, "cut")):
        summary = summarise(config, run["detector"], run["history"], tmp_path / folder)
        summaries.append({k: v for k, v in summary.items() if k != "checkpoint_sha256"})  # holds seconds
    assert summaries[0] == summaries[1]
    written = [(tmp_path / folder / f"final_summary_phase{phase}.json").exists() for folder in ("whole", "cut")]
    assert written == [True, True]


def test_another_configuration_starts_over(tiny, tmp_path):
    config = small("1_2", tiny, **{"optim.epochs": 1})
    phases.train_phase(config, tmp_path, log=lambda _: None)
    lines = []
    other = config.model_copy(update={"seed": 1})
    phases.train_phase(other, tmp_path, resume=True, log=lines.append)
    assert "training starts over" in lines[0]
    assert not any("resumed" in line for line in lines)
    again = []
    phases.train_phase(other, tmp_path, resume=True, log=again.append)
    assert again == ["resumed after epoch 1 of 1"]


def test_run_files_carry_the_names_of_the_record(tiny, tmp_path):
    config = small("1_5", tiny, **{"optim.epochs": 1})
    run = phases.train_phase(config, tmp_path, log=lambda _: None)
    assert phases.weights_path(tmp_path, "1.5").name == "early_exit_ssdlite_phase1_5_final.pth"
    header, row = (tmp_path / "val_metrics_phase1_5.csv").read_text().splitlines()
    assert {"val_share_exit1", "val_rate_hard_exit1", "val_rate_soft_exit2", "val_confidence_full"} <= set(
        header.split(",")
    )
    assert row.startswith("1,")
    # 1.5, check 8 of B.11: the thresholds are float32 of their start
    thresholds = phases.final_thresholds(run["detector"], config)
    assert thresholds == tuple(float(torch.tensor(t)) for t in (0.55, 0.65))
    assert phases.load_phase(config, tmp_path).heads.thresholds["exit1"] == torch.tensor(0.55)


def test_keeping_the_best_epoch(tiny, tmp_path, monkeypatch):
    """Defect 43: the epoch with the best AP on val, here the first of two."""
    config = small("1_4", tiny, **{"optim.keep": "best", "optim.epochs": 2})
    values = iter([0.5, 0.2])
    monkeypatch.setattr(phases, "coco_ap", lambda *_: {"AP": next(values)})
    kept = phases.train_phase(config, tmp_path, log=lambda _: None)["detector"].heads.state_dict()
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    last = torch.load(tmp_path / "last.pth", weights_only=True)
    assert best["epoch"] == 1
    key = "branches.full.cls_logits.weight"
    assert torch.equal(kept[key], best["model"][key])
    assert not torch.equal(kept[key], last["model"][key])


@pytest.mark.parametrize("follow", [True, False])
def test_mirrored_boxes_in_the_cache(follow, tiny):
    """Defect 8."""
    config = small("1_4", tiny, **{"data.flip_boxes": follow, "data.rescale_boxes": True})
    features = phases.FeatureDataset(RecordedDetector(config), PhaseImages("train", config), config)
    plain, mirrored = (features.boxes[side][0] for side in (0, 1))
    expected = torch.stack((320 - plain[:, 2], plain[:, 1], 320 - plain[:, 0], plain[:, 3]), 1)
    assert torch.equal(mirrored, expected if follow else plain)


def run_of(c1, c2, p1=0.5, **more):
    values = {
        "confidence_mean": {"exit1": c1, "exit2": c2, "full": 0.6},
        "confidence_std": dict.fromkeys(EXIT_NAMES, 1e-3),
        "probability_mean": {"exit1": p1, "exit2": p1, "full": p1},
        "exit_shares": {"exit1": 0.0, "exit2": 0.0, "full": 1.0},
        "thresholds": {"exit1": 0.55, "exit2": 0.65},
        "steps": 320,
        "train_images": 64,
    }
    return values | more


def checks(phase, run, history):
    return check_mechanisms(load(ROOT / "params" / f"phase_{phase}.yaml"), run, history)


def test_unmoved_thresholds():
    start = {name: float(torch.tensor(v)) for name, v in (("exit1", 0.55), ("exit2", 0.65))}
    assert checks("1_5", run_of(0.48, 0.5, 0.48, thresholds=start), [])[0]["holds"]
    assert not checks("1_5", run_of(0.48, 0.5, 0.48, thresholds=start | {"exit1": 0.56}), [])[0]["holds"]


def test_tautology_needs_every_epoch():
    row = {"val_share_exit1": 1.0}
    left = {"exit1": 1.0, "exit2": 0.0, "full": 0.0}
    thresholds = {"exit1": 0.35, "exit2": 0.5}
    run = run_of(0.47, 0.5, 0.46, exit_shares=left, thresholds=thresholds)
    assert checks("1_2", run, [row] * 3)[0]["holds"]
    assert not checks("1_2", run, [row, {"val_share_exit1": 0.0}])[0]["holds"]


def test_soft_optimum():
    rates = {"soft_exit1": 0.3002, "soft_exit2": 0.2501, "hard_exit1": 0.0, "hard_exit2": 0.0}
    last = {"confidence_exit1": 0.3293, "threshold_exit1": 0.4138, "confidence_exit2": 0.722, "threshold_exit2": 0.7806}
    result = checks("1_6", run_of(0.33, 0.72, 0.18, train_rates=rates), [last])[0]
    assert result["holds"]
    assert result["predicted"]["gap_exit1"] == pytest.approx(-0.08473, abs=1e-5)
    assert result["predicted"]["gap_exit2"] == pytest.approx(-0.05878, abs=1e-5)
    assert not checks("1_6", run_of(0.33, 0.72, train_rates=rates | {"hard_exit1": 0.4}), [last])[0]["holds"]


def test_shut_gate_and_gate_factor():
    rows = [
        {"confidence_exit1": c, "confidence_exit2": c, "logistic_exit1": 0.1, "rate_exit1": 0.1}
        for c in (0.2, 0.0, 0.0)
    ]
    assert checks("1_8", run_of(0.0, 0.0), rows)[0]["holds"]
    assert not checks("1_8", run_of(0.0, 0.0), [*rows, rows[0]])[0]["holds"]
    rows = [row | {"temperature_exit1": 1.5, "val_share_exit1": 1.0} for row in rows]
    assert checks("1_9", run_of(0.0080042, 0.0080042, 0.4450), rows)[0]["holds"]
    assert not checks("1_9", run_of(0.1, 0.1, 0.4450), rows)[0]["holds"]
    config = load(ROOT / "params" / "phase_1_8.yaml")
    met = check_mechanisms(config, run_of(0.0, 0.0), rows)
    assert explain_unmet(config, run_of(0.0, 0.0), met) is None
    open_ = check_mechanisms(config, run_of(0.2, 0.2), rows[:1])
    text = explain_unmet(config, run_of(0.2, 0.2), open_)
    assert "Not seen here: The gate shuts" in text
    assert "exit1 0.2000 against 0.5500" in text and "here after 320 steps" in text


def test_untrained_warm_up_of_the_record():
    """The record's last warm-up mean, 1.4769, lies between the ends of epochs 2 and 3 as computed from 1,250 steps."""
    rows = [
        {"temperature_exit1": t, "val_share_exit1": 1.0, "logistic_exit1": 0.8, "rate_exit1": 0.8}
        for t in (1.490655, 1.481423, 1.472418)
    ]
    result = checks("1_9", run_of(0.008, 0.008, 0.445, steps=25_000), rows)[1]
    assert result["predicted"]["temperature_exit1"] == pytest.approx(1.47242, abs=1e-5)
    assert result["holds"]
    rows[2] = rows[2] | {"temperature_exit1": 1.473}
    assert not checks("1_9", run_of(0.008, 0.008, 0.445, steps=25_000), rows)[1]["holds"]


def test_runaway_temperature_and_logistic_of_phase_1_7():
    left = {"exit1": 1.0, "exit2": 0.0, "full": 0.0}
    rows = [
        {"val_share_exit1": 1.0, "logistic_exit1": 0.8, "rate_exit1": 0.81, "temperature_exit1": 1.5 + e}
        for e in range(4)
    ]
    assert [c["holds"] for c in checks("1_7", run_of(0.5, 0.6, exit_shares=left), rows)] == [True, True, True]
    rows[-1] = rows[-1] | {"temperature_exit1": 1.6, "rate_exit1": 0.2}
    assert [c["holds"] for c in checks("1_7", run_of(0.5, 0.6, exit_shares=left), rows)] == [True, False, False]


def test_a_uniform_field_decides_and_a_difference_is_explained():
    """The recorded p of 1.4 gives the recorded exit; a lower one gives the other, and the text says why."""
    config = load(ROOT / "params" / "phase_1_4.yaml")
    thresholds = {"exit1": 0.45, "exit2": 0.60}
    left = {"exit1": 1.0, "exit2": 0.0, "full": 0.0}
    same = run_of(0.4755, 0.48, 0.459, thresholds=thresholds, exit_shares=left)
    assert check_mechanisms(config, same, [])[0]["holds"]
    assert explain_difference(config, same, recorded_card("1.4")) is None
    other = run_of(0.244, 0.244, 0.39, thresholds=thresholds)
    assert check_mechanisms(config, other, [])[0]["holds"]
    text = explain_difference(config, other, recorded_card("1.4"))
    assert "exit1 0% (recorded 100%)" in text
    assert "confidence 0.2440 (spread 0.001) is below its threshold 0.4500" in text
    assert "320 steps on 64 images" in text
    assert explain_difference(config, other, {}) is None


def test_join_runs(tmp_path):
    row = {"phase": "1.4", "recorded": {"exit_shares": {}}, "difference": None, "mechanism_holds": True, "config": {}}
    row |= {"split": "test", "split_sha256": "a"}
    paths = [tmp_path / f"phase_1_4_seed{s}.json" for s in (0, 1)]
    for seed, path in enumerate(paths):
        path.write_text(json.dumps(row | {"seed": seed, "mechanism_holds": seed == 0}))
    (entry,) = join_runs(paths)["phases"]
    assert (entry["phase"], entry["agree"], entry["mechanism_holds"], entry["seeds"]) == ("1.4", 2, 1, 2)
    paths[1].write_text(json.dumps(row | {"split_sha256": "b"}))
    with pytest.raises(ValueError, match="another 'test'"):
        join_runs(paths)
    with pytest.raises(ValueError, match="no run"):
        join_runs([])


def test_recorded_cards_of_all_phases():
    for path in (ROOT / "params").glob("phase_1_*.yaml"):
        card = recorded_card(load(path).phase)
        assert set(card["exit_shares"]) == set(EXIT_NAMES)
        assert card["ms_per_image"] == card["ms_per_batch_of_four"] / 4
    assert recorded_card("2.0") == {}


def test_ladder():
    variants = [{"name": "a", "set": {"targets.assignment": "iou"}}]
    variants.append({"name": "b", "add_to": "a", "set": {"targets.boxes": "encoded"}})
    runs = ladder(ROOT / "params" / "phase_1_4.yaml", variants, {"optim.epochs": 1}, [0, 1])
    assert [(n, c.targets.assignment, c.targets.boxes, c.seed, c.optim.epochs) for n, c in runs] == [
        ("a", "iou", "pixels", 0, 1),
        ("a", "iou", "pixels", 1, 1),
        ("b", "iou", "encoded", 0, 1),
        ("b", "iou", "encoded", 1, 1),
    ]
    with pytest.raises(ConfigError, match="'add_to' is 'z'"):
        ladder(ROOT / "params" / "phase_1_4.yaml", [{"name": "a", "add_to": "z", "set": {}}], {}, [0])
