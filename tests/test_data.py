import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from eelib.data import DataError, DetectionDataset, loader, read_image
from eelib.preprocess import ImageError


def test_items(tiny):
    data = DetectionDataset("train", tiny)
    image, target = data[0]
    assert image.shape == (3, 48, 64) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[4, 6, 24, 36], [30, 10, 50, 30]]  # the crowd box is left out
    assert len(DetectionDataset("train", tiny, keep_crowd=True)[0][1]["boxes"]) == 3
    grey, empty = data[1]
    assert grey.shape == (3, 48, 64) and empty["boxes"].shape == (0, 4)
    assert len(DetectionDataset("train", tiny, negatives=False)) == 1


def test_boxes_follow_the_resize(tiny):
    _, target = DetectionDataset("val", tiny, 96)[0]
    torch.testing.assert_close(target["boxes"][0], torch.tensor([4 * 1.5, 6 * 2.0, 24 * 1.5, 36 * 2.0]))
    _, target = DetectionDataset("val", tiny, build_transform(96, rescale_boxes=False))[0]
    assert target["boxes"][0].tolist() == [4, 6, 24, 36]


@pytest.mark.parametrize("augment", ["flip", "ssd"])
def test_boxes_follow_the_augmentation(augment):
    """A bright square on black: after any transform its box still bounds the bright pixels."""
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[:, 30:60, 20:70] = 255
    moved = 0
    for seed in range(25):
        torch.manual_seed(seed)
        target = {
            "boxes": tv_tensors.BoundingBoxes([[20, 30, 70, 60]], format="XYXY", canvas_size=(100, 100)),
            "labels": torch.ones(1, dtype=torch.int64),
        }
        out, target = build_transform(200, augment)(tv_tensors.Image(image), target)
        if not len(target["boxes"]):
            continue
        x1, y1, x2, y2 = target["boxes"][0].round().int().tolist()
        inside = out[:, y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].float()
        assert inside.std() < 40, (augment, seed)
        moved += target["boxes"][0].tolist() != [40, 60, 140, 120]
    assert moved > 5


def test_draws_depend_on_seed_epoch_and_index_alone(tiny):
    a = DetectionDataset("train", tiny, build_transform(64, "ssd"), seed=3)
    b = DetectionDataset("train", tiny, build_transform(64, "ssd"), seed=3)
    torch.rand(7)
    assert torch.equal(a[0][0], b[0][0])
    with_worker = next(iter(loader(a, 2, shuffle=False, epoch=2, workers=1)))[0]
    assert torch.equal(with_worker, next(iter(loader(b, 2, shuffle=False, epoch=2)))[0])


def test_flip_mirrors():
    boxes = tv_tensors.BoundingBoxes([[1.0, 2, 3, 4]], format="XYXY", canvas_size=(10, 10))
    assert F.horizontal_flip(boxes).tolist() == [[7, 2, 9, 4]]


def test_bad_images(tiny):
    path = tiny / "train" / "1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="cannot be decoded"):
        DetectionDataset("train", tiny)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: image file is missing"):
        DetectionDataset("train", tiny)
    with pytest.raises(DataError, match="split: 'tset' is unknown"):
        DetectionDataset("tset", tiny)
    (tiny / "val.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        DetectionDataset("val", tiny)


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 180), ("CMYK", (0, 0, 0, 75)), ("RGBA", (180, 180, 180, 255)), ("P", 0)]
)
def test_any_mode_under_any_name(tmp_path, mode, colour):
    path = tmp_path / f"стул 椅子 {mode}.png"
    path = path.with_suffix(".jpg") if mode in ("L", "CMYK") else path
    Image.new(mode, (20, 10), colour).save(path)
    image = read_image(path)
    assert image.shape == (3, 10, 20) and image.dtype == torch.uint8
    assert (image[0].float() - image[2].float()).abs().max() <= 3  # all of these are grey
