"""Augmentation by hand: where pixels go, their boxes go too."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from eelib.augment import GREY, NUMBERS, PRESETS, Draw, Pool, Preset, augment, draw


def pool_of(images, boxes):
    """Images with one object each, boxes in shares."""
    boxes = torch.tensor(boxes)[:, None]
    return Pool(images, boxes, torch.ones(len(images), 1, dtype=torch.int64))


def squares(count=4, side=64):
    """Black images with one white rectangle each, and its box."""
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    corners = [(8 + 2 * k, 12, 28 + 2 * k, 40) for k in range(count)]
    for image, (x1, y1, x2, y2) in zip(images, corners, strict=True):
        image[:, y1:y2, x1:x2] = 255
    return pool_of(images, [[v / side for v in corner] for corner in corners])


def drawn(pool, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw(torch.arange(count) % len(pool.images), len(pool.images), generator)


def test_none_gives_the_images_as_they_are():
    pool = squares()
    images, targets = augment(pool, drawn(pool, 4), 64, PRESETS["none"])
    torch.testing.assert_close(images, pool.images / 255)
    torch.testing.assert_close(targets.boxes_xyxy, pool.boxes * 64)
    assert targets.labels.eq(1).all()


def test_none_at_half_the_size_is_bilinear():
    pool = pool_of((torch.rand(1, 3, 64, 64) * 255).byte(), [[0.0, 0, 1, 1]])
    images, _ = augment(pool, drawn(pool, 1), 32, PRESETS["none"])
    expected = F.resize(pool.images[0].float() / 255, [32, 32], antialias=False)
    torch.testing.assert_close(images[0], expected, atol=1e-5, rtol=1e-5)


def test_a_flip_mirrors_pixels_and_boxes():
    pool = squares(1)
    images, targets = augment(pool, drawn(pool, 1), 64, Preset(flip=1.0))
    torch.testing.assert_close(images[0], pool.images[0].flip(-1) / 255)
    assert targets.boxes_xyxy[0, 0].tolist() == pytest.approx([36, 12, 56, 40])


@pytest.mark.parametrize("preset", [Preset(plain=0.0, scale=(0.6, 1.6), aspect=0.15, flip=0.5), PRESETS["mosaic"]])
def test_boxes_follow_their_pixels(preset):
    """White lies inside the boxes and, but for what is cut at an edge, in no other place."""
    pool, preset = squares(8), preset._replace(colour=(0.0,) * 4)
    images, targets = augment(pool, drawn(pool, 16, seed=3), 96, preset)
    for image, boxes, labels in zip(images, targets.boxes_xyxy, targets.labels, strict=True):
        white = image[0] > 0.9
        inside = torch.zeros_like(white)
        for x1, y1, x2, y2 in boxes[labels > 0].round().int().tolist():
            inside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = True
            assert white[max(0, y1 + 1) : max(1, y2 - 1), max(0, x1 + 1) : max(1, x2 - 1)].float().mean() > 0.95
        lost = (white & ~inside).sum()
        # an object that keeps less than 30 % of its area loses its box
        assert lost <= (~(labels > 0)).sum() * 0.31 * 20 * 28 * 1.6**2


def test_a_mosaic_holds_four_images_and_their_objects():
    images = torch.stack([torch.full((3, 32, 32), 40 * (k + 1), dtype=torch.uint8) for k in range(4)])
    pool = pool_of(images, [[0.25, 0.25, 0.75, 0.75]] * 4)
    numbers = torch.full((1, NUMBERS), 0.5)  # the middle: tiles meet at the centre, at their plain scale
    preset = Preset(mosaic=1.0, scale=(1.0, 1.0), mosaic_scale=0.5)
    result, targets = augment(pool, Draw(torch.arange(4)[None], numbers), 64, preset)
    quarters = [result[0, 0, y, x].item() for y in (16, 48) for x in (16, 48)]
    assert quarters == pytest.approx([40 / 255, 80 / 255, 120 / 255, 160 / 255], abs=1e-6)
    centres = (targets.boxes_xyxy[0, :, :2] + targets.boxes_xyxy[0, :, 2:]) / 2
    kept = centres[targets.labels[0] > 0].tolist()
    assert kept == [[16.0, 16.0], [48.0, 16.0], [16.0, 48.0], [48.0, 48.0]]


def test_no_neighbour_shines_through_a_tiles_edge():
    images = torch.stack([torch.full((3, 32, 32), v, dtype=torch.uint8) for v in (0, 255, 255, 255)])
    pool = pool_of(images, [[0.0, 0, 1, 1]] * 4)
    preset = Preset(mosaic=1.0, mosaic_scale=0.62)
    result, _ = augment(pool, Draw(torch.arange(4)[None], torch.full((1, NUMBERS), 0.5)), 64, preset)
    values = result[0, 0].unique()
    assert all(min(abs(value - v) for v in (0.0, GREY, 1.0)) < 1e-5 for value in values)


def test_what_lies_beyond_the_images_is_grey():
    pool = squares(1)
    numbers = torch.full((1, NUMBERS), 0.5)
    numbers[:, 0] = 0.0  # the smallest scale
    images, _ = augment(
        pool, Draw(torch.zeros(1, 4, dtype=torch.int64), numbers), 64, Preset(plain=0.0, scale=(0.5, 2.0))
    )
    assert images[0, :, 0, 0].tolist() == [GREY] * 3 and images[0, 0, 32, 40].item() != GREY


def test_colours_move_and_stay_in_range():
    pool = pool_of((torch.rand(4, 3, 32, 32) * 255).byte(), [[0.0, 0, 1, 1]] * 4)
    preset = Preset(colour=PRESETS["mosaic"].colour)
    images, _ = augment(pool, drawn(pool, 4), 32, preset)
    assert images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images, pool.images / 255, atol=0.02)
    grey = pool_of(torch.full((1, 3, 8, 8), 128, dtype=torch.uint8), [[0.0, 0, 1, 1]])
    numbers = torch.full((1, NUMBERS), 0.5)
    numbers[:, -1] = 1.0  # a turn of the hue leaves grey as it is
    turned, _ = augment(grey, Draw(torch.zeros(1, 4, dtype=torch.int64), numbers), 8, preset)
    torch.testing.assert_close(turned, torch.full_like(turned, 128 / 255), atol=2e-3, rtol=0)


def test_images_without_objects():
    pool = Pool(
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, 1, 4), torch.zeros(4, 1, dtype=torch.int64)
    )
    _, targets = augment(pool, drawn(pool, 4), 32, PRESETS["mosaic"])
    assert not targets.valid.any()
