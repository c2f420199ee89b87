"""A scene as triangle meshes: furniture, floor, walls, windows, pictures, lamps."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from showroom import models, textures
from showroom.catalogue import open_archive
from showroom.layout import Item, Scene, rotation_y
from showroom.materials import BRIGHTEST, Emission, Material, Surface, of_model
from showroom.roles import DISTRACTORS

NIGHT = 0.02  # light of a window at night, relative to the day


@dataclass
class Wall:
    """The middle of a wall's foot, its horizontal axis, the direction into the room and its length in metres."""

    centre: np.ndarray
    along: np.ndarray
    inward: np.ndarray
    length: float

    def panel(self, centre: np.ndarray, width: float, height: float, **surface) -> Surface:
        """An upright rectangle that faces the room."""
        return rectangle(centre, self.along * width / 2, (0, height / 2, 0), **surface)

    def bar(self, centre: np.ndarray, half_size: tuple[float, float, float], material: Material) -> Surface:
        """A box of half a width, height and depth."""
        width, height, depth = half_size
        return box(centre, np.abs(self.along) * width + [0, height, 0] + np.abs(self.inward) * depth, material)


@dataclass
class Window:
    """A window's wall, and its centre and size in metres."""

    wall: Wall
    centre: np.ndarray
    width: float
    height: float


@dataclass
class Sun:
    """A beam through a window: a spot light with the window's bars for a mask."""

    origin: np.ndarray
    target: np.ndarray
    intensity: np.ndarray  # linear RGB (3,)


@dataclass
class Room:
    """All surfaces and lights of a scene."""

    surfaces: list[Surface]
    sun: Sun | None
    flash: float  # intensity of the lamp on the camera


def rectangle(centre, half_u, half_v, repeats=(1.0, 1.0), **surface) -> Surface:
    """A rectangle that faces half_u x half_v; its texture repeats so many times."""
    centre, half_u, half_v = (np.asarray(vector, float) for vector in (centre, half_u, half_v))
    corners = [centre - half_u - half_v, centre + half_u - half_v, centre + half_u + half_v, centre - half_u + half_v]
    uvs = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * np.asarray(repeats, float)
    return Surface(np.array(corners), None, uvs, np.array([[0, 1, 2], [0, 2, 3]]), **surface)


def box(centre, half, material: Material) -> Surface:
    """An axis-aligned box."""
    sides = []
    for axis in range(3):
        u, v, out = np.eye(3)[[(axis + 1) % 3, (axis + 2) % 3, axis]] * half
        sides += [rectangle(centre + sign * out, u, sign * v, material=material) for sign in (-1, 1)]
    faces = np.concatenate([side.faces + 4 * k for k, side in enumerate(sides)])
    vertices, uvs = (np.concatenate([getattr(side, name) for side in sides]) for name in ("vertices", "uvs"))
    return Surface(vertices, None, uvs, faces, material)


def build(scene: Scene, rng: Generator) -> Room:
    """Everything that can be seen; curtains are added to the scene's objects."""
    walls = _walls(scene)
    surfaces = _shell(scene, walls, rng)
    night = rng.random() < 0.2
    windows, daylight = _windows(scene, walls, night, surfaces, rng)
    _pictures(walls, windows, surfaces, rng)
    _rug(scene, surfaces, rng)
    _ceiling_lights(scene, daylight, surfaces, rng)
    sun = _sun(windows[0], rng) if windows and not night and rng.random() < 0.45 else None
    flash = rng.uniform(1, 8) if rng.random() < 0.08 else rng.uniform(0.02, 0.15)
    return Room(surfaces + [part for item in scene.items for part in furniture(item)], sun, flash)


def furniture(item: Item) -> list[Surface]:
    """The parts of an object, in the room's axes."""
    turn, archive = rotation_y(item.yaw), open_archive(item.entry.archive)
    return [
        Surface(
            (part.vertices * np.asarray(item.scale)) @ turn.T + [item.x, item.y, item.z],
            (part.normals / np.asarray(item.scale)) @ turn.T,
            part.uvs,
            part.faces,
            of_model(part.material, archive, item.recolour),
            item.instance,
        )
        for part in models.load(item.entry)
    ]


def _walls(scene: Scene) -> list[Wall]:
    x, z = scene.width / 2, scene.depth / 2
    centres = np.array([(0, 0, -z), (-x, 0, 0), (0, 0, z), (x, 0, 0)])
    along = np.array([(1, 0, 0), (0, 0, -1), (-1, 0, 0), (0, 0, 1)], float)
    inward = np.array([(0, 0, 1), (1, 0, 0), (0, 0, -1), (-1, 0, 0)], float)
    return [*map(Wall, centres, along, inward, [scene.width, scene.depth] * 2)]


def _shell(scene: Scene, walls: list[Wall], rng: Generator) -> list[Surface]:
    """Floor, ceiling, walls (one of them sometimes different) and baseboards."""
    floors = [textures.planks] * 3 + [textures.tiles, textures.carpet, textures.concrete]
    coverings = [textures.paint] * 3 + [textures.wallpaper, textures.brick, textures.concrete]
    accents = [textures.paint, textures.wallpaper, textures.brick, textures.planks]
    floor, covering = floors[rng.integers(6)](rng), coverings[rng.integers(6)](rng)
    accent = accents[rng.integers(4)](rng) if rng.random() < 0.35 else covering
    roughness, accent_side = float(rng.choice([0.25, 0.4, 0.6, 0.9])), int(rng.integers(4))
    x, y, z = scene.width / 2, scene.height / 2, scene.depth / 2

    def cover(centre, half_u, half_v, texture: textures.Texture, roughness: float, specular: float) -> Surface:
        repeats = [2 * np.linalg.norm(half) / texture.size_m for half in (half_u, half_v)]
        return rectangle(centre, half_u, half_v, repeats, material=Material(texture.image, roughness, specular))

    surfaces = [cover((0, 0, 0), (x, 0, 0), (0, 0, -z), floor, roughness, 0.4 if roughness < 0.7 else 0.1)]
    white = textures.Texture(np.full((4, 4, 3), int(rng.uniform(215, 250)), np.uint8), 1.0)
    surfaces.append(cover((0, 2 * y, 0), (x, 0, 0), (0, 0, z), white, 0.9, 0.1))
    for side, wall in enumerate(walls):
        texture = accent if side == accent_side else covering
        surfaces.append(cover(wall.centre + [0, y, 0], wall.along * wall.length / 2, (0, y, 0), texture, 0.8, 0.15))
    if rng.random() < 0.75:
        height = rng.uniform(0.04, 0.08)
        wood = Material(textures.wood_colour(rng) if rng.random() < 0.4 else np.full(3, 0.9), 0.5, 0.3)
        surfaces += [wall.bar(wall.centre + [0, height, 0], (wall.length / 2, height, 0.012), wood) for wall in walls]
    return surfaces


def _windows(
    scene: Scene, walls: list[Wall], night: bool, surfaces: list[Surface], rng: Generator
) -> tuple[list[Window], float]:
    """Up to three windows with frames and, at times, curtains; and how much light they bring."""
    windows: list[Window] = []
    daylight, light = 0.0, NIGHT if night else 1
    for _ in range(int(rng.integers(0, 4))):
        wall = walls[int(rng.integers(4))]
        width, height = rng.uniform(0.8, 2.2), rng.uniform(1.0, 1.6)
        along = rng.uniform(-1, 1) * max(0, wall.length / 2 - width / 2 - 0.1)
        sill = rng.uniform(0.8, 1.1)
        middle = min(sill + height / 2, scene.height - height / 2 - 0.05)
        if rng.random() < 0.2:  # down to the floor
            middle = height / 2 + 0.05
        centre = wall.centre + wall.along * along + wall.inward * 0.01 + [0, middle, 0]
        if any(np.linalg.norm((centre - other.centre)[[0, 2]]) < 1.6 for other in windows):
            continue
        windows.append(Window(wall, centre, width, height))
        strength, view = rng.uniform(4, 14), textures.outside(rng) * light
        daylight += strength * width * height * light
        emission = Emission((view * strength).astype(np.float32), view.mean() * strength * width * height + 0.02)
        surfaces.append(wall.panel(centre, width, height, material=Material(np.full(3, 0.25)), emission=emission))
        _frame(windows[-1], surfaces, rng)
        if rng.random() < 0.4:
            _curtains(scene, windows[-1], rng)
    return windows, daylight


def _frame(window: Window, surfaces: list[Surface], rng: Generator) -> None:
    """Four bars round a window and up to three within."""
    material = Material(np.full(3, 0.88) if rng.random() < 0.7 else textures.wood_colour(rng), 0.4, 0.4)
    wall, half_width, half_height = window.wall, window.width / 2, window.height / 2
    bars = [(0, y, half_width + 0.04, 0.03) for y in (-half_height, half_height)]
    bars += [(x, 0, 0.03, half_height) for x in (-half_width, half_width)]
    bars += [(window.width * ((k + 1) / 3 - 0.5), 0, 0.018, half_height) for k in range(int(rng.integers(0, 3)))]
    if rng.random() < 0.4:
        bars.append((0, window.height * 0.15, half_width, 0.018))
    for along, up, half_along, half_up in bars:
        centre = window.centre + wall.along * along + [0, up, 0] + wall.inward * 0.02
        surfaces.append(wall.bar(centre, (half_along, half_up, 0.03), material))


def _curtains(scene: Scene, window: Window, rng: Generator) -> None:
    """One on either side of a window."""
    entry, wall = scene.entries[DISTRACTORS["curtains"][0]], window.wall
    top = min(window.centre[1] + window.height / 2 + 0.1, scene.height)
    for side in (-1, 1):
        scale = (rng.uniform(0.25, 0.5), rng.uniform(0.85, 1.0), 0.7)
        x, _, z = window.centre + wall.along * side * (window.width / 2 + 0.1) + wall.inward * 0.08
        curtain = Item(entry, x, z, math.atan2(wall.inward[0], wall.inward[2]), scene.recolour(0.8), scale=scale)
        curtain.y = max(0, top - curtain.height)
        scene.items.append(curtain)


def _pictures(walls: list[Wall], windows: list[Window], surfaces: list[Surface], rng: Generator) -> None:
    """Up to three framed pictures, clear of the windows."""
    for _ in range(int(rng.integers(0, 4))):
        wall = walls[int(rng.integers(4))]
        width, height = rng.uniform(0.25, 1.1), rng.uniform(0.25, 0.9)
        along = rng.uniform(-1, 1) * (wall.length / 2 - width)
        centre = wall.centre + wall.along * along + [0, rng.uniform(1.3, 1.8), 0] + wall.inward * 0.02
        if any(np.linalg.norm(centre - w.centre) < (width + w.width) / 2 + 0.2 for w in windows):
            continue
        canvas, half_frame = Material(textures.picture(rng), 0.3, 0.4), (width / 2 + 0.03, height / 2 + 0.03, 0.012)
        surfaces.append(wall.panel(centre + wall.inward * 0.006, width, height, material=canvas))
        frame = Material(textures.any_colour(rng), 0.4, 0.4)
        surfaces.append(wall.bar(centre - wall.inward * 0.01, half_frame, frame))


def _rug(scene: Scene, surfaces: list[Surface], rng: Generator) -> None:
    """A rug near the middle in two scenes of five."""
    if rng.random() < 0.4:
        width, depth = rng.uniform(0.8, 1.8), rng.uniform(0.6, 1.4)
        turn = rotation_y(rng.choice([0, math.pi / 2]) + rng.normal(0, 0.1))
        image = [textures.carpet, textures.wallpaper][rng.integers(2)](rng).image
        half_u = turn @ [min(width, scene.width / 2 - 0.2), 0, 0]
        half_v = turn @ [0, 0, -min(depth, scene.depth / 2 - 0.2)]
        x, z = rng.uniform(-0.8, 0.8, 2)
        surfaces.append(rectangle((x, 0.008, z), half_u, half_v, material=Material(image, 0.9, 0.05)))


def _ceiling_lights(scene: Scene, daylight: float, surfaces: list[Surface], rng: Generator) -> None:
    """One, two or four panels, cold to warm; nearly always on where the windows bring little."""
    warmth = rng.uniform()
    colour = np.array([1, 0.95 - 0.2 * warmth, 0.9 - 0.45 * warmth])
    is_on = rng.random() < (0.97 if daylight < 6 else 0.75)
    count = int(rng.choice([1, 1, 2, 4])) if is_on else 0
    for k in range(count):
        x = (k % 2 - 0.5) * scene.width / 2 if count > 1 else 0.0
        z = (k // 2 - 0.5) * scene.depth / 2 if count == 4 else 0.0
        half = rng.uniform(0.1, 0.4)
        strength = 0.4 * rng.uniform(6, 22) * 0.16 / half**2 / count**0.5  # the same power for any size
        emission = Emission(colour * strength, strength * 4 * half**2 * BRIGHTEST)
        place = (x + rng.normal(0, 0.1), scene.height - 0.015, z)
        panel = Material(np.full(3, 0.74))
        surfaces.append(rectangle(place, (half, 0, 0), (0, 0, half), material=panel, emission=emission))


def _sun(window: Window, rng: Generator) -> Sun:
    """Sunlight that falls on the floor behind a window."""
    inward = window.wall.inward
    aim = window.centre + inward * rng.uniform(1.2, 3) + [rng.normal(0, 0.8), 0, rng.normal(0, 0.8)]
    aim[1] = 0
    origin = window.centre + inward * 0.1 + [0, window.height * 0.4, 0]
    return Sun(origin, aim, rng.uniform(5, 30) * np.array([1, 0.93, 0.8]))
