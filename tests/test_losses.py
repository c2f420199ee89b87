import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from eelib.losses import detection_loss
from eelib.model import EarlyExitSSDLite, ExitOutput


def test_ssd_loss_equals_torchvision():
    torch.manual_seed(0)
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    ratios = [[2.0, 3.0]] * 6
    scales = DefaultBoxGenerator(ratios, min_ratio=0.2, max_ratio=0.95).scales
    ours = EarlyExitSSDLite(early=False, scales=scales, aspect_ratios=ratios)
    ours.load_state_dict(reference.state_dict())
    for network in (reference, ours):
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
    images = torch.rand(2, 3, 320, 320)
    boxes = [torch.tensor([[20.0, 30, 120, 200], [200, 100, 260, 180]]), torch.zeros(0, 4)]
    targets = [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64)} for b in boxes]
    expected = reference(list(images), targets)
    actual = detection_loss(ours(images)[-1], targets, classification="hard_negative", box="smooth_l1")
    for key in ("classification", "bbox_regression"):
        torch.testing.assert_close(actual[key], expected[key], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("classification", ["hard_negative", "quality_focal"])
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_a_batch_without_objects_has_a_finite_loss(classification, box):
    defaults = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20]])
    output = ExitOutput(
        "full", torch.zeros(1, 2, 2, requires_grad=True), torch.zeros(1, 2, 4, requires_grad=True), defaults
    )
    losses = detection_loss(output, [{"boxes": torch.zeros(0, 4)}], classification=classification, box=box)
    sum(losses.values()).backward()
    assert losses["bbox_regression"].item() == 0
    assert torch.isfinite(losses["classification"])
