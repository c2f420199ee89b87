"""The detector that a configuration describes, from the weights that it starts from."""

import pytest
import torch

from eelib.checkpoints import save_checkpoint
from eelib.config import parse
from eelib.model import EarlyExitSSDLite
from eelib.train import build_model

IMAGES = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def built(**model):
    return build_model(parse({"name": "t", "model": model, "data": {"size": 128}})).eval()


@pytest.mark.parametrize("maps", [2, 4, 6])
def test_coarse_maps_are_left_out(maps):
    cells = [8, 4, 2, 1, 1, 1][:maps]
    model = built(exits=[], maps=maps)
    assert model.plan["maps"] == maps
    assert model(IMAGES)[-1].cls_logits.shape[1] == 6 * sum(side**2 for side in cells)


def test_a_start_loses_the_maps_that_are_not_kept(tmp_path):
    start = EarlyExitSSDLite(())
    save_checkpoint(tmp_path / "start.pth", {"model": start.state_dict(), "plan": start.plan})
    model = built(exits=[], maps=3, start=str(tmp_path / "start.pth"))
    for mine, theirs in zip(model.eval()(IMAGES), start.eval()(IMAGES), strict=True):
        count = mine.cls_logits.shape[1]
        assert count == 6 * (64 + 16 + 4) and torch.equal(mine.cls_logits, theirs.cls_logits[:, :count])


@torch.no_grad()
def test_an_exit_keeps_its_weights_where_the_trunk_has_the_same_channels(tmp_path):
    start = EarlyExitSSDLite((8, 12))
    path = str(save_checkpoint(tmp_path / "start.pth", {"model": start.state_dict(), "plan": start.plan}))
    kept, moved, other = (built(exits=exits, start=path).early.exit1 for exits in ([8], [10], [6]))
    assert torch.equal(kept.predictors[0][1].weight, start.early.exit1.predictors[0][1].weight)
    assert torch.equal(moved.predictors[0][1].weight, start.early.exit1.predictors[0][1].weight)
    assert not torch.equal(other.predictors[0][1].weight, start.early.exit1.predictors[0][1].weight)
    assert [output.name for output in built(exits=[6, 9], start=path)(IMAGES)] == ["exit1", "exit2", "full"]


@torch.no_grad()
def test_a_truncated_detector_starts_from_the_exit_at_its_place(tmp_path):
    start = EarlyExitSSDLite((8, 12)).eval()
    path = str(save_checkpoint(tmp_path / "start.pth", {"model": start.state_dict(), "plan": start.plan}))
    (mine,), theirs = built(exits=[12], full=False, start=path)(IMAGES), start(IMAGES)[1]
    assert mine.name == "exit1" and theirs.name == "exit2"
    assert torch.equal(mine.cls_logits, theirs.cls_logits)
    assert torch.equal(mine.bbox_regression, theirs.bbox_regression)
    narrow = built(exits=[12], exit_width=64, start=path).early.exit1
    assert len(narrow.down[0][1][0].weight) == 64  # learnt anew, not that of the exit at its place


@torch.no_grad()
def test_other_classes_start_from_the_known_score_and_keep_trunk_and_boxes(tmp_path, rooms):
    start = EarlyExitSSDLite((8, 12), blank_gate=True).eval()
    path = str(save_checkpoint(tmp_path / "start.pth", {"model": start.state_dict(), "plan": start.plan}))
    values = {"name": "t", "model": {"exits": [8, 12], "blank_gate": True, "start": path}}
    values["data"] = {"size": 128, "root": str(rooms), "category": ["chair", "stool"]}
    model = build_model(parse(values)).eval()
    for mine, theirs in zip(model(IMAGES), start(IMAGES), strict=True):
        torch.testing.assert_close(mine.cls_logits, theirs.cls_logits[..., [0, 1, 1]])
        torch.testing.assert_close(mine.bbox_regression, theirs.bbox_regression)
    assert torch.equal(model.blank["7"].logit.weight, start.blank["7"].logit.weight)
    two = str(save_checkpoint(tmp_path / "two.pth", {"model": model.state_dict(), "plan": model.plan}))
    values |= {"model": values["model"] | {"start": two}, "data": values["data"] | {"category": "chair"}}
    for mine, theirs in zip(build_model(parse(values)).eval()(IMAGES), start(IMAGES), strict=True):
        torch.testing.assert_close(mine.cls_logits, theirs.cls_logits)  # the mean of two that are equal
