"""The bench: what it runs and what it says, never how long it takes."""

import pytest
import torch

from eelib.__main__ import main
from eelib.checkpoints import load_released
from eelib.config import ROOT, load
from eelib.data import load_coco
from eelib.deploy import export as deploy
from eelib.deploy.runtime import EarlyExitSession
from studies import bench

CHECKPOINT = ROOT / "checkpoints" / "exits.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    deploy.export(CHECKPOINT, path)
    return path


@pytest.fixture(scope="module")
def rows(folder):
    """The grid with two rounds of one batch of 32, on one thread."""
    patch = pytest.MonkeyPatch()
    patch.setattr(bench, "runtime_calls", _small(bench.runtime_calls))
    model = load_released(CHECKPOINT).eval()
    images = torch.rand(32, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    found = bench.time_grid(model, folder, images, rounds={(1, 1): 2, (1, 32): 2}, log=lambda _: None)
    patch.undo()
    return found


def _small(calls_of):
    """The same calls on the first image alone: the grid's bookkeeping is tested, not its speed."""
    return lambda model, sessions, images: calls_of(model, sessions, images[:1])


@torch.no_grad()
def test_every_runtime_detects_the_same(folder):
    images = bench._sample(2)
    calls = bench.runtime_calls(load_released(CHECKPOINT).eval(), {"onnx staged": EarlyExitSession(folder)}, images)
    assert [key for key in calls if "cuda" not in key[0]] == [
        ("eager", "exit1"), ("eager", "exit2"), ("eager", "full"),
        ("onnx staged", "exit1"), ("onnx staged", "exit2"), ("onnx staged", "full"),
        ("onnx monolithic", "full"), ("onnx plain", "full"),
    ]  # fmt: skip
    for (_, name), call in calls.items():
        for theirs, mine in zip(calls["eager", name](), call(), strict=True):
            torch.testing.assert_close(torch.as_tensor(mine.scores).cpu(), theirs.scores, atol=1e-5, rtol=0)


def test_the_grid_has_every_cell_and_the_routed_row(rows):
    cells = {(r["runtime"], r["exit"], r["batch"]) for r in rows if "cuda" not in r["runtime"]}
    assert len(cells) == 8 * 2 + 1
    (routed,) = [r for r in rows if r["runtime"] == "onnx routed"]
    assert sum(routed["exits"].values()) == 32
    assert routed["exits"]["exit1"] == 16  # half of what arrives there
    staged = {r["exit"]: r["median_ms"] for r in rows if (r["runtime"], r["batch"]) == ("onnx staged", 32)}
    expected = sum(count * staged[name] / 32 for name, count in routed["exits"].items())
    assert routed["predicted_ms"] == pytest.approx(expected)
    assert all(0 < r["median_ms"] <= r["p95_ms"] for r in rows)


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
        "exit1 / staged full, batch 1, one thread": (0.417, True),
        "exit2 / detector without exits, batch 1, one thread": (0.8, False),
        "exit2 / staged full, batch 1, one thread": (0.667, True),
        "staged full / one graph of all exits": (1.043, True),
        "staged full / detector without exits": (1.2, False),
        "eager / onnx at exit1": (4.0, True),
        "eager / onnx at exit2": (2.75, True),
        "eager / onnx at full": (2.5, True),
        "routed throughput / predicted from the stages, batch 32": (0.85, False),
    }
    table = bench.table({"times": rows[:-1]}).set_index(["runtime", "exit"])
    assert table.loc[("onnx staged", "exit2"), "batch 1, 1 thr"] == 0.8


def test_a_training_step_trains_and_its_parts_do_not():
    config = load(ROOT / "params" / "phase_2_0_scratch.yaml")
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": 2})})
    calls = bench.training_calls(config)
    assert calls.keys() == {"loader", "forward_backward", "step"}
    images, targets = calls["loader"]()
    assert images.shape == (2, 3, 320, 320) and len(targets) == 2
    for _ in range(5):  # past the end of the four batches
        calls["loader"]()
    calls["forward_backward"]()
    calls["step"]()


def test_scorers_agree(tiny):
    coco = load_coco(tiny / "val.json")
    results = [
        {"image_id": 1, "category_id": 62, "bbox": [4, 6, 20, 28], "score": 0.9},
        {"image_id": 2, "category_id": 62, "bbox": [1, 1, 9, 9], "score": 0.8},
        {"image_id": 1, "category_id": 62, "bbox": [30, 10, 20, 20], "score": 0.3},
    ]
    values = {name: call() for name, call in bench.scorer_calls(coco, results).items()}
    assert values["hotcoco"] == pytest.approx(values["pycocotools"], abs=1e-9)
    assert 0.5 < values["pycocotools"] < 1


def test_peak_memory_is_the_childs_own():
    small = bench._peak("pass", [])
    large = bench._peak("x = bytearray(200 * 2**20)", [])
    assert 3 < small < 60  # an interpreter, whatever this process holds
    assert large - small == pytest.approx(200, abs=10)


def test_an_export_of_another_checkpoint_is_refused(folder, capsys):
    argv = ["bench", "--quick", "--checkpoint", str(ROOT / "checkpoints" / "baseline.pth"), "--export", str(folder)]
    assert main(argv) == 2
    assert "export of another checkpoint" in capsys.readouterr().err
