import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from eelib.anchors import BACKGROUND, default_boxes, match, match_iou, pairwise_iou
from eelib.preflight import matching

DEFAULTS = default_boxes([(8, 8), (4, 4)], [0.15, 0.3, 0.6], [[2.0], [2.0]], (320, 320))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000), st.sampled_from([0.4, 0.5, 0.7]))
def test_iou_matching_equals_torchvision(objects, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * 250
    boxes = torch.cat((corner, corner + 8 + torch.rand(objects, 2, generator=generator) * 100), 1)
    expected = SSDMatcher(threshold)(box_iou(boxes, DEFAULTS)).clamp(min=-1)
    assert torch.equal(match_iou(boxes, DEFAULTS, threshold), expected)


def test_an_object_between_the_cells_still_has_a_positive():
    tiny = torch.tensor([[39.0, 39.0, 41.0, 41.0]])
    assert (match_iou(tiny, DEFAULTS) == 0).sum() == 1


def test_no_objects():
    assert (match_iou(torch.zeros(0, 4), DEFAULTS) == BACKGROUND).all()


def test_a_batch_matches_as_its_images_do():
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(3, 6, 2, generator=generator) * 250
    boxes = torch.cat((corner, corner + 8 + torch.rand(3, 6, 2, generator=generator) * 100), 2)
    valid = torch.arange(6) < torch.tensor([[6], [0], [2]])
    matched = match(pairwise_iou(boxes, DEFAULTS), valid, 0.4)
    for row, count in enumerate((6, 0, 2)):
        assert torch.equal(matched[row], match_iou(boxes[row, :count], DEFAULTS, 0.4))


def test_quality_by_hand():
    boxes, defaults = (
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]]),
    )
    images = [(boxes, torch.tensor([0, 0, -1])), (boxes, torch.tensor([-1, -1, 0]))]
    assert matching(images, defaults) == {"objects": 2, "reached": 0.5, "positives": 3, "iou": 0.5}
    assert matching([], defaults) == {"objects": 0, "reached": 0, "positives": 0, "iou": 0}
