"""The bench: what it runs and what it says, never how long it takes."""

import pytest
import torch

from eelib.checkpoints import load_released
from eelib.deploy.manifest import DeploymentError
from eelib.deploy.runtime import Session
from studies import bench


@pytest.fixture(scope="module")
def images(looks):
    return torch.from_numpy(looks)


@pytest.mark.slow
def test_every_runtime_detects_the_same(checkpoint, exported, images):
    model, sessions = load_released(checkpoint("gates")).eval(), bench.sessions_of(exported("gates"), 1)
    calls = bench.calls_of(model, sessions, images[:2])
    exits = ("exit1", "exit2", "full")
    expected = [("eager", name) for name in exits]
    for runtime in sessions:
        expected += [(runtime, name) for name in (*exits, "plain")]
    assert list(calls) == [*expected, ("onnxruntime monolithic", "full")] and "onnxruntime" in sessions
    for (_, name), call in calls.items():
        for theirs, mine in zip(calls["eager", "full" if name == "plain" else name](), call(), strict=True):
            assert mine.scores == pytest.approx(theirs.scores, abs=1e-4)


def test_half_of_what_arrives_leaves_at_each_exit(exported, images):
    session = bench.sessions_of(exported("two exits"), 1)["onnxruntime"]
    exits = [
        d.exit_name for d in session.detect_batch(images[:8].numpy(), bench.even_rule(session, images[:8].numpy()))
    ]
    assert exits.count("exit1") == 4


def test_a_grid_has_every_call_and_ratios_to_the_baseline(checkpoint, exported, images, monkeypatch):
    many = images.repeat(3, 1, 1, 1)[:32]
    monkeypatch.setattr(bench, "measure", lambda calls, repeats, warmup=0: {
        key: {"median_ms": 2.0 if key == bench.BASELINE else 1.0, "p95_ms": 3.0, "p99_ms": 4.0} for key in calls
    })  # fmt: skip
    model = load_released(checkpoint("two exits")).eval()
    unit = bench.Baseline(exported("plain"), many)
    rows = bench.time_grid(model, exported("two exits"), many, unit, rounds={(1, 1): 2, (1, 32): 2}, log=lambda _: None)
    ones = [row for row in rows if (row["runtime"], row["exit"]) == bench.BASELINE]
    assert [row["ratio"] for row in ones] == [1.0, 1.0] and [row["images_per_second"] for row in ones] == [500, 16000]
    assert {row["ratio"] for row in rows if row not in ones} == {0.5}
    (routed,) = (row for row in rows if row["exit"] == "routed")
    assert (
        routed["batch"] == 32 and sum(routed["exits"].values()) == 32 and routed["predicted_ms"] == pytest.approx(1.0)
    )
    table = bench.table(rows).set_index(["runtime", "exit"])
    assert table.loc[bench.BASELINE, "batch 1"] == 1 and table.loc[("onnxruntime", "exit1"), "ms"] == 1
    assert len(bench.runtimes_figure(rows).axes) == 3


def test_evidence_is_timed_against_stages_without_it(exported, images, monkeypatch):
    ms = {("exit1", "with"): 1.1, ("exit2", "with"): 1.2, ("plain", ""): 10.0}
    monkeypatch.setattr(bench, "measure", lambda calls, repeats: {
        key: {"median_ms": ms.get(key, 1.0), "ran": call()} for key, call in calls.items()
    })  # fmt: skip
    cost = bench.evidence_cost(exported("gates"), images[:1].numpy())
    assert cost == {"exit1": pytest.approx(1.0), "exit2": pytest.approx(2.0)}


def test_routed_latency_counts_every_image_once(exported, images):
    session, arrays = bench.sessions_of(exported("two exits"), 1)["onnxruntime"], list(images[:11].numpy())
    rule, plain = bench.even_rule(session, images[:11].numpy()), Session(exported("plain"))
    paths = {"baseline": (plain, plain.at_exit("full"), arrays), "routed": (session, rule, arrays)}
    rows = {(row["path"], row["batch"]): row for row in bench.routed_latency(paths)}
    assert list(rows) == [("baseline", 1), ("routed", 1), ("baseline", 8), ("routed", 8)]
    assert [rows["routed", batch]["images"] for batch in (1, 8)] == [11, 8]  # three do not fill a batch
    left = [found.exit_name for found in session.detect_batch(images[:11].numpy(), rule)]
    assert rows["routed", 1]["exits"] == {name: left.count(name) for name in set(left)}
    assert rows["baseline", 8]["exits"] == {"full": 8} and rows["baseline", 8]["ratio"] == 1
    assert all(row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows.values())
    assert list(bench.latency_table(list(rows.values()))["left at"])[0] == "full 11"


def test_goals_by_hand():
    times = {("eager", "exit1"): 20, ("eager", "exit2"): 22, ("eager", "full"): 30, ("onnxruntime", "exit1"): 5,
             ("onnxruntime", "exit2"): 8, ("onnxruntime", "full"): 12, ("onnxruntime monolithic", "full"): 11.5,
             ("onnxruntime", "plain"): 10, ("onnxruntime", "baseline"): 16, ("onnxruntime int8", "exit1"): 4.5,
             ("onnxruntime int8", "exit2"): 4}  # fmt: skip
    rows = [{"runtime": r, "exit": e, "batch": 1, "threads": 1, "median_ms": t} for (r, e), t in times.items()]
    rows.append({"runtime": "onnxruntime", "exit": "routed", "batch": 32, "threads": 1, "median_ms": 200,
                 "predicted_ms": 170})  # fmt: skip
    goals = {g["goal"]: (round(g["value"], 3), g["met"]) for g in bench.check_goals(rows, "exits_256")}
    assert goals == {
        "exit1 / baseline at 320 px": (0.312, True),
        "exit2 / baseline at 320 px": (0.5, False),
        "full / baseline at 320 px": (0.75, False),
        "full in stages / one graph of all exits": (1.043, True),
        "onnxruntime int8 / float on onnxruntime at exit1": (0.9, False),
        "eager / onnxruntime at exit1": (4.0, True),
        "eager / onnxruntime at exit2": (2.75, True),
        "eager / onnxruntime at full": (2.5, True),
        "routed throughput / predicted from the exits, batch 32": (0.85, False),
    }
    others = {g["goal"] for g in bench.check_goals(rows, "my")}  # the goals of AP and time are of the released ones
    assert goals.keys() - others == {f"{name} / baseline at 320 px" for name in ("exit1", "exit2", "full")}


def test_an_export_of_another_checkpoint_is_refused(checkpoint, exported, tmp_path):
    with pytest.raises(DeploymentError, match="export of another checkpoint"):
        bench.run(checkpoint("plain"), exported("two exits"), tmp_path, quick=True)
