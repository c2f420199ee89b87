"""Cameras, and what each of their pixels sees first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from showroom import IMAGE_SIZE
from showroom.layout import SQUARE, Scene, overlap
from showroom.materials import Surface

_HOLES = 6  # transparent texels that a ray may pass through
_TRIES = 14  # cameras that are tried in a scene
_LEAST_PIXELS = 80  # a chair that counts when cameras are compared
_NEAR_M = 0.3  # no more than 2 % of a view may be nearer


@dataclass(frozen=True)
class Camera:
    """Where a camera stands, where it looks, and its field of view across and down."""

    origin: np.ndarray
    target: np.ndarray
    fov_deg: float

    def rays(self) -> np.ndarray:
        """Unit directions through the pixels' centres, float32 (S * S, 3), row by row."""
        forward = self.target - self.origin
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0, 1, 0])
        right /= np.linalg.norm(right)
        up = np.cross(right, forward)
        grid = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1) * math.tan(math.radians(self.fov_deg) / 2)
        x, y = np.meshgrid(grid, -grid)
        rays = forward + x[..., None] * right + y[..., None] * up
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        return rays.reshape(-1, 3).astype(np.float32)


class Caster:
    """First hits on a room's surfaces, or one object's: through glass and holes in textures, as the eye sees."""

    def __init__(self, surfaces: Sequence[Surface]):
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.surfaces = [surface for surface in surfaces if not surface.material.glass]
        self.scene = EmbreeScene()
        triangles = [np.ascontiguousarray(s.vertices[s.faces.astype(int)], np.float32) for s in self.surfaces]
        self.meshes = [TriangleMesh(self.scene, corners) for corners in triangles]  # embree keeps no reference
        self.instances = np.array([surface.instance for surface in self.surfaces])

    def cast(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Instance of each pixel, int (S, S), -1 where nothing is hit; and its distance in metres."""
        directions = camera.rays()
        origins = np.repeat(camera.origin.astype(np.float32)[None], len(directions), axis=0)
        instance = np.full(len(directions), -1)
        distance = np.full(len(directions), np.inf, np.float32)
        travelled = np.zeros(len(directions), np.float32)
        active = np.arange(len(directions))
        for _ in range(_HOLES if self.surfaces else 0):
            hit = self.scene.run(origins[active], directions[active], output=1)
            is_hit = hit["geomID"] >= 0
            passed = self._holes(hit, is_hit)
            solid = is_hit & ~passed
            instance[active[solid]] = self.instances[hit["geomID"][solid]]
            distance[active[solid]] = travelled[active[solid]] + hit["tfar"][solid]
            step = hit["tfar"][passed] + 1e-4
            active = active[passed]
            if not len(active):
                break
            travelled[active] += step
            origins[active] += directions[active] * step[:, None]
        shape = (IMAGE_SIZE, IMAGE_SIZE)
        return instance.reshape(shape), distance.reshape(shape)

    def _holes(self, hit: dict, is_hit: np.ndarray) -> np.ndarray:
        """Which rays hit a transparent texel: bool, one per ray."""
        hole = np.zeros(len(is_hit), bool)
        for geometry in np.unique(hit["geomID"][is_hit]):
            surface = self.surfaces[geometry]
            opacity = surface.material.opacity
            if opacity is None:
                continue
            rays = np.flatnonzero(hit["geomID"] == geometry)
            corners = surface.uvs[surface.faces[hit["primID"][rays]].astype(int)]  # (R, 3, 2)
            u, v = hit["u"][rays][:, None], hit["v"][rays][:, None]
            uv = corners[:, 0] * (1 - u - v) + corners[:, 1] * u + corners[:, 2] * v
            height, width = opacity.shape
            column = (np.mod(uv[:, 0], 1) * width).astype(int) % width
            row = (np.mod(1 - uv[:, 1], 1) * height).astype(int) % height  # OBJ's v axis points up
            hole[rays] = opacity[row, column] < 128
        return hole


def choose_camera(scene: Scene, caster: Caster, rng: Generator, avoid: Sequence[Camera] = ()) -> Camera | None:
    """A camera that sees a chair, where the scene has one; the more chairs, the likelier.

    It stands at least half a metre away from those to ``avoid``, of the same scene.
    """
    best, best_score = None, 0.0
    for _ in range(_TRIES):
        camera = _draw(scene, rng)
        if camera is None or any(np.linalg.norm(camera.origin - other.origin) < 0.5 for other in avoid):
            continue
        instance, distance = caster.cast(camera)
        if np.quantile(distance, 0.02) < _NEAR_M:
            continue
        score = 1.0
        if scene.chair_items:
            visible = (np.bincount(instance[instance > 0], minlength=1) > _LEAST_PIXELS).sum()
            score = (visible > 0) * (1 + rng.random() + 0.25 * min(visible, 6))
        if score > best_score:
            best, best_score = camera, score
        if best is not None and rng.random() < 0.45:
            break
    return best


def _draw(scene: Scene, rng: Generator) -> Camera | None:
    """A camera towards a chair or the middle, inside the room and inside nothing else."""
    fov_deg, angle = rng.uniform(42, 82), rng.uniform(0, 2 * math.pi)
    chairs = scene.chair_items
    if chairs and rng.random() < 0.85:
        chair = chairs[int(rng.integers(len(chairs)))]
        target = np.array([chair.x, chair.height / 2, chair.z])
        nearest = 0.9 if scene.recipe == "hero" else 1.3
    else:
        target = np.array([rng.uniform(-1, 1), 0.6, rng.uniform(-1, 1)])
        nearest = 1.5
    distance = math.exp(rng.uniform(math.log(nearest), math.log(9)))
    height = np.clip(rng.normal(1.4, 0.35), 0.45, 2.3)
    limit_x, limit_z = scene.width / 2 - 0.15, scene.depth / 2 - 0.15
    x = np.clip(target[0] + math.sin(angle) * distance, -limit_x, limit_x)
    z = np.clip(target[2] + math.cos(angle) * distance, -limit_z, limit_z)
    origin = np.array([x, height, z])
    body = SQUARE * 0.12 + [x, z]
    for item in scene.items:
        if item.y < height < item.y + item.height + 0.15 and overlap(body, item.corners()):
            return None
    reach = np.linalg.norm(target - origin) * math.tan(math.radians(fov_deg) / 2)
    target = target + rng.normal(0, 0.18, 3) * reach
    if np.linalg.norm((target - origin)[[0, 2]]) < 0.4:  # straight down: no horizon to hold on to
        return None
    return Camera(origin, target, float(fov_deg))
