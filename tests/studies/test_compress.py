"""Alternatives to early exits: configuration, choices, the hull and its distance, by hand."""

import json

import numpy as np
import pytest
import torch
import yaml

from eelib.__main__ import main
from eelib.checkpoints import TrainingError, load_released, save_checkpoint
from eelib.config import ROOT, ConfigError
from eelib.records import record
from studies.compress import alternatives, search, variants
from studies.compress import study as compress
from studies.compress.systems import System, session_records, system
from studies.compress.variants import RELEASED, Variant, distilling_step, fine_tuning, folder_of, load_config
from studies.figures_routing import alternatives_plane

PARAMS = ROOT / "params" / "compress.yaml"
ALL_OF_256 = ("input_256", "input_256 int8", "exits on input_256", "exits on input_256 int8")


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
        ({"importance": "luck"}, "key 'importance' is 'luck'"),
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
        "slow": {"val_AP": 0.3, "predicted_ratio": 0.9},
        "good": {"val_AP": 0.2, "predicted_ratio": 0.7},
        "fast": {"val_AP": 0.2, "predicted_ratio": 0.5},
    }
    assert compress.best_variant(trained, 0.75) == "fast"
    assert compress.best_variant(trained, 1.0) == "slow"
    assert compress.best_variant(trained, 0.1) == "slow"


def test_kinds():
    cases = {"width": {"width": 0.5}, "input": {"size": 256}, "tail": {"maps": 4}, "distilled": {"teacher": 1.0}}
    assert all(compress.kind_of("v", {"v": Variant(**values)}) == kind for kind, values in cases.items())
    assert compress.kind_of("v", {"v": Variant(width=0.5, size=256)}) == "mixed"
    assert compress.kind_of("searched", {}) == "search"


def test_time_of_a_candidate_is_the_sum_of_its_segments():
    pieces = {"trunk 0-8": 4.0, "trunk 8-10": 1.0, "trunk 10-12": 2.0, "trunk 12-13": 0.5, "exit1": 0.3, "exit2": 0.2}
    table = {"released 320": pieces | {"tail 6": 3.0, "tail 4": 2.5}}
    late = Variant(cuts=(10, 12), maps=4)
    found = search.predicted_ms(table, RELEASED, late, exits=True)
    assert found == pytest.approx({"exit1": 5.3, "exit2": 7.5, "full": 10.5})
    assert search.predicted_ms(table, RELEASED, late, exits=False) == pytest.approx({"full": 10.0})
    with pytest.raises(TrainingError, match=r"no 'released' of 256 px with 6 maps and cuts \(8, 12\)"):
        search.predicted_ms(table, RELEASED, Variant(size=256), exits=True)
    with pytest.raises(TrainingError, match=r"cuts \(9, 12\)"):
        search.predicted_ms(table, RELEASED, Variant(cuts=(9, 12)), exits=True)


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
    assert parts["distilled_classes"] == pytest.approx(0, abs=1e-5)
    assert parts["distilled_boxes"] == 0
    assert float(loss.detach()) == pytest.approx(parts["classification"] + parts["bbox_regression"], abs=1e-4)


@torch.no_grad()
def test_records_of_an_export_are_what_the_session_detects(tmp_path):
    from eelib.data import DetectionDataset, as_input, build_transform
    from eelib.deploy.runtime import forced

    model = load_released(ROOT / "checkpoints" / "exits.pth")
    state = {"model": model.state_dict(), "plan": model.plan | {"size": 224}}
    config = fine_tuning(load_config(PARAMS), 224).model_dump(mode="json")
    path = save_checkpoint(tmp_path / "small.pth", state | {"config": config})
    one = system("small", "exits", path, tmp_path / "export")
    records = session_records(one, "val", 2)
    session = one.session()
    assert session.size == 224 and records.exit_names == ("exit1", "exit2", "full")
    dataset = DetectionDataset("val", transform=build_transform(224), limit=2)
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
    again = session_records(one, "val", 2)
    assert torch.equal(again.scores[0], records.scores[0])


def test_a_variant_is_trained_once(tmp_path, monkeypatch):
    """Training is what `fit` tests; here: what is kept, and that it is not made again."""

    def no_training(model, *args, **kwargs):
        return [{"epoch": 1, "seconds": 1.5}]

    monkeypatch.setattr(variants, "fit", no_training)
    settings = {"out": str(tmp_path), "importance": "bn_scale", "limit": 2, "train.images": 8}
    config, lines = load_config(PARAMS, settings), []
    folder = variants.train_variant("width_75", config, log=lines.append)
    static, whole = load_released(folder / "static.pth"), load_released(folder / "variant.pth")
    assert static.exit_names == ("full",) and whole.exit_names == ("exit1", "exit2", "full")
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in static.state_dict().items())
    assert json.loads((folder / "variant.json").read_text())["seconds"] == 1.5
    variants.train_variant("width_75", config, log=lines.append)
    assert lines == ["training width_75"]


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
    for one in found["with_exits"]:
        one["name"] = "exits on width_50"
        one["points"] = [p | {"minus_peers": gaps[0], "minus_all": gaps[1]} for p in one["points"]]
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


def test_the_systems_of_the_best_alternative_are_known_by_the_names_that_seeds_replace(monkeypatch, tmp_path):
    monkeypatch.setattr(
        compress, "system", lambda name, kind, weights, folder, int8=0: System(name, kind, weights, folder)
    )
    config = load_config(PARAMS)
    for best in ("input_256", "searched"):
        folders = {name: tmp_path / name for name in ("searched", *config.variants)}
        variants_ = config.variants | {"searched": Variant(width=0.75)}
        static, with_exits = compress.systems_of(config, {"folders": folders, "variants": variants_, "best": best})
        assert static[0].name == "full" and with_exits[0].name == "exits"  # what times and 07 go by
        names = [one.name for one in static]
        assert len(set(names)) == len(names) and {best, f"{best} int8"} <= set(names)
        assert [one.name for one in with_exits[2:]] == [f"exits on {best}", f"exits on {best} int8"]
        assert compress.systems_on(best, tmp_path, config)[1].kind == "int8"


def test_another_seed_stands_among_the_static_systems_in_place_of_the_first(monkeypatch):
    """Its own float and int8 take their columns, whatever their order, and the first one's samples stay."""
    seen, values = [], {"full": {"AP": 0.2, "AP50": 0.4, "AP_interval": [0.1, 0.3], "time_ratio": 0.5}}
    rows = [{"name": n} for n in ("full", "input_256", "full int8", "input_256 int8")]
    samples = np.zeros((3, 4))
    monkeypatch.setattr(compress, "session_records", lambda *a: None)
    monkeypatch.setattr(compress, "systems_on", lambda name, *a: [System(n, "k", None, None) for n in ALL_OF_256])
    monkeypatch.setattr(
        compress, "exit_rows", lambda one, *a: (values, np.full((3, 1), ALL_OF_256.index(one.name) + 1))
    )
    monkeypatch.setattr(
        compress, "routed_rows", lambda one, c, t, truth, rows, samples: seen.append(samples[0].tolist()) or one.name
    )
    row = compress.seed_row(1, None, load_config(PARAMS), "input_256", {}, None, rows, samples)
    assert row["with_exits"] == ["exits on input_256", "exits on input_256 int8"]
    assert seen == [[0, 1, 0, 2]] * 2 and not samples.any()
    assert [one["name"] for one in row["static"]] == ["input_256", "input_256 int8"] and row["static"][0]["AP"] == 0.2


def test_who_reads_boxes_pays_for_all_exits_asked(monkeypatch):
    """At 100 ms: suppression 3, observation 5. Leaving at exit1 adds 2 to its own time, which holds the suppression."""

    class NoDetector:
        def __init__(self, *_):
            self.exits = 3

        def eval(self):
            return self

    class Records(list):
        exit_names = ("exit1", "exit2", "full")

    monkeypatch.setattr(compress, "RoutedAP", NoDetector)
    monkeypatch.setattr(compress, "load_released", NoDetector)
    monkeypatch.setattr(compress, "macs", lambda *_: 0)
    monkeypatch.setattr(compress, "bootstrap", lambda *_: np.zeros((2, 3)))
    monkeypatch.setattr(compress, "_scores", lambda *_: {})
    times = {("s", name): {"median_ms": ms} for name, ms in (("exit1", 50.0), ("exit2", 70.0), ("full", 110.0))}
    for name in ("exit1", "exit2"):
        times |= {
            ("s", f"suppression at {name}"): {"median_ms": 3.0},
            ("s", f"observation at {name}"): {"median_ms": 5.0},
        }
    rows, _ = compress.exit_rows(
        System("s", "exits", None, None), Records([0]), times, compress.Truth(None, None, 100.0)
    )
    assert [row["passed_ratio"] for row in rows.values()] == pytest.approx([0.02, 0.07, 0.10])
    assert [row["time_ratio"] for row in rows.values()] == pytest.approx([0.5, 0.7, 1.1])


def test_the_plane_draws_every_kind_and_curve():
    found = report()
    figure = alternatives_plane(
        found["static"], {"exits, routed": found["with_exits"][0]["points"]}, alternatives.PEERS
    )
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"full", "width", "hull of static peers", "hull of all static", "exits, routed"}
