"""The four written reports and the eight tables, from made-up runs of all nine phases."""

import json

import pandas as pd
import pytest

from eelib import tables
from eelib.config import ROOT, ConfigError
from eelib.files import file_sha256
from eelib.model import EXIT_NAMES
from studies.phases import analysis as record
from studies.phases.scorecard import recorded_card
from studies.report import comparison, reports
from studies.report.metrics_files import load_entries

FINAL = record.final_values()


def made_up_run(phase: str, exit_name: str, ap: float) -> dict:
    each = {name: 0.25 for name in EXIT_NAMES}
    return {
        "seed": 0, "images": 12, "train_images": 64, "epochs": 20, "steps": 320,
        "exit_shares": {name: float(name == exit_name) for name in EXIT_NAMES},
        "confidence_mean": each, "confidence_std": each, "temperature": each,
        "thresholds": {"exit1": 0.5, "exit2": 0.5},
        "loss": {"loss": 5.0, **each, "cascade": 0.1},
        "time": {"four_images_ms": 40.0, "one_image_ms": 11.0},
        "AP": ap, "AP50": ap, "AP_exits": each, "detections_per_image": 3.0,
        "at_score": {"score": 0.5, "precision": 0.1, "recall": 0.2},
        "decision": "look closer", "difference": None, "unmet": None,
        "mechanisms": [{"prediction": f"what {phase} predicts.", "holds": True}],
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A reports folder with every metrics file; 1.2 did not come out as recorded."""
    entries = []
    for phase in FINAL.index:
        run = made_up_run(phase, "exit1" if phase in ("1.4", "1.7") else "full", 0.01)
        agrees = phase != "1.2"
        run["difference"] = None if agrees else "1.2 went elsewhere."
        entries.append({
            "phase": phase, "recorded": recorded_card(phase), "runs": [run],
            "agree": int(agrees), "mechanism_holds": 1, "seeds": 1,
        })  # fmt: skip
    exit_ = {"AP": 0.3, "AP_share_of_full": 0.6, "ratio": 0.5}
    detector = {
        "exit": "exit1", "images": 12, "boxes_per_image": 2400, "split": "test",
        "chair_probability": {"least": 0.41, "greatest": 0.46},
        "background_probability": {"least": 0.54, "greatest": 0.59},
        "confidence": {"mean": 0.47, "spread": 0.001},
        "boxes_px": {name: {"least": 180.0, "greatest": 370.0} for name in ("x1", "y1", "x2", "y2")},
        "kept": {s: {"before_nms": n, "after_nms": n / 5} for s, n in (("0.50", 0.0), ("0.40", 2400.0))},
        "best_iou_mean": 0.2,
    }  # fmt: skip
    baseline = {"AP": 0.1, "AP50": 0.3, "images": 450, "split": "test", "gate": {"threshold": 0.4}}
    baseline["checkpoint_sha256"] = "b"
    files = {
        "phases": {"phases": entries},
        "baseline": baseline,
        "exits": {"exits": {name: exit_ for name in EXIT_NAMES}},
        "detector_1_4": detector,
    }
    (tmp_path / "metrics").mkdir()
    for name, content in files.items():
        (tmp_path / "metrics" / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def change(results, name: str, edit) -> None:
    path = results / "metrics" / f"{name}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_all_four_reports_are_written_and_repeatable(results):
    paths = reports.write_all(results)
    assert [p.name for p in paths] == list(reports.REPORTS)
    first = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in reports.write_all(results)] == first
    assert not any(word in text for text in first for word in (b"None", b"Undefined", b"{{", b"{%", b"nan"))


def test_judging_sentences_follow_the_numbers(results):
    name = "EXECUTIVE_SUMMARY.md"
    before = reports.render(name, results / "metrics", results / "phases")
    assert "of 0.400 is missed by 0.300" in before
    assert "Train the baseline until it meets its gate" in before
    assert "8 of 9 phases give the recorded exit shares" in before
    change(results, "baseline", lambda c: c.update(AP=0.45))
    change(results, "exits", lambda c: c["exits"]["exit1"].update(AP_share_of_full=0.8))
    after = reports.render(name, results / "metrics", results / "phases")
    assert "of 0.400 is met" in after
    assert "goal 75 %: met" in after
    assert "The foundation stands" in after


def test_a_wide_score_range_changes_the_verdict_on_the_detector(results):
    name = "INFERENCE_ISSUES_PHASE1_4.md"
    assert "say nothing about the image" in reports.render(name, results / "metrics", results / "phases")
    change(results, "detector_1_4", lambda c: c["chair_probability"].update(greatest=0.97))
    text = reports.render(name, results / "metrics", results / "phases")
    assert "say nothing about the image" not in text and "wider than on record" in text


@pytest.mark.parametrize(
    ("file", "edit", "key"),
    [
        ("baseline", lambda c: c["gate"].pop("threshold"), "gate.threshold"),
        ("exits", lambda c: c["exits"]["exit2"].pop("ratio"), "exits.exit2.ratio"),
        ("phases", lambda c: c["phases"][3]["runs"][0].pop("AP"), "AP"),
        ("phases", lambda c: c["phases"][0].pop("runs"), "runs"),
    ],
)
def test_a_missing_key_is_named_with_its_file(results, file, edit, key):
    change(results, file, edit)
    with pytest.raises(ConfigError, match=rf"{file}\.json: key '.*{key}' is missing"):
        reports.write_all(results)


def test_a_missing_file_is_named(results):
    (results / "metrics" / "exits.json").unlink()
    with pytest.raises(ConfigError, match="exits.json: no such metrics file; run `make reproduce`"):
        reports.write_all(results)


@pytest.mark.parametrize("name", reports.REPORTS)
def test_a_committed_report_is_what_its_metrics_give(name):
    path = ROOT / "reports" / name
    if not path.exists():
        pytest.skip("not released yet")
    assert reports.render(name, ROOT / "reports" / "metrics", ROOT / "reports" / "phases") == path.read_text()


def test_causal_means_state_the_outcome_of_the_mean():
    run = {"confidence_mean": {"exit1": 0.5}, "confidence_std": {"exit1": 0.1}, "AP_exits": {"full": 0.2}}
    runs = [
        run | {"variant": "as recorded", "seed": s, "exit_shares": {"exit1": 1.0, "exit2": 0.0, "full": 0.0}}
        for s in (0, 1)
    ]
    runs.append(run | {"variant": "all", "seed": 0, "exit_shares": {"exit1": 0.5, "exit2": 0.2, "full": 0.3}})
    rows = reports.causal_means({"runs": runs}).to_dict("records")
    assert [(r["variant"], r["outcome"]) for r in rows] == [("as recorded", "all at exit1"), ("all", "mixed")]


def test_eight_tables_hold_recorded_beside_ours(results):
    entries = load_entries(results / "metrics" / "phases.json")
    built = comparison.all_tables(entries, None)
    assert len(built) == 8
    quick = built["phases_quick_reference"].set_index("phase")
    assert quick.loc["1.7", ["exits % recorded", "exits % ours"]].tolist() == ["100 / 0 / 0", "100 / 0 / 0"]
    assert quick.loc["1.2", "outcome recorded"] == "all at exit1" and quick.loc["1.2", "outcome ours"] == "none early"
    states = built["phases_temperatures"].set_index("phase")["state recorded"]
    assert states["1.7"] == "exit1 outside [0.5, 3.0]" and states["1.9"] == "exit2 at a bound"
    assert (
        built["phases_patterns"].set_index("recorded outcome").loc["all at exit1", "cannot do otherwise"] == "1.2, 1.7"
    )
    for name, table in built.items():
        tables.write(table, name, results)
        assert "toprule" in (results / "tables" / f"{name}.tex").read_text()


def test_a_phase_that_was_not_run_has_a_dash():
    frame = comparison.temperatures({})
    assert len(frame) == 9 and tables.rounded(frame["exit1 ours"][0]) == "–" == tables.rounded(frame["state ours"][0])


def test_warm_up_rows_take_our_history():
    epochs = pd.RangeIndex(1, 21)
    columns = {"confidence_exit1": 0.4, "confidence_exit2": 0.5, "val_share_exit1": 1.0}
    table = comparison.warm_up(pd.DataFrame(columns, index=epochs))
    assert table["exit1 confidence ours"].tolist() == ["0.400"] * 3
    assert table["exit1 confidence recorded"][0] == "0.418 to 0.419"


def test_the_ablation_is_told_where_there_is_one(results):
    name = "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md"
    reports.write_all(results)
    assert "One defect at a time" not in (results / name).read_text()
    row = {
        "variant": "mean probability (33)",
        "seeds": {"0": {}, "1": {}},
        "AP_full": 0.123,
        "AP_full_interval": [0.1, 0.2],
        "AP_full_minus_working": 0.0,
        "AP_full_minus_working_interval": [0.0, 0.0],
        "AP": 0.1,
        "largest_share": 1.0,
        "spread": 0.01,
        "destroys_detection": False,
        "all_or_nothing": True,
    }
    content = {"variants": [row], "answer": "Alone destroys detection: none.", "checkpoint_sha256": "another"}
    (results / "metrics" / "ablation.json").write_text(json.dumps(content))
    reports.write_all(results)
    assert "One defect at a time" not in (results / name).read_text()  # it is of another baseline
    (results / "metrics" / "ablation.json").write_text(json.dumps(content | {"checkpoint_sha256": "b"}))
    reports.write_all(results)
    text = (results / name).read_text()
    assert "### One defect at a time" in text and content["answer"] in text
    assert "| mean probability (33) | 2 | 0.123 |" in text


RELEASED = {
    "baseline": (
        "baseline.json",
        "causal.json",
        "ablation.json",
        "generalisation.json",
        "compress.json",
        "static.json",
    ),
    "exits": (
        *(
            "exits.json",
            "training.json",
            "routing.json",
            "calibration.json",
            "guarantee.json",
            "predictability.json",
            "validation.json",
        ),
        *("bench.json", "acceleration.json"),
    ),
}


@pytest.mark.parametrize(("weights", "name"), [(w, n) for w, names in RELEASED.items() for n in names])
def test_committed_metrics_are_of_the_released_weights(weights, name):
    path = ROOT / "reports" / "metrics" / name
    if path.exists():  # a study that was not run with these weights is not there at all
        metrics, folder = json.loads(path.read_text()), ROOT / "checkpoints"
        assert metrics["checkpoint_sha256"] == file_sha256(folder / f"{weights}.pth")
        assert metrics.get("exits_sha256", file_sha256(folder / "exits.pth")) == file_sha256(folder / "exits.pth")


def test_committed_phases_start_from_the_released_baseline():
    files = list((ROOT / "reports" / "metrics" / "phases").glob("*.json"))
    started = {json.loads(path.read_text())["start_sha256"] for path in files}
    assert len(files) >= 10 and started == {file_sha256(ROOT / "checkpoints" / "baseline.pth")}


def test_routing_and_alternatives_are_told_where_they_are_of_the_present_exits(results):
    change(results, "exits", lambda c: c.update(checkpoint_sha256="e"))
    goal = {"policy": "benefit", "time_ratio": 0.7, "AP_minus_full": -0.006}
    routing = {"goal": goal, "policies": {"benefit": {"recovered": 0.2}}, "checkpoint_sha256": "e"}
    stated = {"thresholds": [0.6, 0.6], "epsilon": 0.05, "delta": 0.1, "n": 450, "time_ratio": 0.8}
    points = [
        {"budgets": [t], "time_ratio": t, "AP": 0.3, "minus_peers": gap, "minus_all": gap}
        for t, gap in ((0.3, None), (0.5, [0.01, 0.02]), (0.7, [-0.02, -0.01]))
    ]
    shares = {"exit1": (0.74, 0.76), "exit2": (0.93, 0.91), "full": (1.0, 1.0)}
    seeds = [
        {"training": f"seed {k}", "exit": name, "share_of_full": share[k], "share_of_baseline": (1.02, 0.95)[k]}
        for k in (0, 1)
        for name, share in shares.items()
    ]
    files = {
        "training": {"seeds": seeds, "checkpoint_sha256": "e"},
        "routing": routing,
        "guarantee": {"stated": stated, "checkpoint_sha256": "e"},
        "predictability": {
            "views": {"evidence": {"images": 670, "correlation": [0.4, 0.3]}},
            "goal": 0.6,
            "needed": 0.7,
            "free": 0.25,
            "between_seeds": [0.51, 0.52],
            "seeds": ["a", "b"],
            "checkpoint_sha256": "e",
        },
        "compress": {
            "with_exits": [{"name": "exits int8", "points": points}],
            "exits_sha256": "e",
            "compress": {"seed": 0},
            "seeds": [{"seed": 1, "with_exits": [{"name": "exits int8", "points": points[:1]}]}],
        },
    }
    for name, content in files.items():
        (results / "metrics" / f"{name}.json").write_text(json.dumps(content))
    reports.write_all(results)
    text = (results / "EXECUTIVE_SUMMARY.md").read_text()
    assert "0.700 of\nfull's time (goal 0.750: met)" in text and "changes by -2.0 %" in text
    assert "0.200 (goal 0.600: missed by 0.400)" in text
    assert "with probability 0.9 an image's F1 falls by 0.05 or less on average, at 0.800 of full's time there" in text
    assert "exit1 74 %, 76 % of full (goal 75 %: in 1 of 2 seeds);" in text
    assert "full 102 %, 95 % of baseline (goal 99 %: in 1 of 2 seeds)." in text
    assert "That holds for\n- exits int8, at 0.500 of the time" in text
    assert "AP 0.300; in 1 of 2 seeds." in text
    analysis = (results / "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md").read_text()
    assert "**exits int8** and the peers: above the hull, interval clear of it, at 1 of 2 latencies" in analysis
    change(results, "compress", lambda c: c["with_exits"][0]["points"].pop(1))
    assert "| benefit regressor, evidence (670 images) | 0.400 | 0.300 |" in analysis
    assert "| the same image under another seed of the last two trainings (2 seeds) | 0.510 | 0.520 |" in analysis
    assert "router recovers 0.200, and would recover 0.250 if" in analysis
    assert "recovers the goal of 0.600 from a correlation of 0.700 on" in analysis
    change(results, "training", lambda c: c.update(seeds=c["seeds"][:3]))
    change(results, "predictability", lambda c: c.update(needed=None, between_seeds=None))
    reports.write_all(results)
    text = (results / "EXECUTIVE_SUMMARY.md").read_text()
    assert "no correlation that was tried meets the goal" in text and "with other seeds" not in text
    analysis = (results / "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md").read_text()
    assert "did not recover the goal of 0.600 at any" in analysis and "the same image under" not in analysis
    change(results, "guarantee", lambda c: c["stated"].update(thresholds=None))
    change(results, "routing", lambda c: c.update(checkpoint_sha256="other"))
    reports.write_all(results)
    text = (results / "EXECUTIVE_SUMMARY.md").read_text()
    assert "no correlation" not in text  # nothing of the routing is told without it
    assert "That holds nowhere." in text and "No threshold could be certified" in text and "**Routing.**" not in text
