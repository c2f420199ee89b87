import numpy as np
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from eelib.heads import flatten_predictions
from eelib.model import EarlyExitSSDLite, rescale_gradient

RATIOS = [[2.0, 3.0]] * 6


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return EarlyExitSSDLite().eval()


@torch.no_grad()
def test_full_path_equals_torchvision():
    torch.manual_seed(0)
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2).eval()
    scales = DefaultBoxGenerator(RATIOS, min_ratio=0.2, max_ratio=0.95).scales
    ours = EarlyExitSSDLite((), scales=scales, aspect_ratios=RATIOS).eval()
    ours.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 320, 320)
    detections = ours.postprocess(ours(images)[-1], (320, 320))
    for mine, theirs in zip(detections, reference(list(images)), strict=True):
        np.testing.assert_allclose(mine.scores, theirs["scores"], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(mine.boxes_xyxy, theirs["boxes"], atol=1e-2, rtol=1e-4)


@torch.no_grad()
def test_exits_leave_the_full_path_alone(model):
    alone = EarlyExitSSDLite(()).eval()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("early.")})
    images = torch.rand(1, 3, 320, 320)
    torch.testing.assert_close(model(images)[-1].cls_logits, alone(images)[-1].cls_logits, atol=1e-5, rtol=0)


def test_exits_are_lazy(model):
    ran = []
    handle = model.backbone.features[1].register_forward_hook(lambda *_: ran.append("tail"))
    exits = model.exits(torch.rand(1, 3, 320, 320))
    assert next(exits).name == "exit1"
    assert next(exits).name == "exit2"
    assert not ran
    assert next(exits).name == "full"
    handle.remove()
    assert ran == ["tail"]


@torch.no_grad()
def test_single_equals_batch(model):
    images = torch.rand(3, 3, 320, 320)
    together = model(images)
    for k, output in enumerate(model(images[1:2])):
        torch.testing.assert_close(output.cls_logits[0], together[k].cls_logits[1], atol=1e-5, rtol=1e-5)


def test_flatten_pairs_the_channels_of_a_box():
    maps = torch.arange(2 * 2 * 3).float().view(1, 4, 1, 3)  # 2 boxes a cell, 2 columns, 3 cells
    rows = flatten_predictions([maps], 2)
    assert rows[0].tolist() == [[0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]


def test_an_exit_costs_at_most_five_percent(model):
    macs = []

    def count(layer, inputs, output):
        macs.append(output[0].numel() * layer.weight[0].numel())

    def total(module, *args):
        macs.clear()
        handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        with torch.no_grad():
            module(*args)
        for handle in handles:
            handle.remove()
        return sum(macs)

    whole = total(EarlyExitSSDLite(()).eval(), torch.rand(1, 3, 320, 320))
    for name, channels in (("exit1", 80), ("exit2", 112)):
        assert total(model.early[name], torch.rand(1, channels, 20, 20)) < 0.05 * whole


def test_a_rescaled_gradient_by_hand():
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    y = rescale_gradient(x, 0.25)
    assert torch.equal(y, x)
    (3 * y).sum().backward()
    assert x.grad.tolist() == [0.75, 0.75]


def test_gradient_rescaling_gives_each_part_of_the_trunk_the_mean_over_the_exits_behind_it():
    """A third of three gradients before exit1's cut, a half of two before exit2's, full's alone after it."""
    torch.manual_seed(0)
    plain = EarlyExitSSDLite().eval()
    balanced = EarlyExitSSDLite(gradient_rescaling=True).eval()
    balanced.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 64)
    trunk = {m: list(m.backbone.features[0].children()) for m in (plain, balanced)}

    def gradients(network, names):
        loss = sum(o.cls_logits.square().mean() + o.bbox_regression.square().mean()
                   for o in network(images) if o.name in names)  # fmt: skip
        first = [next(trunk[network][child].parameters()) for child in (3, 10, 13)]
        return torch.autograd.grad(loss, first, allow_unused=True)

    by_exit = {name: gradients(plain, (name,)) for name in plain.exit_names}
    found = gradients(balanced, plain.exit_names)
    assert by_exit["exit1"][1] is None and by_exit["exit2"][2] is None
    expected = [
        sum(by_exit[name][0] for name in plain.exit_names) / 3,
        (by_exit["exit2"][1] + by_exit["full"][1]) / 2,
        by_exit["full"][2],
    ]
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))
