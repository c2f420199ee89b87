"""Pruning: shapes stay, operations fall, and a saved detector is the same one."""

import pytest
import torch

from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.config import ROOT
from eelib.data import DetectionDataset
from eelib.timing import macs
from studies.compress.prune import prune, without_exits

CHECKPOINT = ROOT / "checkpoints" / "exits.pth"
IMAGE = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def halved():
    return prune(load_released(CHECKPOINT), 0.5, DetectionDataset("train", size=320, limit=2), 0.5)


@torch.no_grad()
def test_a_saved_pruned_detector_is_the_same(halved, tmp_path):
    save_checkpoint(tmp_path / "p.pth", {"model": halved.state_dict(), "plan": halved.plan})
    again = load_released(tmp_path / "p.pth").eval()
    for mine, theirs in zip(halved.eval()(IMAGE), again(IMAGE), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    static = without_exits(halved).eval()
    assert static.exit_names == ("full",)
    assert torch.equal(static(IMAGE)[0].cls_logits, halved(IMAGE)[-1].cls_logits)


@torch.no_grad()
def test_outputs_keep_their_shapes_and_operations_fall(halved):
    whole = load_released(CHECKPOINT).eval()
    for before, after in zip(whole(IMAGE), halved(IMAGE), strict=True):
        assert [tuple(a.shape) for a in before[1:]] == [tuple(b.shape) for b in after[1:]]
    assert macs(halved) < 0.35 * macs(whole)
    assert macs(halved, "exit1") < macs(halved, "exit2") < macs(halved)
    assert parameters(halved) < 0.4 * parameters(whole)
    widths = [m.out_channels for m in halved.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)


@torch.no_grad()
def test_fewer_maps_another_size_and_other_cuts_are_kept(tmp_path):
    model = load_released(CHECKPOINT).eval()
    model.keep_maps(4)
    model.size, model.cuts = 256, {"exit1": 10, "exit2": 13}
    save_checkpoint(tmp_path / "m.pth", {"model": model.state_dict(), "plan": model.plan})
    again = load_released(tmp_path / "m.pth").eval()
    assert again.plan == model.plan == {"size": 256, "maps": 4, "cuts": {"exit1": 10, "exit2": 13}}
    image = IMAGE[..., :256, :256]
    for mine, theirs in zip(model(image), again(image), strict=True):
        assert torch.equal(mine.cls_logits, theirs.cls_logits)
    cells = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    assert model(image)[-1].cls_logits.shape == (1, 6 * cells, 2)


def test_no_gradient_is_left_behind(halved):
    assert all(p.grad is None for p in halved.parameters())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    with pytest.raises(TrainingError, match=r"ratio: .*; expected a share of the channels in \(0, 1\)"):
        prune(None, ratio, None, 0.5)


def test_a_plan_that_is_none_is_refused(tmp_path):
    weights = load_checkpoint(CHECKPOINT)["model"]
    save_checkpoint(tmp_path / "p.pth", {"model": weights, "plan": {"size": 320}})
    with pytest.raises(TrainingError, match="key 'plan' is {'size': 320}; expected size, maps and cuts"):
        load_released(tmp_path / "p.pth")
    save_checkpoint(tmp_path / "p.pth", {"model": {"a": torch.zeros(1)}, "plan": load_released(CHECKPOINT).plan})
    with pytest.raises(TrainingError, match="checkpoint of another architecture; it lacks key"):
        load_released(tmp_path / "p.pth")
