import math

import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import generalized_box_iou_loss

from eelib.anchors import pairwise_iou
from eelib.config import LossConfig
from eelib.losses import Criterion, Targets, assign, detection_loss, distillation_loss, giou_loss
from eelib.model import EarlyExitSSDLite, ExitOutput


def targets_of(*boxes):
    """Padded targets of images with these boxes, of class 1 each."""
    most = max(1, *(len(b) for b in boxes))
    padded, labels = torch.zeros(len(boxes), most, 4), torch.zeros(len(boxes), most, dtype=torch.int64)
    for row, b in enumerate(boxes):
        padded[row, : len(b)], labels[row, : len(b)] = torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4), 1
    return Targets(padded, labels)


def matched_to(output, targets, iou_threshold=0.5):
    return assign(pairwise_iou(targets.boxes_xyxy, output.default_boxes), targets, output, iou_threshold)


def test_ssd_loss_equals_torchvision():
    torch.manual_seed(0)
    reference = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    ratios = [[2.0, 3.0]] * 6
    scales = DefaultBoxGenerator(ratios, min_ratio=0.2, max_ratio=0.95).scales
    ours = EarlyExitSSDLite((), scales=scales, aspect_ratios=ratios)
    ours.load_state_dict(reference.state_dict())
    for network in (reference, ours):
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eval()
    images = torch.rand(2, 3, 320, 320)
    boxes = [torch.tensor([[20.0, 30, 120, 200], [200, 100, 260, 180]]), torch.zeros(0, 4)]
    targets = [{"boxes": b, "labels": torch.ones(len(b), dtype=torch.int64)} for b in boxes]
    expected = reference(list(images), targets)
    output = ours(images)[-1]
    actual = detection_loss(output, matched_to(output, targets_of(*boxes)), "hard_negative", "smooth_l1")
    for key in ("classification", "bbox_regression"):
        torch.testing.assert_close(actual[key], expected[key], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("classification", ["hard_negative", "quality_focal"])
@pytest.mark.parametrize("box", ["smooth_l1", "giou"])
def test_a_batch_without_objects_has_a_finite_loss(classification, box):
    defaults = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20]])
    output = ExitOutput(
        "full", torch.zeros(1, 2, 2, requires_grad=True), torch.zeros(1, 2, 4, requires_grad=True), defaults
    )
    losses = detection_loss(output, matched_to(output, targets_of([])), classification, box)
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
    targets = targets_of([[0.0, 0, 10, 10]])
    student = raw("exit1", [0.0, 3.0], [[5.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    teacher = raw("full", [2.0, -3.0, 9.0], [[1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    losses = distillation_loss(student, teacher, matched_to(student, targets))
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
    targets = targets_of([[0.0, 0, 10, 10]])
    student = raw("exit1", [0.0, 0.0], [[1.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    teacher = raw("full", [0.0] * 3, [[5.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    losses = distillation_loss(student, teacher, matched_to(student, targets))
    assert losses["distilled_boxes"].item() == 0 and losses["distilled_classes"].item() == 0
    empty = distillation_loss(student, teacher, matched_to(student, targets_of([])))
    assert all(value.item() == 0 for value in empty.values())


def test_the_exits_default_boxes_are_the_first_of_full():
    with torch.no_grad():
        outputs = EarlyExitSSDLite().eval()(torch.rand(1, 3, 320, 320))
    for output in outputs[:2]:
        assert torch.equal(output.default_boxes, outputs[-1].default_boxes[: len(output.default_boxes)])


def test_the_whole_loss_is_the_weighted_sum_of_its_parts():
    targets = targets_of([[0.0, 0, 10, 10]])
    student = raw("exit1", [0.5, 0.0], [[2.0, 0, 0, 0], [0.0] * 4], DEFAULTS[:2])
    full = raw("full", [1.0, -2.0, -2.0], [[1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    loss = LossConfig(exit_weights=[2.0, 3.0], distillation=0.5, blank=0.25)
    total, parts = Criterion(loss, ("exit1", "full"))([student, full], targets, [torch.tensor([0.0])])
    exit1 = parts["exit1_classification"] + parts["exit1_bbox_regression"]
    exit1 += 0.5 * (parts["exit1_distilled_classes"] + parts["exit1_distilled_boxes"])
    expected = 2 * exit1 + 3 * (parts["full_classification"] + parts["full_bbox_regression"]) + 0.25 * math.log(2)
    assert total.item() == pytest.approx(float(expected), rel=1e-6) and parts["exit1_distilled_boxes"] > 0
    assert parts["blank1"].item() == pytest.approx(math.log(2)) and parts["loss"] == total
    _, early = Criterion(loss, ("exit1", "full"))([student, full], targets, learn=1)
    assert not any(name.startswith("full") for name in early)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = EarlyExitSSDLite((8,)).eval()
    outputs = model(torch.rand(2, 3, 96, 96))
    criterion = Criterion(LossConfig(distillation=1.0), model.exit_names)
    targets = targets_of([[10, 10, 60, 70]], [[20, 5, 40, 30], [50, 50, 90, 90]])
    wider = Targets(*(torch.nn.functional.pad(v, (0, 0, 0, 5) if v.ndim == 3 else (0, 5)) for v in targets))
    assert criterion(outputs, targets)[0] == criterion(outputs, wider)[0]


def test_each_class_has_its_own_logit():
    """A positive of class 2 raises l_2 - l_0 and lowers l_1 - l_0."""
    cls = torch.zeros(1, 3, 3, requires_grad=True)
    output = ExitOutput("full", cls, torch.zeros(1, 3, 4), DEFAULTS)
    targets = targets_of([[0.0, 0, 10, 10]])._replace(labels=torch.tensor([[2]]))
    matched = matched_to(output, targets)
    assert matched.classes[0].tolist() == [[0, 1], [0, 0], [0, 0]]
    for kind in ("quality_focal", "hard_negative"):
        (gradient,) = torch.autograd.grad(detection_loss(output, matched, kind)["classification"], cls)
        assert gradient[0, 0, 2] < 0 < gradient[0, 0, 1]


def test_giou_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 50, 4, 2, generator=generator) * 100
    a, b = (torch.cat((c, c + 1 + torch.rand(50, 4, 2, generator=generator) * 60), -1) for c in corner)
    torch.testing.assert_close(giou_loss(a, b).flatten(), generalized_box_iou_loss(a.flatten(0, 1), b.flatten(0, 1)))
