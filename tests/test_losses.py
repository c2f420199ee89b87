import math

import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from eelib.losses import detection_loss, distillation_loss, joint_loss
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


DEFAULTS = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])


def raw(name, logits, offsets, defaults=DEFAULTS):
    """An output of one image: the chair's logit over a background of 0, offsets (dx, dy, dw, dh)."""
    cls = torch.stack((torch.zeros(len(logits)), torch.tensor(logits)), -1)[None]
    return ExitOutput(name, cls.requires_grad_(), torch.tensor([offsets]).requires_grad_(), defaults)


def test_distillation_by_hand():
    """One positive, default box 0 on the object; the exit's box is 5 px off and full's 1 px (offsets are tenths)."""
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 10]])}]
    student = raw("exit1", [0.0, 3.0], [[5.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    teacher = raw("full", [2.0, -3.0, 9.0], [[1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    losses = distillation_loss(student, teacher, targets)
    q = 1 / (1 + math.exp(-2))  # full's probability; the exit's is a half
    kl = q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q))
    assert losses["distilled_classes"].item() == pytest.approx(kl, abs=1e-6)
    # boxes [5, 15] and [1, 11] share 6 of 14 px and their hull is their union: GIoU = IoU = 6 / 14
    assert losses["distilled_boxes"].item() == pytest.approx(2 * (1 - 6 / 14), abs=1e-5)
    sum(losses.values()).backward()
    assert teacher.cls_logits.grad is None and teacher.bbox_regression.grad is None
    assert student.cls_logits.grad[0, 1].abs().sum() == 0  # not a positive
    # the mean over the one positive: dKL/dlogit = p - q
    assert student.cls_logits.grad[0, 0, 1].item() == pytest.approx(0.5 - q, abs=1e-6)


def test_an_exit_does_not_follow_a_box_that_is_further_off():
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 10]])}]
    student = raw("exit1", [0.0, 0.0], [[1.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    teacher = raw("full", [0.0] * 3, [[5.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    losses = distillation_loss(student, teacher, targets)
    assert losses["distilled_boxes"].item() == 0 and losses["distilled_classes"].item() == 0
    empty = distillation_loss(student, teacher, [{"boxes": torch.zeros(0, 4)}])
    assert all(value.item() == 0 for value in empty.values())
    with pytest.raises(ValueError, match="2 default boxes of exit1 are not the first of full"):
        distillation_loss(student._replace(default_boxes=DEFAULTS[1:]), teacher, targets)


def test_the_exits_default_boxes_are_the_first_of_full():
    with torch.no_grad():
        outputs = EarlyExitSSDLite().eval()(torch.rand(1, 3, 320, 320))
    for output in outputs[:2]:
        assert torch.equal(output.default_boxes, outputs[-1].default_boxes[: len(output.default_boxes)])


def test_the_joint_loss_is_the_weighted_sum_of_its_parts():
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 10]])}]
    student = raw("exit2", [0.5, 0.0], [[2.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    full = raw("full", [1.0, -2.0, -2.0], [[1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    total, parts = joint_loss([student, full], targets, (9.0, 2.0, 3.0), teacher=full, distillation=0.5)
    exit2 = parts["exit2_classification"] + parts["exit2_bbox_regression"]
    exit2 += 0.5 * (parts["exit2_distilled_classes"] + parts["exit2_distilled_boxes"])
    expected = 2 * exit2 + 3 * (parts["full_classification"] + parts["full_bbox_regression"])
    assert total.item() == pytest.approx(expected, rel=1e-6) and parts["exit2_distilled_boxes"] > 0
    alone, rest = joint_loss([full], targets, (9.0, 2.0, 3.0))
    assert set(rest) == {"full_classification", "full_bbox_regression"} and alone < total
