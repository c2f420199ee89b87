"""Alternatives to early exits: configuration, choices, the hull and its distance, by hand."""

import json

import pytest
import torch
import yaml

from eelib.__main__ import main
from eelib.checkpoints import load_released, save_checkpoint
from eelib.config import ROOT, ConfigError
from eelib.records import record
from studies.compress import alternatives, search, variants
from studies.compress import study as compress
from studies.compress.systems import export_system, measure_times, session_records
from studies.compress.variants import RELEASED, Variant, distilling_step, fine_tuning, folder_of, load_config

PARAMS = ROOT / "params" / "compress.yaml"
EARLY = ("exit1", "exit2")
LOOKS_MS = {"suppression": 3.0, "observation": 5.0}


def write(tmp_path, **changes):
    values = yaml.safe_load(PARAMS.read_text()) | changes
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "c.yaml"


def test_the_parameter_file_is_valid():
    config = load_config(PARAMS)
    assert {v.start for v in config.variants.values()} <= {RELEASED, *config.variants}
    assert fine_tuning(config, 256).data.image_sizes == [[0, 256]]
    assert load_config(PARAMS, {"train.images": 16}).train.images == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {"width": 1.5}}}, "key 'variants.a.width' is 1.5"),
        ({"variants": {"a": {"width": 0.0}}}, "key 'variants.a.width' is 0.0"),
        ({"variants": {"a": {"start": "b"}}}, "key 'variants.a.start' is 'b'; expected one of released, a"),
        ({"variants": {"a": {"size": 250}}}, "key 'variants.a.size' is 250"),
        ({"variants": {"a": {"width": 0.5}, "b": {"width": 0.6, "start": "a"}}}, "its start is narrower"),
        ({"variants": {"a": {"start": "b"}, "b": {"start": "a"}}}, "goes in a circle"),
        ({"variants": {"a": {"size": 256, "teacher": 1.0}}}, "the teacher has six maps of 320 px"),
        ({"variants": {"a": {}}}, "key 'search.widths' names 'width_75', which is no variant"),
        ({"seeds": [1, 1]}, "key 'seeds' is .1, 1.; expected different seeds, none of them 'seed'"),
        ({"seeds": [0, 1]}, "key 'seeds' is .0, 1."),
        ({"trials": 3}, "key 'trials' is 3"),
    ],
)
def test_bad_parameters(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, **changes))


def test_a_changed_variant_has_another_folder_and_so_have_those_that_start_from_it():
    config = load_config(PARAMS)
    other = load_config(PARAMS, {"variants.width_75.width": 0.8})
    assert folder_of("width_75", config) != folder_of("width_75", other)
    assert folder_of("width_50", config) != folder_of("width_50", other)
    assert folder_of("input_256", config) == folder_of("input_256", other)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path, capsys):
    argv = ["compress", str(PARAMS), "--only", "width_75", "--set", f"out={tmp_path}"]
    assert main([*argv, "--set", "baseline=checkpoints/none.pth"]) == 2
    assert "checkpoints/none.pth: no such checkpoint" in capsys.readouterr().err
    save_checkpoint(tmp_path / "other.pth", {"model": {"weight": torch.zeros(1)}})
    assert main([*argv, "--set", f"exits={tmp_path}/other.pth"]) == 2
    assert "checkpoint of another architecture" in capsys.readouterr().err
    assert main([*argv, "--set", "exits=checkpoints/baseline.pth"]) == 2
    assert "no early exits; expected the released detector with exits" in capsys.readouterr().err
    assert main(["compress", str(PARAMS), "--only", "width_99"]) == 2
    assert "--only width_99: expected search or one of width_75" in capsys.readouterr().err


def test_the_verdict_counts_what_is_clear_of_the_hull():
    points = [
        {"time_ratio": 0.4, "minus_all": None},
        {"time_ratio": 0.5, "minus_all": [-0.1, -0.02]},
        {"time_ratio": 0.6, "minus_all": [-0.01, 0.02]},
        {"time_ratio": 0.7, "minus_all": [0.01, 0.02]},
    ]
    above, met = alternatives.clear(points, "minus_all")
    assert above == points[3:] and met == 3
    assert alternatives.verdict(points, "minus_all") == (
        "above the hull, interval clear of it, at 1 of 3 latencies (time / full 0.70); below it, clear, at 1; "
        "1 are faster than any of the static systems"
    )


def test_the_best_variant_is_chosen_inside_the_budget():
    trained = {
        "slow": {"val_AP": 0.3, "ratio_at_choice": 0.9},
        "good": {"val_AP": 0.2, "ratio_at_choice": 0.7},
        "fast": {"val_AP": 0.2, "ratio_at_choice": 0.5},
    }
    assert compress.best_variant(trained, 0.75) == "fast"
    assert compress.best_variant(trained, 1.0) == "slow"
    assert compress.best_variant(trained, 0.1) == "slow"


def test_kinds():
    cases = {"width": {"width": 0.5}, "input": {"size": 256}, "tail": {"maps": 4}, "distilled": {"teacher": 1.0}}
    assert all(compress.kind_of("v", {"v": Variant(**values)}) == kind for kind, values in cases.items())
    assert compress.kind_of("v", {"v": Variant(width=0.5, size=256)}) == "mixed"
    assert compress.kind_of("searched", {}) == "search"


def test_the_search_chooses_by_full_inside_the_budget():
    trials = [
        {"AP": {"full": 0.3}, "static_ratio": 0.9},
        {"AP": {"full": 0.2}, "static_ratio": 0.7},
        {"AP": {"full": 0.2}, "static_ratio": 0.6},
    ]
    assert search.choose(trials, 0.75) is trials[2]
    assert search.choose(trials, 0.1) is trials[0]


def test_a_student_that_is_its_teacher_has_only_its_own_loss():
    config = load_config(PARAMS)
    teacher = load_released(ROOT / "checkpoints" / "baseline.pth")
    images = torch.randint(0, 255, (1, 3, 320, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = images, [{"boxes": torch.tensor([[40.0, 40, 140, 160]])}]
    step = distilling_step(fine_tuning(config, 320), teacher, weight=1.0)
    loss, parts = step(teacher.eval(), batch, 0.0)
    assert parts["full_distilled_classes"] == pytest.approx(0, abs=1e-5)
    assert parts["full_distilled_boxes"] == 0
    own = parts["full_classification"] + parts["full_bbox_regression"]
    assert float(loss.detach()) == pytest.approx(own, abs=1e-4)


@torch.no_grad()
def test_records_of_an_export_are_what_the_session_detects(tmp_path):
    from eelib.data import DetectionDataset, as_input
    from eelib.deploy.runtime import forced

    model = load_released(ROOT / "checkpoints" / "exits.pth")
    state = {"model": model.state_dict(), "plan": model.plan | {"size": 224}}
    config = fine_tuning(load_config(PARAMS), 224).model_dump(mode="json")
    path = save_checkpoint(tmp_path / "small.pth", state | {"config": config})
    system = export_system("small", "exits", path, tmp_path / "export")
    records = session_records(system, "val", 2)
    session = system.session()
    assert session.size == 224 and records.exit_names == ("exit1", "exit2", "full")
    dataset = DetectionDataset("val", size=224, limit=2)
    array = as_input(dataset[1][0][None]).contiguous().numpy()
    (mine,) = session.detect(array, forced("exit2"))
    theirs = records.detections(1, 1)
    torch.testing.assert_close(theirs.boxes, torch.from_numpy(mine.boxes_xyxy[:100]) * 320 / 224)
    torch.testing.assert_close(theirs.scores, torch.from_numpy(mine.scores[:100]))
    assert records.column("top_score")[1, 1] == theirs.scores[0]
    # a full pass in eager mode knows the same of the image
    eager = record(load_released(path), dataset, "val", "data", "weights")
    torch.testing.assert_close(records.evidence[:, :, :2], eager.evidence[:, :, :2], rtol=0, atol=2e-3)
    torch.testing.assert_close(records.column("agreement"), eager.column("agreement"), rtol=0, atol=2e-2)
    torch.testing.assert_close(records.column("box_certainty"), eager.column("box_certainty"), rtol=0, atol=1e-3)
    again = session_records(system, "val", 2)
    assert torch.equal(again.scores[0], records.scores[0])


SMALL = {
    "train.images": 8, "train.epochs": 1, "train.compile": False, "limit": 8, "repeats": 2, "resamples": 4,
    "budgets": [0.5, 1.0], "seeds": [1], "variants": {"input_96": {"size": 96}}, "search.widths": [RELEASED],
}  # fmt: skip


def test_from_training_to_the_closing_table_on_eight_images(tmp_path):
    """One small variant stands for all: its float export under every name that the study gives it."""
    lines, config = [], load_config(PARAMS, SMALL | {"out": str(tmp_path)})
    folder = variants.train_variant("input_96", config, log=lines.append)
    variants.train_heads(folder, config, log=lines.append)
    trained = len(lines)
    assert variants.train_variant("input_96", config, log=lines.append) == folder
    variants.train_heads(folder, config, log=lines.append)
    assert len(lines) == trained  # what is trained is read
    alone, whole = load_released(folder / "static.pth"), load_released(folder / "variant.pth")
    assert alone.exit_names == ("full",) and whole.exit_names == ("exit1", "exit2", "full")
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in alone.state_dict().items())

    static = export_system("input_96", "input", folder / "static.pth", folder / "export_static")
    exits = export_system("exits on input_96", "exits", folder / "exits.pth", folder / "export_exits")
    int8 = [s._replace(name=f"{s.name} int8") for s in (static._replace(kind="int8"), exits)]
    again = [static, int8[0], exits, int8[1]]
    systems = compress.Systems([static._replace(name="full", kind="full"), static, int8[0]], again[2:], {1: again})
    measured = measure_times([static, exits], 2)
    exit_ms = {"exit1": 5.0, "exit2": 8.0, "full": 10.0, **{f"{look} at {e}": 1.0 for look in LOOKS_MS for e in EARLY}}
    names = [*systems.static, *systems.with_exits]
    times = {(s.name, name): {"median_ms": ms} for s in names for name, ms in exit_ms.items()}
    assert measured.keys() <= times.keys()  # what is timed is what is read; how long it took decides nothing here
    report = compress.measure_all(config, systems, times, log=lines.append)
    assert [row["name"] for row in report["static"]] == ["full", "input_96", "input_96 int8"]
    assert report["static"][0]["time_ratio"] == 1.0
    assert {row["AP_minus_full"] for row in report["static"]} == {0.0}  # the same weights under three names
    for system in report["with_exits"]:
        assert list(system["exits"]) == ["exit1", "exit2", "full"]
        assert sum((point["budgets"] for point in system["points"]), []) == config.budgets
        assert all(sum(point["exit_shares"].values()) == pytest.approx(1) for point in system["points"])
    # the other seed has the same weights here, so it stands where the first does
    (seed,) = report["seeds"]
    assert [row["name"] for row in seed["static"]] == ["input_96", "input_96 int8"]
    assert seed["with_exits"] == report["with_exits"]
    compress.save(report, tmp_path)
    assert json.loads((tmp_path / "metrics" / "static.json").read_text())["peers"][1]["name"] == "input_96"
    assert len(alternatives.table(report)) == 3 + 2 * 3


def test_who_reads_boxes_pays_for_all_exits_asked():
    """At 100 ms: suppression 3, observation 5. Leaving at exit1 adds 2 to its own time, which holds the suppression."""
    looks = [(f"{what} at {name}", ms) for name in EARLY for what, ms in LOOKS_MS.items()]
    times = {("s", look): {"median_ms": ms} for look, ms in looks}
    ratios = compress.passed_ratios(times, "s", ("exit1", "exit2", "full"), 100.0)
    assert ratios == pytest.approx([0.02, 0.07, 0.10])


def report():
    """Two static systems and one with exits, with round numbers."""
    shared = {"AP_interval": [0.1, 0.5], "AP50": 0.6, "macs": 2_000_000, "size_mib": 4.0, "parameters": 3_000_000}
    exits = {
        "exit1": shared | {"AP": 0.1, "time_ratio": 0.4, "passed_ratio": 0.0},
        "full": shared | {"AP": 0.3, "time_ratio": 1.1, "passed_ratio": 0.1},
    }
    points = [{"time_ratio": 0.6, "AP": 0.28, "AP_interval": [0.2, 0.3], "exit_shares": {"exit1": 0.5, "full": 0.5}}]
    static = [
        shared | {"name": "full", "kind": "full", "AP": 0.3, "time_ratio": 1.0},
        shared | {"name": "width_50", "kind": "width", "AP": 0.2, "time_ratio": 0.5},
    ]
    return {"static": static, "with_exits": [{"name": "exits", "exits": exits, "points": points, **shared}]}


def test_the_closing_table_and_the_winners_by_hand():
    found = report()
    table = alternatives.table(found)
    assert table["system"].tolist() == ["full", "width_50", "exits", "exits"]
    assert table["exit"].tolist() == ["–", "–", "exit1", "full"]
    assert table.loc[1, ["AP", "time / full", "M parameters", "MMAC"]].tolist() == [0.2, 0.5, 3.0, 2.0]
    best = alternatives.winners(found, [0.4, 0.5, 0.7, 1.0])
    assert best["system"].fillna("none").tolist() == ["none", "width_50", "exits, routed", "full"]


def test_seeds_are_counted_one_by_one():
    found, gaps = report(), ([0.01, 0.02], [-0.01, 0.02])
    for system in found["with_exits"]:
        system["name"] = "exits on width_50"
        system["points"] = [p | {"minus_peers": gaps[0], "minus_all": gaps[1]} for p in system["points"]]
    other = {**found["with_exits"][0], "points": [{"time_ratio": 0.6, "minus_peers": None, "minus_all": gaps[0]}]}
    found |= {
        "compress": {"seed": 3},
        "seeds": [{"seed": 4, "static": [{"name": "width_50", "AP": 0.25}], "with_exits": [other]}],
    }
    assert list(alternatives.of_every_seed(found, "exits on width_50")) == [3, 4]
    table = alternatives.seeds(found)
    assert table[["seed", "above peers", "above all static"]].values.tolist() == [
        [3, "1 of 1", "0 of 1"],
        [4, "0 of 0", "1 of 1"],
    ]
    assert table["AP full"].tolist() == [0.3, 0.3] and table["AP without exits"].tolist() == [0.2, 0.25]
    assert alternatives.seeds(found | {"seeds": []}).empty


def test_the_plane_draws_every_kind_and_curve():
    found = report()
    figure = alternatives_plane(
        found["static"], {"exits, routed": found["with_exits"][0]["points"]}, alternatives.PEERS
    )
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"full", "width", "hull of static peers", "hull of all static", "exits, routed"}
