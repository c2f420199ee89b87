"""Pruning: shapes stay, operations fall, and a saved detector is the same one."""

import pytest
import torch

from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.config import parse
from eelib.train import build_model
from studies.compress.prune import prune, prune_checkpoint
from studies.profiling import macs

IMAGE = torch.rand(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A detector with exits at random weights."""
    config = parse({"name": "whole", "data": {"size": 96}})
    model = build_model(config)
    state = {"model": model.state_dict(), "plan": model.plan, "config": config.model_dump(mode="json")}
    return save_checkpoint(tmp_path_factory.mktemp("whole") / "whole.pth", state)


@pytest.fixture(scope="module")
def start(whole, tmp_path_factory):
    """The start of a detector of half the width."""
    pytest.importorskip("torch_pruning")
    return prune_checkpoint(whole, 0.5, tmp_path_factory.mktemp("prune") / "start.pth", images=2)


@torch.no_grad()
def test_outputs_keep_their_shapes_and_operations_fall(whole, start):
    whole, halved = load_released(whole).eval(), load_released(start).eval()
    for before, after in zip(whole(IMAGE), halved(IMAGE), strict=True):
        assert [tuple(a.shape) for a in before[1:]] == [tuple(b.shape) for b in after[1:]]
    assert macs(halved) < 0.35 * macs(whole)
    assert macs(halved, "exit1") < macs(halved, "exit2") < macs(halved)
    assert parameters(halved) < 0.4 * parameters(whole)
    widths = [m.out_channels for m in halved.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)


@torch.no_grad()
def test_the_start_says_what_it_is(whole, start):
    state = load_checkpoint(start)
    assert state["origin"] == "whole.pth, pruned to 0.5 of its channels"
    assert state["plan"] == load_released(whole).plan
    config = parse({"name": "t", "model": {"exits": [6, 12], "maps": 4, "blank_gate": True, "start": str(start)}})
    model = build_model(config).eval()
    outputs = {output.name: output for output in model(IMAGE)}
    theirs = {output.name: output for output in load_released(start).eval()(IMAGE)}
    assert torch.equal(outputs["exit2"].cls_logits, theirs["exit2"].cls_logits)
    assert outputs["exit1"].cls_logits.shape == theirs["exit1"].cls_logits.shape  # a new exit on a narrow trunk
    boxes = outputs["full"].cls_logits.shape[1]
    assert torch.equal(outputs["full"].cls_logits, theirs["full"].cls_logits[:, :boxes])


@pytest.mark.parametrize(("exits", "full"), [([], True), ([8], False)])
def test_detectors_without_exits_and_truncated_ones_are_pruned(tmp_path, exits, full):
    pytest.importorskip("torch_pruning")
    config = parse({"name": "t", "model": {"exits": exits, "full": full, "blank_gate": True}, "data": {"size": 96}})
    model = build_model(config)
    state = {"model": model.state_dict(), "plan": model.plan, "config": config.model_dump(mode="json")}
    save_checkpoint(tmp_path / "whole.pth", state)
    halved = load_released(prune_checkpoint(tmp_path / "whole.pth", 0.5, tmp_path / "half.pth", images=2))
    last = model.exit_names[-1]
    assert halved.exit_names == model.exit_names and macs(halved, last) < 0.4 * macs(model, last)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    with pytest.raises(TrainingError, match=r"ratio: .*; expected a share of the channels in \(0, 1\)"):
        prune(None, ratio, None)


@torch.no_grad()
def test_fewer_maps_another_size_and_other_cuts_are_kept(whole, tmp_path):
    model = load_released(whole).eval()
    model.keep_maps(4)
    model.size, model.cuts = 256, {"exit1": 10, "exit2": 13}
    save_checkpoint(tmp_path / "m.pth", {"model": model.state_dict(), "plan": model.plan})
    again = load_released(tmp_path / "m.pth").eval()
    expected = {"size": 256, "maps": 4, "cuts": {"exit1": 10, "exit2": 13}, "classes": ["chair"]}
    assert again.plan == model.plan == expected
    image = IMAGE[..., :256, :256]
    for mine, theirs in zip(model(image), again(image), strict=True):
        assert torch.equal(mine.cls_logits, theirs.cls_logits)
    cells = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2
    assert model(image)[-1].cls_logits.shape == (1, 6 * cells, 2)


def test_a_plan_that_is_none_is_refused(whole, tmp_path):
    weights = load_checkpoint(whole)["model"]
    save_checkpoint(tmp_path / "p.pth", {"model": weights, "plan": {"size": None}})
    with pytest.raises(TrainingError, match="key 'plan' is {'size': None}; expected size, maps, cuts"):
        load_released(tmp_path / "p.pth")
