import pytest
import torch

from eelib.coco import DataError
from eelib.data import DetectionDataset, as_input, batches
from eelib.preprocess import ImageError


def test_items(tiny):
    data = DetectionDataset("train", tiny)
    image, target = data[0]
    assert image.shape == (3, 48, 64) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[4, 6, 24, 36], [30, 10, 50, 30]]  # the crowd box is left out
    assert len(DetectionDataset("train", tiny, keep_crowd=True)[0][1]["boxes"]) == 3
    grey, empty = data[1]
    assert grey.shape == (3, 48, 64) and empty["boxes"].shape == (0, 4)


def test_boxes_follow_the_resize(tiny):
    _, target = DetectionDataset("val", tiny, 96)[0]
    torch.testing.assert_close(target["boxes"][0], torch.tensor([4 * 1.5, 6 * 2.0, 24 * 1.5, 36 * 2.0]))


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


def test_a_limit_draws_nested_subsets(tmp_path):
    rows = DetectionDataset.select(None, list(range(50)), 20, 3)
    assert set(DetectionDataset.select(None, list(range(50)), 10, 3)) < set(rows) and rows == sorted(rows)
    assert DetectionDataset.select(None, list(range(50)), 20, 4) != rows
    assert DetectionDataset.select(None, [1, 2], 20, 4) == [1, 2]


def test_batches_are_all_images_in_order(tiny):
    data = DetectionDataset("test", tiny, 64)
    images, targets = zip(*batches(data, 1), strict=True)
    assert [target["image_id"] for (target,) in targets] == data.image_ids
    assert torch.equal(torch.cat(images), as_input(torch.stack([image for image, _ in (data[0], data[1])])))
