"""Procedural floors, walls and pictures: sRGB uint8 (N, N, 3), drawn from a generator.

The textures of Sweet Home 3D itself are GPL and are not used.
"""

import colorsys
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

SIDE = 512


class Texture(NamedTuple):
    """An image that repeats, and the length of one repeat."""

    image: np.ndarray  # uint8 (N, N, 3) sRGB
    size_m: float


def noise(rng: Generator, side: int, falloff: float, stretch_y: float = 1.0) -> np.ndarray:
    """Periodic noise of mean 0 and deviation 1, amplitude ~ frequency ** -falloff: float (side, side)."""
    radius = np.hypot(np.fft.fftfreq(side)[None], np.fft.fftfreq(side)[:, None] * stretch_y)
    radius[0, 0] = 1
    amplitude = radius**-falloff
    amplitude[0, 0] = 0
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * amplitude).real
    return (field - field.mean()) / (field.std() + 1e-9)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """sRGB in [0, 1]; the hue wraps round, the rest is clipped."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)))


def wood_colour(rng: Generator) -> np.ndarray:
    """A brown: dark, medium or pale."""
    low, high = ((0.25, 0.45), (0.5, 0.8), (0.7, 0.9))[rng.integers(3)]
    return hsv(rng.uniform(0.045, 0.11), rng.uniform(0.2, 0.65), rng.uniform(low, high))


def wall_colour(rng: Generator) -> np.ndarray:
    """Mostly off-white, sometimes tinted, seldom strong."""
    kind = rng.random()
    if kind < 0.55:
        return hsv(rng.random(), rng.uniform(0, 0.1), rng.uniform(0.78, 0.95))
    if kind < 0.85:
        return hsv(rng.random(), rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.9))
    return hsv(rng.random(), rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.75))


def any_colour(rng: Generator) -> np.ndarray:
    """A grey, a wood or a colour."""
    kind = rng.random()
    if kind < 0.3:
        return hsv(0, 0, rng.choice([0.06, 0.15, 0.35, 0.6, 0.85]))
    if kind < 0.6:
        return wood_colour(rng)
    return hsv(rng.random(), rng.uniform(0.2, 0.95), rng.uniform(0.2, 0.95))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, clipped."""
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def planks(rng: Generator) -> Texture:
    """Boards in rows, each cut once, with a grain along them."""
    rows = int(rng.choice([6, 8, 10, 12, 14]))
    height = SIDE // rows
    base, image = wood_colour(rng), np.zeros((SIDE, SIDE, 3))
    grain = noise(rng, SIDE, 1.2, stretch_y=12)
    spread, gap = rng.uniform(0.02, 0.09), rng.uniform(0.3, 0.9)
    for row in range(rows):
        top, bottom = row * height, (row + 1) * height if row < rows - 1 else SIDE
        cut, offset = int(rng.integers(SIDE)), int(rng.integers(SIDE))
        for left, right in ((0, cut), (cut, SIDE)):
            columns = (np.arange(left, right) + offset) % SIDE
            board = np.roll(grain, rng.integers(SIDE), axis=1)[top:bottom][:, columns]
            image[top:bottom, columns] = base * (1 + spread * rng.standard_normal()) * (1 + 0.07 * board[..., None])
            if right - left > 3:
                image[top:bottom, columns[:2]] *= gap
        image[top : top + 2] *= gap
    return Texture(to_uint8(image * (1 + 0.02 * noise(rng, SIDE, 1.6)[..., None])), rng.uniform(1.0, 2.2))


def tiles(rng: Generator) -> Texture:
    """Squares with joints, in one colour or a chequerboard."""
    count = int(rng.choice([2, 3, 4, 6]))
    first = hsv(rng.uniform(0.05, 0.12), rng.uniform(0, 0.3), rng.uniform(0.35, 0.92))
    if rng.random() < 0.3:
        first = any_colour(rng)
    second = first * rng.uniform(0.4, 0.95) if rng.random() < 0.3 else first
    size = SIDE // count
    y, x = np.mgrid[:SIDE, :SIDE]
    shade = rng.standard_normal((count + 1, count + 1))[y // size, x // size]
    image = np.where(((y // size + x // size) % 2)[..., None], first, second) * (1 + 0.06 * shade[..., None])
    image = image * (1 + 0.05 * noise(rng, SIDE, 1.5)[..., None])
    joint = max(2, SIDE // 200)
    image[(y % size < joint) | (x % size < joint)] = rng.uniform(0.3, 0.9)
    return Texture(to_uint8(image), rng.uniform(0.8, 1.8))


def brick(rng: Generator) -> Texture:
    """Bricks in running bond."""
    height, width = SIDE // 8, SIDE // 4
    y, x = np.mgrid[:SIDE, :SIDE]
    row = y // height
    x = (x + (row % 2) * width // 2) % SIDE
    colour = hsv(rng.uniform(0, 0.08), rng.uniform(0.05, 0.65), rng.uniform(0.35, 0.9))
    shade = rng.standard_normal((8, 4))[row % 8, (x // width) % 4]
    image = colour * (1 + 0.12 * shade[..., None]) * (1 + 0.08 * noise(rng, SIDE, 1)[..., None])
    image[(y % height < 5) | (x % width < 5)] = rng.uniform(0.5, 0.85)
    return Texture(to_uint8(image), rng.uniform(0.8, 1.2))


def carpet(rng: Generator) -> Texture:
    """A soft floor: fine noise over coarse."""
    colour = hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.15, 0.8))
    pile = 1 + 0.12 * noise(rng, SIDE, 0.2) + 0.05 * noise(rng, SIDE, 1.5)
    return Texture(to_uint8(colour * pile[..., None]), rng.uniform(0.8, 1.6))


def concrete(rng: Generator) -> Texture:
    """Grey with stains."""
    colour = hsv(rng.uniform(0, 0.15), rng.uniform(0, 0.12), rng.uniform(0.3, 0.8))
    stains = 1 + 0.08 * noise(rng, SIDE, 1.6) + 0.03 * noise(rng, SIDE, 0.5)
    return Texture(to_uint8(colour * stains[..., None]), rng.uniform(2, 4))


def paint(rng: Generator) -> Texture:
    """A painted wall, nearly even."""
    roller = 1 + 0.015 * noise(rng, SIDE, 1.5) + 0.01 * noise(rng, SIDE, 0.1)
    return Texture(to_uint8(wall_colour(rng) * roller[..., None]), 3.0)


def wallpaper(rng: Generator) -> Texture:
    """Two colours in stripes, dots or waves."""
    first = wall_colour(rng)
    second = np.clip(first * rng.uniform(0.6, 1.2), 0, 1) if rng.random() < 0.7 else any_colour(rng)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 * np.pi
    count, kind = int(rng.integers(3, 10)), rng.random()
    if kind < 0.4:
        pattern = np.sin(count * x) > rng.uniform(-0.6, 0.6)
    elif kind < 0.7:
        pattern = np.sin(count * x) * np.sin(count * y) > rng.uniform(0.2, 0.7)
    else:
        pattern = np.sin(count * x + np.sin(2 * count * y)) + np.cos(count * y + np.sin(count * x)) > 0.6
    image = first + (second - first) * pattern[..., None]
    return Texture(to_uint8(image * (1 + 0.02 * noise(rng, SIDE, 1)[..., None])), rng.uniform(0.8, 2))


def picture(rng: Generator, side: int = 160) -> np.ndarray:
    """A picture on a wall: clouds of colour, a landscape, or shapes."""
    kind = rng.random()
    y, x = np.mgrid[:side, :side] / side
    if kind < 0.35:
        falloff = rng.uniform(1.2, 2.0)
        image = np.stack([noise(rng, side, falloff) for _ in range(3)], axis=-1) * 0.2 + any_colour(rng)
    elif kind < 0.7:
        ridge = rng.uniform(0.35, 0.7) + 0.08 * noise(rng, side, 2)[0]
        sky, ground = any_colour(rng) * 0.5 + 0.5, hsv(rng.uniform(0.1, 0.45), 0.5, 0.45)
        above = (y < ridge[None])[..., None]
        image = np.where(above, sky * (1 - 0.3 * y[..., None]), ground * (1 + 0.2 * noise(rng, side, 1.2)[..., None]))
    else:
        image = np.ones((side, side, 3)) * any_colour(rng)
        for _ in range(rng.integers(3, 10)):
            centre_x, centre_y, size = rng.random(3)
            disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (size * 0.3) ** 2
            block = (abs(x - centre_x) < size * 0.3) & (abs(y - centre_y) < rng.random() * 0.3)
            image[disc if rng.random() < 0.5 else block] = any_colour(rng)
    return to_uint8(image)


def outside(rng: Generator, side: int = 128) -> np.ndarray:
    """The view from a window, linear radiance in [0, 1.5]: float (side, side, 3)."""
    y = np.mgrid[:side, :side][0] / side
    ridge = rng.uniform(0.4, 0.8) + 0.05 * noise(rng, side, 1.8)[0]
    sky = np.array([0.75, 0.87, 1.0]) * (1.1 - 0.3 * (1 - y[..., None]))
    if rng.random() < 0.4:
        sky = np.full_like(sky, rng.uniform(0.8, 1))
    ground = hsv(rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5))
    clouds, grass = 1 + 0.04 * noise(rng, side, 1.8), 1 + 0.35 * noise(rng, side, 1)
    return np.clip(np.where((y < ridge[None])[..., None], sky * clouds[..., None], ground * grass[..., None]), 0, 1.5)
