import pytest
import torch
from torchvision.models.detection import _utils
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from eelib.anchors import decode, default_boxes, encode
from eelib.model import ASPECT_RATIOS, SCALES

GRIDS = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]


@pytest.mark.parametrize("size_hw", [(320, 320), (240, 320)])
def test_default_boxes_equal_torchvision(size_hw):
    generator = DefaultBoxGenerator([list(r) for r in ASPECT_RATIOS], scales=list(SCALES))
    maps = [torch.zeros(1, 1, *grid) for grid in GRIDS]
    expected = generator(ImageList(torch.zeros(1, 3, *size_hw), [size_hw]), maps)[0]
    ours = default_boxes(GRIDS, SCALES, ASPECT_RATIOS, size_hw)
    assert ours.shape == (3234, 4)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def test_default_box_by_hand():
    boxes = default_boxes([(1, 1)], [0.5, 0.5], [[4.0]], (100, 200))
    expected = [[50, 25, 150, 75], [50, 25, 150, 75], [0, 37.5, 200, 62.5], [75, 0, 125, 100]]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_coder_equals_torchvision_and_round_trips():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator) * 200
    boxes = torch.cat((corner, corner + 5 + torch.rand(50, 2, generator=generator) * 100), 1)
    defaults = default_boxes([(5, 5)], [0.3, 0.5], [[2.0]], (320, 320))[:50]
    coder = _utils.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(encode(boxes, defaults), coder.encode_single(boxes, defaults))
    offsets = torch.randn(50, 4, generator=generator) * 3
    torch.testing.assert_close(decode(offsets, defaults), coder.decode_single(offsets, defaults))
    torch.testing.assert_close(decode(encode(boxes, defaults), defaults), boxes, atol=1e-3, rtol=1e-4)


def test_wrong_number_of_scales_is_refused():
    with pytest.raises(ValueError, match="need 2 scales"):
        default_boxes([(1, 1)], [0.5], [[2.0]], (10, 10))
