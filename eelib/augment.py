"""Augmentation of a whole batch at once, on the device where the images are: the presets of ``data.augment``.

All randomness of an epoch is drawn beforehand on the CPU (:func:`draw`), so that a training sees the same
images on every device and a resumed one sees what an uninterrupted one would have seen.

Sources: SSD, section 2.2, "Data augmentation" (scale, aspect, colour); Bochkovskiy et al., "YOLOv4", 2020,
section 3.3 (mosaic).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eelib.losses import Targets

GREY = 0.5  # where no image lies


class Preset(NamedTuple):
    """What a batch goes through.

    ``mosaic``: share of a batch that is put together of four images; ``plain``: share of the others
    that keep their scale; ``scale``: range from which an image's scale is drawn log-uniformly, times
    ``mosaic_scale`` in a mosaic; ``aspect``: largest log of width by height; ``flip``: probability of a
    mirror image; ``colour``: largest brightness shift, contrast and saturation change, hue rotation in radians.
    """

    mosaic: float = 0.0
    plain: float = 1.0
    scale: tuple[float, float] = (1.0, 1.0)
    mosaic_scale: float = 0.62
    aspect: float = 0.0
    flip: float = 0.0
    colour: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


PRESETS = {
    "none": Preset(),
    "flip": Preset(flip=0.5),
    "ssd": Preset(plain=0.5, scale=(0.4, 1.8), aspect=0.35, flip=0.5, colour=(0.12, 0.5, 0.5, 0.31)),
    "mosaic": Preset(0.5, 0.25, (0.6, 1.6), aspect=0.15, flip=0.5, colour=(0.12, 0.4, 0.5, 0.3)),
}
KEPT_AREA, KEPT_SIDE = 0.3, 3.0  # an object stays from this share of its area, and from this side in px
NUMBERS = 16  # uniform numbers of an image


class Pool(NamedTuple):
    """Images of one size and their objects, on one device.

    ``images`` uint8 (N, 3, H, W); ``boxes`` (N, G, 4) xyxy as shares of width and height; ``labels``
    (N, G), 0 where there is no object.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor


class Draw(NamedTuple):
    """What is random in a batch: ``rows`` int64 (B, 4) of the pool, ``numbers`` (B, NUMBERS) in [0, 1)."""

    rows: Tensor
    numbers: Tensor


def draw(order: Tensor, pool_size: int, generator: torch.Generator) -> Draw:
    """The random part of images, by a generator of the CPU.

    ``order`` int64 (B,) is the row of the pool that each image begins with; the other three of a mosaic come from
    all N rows.
    """
    others = torch.randint(pool_size, (len(order), 3), generator=generator)
    return Draw(torch.cat((order[:, None], others), 1), torch.rand(len(order), NUMBERS, generator=generator))


def augment(pool: Pool, batch: Draw, size: int, preset: Preset) -> tuple[Tensor, Targets]:
    """Images of a batch as the network takes them, and their objects.

    Args:
        pool: where the images come from.
        batch: of :func:`draw`, on the pool's device; its first ``mosaic`` share becomes mosaics.
        size: side S of the network input in pixels.
        preset: what to do.

    Returns:
        Float (B, 3, S, S) in [0, 1], channels last, and targets. A mosaic has room for all of its objects, or
        for twice as many as any image has where those are more than 16.
    """
    mosaics = round(preset.mosaic * len(batch.rows))
    parts = [
        _place(pool, Draw(*(part[rows] for part in batch)), tiles, size, preset)
        for rows, tiles in ((slice(mosaics), 4), (slice(mosaics, None), 1))
        if len(batch.rows[rows])
    ]
    most = pool.labels.shape[1]
    width = min(4 * most, max(2 * most, 16)) if mosaics else most
    images = torch.cat([images for images, _, _ in parts])
    objects = [_objects_first(boxes, labels, width) for _, boxes, labels in parts]
    boxes, labels = (torch.cat(part) for part in zip(*objects, strict=True))
    images = _recolour(images, batch.numbers[:, -4:], preset.colour)
    return images.contiguous(memory_format=torch.channels_last), Targets(boxes, labels)


def _objects_first(boxes: Tensor, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Boxes (B, width, 4) and labels (B, width) with the padding behind the objects."""
    order = torch.argsort((labels == 0).to(torch.uint8), dim=1, stable=True)
    boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
    missing = width - labels.shape[1]  # a negative one cuts
    return F.pad(boxes, (0, 0, 0, missing)), F.pad(labels, (0, missing))


def _place(pool: Pool, batch: Draw, tiles: int, size: int, preset: Preset) -> tuple[Tensor, Tensor, Tensor]:
    """Each image from ``tiles`` images: pixels (B, 3, S, S), boxes (B, T * G, 4) in pixels, labels (B, T * G)."""
    rows, u = batch.rows[:, :tiles], batch.numbers
    origin, zoom = _mosaic_layout(u, preset) if tiles == 4 else _single_layout(u, preset)
    mirrored = u[:, 4 : 4 + tiles] < preset.flip  # (B, T)
    cells = (torch.arange(size, device=u.device) + 0.5) / size
    # where each output column and row lies in each tile, as a share of the tile: (B, T, S)
    x, y = ((cells - origin[..., None, k]) / zoom[:, None, None, k] for k in (0, 1))
    inside_x, inside_y = ((v >= 0) & (v < 1) for v in (x, y))
    x = torch.where(mirrored[..., None], 1 - x, x)
    images = _sample(pool.images, rows, x, y, inside_x, inside_y)
    boxes = pool.boxes[rows]  # (B, T, G, 4)
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, x2 = torch.where(mirrored[..., None], 1 - x2, x1), torch.where(mirrored[..., None], 1 - x1, x2)
    whole = torch.stack((x1, y1, x2, y2), -1) * zoom.repeat(1, 2)[:, None, None] + origin.repeat(1, 1, 2)[:, :, None]
    # a tile of a mosaic ends at the meeting point, so what lies beyond the output's edge alone is lost
    clipped = whole.clamp(0, 1)
    extent = (clipped[..., 2:] - clipped[..., :2]) * size
    area = (whole[..., 2:] - whole[..., :2]).prod(-1) * size**2
    stays = (extent.amin(-1) >= KEPT_SIDE) & (extent.prod(-1) >= KEPT_AREA * area)
    labels = pool.labels[rows].masked_fill(~stays, 0)
    return images, (clipped * size).flatten(1, 2), labels.flatten(1, 2)


def _mosaic_layout(u: Tensor, preset: Preset) -> tuple[Tensor, Tensor]:
    """Top left corner of each tile (B, 4, 2) and size of a tile (B, 2), as shares of the output.

    Four tiles of one size meet at a point of the middle 40 %, and reach from there as far as they do.
    """
    zoom = _zoom(u, preset) * preset.mosaic_scale
    meeting = 0.3 + 0.4 * u[:, 2:4]
    tile = torch.arange(4, device=u.device)
    before = torch.stack((tile % 2 == 0, tile < 2), 1)  # tiles left of and above the point
    return meeting[:, None] - before * zoom[:, None], zoom


def _single_layout(u: Tensor, preset: Preset) -> tuple[Tensor, Tensor]:
    """The same for one image: a zoomed one lies so that no more than its excess is cut off."""
    zoom = torch.where(u[:, 8:9] < preset.plain, torch.ones_like(u[:, :2]), _zoom(u, preset))
    centre = 0.5 + (2 * u[:, 2:4] - 1) * (1 - 1 / zoom).abs() / 2  # the point of the image in the output's middle
    return (0.5 - centre * zoom)[:, None], zoom


def _zoom(u: Tensor, preset: Preset) -> Tensor:
    low, high = (math.log(s) for s in preset.scale)
    scale = (low + u[:, :1] * (high - low)).exp()
    stretch = ((2 * u[:, 1:2] - 1) * preset.aspect / 2).exp()
    return torch.cat((scale * stretch, scale / stretch), 1)  # (B, 2): width, height


def _sample(images: Tensor, rows: Tensor, x: Tensor, y: Tensor, inside_x: Tensor, inside_y: Tensor) -> Tensor:
    """Bilinear samples at shares x and y (B, T, S) of each tile, :data:`GREY` where none lies: (B, 3, S, S)."""
    batch, tiles = rows.shape
    side = 2 if tiles == 4 else 1
    _, channels, height, width = images.shape
    # the tiles of an image side by side in one atlas, so that one call samples them all
    atlas = images[rows].view(batch, side, side, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    atlas = atlas.reshape(batch, channels, side * height, side * width).float() / 255
    column, line = torch.arange(tiles, device=x.device) % side, torch.arange(tiles, device=x.device) // side
    x, y = _in_atlas(x, column, width, side), _in_atlas(y, line, height, side)
    left, above = inside_x[:, 0], inside_y[:, 0]  # (B, S): columns and rows of the first tile
    upper, lower = (torch.where(left, x[:, k], x[:, k + side - 1]) for k in (0, tiles - side))
    grid_x = torch.where(above[:, :, None], upper[:, None], lower[:, None])  # (B, S, S)
    grid_y = torch.where(above, y[:, 0], y[:, -1])[:, :, None].expand_as(grid_x)
    grid = torch.stack((grid_x, grid_y), -1)
    sampled = F.grid_sample(atlas, grid, mode="bilinear", padding_mode="border", align_corners=False)
    seen = (above | inside_y[:, -1])[:, :, None] & (left | inside_x[:, side - 1])[:, None]
    return sampled.masked_fill(~seen[:, None], GREY)


def _in_atlas(share: Tensor, tile: Tensor, length: int, side: int) -> Tensor:
    """Positions in [-1, 1] along one axis of an atlas, from shares (B, T, S) of tiles that are T-th along it."""
    # half a pixel from a tile's edge, so that no neighbour shines through
    within = (share * length).clamp(0.5, length - 0.5) / length
    return 2 * (tile[:, None] + within) / side - 1


# RGB to YIQ; a turn in the plane of I and Q changes hue, a stretch of it saturation.
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM = torch.linalg.inv(TO_YIQ)
# The turned colours are a sum: what stays, times 1; times cosine; times sine. Plain numbers, because a
# tensor made in a step would have to cross from the host.
STAYS = torch.outer(_FROM[:, 0], TO_YIQ[0]).tolist()
COSINE = (torch.outer(_FROM[:, 1], TO_YIQ[1]) + torch.outer(_FROM[:, 2], TO_YIQ[2])).tolist()
SINE = (torch.outer(_FROM[:, 2], TO_YIQ[1]) - torch.outer(_FROM[:, 1], TO_YIQ[2])).tolist()


def _recolour(images: Tensor, u: Tensor, colour: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue of each image as one linear map of its colours.

    SSD composes four steps that are each linear in RGB (hue as a rotation in YIQ). One matrix costs one pass
    over the pixels (B, 3, S, S) and needs no HSV round trip. ``u`` is (B, 4) in [0, 1).
    """
    if not any(colour):
        return images
    brightness, contrast, saturation, angle = (
        amount * (2 * column - 1) for amount, column in zip(colour, u.unbind(1), strict=True)
    )
    cos, sin = angle.cos() * (1 + saturation), angle.sin() * (1 + saturation)
    entries = [STAYS[i][j] + COSINE[i][j] * cos + SINE[i][j] * sin for i in range(3) for j in range(3)]
    matrix = (1 + contrast)[:, None, None] * torch.stack(entries, 1).view(-1, 3, 3)
    shift = brightness - 0.5 * contrast
    flat = torch.baddbmm(shift[:, None, None].expand(-1, 3, 1), matrix, images.flatten(2))
    return flat.clamp(0, 1).view_as(images)
