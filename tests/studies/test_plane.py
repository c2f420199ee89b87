"""The plane: verdicts by hand on made-up systems, and the study end to end on eight images."""

import json

import numpy as np
import pytest
import torch
from synthetic import noisy

from eelib.checkpoints import save_checkpoint
from eelib.config import ROOT, ConfigError, parse
from eelib.data import DetectionDataset
from eelib.routed_ap import RoutedAP
from eelib.train import build_model
from studies.compress import plane, results
from studies.compress.systems import SystemConfig, leaving_at, network_input, opened, session_records, systems_of
from studies.hull import Hull

PARAMS = ROOT / "params" / "plane.yaml"
IMAGES = 60
SETTINGS = {"resamples": 60, "prevalences": [0.5, 0.9], "latencies": [0.2, 0.5, 0.75, 1.0]}


def system(name, kind, exits, seed=0, int8=False):
    """A row as ``measure`` gives it; ``exits`` is time and place of each exit by name."""
    rows = {
        exit_: {"children": children, "macs": 1_000_000, "cut": 0.1, "median_ms": 10 * time, "p95_ms": 11 * time}
        | {"p99_ms": 12 * time, "time_ratio": time}
        for exit_, (time, children) in exits.items()
    }
    row = {"name": name, "kind": kind, "seed": seed, "int8": int8, "checkpoint_sha256": "c", "graphs_sha256": "weights"}
    return row | {"input_px": 320, "size_mib": 4.0, "parameters": 2_000_000, "exits": rows}


NETWORK = {"exit1": (0.3, 8), "exit2": (0.5, 12), "full": (1.02, None)}
SYSTEMS = [
    system("baseline", "plain", {"full": (1.0, None)}),
    system("small", "input", {"full": (0.45, None)}) | {"input_px": 256},
    system("cut", "truncated", {"exit1": (0.29, 8)}),
    system("network", "exits", NETWORK),
    system("network", "exits", NETWORK, seed=1),
]


def flags(sigma, seed=0):
    """Match flags of as many exits as there are spreads; ``seed`` is that of the images, which all systems share."""
    coco, made = noisy(IMAGES, seed, sigma=sigma)
    return coco, RoutedAP(made, coco)


@pytest.fixture(scope="module")
def judged():
    spreads = {("baseline", 0): (1.5,), ("small", 0): (9.0,), ("cut", 0): (9.5,)}
    spreads |= {("network", seed): (9.0, 2.0, 1.4) for seed in (0, 1)}
    evaluators = {key: flags(sigma)[1] for key, sigma in spreads.items()}
    report = plane.judge(SYSTEMS, evaluators, flags((1.0,))[0], SETTINGS)
    return {"split": "val", "systems": SYSTEMS} | report, evaluators


def row_of(rows, **values):
    (row,) = (row for row in rows if all(row[key] == value for key, value in values.items()))
    return row


def test_every_exit_has_its_ap_and_answers(judged):
    report, evaluators = judged
    network, own = evaluators["network", 0], report["exits"][0]["prevalence"]
    assert own == report["empty_images"] / report["images"] == (network.positives == 0).mean()
    assert len(report["exits"]) == 3 * 9  # of three shares of empty images
    row = row_of(report["exits"], system="network", seed=0, exit="exit2", prevalence=own)
    assert row["AP"] == network.of_exit(1) and row["AP_interval"][0] < row["AP"] < row["AP_interval"][1]
    claimed, right = network.claims([0.1] * 3)
    assert row["precision"] == pytest.approx(right[:, 1].sum() / claimed[:, 1].sum())
    assert row["recall"] == pytest.approx(right[:, 1].sum() / network.positives.sum())
    empty = network.positives == 0
    assert row["false_alarms"] == pytest.approx((claimed[empty, 1] > 0).mean())
    static = row_of(report["exits"], system="baseline", prevalence=own)
    assert static["minus_plain"] == [0, 0] and "minus_static" not in static


def test_more_empty_images_add_false_alarms_and_nothing_else(judged):
    report, _ = judged
    rows = [row for row in report["exits"] if (row["system"], row["seed"], row["exit"]) == ("network", 0, "exit1")]
    assert [row["prevalence"] for row in rows] == sorted(row["prevalence"] for row in rows)
    for key in ("AP", "precision"):
        assert rows[0][key] > rows[1][key] > rows[2][key]
    assert rows[0]["recall"] == pytest.approx(rows[2]["recall"])
    assert rows[0]["false_alarms"] == rows[2]["false_alarms"]


def test_a_network_is_judged_beside_the_hull_at_its_time(judged):
    report, evaluators = judged
    own = report["exits"][0]["prevalence"]
    network = {name: row_of(report["exits"], system="network", seed=0, exit=name, prevalence=own) for name in NETWORK}
    assert network["exit1"]["minus_peers"] is None and network["exit1"]["above_peers"] is None  # 0.3 < 0.45
    assert network["exit1"]["minus_static"] is not None  # the truncated detector is as fast
    assert network["exit2"]["above_static"] and network["exit2"]["minus_static"][0] > 0
    ap = {name: evaluators[name, 0].of_exit(0) for name in ("baseline", "small", "cut")}
    hull = Hull(np.array([1.0, 0.45, 0.29]), np.array([[ap["baseline"], ap["small"], ap["cut"]]]))
    gap = network["exit2"]["AP"] - hull.at(0.5)[0]
    assert network["exit2"]["minus_static"][0] < gap < network["exit2"]["minus_static"][1]


def test_a_coin_of_the_exits_lies_on_the_line_between_them(judged):
    report, evaluators = judged
    coins = results.rows_of(report, "coins")
    assert [row["time_ratio"] for row in coins] == [0.5, 0.75, 1.0]  # no exit is as fast as 0.2
    exit2, full = (evaluators["network", 0].of_exit(k) for k in (1, 2))
    assert coins[0]["AP"] == pytest.approx(exit2)
    assert coins[1]["AP"] == pytest.approx(exit2 + (0.75 - 0.5) / (1.02 - 0.5) * max(0, full - exit2))


def test_each_exit_is_beside_the_detector_trained_for_it_alone(judged):
    report, evaluators = judged
    rows = results.rows_of(report, "alone", seed=1)
    assert [(row["exit"], row["peer"]) for row in rows] == [("exit1", "cut"), ("full", "baseline")]
    assert rows[0]["time_to_peer"] == pytest.approx(0.3 / 0.29)
    assert rows[0]["AP_minus_peer"] == evaluators["network", 1].of_exit(0) - evaluators["cut", 0].of_exit(0)


def test_tables_verdicts_and_goals(judged):
    report, _ = judged
    table = results.exits_table(report).set_index(["system", "exit"])
    assert table.loc[("network", "exit2"), "p95"] == pytest.approx(0.55)
    seeds = results.seeds_table(report)
    assert list(seeds["exit"]) == list(NETWORK) and (seeds["seed 0"] == seeds["seed 1"]).all()
    beside = results.judged_table(report).set_index(["at", "time"])
    assert beside.loc[("exit2", 0.5), "above all static detectors"] == "2 of 2"
    assert beside.loc[("exit1", 0.3), "above full-depth static detectors"] is None
    peers, static = results.verdicts(report)
    assert (peers["compared"], peers["seeds"], static["system"]) == (3, 2, "network")
    text = f"network is above full-depth static detectors at {peers['above']} of 3 latencies with 2 of 2 seeds"
    assert peers["text"] == text
    goals = results.check_goals(report).set_index("goal")
    assert goals.loc["baseline full: AP", "limit"] == ">= 0.44"
    beside = goals.loc["network exit1 beside cut: time ratio and AP difference"]
    assert beside["limit"] == "<= 1.05 and >= -0.005" and beside["values"].count(";") == 1
    assert not any(goal.startswith("exits_256 exit1") for goal in goals.index)  # not measured
    for prevalence in results.prevalences(report):
        assert results.plane_figure(report, prevalence).axes


def test_routed_and_certified_points_stand_in_the_plane(judged):
    report, _ = judged
    point = {"prevalence": results.prevalences(report)[0], "time": 0.5, "AP": 0.3}
    certified = point | {"system": "router", "loss": "F1", "epsilon": 0.05, "certified": True}
    curves = [certified, certified | {"epsilon": 0.1}, certified | {"certified": False}, certified | {"loss": "recall"}]
    worth = [point | {"system": "benefit"}, point | {"system": "full alone"}]
    points = results.routed_points({"worth": worth}, {"curves": curves})
    assert [row["system"] for row in points] == ["benefit", "certified router"]
    figure = results.plane_figure(report, None, points)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"router: benefit", "router: certified router"} <= set(labels)
    other = results.plane_figure(report, 0.9, points)  # they are of another share of empty images
    assert not any(text.get_text().startswith("router") for text in other.legends[0].get_texts())
    beside = results.alone_table(report).set_index("exit")
    assert beside.loc["exit1", "time / peer"].tolist() == pytest.approx([0.3 / 0.29] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"systems": {"a": {"kind": "input", "weights": "x"}}}, r"of kind 'plain' are \[\]; expected one"),
        ({"systems.static_256.kind": "plain"}, r"are \['baseline', 'static_256'\]; expected one"),
        ({"systems.baseline.kind": "float"}, "key 'systems.baseline.kind' is 'float'"),
        ({"prevalences": [1.0]}, "key 'prevalences.0' is 1.0"),
        ({"budgets": [0.5]}, "unknown key 'budgets'"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        plane.load(PARAMS, settings)


def test_weights_of_several_seeds_are_systems_of_their_own(tmp_path):
    for seed in (1, 0):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "released.pth").touch()
    line = SystemConfig(kind="exits", weights=f"{tmp_path}/seed*/released.pth")
    found = systems_of("net", line, tmp_path / "out")
    assert [(s.name, s.seed, s.checkpoint.parent.name) for s in found] == [
        ("net", 0, "seed0"), ("net", 1, "seed1"), ("net int8", 0, "seed0"), ("net int8", 1, "seed1")
    ]  # fmt: skip
    assert {s.folder.name for s in found} == {"net_seed0", "net_seed1"}
    assert systems_of("net", SystemConfig(kind="exits", weights="none.pth"), tmp_path) == []


def test_nothing_has_a_time_without_the_plain_detector():
    config = plane.load(PARAMS, {"systems": {"baseline": {"kind": "plain", "weights": "none.pth"}}})
    with pytest.raises(ConfigError, match="key 'systems.baseline.weights' is 'none.pth': no such checkpoint"):
        plane.trained(config)


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """A plain detector and one with exits and gates: small, with random weights, statistics of eight images."""
    folder, paths = tmp_path_factory.mktemp("detectors"), {}
    for name, model in (("plain", {"exits": []}), ("exits", {"exits": [8, 12], "blank_gate": True})):
        config = parse({"name": name, "model": model, "data": {"size": 96}})
        detector = build_model(config).train()
        for layer in detector.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the mean of what was seen
        with torch.no_grad():
            list(detector.exits(torch.rand(8, 3, 96, 96), maps := []))
            detector.blank_logits(maps)
        state = {"model": detector.state_dict(), "plan": detector.plan, "config": config.model_dump(mode="json")}
        paths[name] = str(save_checkpoint(folder / f"{name}.pth", state))
    return paths


def settings(detectors, out):
    systems = {
        "plain": {"kind": "plain", "weights": detectors["plain"]},
        "exits": {"kind": "exits", "weights": detectors["exits"], "int8": False},
        "cut": {"kind": "truncated", "weights": "none.pth"},
    }
    small = {"split": "val", "limit": 8, "timed_images": 2, "int8_images": 2, "resamples": 5, "latencies": [0.8, 9.0]}
    return small | {"systems": systems, "out": str(out)}


@pytest.mark.slow
def test_from_weights_to_the_figure_on_eight_images(detectors, tmp_path):
    lines, config = [], plane.load(PARAMS, settings(detectors, tmp_path / "out"))
    report = plane.run(config, tmp_path, log=lines.append)
    assert json.loads((tmp_path / "metrics" / "plane.json").read_text()) == report
    assert [row["name"] for row in report["systems"]] == ["plain", "plain int8", "exits"]
    assert report["missing"] == ["cut"] and "left out: cut, there is no none.pth" in lines
    assert report["systems"][0]["exits"]["full"]["time_ratio"] == 1
    network = report["systems"][2]["exits"]
    assert list(network) == ["exit1", "exit2", "full"] and [e["children"] for e in network.values()] == [8, 12, None]
    assert {row["system"] for row in report["coins"]} == {"exits"}
    assert plane.recompute(tmp_path, report) == report  # from the flags alone
    assert len(results.exits_table(report)) == 5 and results.plane_figure(report).axes


@pytest.mark.slow
def test_what_is_recorded_is_what_the_session_detects(detectors, tmp_path):
    (system,) = systems_of("exits", SystemConfig(kind="exits", weights=detectors["exits"], int8=False), tmp_path)
    session = opened(system)
    records, dataset = session_records(system, session, "val", 3), DetectionDataset("val", size=96, limit=3)
    for k, name in enumerate(("exit1", "exit2", "full")):
        (mine,) = session.detect_batch(network_input(dataset, 1), leaving_at(session, name))
        theirs, image = records.detections(k, 1), dataset.coco.imgs[dataset.image_ids[1]]
        mine = mine.scaled(image["width"] / 96, image["height"] / 96).rows(slice(100))
        assert mine.exit_name == name and len(mine) == len(theirs)
        assert theirs.boxes_xyxy == pytest.approx(mine.boxes_xyxy, abs=1e-3)
        assert theirs.scores == pytest.approx(mine.scores, abs=1e-6)
