import pytest
import torch
from torchvision import tv_tensors

from eelib.data import DataError, DetectionDataset, build_transform
from eelib.model import EarlyExitSSDLite
from eelib.supervision import MaskSupervised, mask_loss


def test_taps_are_the_maps_that_they_name():
    """Four maps of 40, 20, 20 and 10 cells a side; the exits are the detector's own."""
    torch.manual_seed(0)
    detector = EarlyExitSSDLite().eval()
    trained = MaskSupervised(detector).eval()
    images = torch.rand(2, 3, 320, 320)
    with torch.no_grad():
        exits, masks = trained(images)
        own = detector(images)
    assert [tuple(m.shape) for m in masks] == [(2, 1, 40, 40), (2, 1, 20, 20), (2, 1, 20, 20), (2, 1, 10, 10)]
    for output, alone in zip(exits, own, strict=True):
        assert torch.equal(output.cls_logits, alone.cls_logits)


def test_loss_by_hand():
    """One map of one cell that is half chair, at p = 0.5: ln 2 of cross-entropy, Dice 1 - 1.5 / 1.5 = 0."""
    masks = torch.tensor([[[[1, 0], [1, 0]]]], dtype=torch.uint8)
    loss = mask_loss([torch.zeros(1, 1, 1, 1)], masks)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    sure = torch.where(masks > 0, 20.0, -20.0)
    assert mask_loss([sure], masks) < 1e-6
    assert mask_loss([-sure], masks) > 20


def test_the_loss_reaches_the_trunk():
    torch.manual_seed(0)
    trained = MaskSupervised(EarlyExitSSDLite(early=False))
    _, masks = trained(torch.rand(2, 3, 64, 64))
    mask_loss(masks, torch.ones(2, 1, 64, 64, dtype=torch.uint8)).backward()
    assert trained.detector.backbone.features[0][0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("augment", ["none", "flip", "ssd"])
def test_masks_follow_the_augmentation(augment):
    """A bright square off centre and its mask: after any transform the mask still covers the bright pixels."""
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[:, 30:60, 10:50] = 255
    for seed in range(25):
        torch.manual_seed(seed)
        target = {
            "boxes": tv_tensors.BoundingBoxes([[10, 30, 50, 60]], format="XYXY", canvas_size=(100, 100)),
            "labels": torch.ones(1, dtype=torch.int64),
            "mask": tv_tensors.Mask(image[:1] > 0).to(torch.uint8),
        }
        out, target = build_transform(160, augment)(tv_tensors.Image(image), target)
        mask = target["mask"][0] > 0
        assert mask.shape == out.shape[-2:] and mask.any()
        grey = out.float().mean(0)
        assert grey[mask].mean() > grey[~mask].mean() + 60, (augment, seed)


def test_a_mask_without_segmentation_is_refused(tiny):
    with pytest.raises(DataError, match=r"train.json: annotation \d+ has no 'segmentation'"):
        DetectionDataset("train", tiny, masks=True)
