"""Runs of recorded phases: exact restart, what a run depends on, and the scorecard's checks."""

import json

import pytest
import torch

from eelib.config import ROOT, ConfigError, override
from studies.phases import trained
from studies.phases import trainer as phases
from studies.phases.ablation import ladder
from studies.phases.config import EXIT_NAMES, load, parse, profile_changes
from studies.phases.detector import RecordedDetector
from studies.phases.images import PhaseImages
from studies.phases.mechanisms import check_mechanisms, explain_difference, explain_unmet
from studies.phases.scorecard import recorded_card, summarise
from studies.phases.verdicts import check_table, headline, join_runs, judge, publish_run, reading, recommendations

SMALL = {"model.start": None, "optim.epochs": 3, "optim.batch_size": 1, "data.val_limit": None}


def small(phase, root, **keys):
    """A phase on the two-image data set; the empty image is kept, so an epoch has two steps."""
    values = load(ROOT / "params" / f"phase_{phase}.yaml").model_dump(mode="json")
    return parse(override(values, SMALL | {"data.root": str(root), "data.negatives": True} | keys))


class Killed(Exception):
    pass


@pytest.mark.slow
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
    assert lines[1].startswith("epoch  2: loss ") and lines[1].endswith(" %") and lines[1].count(",") == 3
    rare = small(phase, tiny, **{"optim.eval_every": 3})
    few = []
    phases.train_phase(rare, tmp_path / "rare", log=few.append)
    assert ["val leaves" in line for line in few] == [False, False, True]
    summaries = []
    for run, folder in ((whole, "whole"), (again, "cut")):
        summary = summarise(config, run["detector"], run["history"], tmp_path / folder)
        summaries.append({k: v for k, v in summary.items() if k != "checkpoint_sha256"})  # holds seconds
    assert summaries[0] == summaries[1]
    written = [(tmp_path / folder / f"final_summary_phase{phase}.json").exists() for folder in ("whole", "cut")]
    assert written == [True, True]


@pytest.mark.slow
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
    assert trained.weights_path(tmp_path, "1.5").name == "early_exit_ssdlite_phase1_5_final.pth"
    header, row = (tmp_path / "val_metrics_phase1_5.csv").read_text().splitlines()
    assert {"val_share_exit1", "val_rate_hard_exit1", "val_rate_soft_exit2", "val_confidence_full"} <= set(
        header.split(",")
    )
    assert row.startswith("1,")
    # 1.5, check 8 of B.11: the thresholds are float32 of their start
    thresholds = trained.final_thresholds(run["detector"], config)
    assert thresholds == tuple(float(torch.tensor(t)) for t in (0.55, 0.65))
    detector, path = trained.load_phase(config, tmp_path)
    assert detector.heads.thresholds["exit1"] == torch.tensor(0.55)
    assert path == trained.weights_path(tmp_path, "1.5")


@pytest.mark.slow
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
    rates = {"soft_rate_exit1": 0.3002, "soft_rate_exit2": 0.2501, "hard_rate_exit1": 0.0, "hard_rate_exit2": 0.0}
    rates = {key.replace("_rate", ""): value for key, value in rates.items()}
    last = {"confidence_exit1": 0.3293, "threshold_exit1": 0.4138, "confidence_exit2": 0.722, "threshold_exit2": 0.7806}
    result = checks("1_6", run_of(0.33, 0.72, 0.18, train_rates=rates), [last])[0]
    assert result["holds"]
    for name, gap in (("exit1", -0.08473), ("exit2", -0.05878)):
        assert sum(result["predicted"][f"confidence_minus_threshold_{name}"]) / 2 == pytest.approx(gap, abs=1e-5)
    # a single batch above its threshold is one too many
    assert not checks("1_6", run_of(0.33, 0.72, train_rates=rates | {"hard_exit2": 0.0008}), [last])[0]["holds"]
    assert not checks("1_6", run_of(0.33, 0.72, train_rates=rates), [last | {"threshold_exit1": 0.4}])[0]["holds"]


def test_shut_gate_and_gate_factor():
    rows = [
        {
            "confidence_exit1": c,
            "confidence_exit2": c,
            "probability_exit1": 0.5,
            "logistic_exit1": 0.1,
            "rate_exit1": 0.1,
        }
        for c in (0.2, 0.0, 0.0)
    ]
    assert checks("1_8", run_of(0.0, 0.0), rows)[0]["holds"]
    open_again = checks("1_8", run_of(0.0, 0.0), [*rows, rows[0]])[0]
    assert not open_again["holds"] and "it is so for about 40.00% of the images" in open_again["otherwise"]
    rows = [row | {"temperature_exit1": 1.5, "val_share_exit1": 1.0} for row in rows]
    assert checks("1_9", run_of(0.0080042, 0.0080042, 0.4450), rows)[0]["holds"]
    counted = run_of(0.1, 0.1, 0.4450) | {"boxes_above_cut": {"exit1": 805.4, "exit2": 902.0, "full": 0.0}}
    gate = checks("1_9", counted, rows)[0]
    assert not gate["holds"] and gate["otherwise"].endswith(
        "Above it are 805 of an image's 2,400 boxes at exit1, 902 at exit2."
    )
    config = load(ROOT / "params" / "phase_1_8.yaml")
    met = check_mechanisms(config, run_of(0.0, 0.0), rows)
    assert explain_unmet(met) is None
    text = explain_unmet(check_mechanisms(config, run_of(0.2, 0.2), rows[:1]))
    assert 'One prediction fails ("The gate shuts' in text and "{" not in text
    assert "shut from epoch of exit1 is never, but 1 was predicted" in text
    assert "3 boxes or more stay above 0.7" in text


def test_untrained_warm_up_of_the_record():
    """The record's last warm-up mean, 1.4769, lies between the ends of epochs 2 and 3 as computed from 1,250 steps."""
    rows = [
        {"temperature_exit1": t, "val_share_exit1": 1.0, "logistic_exit1": 0.8, "rate_exit1": 0.8}
        for t in (1.490655, 1.481423, 1.472418)
    ]
    result = checks("1_9", run_of(0.008, 0.008, 0.445, steps=25_000), rows)[1]
    assert result["predicted"]["temperature_exit1_after_3_epochs"] == pytest.approx([1.4724, 1.47244], abs=1e-5)
    assert result["holds"]
    rows[2] = rows[2] | {"temperature_exit1": 1.473}
    assert not checks("1_9", run_of(0.008, 0.008, 0.445, steps=25_000), rows)[1]["holds"]


def test_runaway_temperature_and_logistic_of_phase_1_7():
    left = {"exit1": 1.0, "exit2": 0.0, "full": 0.0}
    rows = [
        {"val_share_exit1": 1.0, "logistic_exit1": 0.8, "rate_exit1": 0.81, "temperature_exit1": t}
        for t in (1.5, 4.0, 9.0, 24.56)
    ]
    run = run_of(0.5, 0.6, exit_shares=left, steps=25_000)
    held = checks("1_7", run | {"steps": 320}, rows)
    assert [c["holds"] for c in held] == [True, True, False]  # 320 steps cannot carry T1 there
    assert "320 steps carry it to 3.18 at most" in explain_unmet(held)
    rows = [row | {"rate_exit1": 0.8} for row in rows]
    assert [c["holds"] for c in checks("1_7", run, rows)] == [True, True, True]
    rows[-1] = rows[-1] | {"temperature_exit1": 8.0, "rate_exit1": 0.2}
    assert [c["holds"] for c in checks("1_7", run, rows)] == [True, False, False]


def test_the_clamp_holds_the_temperature_of_1_7():
    changes = profile_changes("phase_1_7", "clamped")
    config = load(ROOT / "params" / "phase_1_7.yaml", changes)
    rows = [
        {"val_share_exit1": 1.0, "logistic_exit1": 0.8, "rate_exit1": 0.8, "temperature_exit1": t} for t in (1.5, 3.0)
    ]
    run = run_of(0.5, 0.6, exit_shares={"exit1": 1.0, "exit2": 0.0, "full": 0.0}, steps=3200)
    assert check_mechanisms(config, run, rows)[2]["holds"]
    rows[-1]["temperature_exit1"] = 3.2
    assert not check_mechanisms(config, run, rows)[2]["holds"]
    with pytest.raises(ConfigError, match="no profile 'serios' of 'phase_1_7'; expected one of 'serious phase_1_7'"):
        profile_changes("phase_1_7", "serios")


def test_a_uniform_field_decides_and_a_difference_is_explained():
    """The recorded p of 1.4 gives the recorded exit; a lower one gives the other, and the text says why."""
    config = load(ROOT / "params" / "phase_1_4.yaml")
    thresholds = {"exit1": 0.45, "exit2": 0.60}
    warm = {"exit1": 1.55, "exit2": 1.6, "full": 0.9}
    left = {"exit1": 1.0, "exit2": 0.0, "full": 0.0}
    same = run_of(0.4755, 0.48, 0.459, thresholds=thresholds, exit_shares=left, temperature=warm)
    assert check_mechanisms(config, same, [])[0]["holds"]
    assert not check_mechanisms(config, same | {"confidence_mean": {"exit1": 0.53, "exit2": 0.48}}, [])[0]["holds"]
    assert explain_difference(config, same, recorded_card("1.4")) is None
    other = run_of(0.244, 0.244, 0.39, thresholds=thresholds, temperature=warm | {"exit2": 2.0})
    assert check_mechanisms(config, other, [])[0]["holds"]
    text = explain_difference(config, other, recorded_card("1.4"))
    assert "the exit shares: exit1 0% (recorded 100%)" in text
    assert "the confidence of exit1 (0.244, recorded 0.476)" in text
    assert "the temperature of exit2 (2, recorded 1.62)" in text
    assert "exit1 0.2440 against 0.4500" in text and "320 steps on 64 images" in text
    assert explain_difference(config, other, {}) is None


@pytest.mark.slow
def test_runs_are_joined_and_judged_from_what_they_wrote(tmp_path, tiny, monkeypatch):
    """Two seeds and a serious run: the join reads numbers and curves, not a verdict of the time of the training."""
    monkeypatch.setattr("studies.phases.scorecard.phase_times", lambda *_: {"ms": 1.0})
    runs = [("", small("1_4", tiny, seed=s, **{"optim.epochs": 1})) for s in (0, 1)]
    for profile, config in [*runs, ("serious", runs[0][1])]:
        out = tmp_path / "runs" / profile / str(config.seed)
        run = phases.train_phase(config, out, log=lambda _: None)
        summary = summarise(config, run["detector"], run["history"], out)
        assert not {"mechanisms", "difference"} & summary.keys()
        publish_run(config, summary, out, tmp_path, profile)
        judged = judge(config, summary, run["history"])
    (entry,) = join_runs(tmp_path)["phases"]
    assert entry["runs"][0]["mechanisms"] == entry["serious"]["mechanisms"] == judged["mechanisms"]
    assert (entry["phase"], entry["seeds"]) == ("1.4", 2) and "time" not in entry["serious"]
    table = check_table([entry])
    assert table["quantity"].tolist()[1:] == ["confidence of exit1", "confidence of exit2"]
    assert table["recorded"].tolist()[1] == "0.4755"
    assert "of 1 predictions hold in every number" in reading(entry["runs"][0] | {"recorded": entry["recorded"]})
    steps = entry["runs"][0]["steps"]
    assert headline([entry]).startswith(f"After {steps:,} steps the switches give the recorded exit shares in ")
    assert f"; after {steps:,} steps, with one seed, in " in headline([entry])
    nothing = entry | {"runs": [entry["runs"][0] | {"mechanisms": []}]}
    assert len(check_table([nothing])) == 0 and "quantity" in check_table([nothing])
    assert recommendations([entry], -0.8).endswith("worse than chance.")
    path = tmp_path / "metrics" / "phases" / "phase_1_4_seed1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_sha256": "b"}))
    with pytest.raises(ValueError, match="another 'test'"):
        join_runs(tmp_path)
    with pytest.raises(ValueError, match="no run"):
        join_runs(tmp_path / "empty")


def test_shipped_branches_come_back(tiny, tmp_path, monkeypatch):
    config = small("1_4", tiny, **{"optim.epochs": 1, "model.start": "checkpoints/phases_start.pth"})
    detector = trained.build_detector(config).eval()
    trained.ship(detector, config, tmp_path / "phase_1_4.pth")
    assert (tmp_path / "phase_1_4.pth").stat().st_size < 3_000_000
    again, read = trained.load_shipped(tmp_path / "phase_1_4.pth")
    assert read == config
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        pairs = zip(detector.exits(image), again.exits(image), strict=True)
        assert all(torch.allclose(a.cls_logits, b.cls_logits, atol=0.02) for a, b in pairs)
    monkeypatch.setattr(trained, "file_sha256", lambda _: "another")
    with pytest.raises(phases.TrainingError, match="trained on another checkpoints/phases_start.pth"):
        trained.load_shipped(tmp_path / "phase_1_4.pth")


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
