"""The four written reports and the eight tables, from made-up runs of all nine phases."""

import json

import pandas as pd
import pytest

from eelib.config import ConfigError
from studies import tables
from studies.metrics import load_entries
from studies.phases import analysis as record
from studies.phases.config import EXIT_NAMES
from studies.phases.scorecard import recorded_card
from studies.phases.verdicts import headline, holds
from studies.report import comparison, facts, reports

FINAL = record.final_values()


def made_up_run(phase: str, exit_name: str, ap: float) -> dict:
    each = {name: 0.25 for name in EXIT_NAMES}
    return {
        "seed": 0, "start_sha256": "p", "images": 12, "train_images": 64, "epochs": 20, "steps": 320,
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
        "best_iou_mean": 0.2, "steps": 320, "train_images": 64,
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


def rendered(name: str, results) -> str:
    return reports.render(name, reports.context(results / "metrics", results / "phases"))


def test_all_four_reports_are_written_and_repeatable(results):
    paths = reports.write_all(results)
    assert [p.name for p in paths] == list(reports.REPORTS)
    first = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in reports.write_all(results)] == first
    assert not any(word in text for text in first for word in (b"None", b"Undefined", b"{{", b"{%", b"nan"))


def test_judging_sentences_follow_the_numbers(results):
    name = "EXECUTIVE_SUMMARY.md"
    before = rendered(name, results)
    assert "required AP of 0.400 is missed by 0.3" in before
    assert "Train the plain detector until it reaches the required AP" in before
    assert (
        "After 320 steps the switches give the recorded exit shares in 8 of 9 phases with every seed. Every" in before
    )
    change(results, "baseline", lambda c: c.update(AP=0.45))
    after = rendered(name, results)
    assert "required AP of 0.400 is met" in after
    assert "The foundation stands" in after


def test_a_wide_score_range_changes_the_verdict_on_the_detector(results):
    name = "INFERENCE_ISSUES_PHASE1_4.md"
    assert "say nothing about the image" in rendered(name, results)
    change(results, "detector_1_4", lambda c: c["chair_probability"].update(greatest=0.97))
    text = rendered(name, results)
    assert "say nothing about the image" not in text and "wider than on record" in text


@pytest.mark.parametrize(
    ("file", "edit", "key"),
    [
        ("baseline", lambda c: c["gate"].pop("threshold"), "gate.threshold"),
        ("exits", lambda c: c["exits"]["exit2"].pop("AP_share_of_full"), "exits.exit2.AP_share_of_full"),
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


def test_causal_means_state_the_outcome_of_the_mean():
    means = {"spread_exit1": 0.1, "AP_full": 0.2, "AP": 0.1}
    variants = [
        means | {"variant": name, **{f"share_{exit_}": share for exit_, share in zip(EXIT_NAMES, shares, strict=True)}}
        for name, shares in (("as recorded", (1.0, 0.0, 0.0)), ("all", (0.5, 0.2, 0.3)))
    ]
    confidences = (("as recorded", 0.4), ("as recorded", 0.6), ("all", 0.7))
    runs = [{"variant": name, "confidence_mean": {"exit1": c}} for name, c in confidences]
    rows = facts.causal_means({"variants": variants, "runs": runs}).to_dict("records")
    assert [(r["variant"], r["outcome"]) for r in rows] == [("as recorded", "all at exit1"), ("all", "mixed")]
    assert [(r["c1"], r["exit2 %"]) for r in rows] == [(0.5, 0.0), (0.7, 20.0)]


def test_nine_tables_hold_recorded_beside_ours(results):
    entries = load_entries(results / "metrics" / "phases.json")
    built = comparison.all_tables(entries, None)
    assert len(built) == 9
    quick = built["phases_quick_reference"].set_index("phase")
    assert quick.loc["1.7", ["exit shares (%) recorded", "exit shares (%) ours"]].tolist() == [
        "100 / 0 / 0",
        "100 / 0 / 0",
    ]
    assert quick.loc["1.2", "outcome recorded"] == "all at exit1" and quick.loc["1.2", "outcome ours"] == "none early"
    states = built["phases_temperatures"].set_index("phase")["state recorded"]
    assert states["1.7"] == "exit1 outside [0.5, 3.0]" and states["1.9"] == "exit2 at a bound"
    assert (
        built["phases_patterns"].set_index("recorded outcome").loc["all at exit1", "phases whose rule forces it"]
        == "1.2, 1.7"
    )
    said = built["phases_said_and_shown"].set_index("phase").loc["1.2"]
    assert said["the comparison says"].startswith("too aggressive; exits 100 / 0 / 0; thresholds 0.40 and 0.50")
    assert "confidence 0.479 against 0.35 and 0.5" in said["the record says"] and "exits 0 / 0 / 100" in said["ours"]


def test_the_run_with_most_images_is_the_one_that_is_reported(results):
    longer = {"steps": 10980, "agrees": True}
    change(results, "phases", lambda c: c["phases"][3].update(serious=c["phases"][3]["runs"][0] | longer))
    entries = load_entries(results / "metrics" / "phases.json")
    assert comparison.reported(entries["1.4"])["steps"] == 10980 and comparison.reported(entries["1.5"])["steps"] == 320
    text = rendered("PHASE_COMPARISON_TABLE.md", results)
    assert holds(entries["1.4"])
    assert "; after 10,980 steps, with one seed, in 1 of 1. Every" in text and "after 10,980 steps |" in text
    entries["1.4"]["serious"]["mechanisms"][0]["holds"] = False
    entries["1.4"]["serious"]["agrees"] = False
    assert not holds(entries["1.4"]) and holds(entries["1.5"])
    change(results, "phases", lambda c: c["phases"][3]["serious"].update(agrees=False))
    analysis = "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md"
    open_questions = rendered(analysis, results).split("What is still open")[1]
    assert "differ from the record in some training: 1.2 and 1.4;" in open_questions
    said = headline(list(entries.values()))
    assert "in 0 of 1 (not in 1.4). Every" in said and said.endswith("longest training; not all do in 1.4")


def test_checks_are_told_in_words_and_a_value_of_many_parts_is_left_out():
    check = {"prediction": "It shuts.", "holds": False, "predicted": {"rate_exit1": [0.0, 0.1]}}
    check["measured"] = {"rate_exit1": 0.25, "shut_from_epoch_exit2": None, "path": [1.0, 2.0, 3.0]}
    (line,) = facts.check_lines({"mechanisms": [check]})
    assert line["numbers"] == "rate of exit1 0.250 (predicted 0 to 0.1); shut from epoch of exit2 never"


def test_systems_are_told_in_words():
    assert facts.named("time of exits_256 int8 exit2 / truncated_256_exit2 int8") == (
        "time of exits at 256 px, int8, exit2 / truncated at exit2, 256 px, int8"
    )


def test_a_phase_that_was_not_run_has_a_dash():
    frame = comparison.temperatures({})
    assert len(frame) == 9 and tables.rounded(frame["exit1 ours"][0]) == "–" == tables.rounded(frame["state ours"][0])


def test_warm_up_rows_take_our_history():
    epochs = pd.RangeIndex(1, 21)
    columns = {"confidence_exit1": 0.4, "confidence_exit2": 0.5, "val_share_exit1": 1.0}
    table = comparison.warm_up(pd.DataFrame(columns, index=epochs))
    assert table["exit1 confidence ours"].tolist() == ["0.400"] * 3
    assert table["exit1 confidence recorded"][0] == "0.418 to 0.419"


ABLATED = {
    "variant": "mean probability (33)", "seeds": {"0": {}, "1": {}}, "AP_full": 0.123, "AP_full_interval": [0.1, 0.2],
    "AP_full_minus_working": 0.0, "AP_full_minus_working_interval": [0.0, 0.0], "AP": 0.1, "largest_share": 1.0,
    "spread": 0.01, "destroys_detection": False, "all_or_nothing": True,
}  # fmt: skip
BESIDE = {"minus_static": [-0.02, -0.01], "above_static": False}
ROW = {"prevalence": 0.16, "seed": 0, "exit": "full", "AP50": 0.6, "precision": 0.7, "recall": 0.6, "false_alarms": 0.3}
MEASURED = {"median_ms": 10.0, "p95_ms": 11.0, "p99_ms": 12.0, "macs": 4e8}
SYSTEM = {"seed": 0, "size_mib": 8.0, "parameters": 2e6, "exits": {"full": MEASURED}}
PLANE = {
    "plane": {"name": "plane"}, "machine": {"processor": "some processor"}, "images": 450,
    "systems": [SYSTEM | {"name": "baseline", "kind": "plain"}, SYSTEM | {"name": "exits_9", "kind": "exits"}],
    "exits": [
        ROW | {"system": "baseline", "kind": "plain", "AP": 0.45, "AP_interval": [0.4, 0.5], "time_ratio": 1.0},
        ROW | {"system": "exits_9", "kind": "exits", "AP": 0.4, "AP_interval": [0.35, 0.45], "time_ratio": 0.7}
        | {"minus_peers": [-0.02, 0.01], "above_peers": False} | BESIDE,
    ],
    "coins": [
        {"prevalence": 0.16, "system": "exits_9", "seed": seed, "time_ratio": 0.5, "AP": 0.3}
        | {"minus_peers": [0.01, 0.02], "above_peers": True} | BESIDE
        for seed in (0, 1)
    ],
    "alone": [],
}  # fmt: skip
# Metrics files of studies to the released weights that they are of, and their content.
STUDIES = {
    "ablation": ("p", {"variants": [ABLATED, ABLATED], "common": {"optim.epochs": 10}}),
    "routing": ("e", {
        "goal": {"policy": "benefit", "time_ratio": 0.7, "AP_minus_full": -0.006},
        "policies": {"benefit": {"recovered": 0.2}},
    }),
    "guarantee": ("e", {
        "stated": {"thresholds": [0.6, 0.6], "epsilon": 0.05, "delta": 0.1, "n": 450, "time_ratio": 0.8},
    }),
    "predictability": ("e", {
        "views": {"evidence": {"images": 670, "correlation": [0.4, 0.3]}}, "goal": 0.6, "needed": 0.7, "free": 0.25,
        "between_seeds": [0.51, 0.52], "seeds": ["a", "b"],
    }),
    "plane": ("b", PLANE),
}  # fmt: skip


def add_studies(results, weights: dict[str, str] | None = None) -> None:
    """The metrics of every study, of the weights that it says or of others."""
    change(results, "exits", lambda content: content.update(checkpoint_sha256="e"))
    for name, (sha256, content) in STUDIES.items():
        path = results / "metrics" / f"{name}.json"
        path.write_text(json.dumps(content | {"checkpoint_sha256": (weights or {}).get(name, sha256)}))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("EXECUTIVE_SUMMARY.md", "## Can a router choose the exit?"),
        ("EXECUTIVE_SUMMARY.md", "| exits at 9 px | 2 | 16 % | 1 of 1 | 0 of 1 |"),
        ("COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md", "### One defect at a time"),
        ("COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md", "### What a router can see"),
        ("COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md", "These are missed, with a value for each seed"),
    ],
)
def test_a_study_is_reported_where_it_is_of_the_present_weights(results, name, title):
    def text():
        return rendered(name, results)

    assert title not in text()
    add_studies(results)
    assert title in text()
    add_studies(results, dict.fromkeys(STUDIES, "other"))
    assert title not in text()


def test_numbers_of_the_studies_stand_in_the_summary(results):
    add_studies(results)
    text = rendered("EXECUTIVE_SUMMARY.md", results)
    for part in (
        "goal at most 0.750: met",
        "-2.0 %",
        "goal 0.600: missed by 0.4",
        "probability 0.9, that the F1 of an image is on average at most 0.05 lower",
        "0.800",
    ):
        assert part in text
    change(results, "guarantee", lambda content: content["stated"].update(thresholds=None))
    change(results, "predictability", lambda content: content.update(needed=None, between_seeds=None))
    text = rendered("EXECUTIVE_SUMMARY.md", results)
    assert "No threshold could be certified" in text
    assert "none of the correlations that were tried meets the goal" in text


@pytest.mark.parametrize("name", ["EXECUTIVE_SUMMARY.md", "COMPREHENSIVE_TRAINING_ANALYSIS_AND_RECOMMENDATIONS.md"])
def test_a_plane_that_is_missing_is_said_to_be(results, name):
    assert "Not measured yet" in rendered(name, results)
    add_studies(results)
    assert "Not measured yet" not in rendered(name, results)


def test_what_pays_is_counted_over_seeds():
    paying = facts.paying(PLANE)
    assert paying["verdicts"] == [
        {
            "network": "exits at 9 px", "seeds": 2, "empty images": "16 %",
            "above full-depth static detectors": "1 of 1", "above all static detectors": "0 of 1",
        }
    ]  # fmt: skip
    place = "exits at 9 px at 0.50 of the plain detector's time with 16 % empty images"
    assert paying["above"] == {"peers": [place], "static": []}
    assert not any(goal.startswith("AP of plain detector") for goal in paying["goals"]["goal"])  # met, so not listed
    assert paying["goals"]["goal"].str.startswith("latencies").sum() == 1 and paying["met"] == 1
    assert paying["alternatives"]["AP"].tolist() == ["0.450 [0.400, 0.500]", "0.400 [0.350, 0.450]"]


def test_a_bench_without_int8_says_nothing_of_int8(tmp_path):
    def bench(*runtimes):
        names = [("onnxruntime", "baseline"), *((runtime, f"exit{k}") for runtime in runtimes for k in (1, 2))]
        times = [{"runtime": r, "exit": e, "median_ms": 10.0 + len(r), "batch": 1, "threads": 1} for r, e in names]
        (tmp_path / "bench.json").write_text(json.dumps({"times": times, "machine": {"processor": "some"}}))
        return facts.int8_elsewhere(tmp_path)

    assert facts.int8_elsewhere(tmp_path) == bench("onnxruntime") == ""
    assert "1.24 and 1.24 in the run of `eelib bench` (some, the baseline taking 21.0 ms)" in bench(
        "onnxruntime", "onnxruntime int8"
    )
