"""The bench: what it runs and what it says, never how long it takes."""

import pytest
import torch

from eelib.checkpoints import load_released
from eelib.config import ROOT
from eelib.deploy import export as deploy
from eelib.deploy.runtime import DeploymentError, EarlyExitSession
from studies import bench

CHECKPOINT = ROOT / "checkpoints" / "exits.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    deploy.export(CHECKPOINT, path)
    return path


@torch.no_grad()
def test_every_runtime_detects_the_same(folder):
    images = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    calls = bench.runtime_calls(load_released(CHECKPOINT).eval(), {"onnx staged": EarlyExitSession(folder)}, images)
    assert [key for key in calls if "cuda" not in key[0]] == [
        ("eager", "exit1"), ("eager", "exit2"), ("eager", "full"),
        ("onnx staged", "exit1"), ("onnx staged", "exit2"), ("onnx staged", "full"),
        ("onnx monolithic", "full"), ("onnx plain", "full"),
    ]  # fmt: skip
    for (_, name), call in calls.items():
        for theirs, mine in zip(calls["eager", name](), call(), strict=True):
            assert mine.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_half_of_what_arrives_leaves_at_each_exit(folder):
    session = EarlyExitSession(folder)
    images = torch.rand(8, 3, 320, 320, generator=torch.Generator().manual_seed(0)).numpy()
    exits = [d.exit_name for d in session.detect(images, bench.even_policy(session, images))]
    assert exits.count("exit1") == 4


def test_goals_by_hand():
    times = {("eager", "exit1"): 20, ("eager", "exit2"): 22, ("eager", "full"): 30, ("onnx staged", "exit1"): 5,
             ("onnx staged", "exit2"): 8, ("onnx staged", "full"): 12, ("onnx monolithic", "full"): 11.5,
             ("onnx plain", "full"): 10}  # fmt: skip
    rows = [
        {"runtime": r, "exit": e, "batch": 1, "threads": 1, "median_ms": t, "p95_ms": t} for (r, e), t in times.items()
    ]
    rows.append({"runtime": "onnx routed", "exit": "mixed", "batch": 32, "threads": 1, "median_ms": 200,
                 "p95_ms": 200, "predicted_ms": 170})  # fmt: skip
    goals = {g["goal"]: (round(g["value"], 3), g["met"]) for g in bench.check_goals(rows)}
    assert goals == {
        "exit1 / detector without exits, batch 1, one thread": (0.5, True),
        "exit2 / detector without exits, batch 1, one thread": (0.8, False),
        "staged full / one graph of all exits": (1.043, True),
        "staged full / detector without exits": (1.2, False),
        "eager / onnx at exit1": (4.0, True),
        "eager / onnx at exit2": (2.75, True),
        "eager / onnx at full": (2.5, True),
        "routed throughput / predicted from the stages, batch 32": (0.85, False),
    }
    table = bench.table(rows[:-1]).set_index(["runtime", "exit"])
    assert table.loc[("onnx staged", "exit2"), "batch 1, 1 thr"] == 0.8


def test_an_export_of_another_checkpoint_is_refused(folder):
    with pytest.raises(DeploymentError, match="export of another checkpoint"):
        bench.run(ROOT / "checkpoints" / "baseline.pth", folder, quick=True)
