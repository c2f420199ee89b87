"""Objects on a floor: footprints that do not overlap, chairs around tables, things on tops.

Lengths in metres, angles in radians. The room is centred at the origin: x in ±width / 2, z in
±depth / 2; an object faces +z when its yaw is 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from showroom.catalogue import Entry
from showroom.materials import Recolour
from showroom.roles import DISTRACTORS, flatten

SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
YAW_OF_WALL = (0, math.pi / 2, math.pi, -math.pi / 2)  # back to the wall at -z, -x, +z, +x
_FLAT_M = 0.03  # a rug under this is no obstacle


def rotation_y(angle: float) -> np.ndarray:
    """Rotation about the vertical axis, float (3, 3)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Do two rectangles, corners in order (4, 2), overlap? Separating axes; touching is not overlapping."""
    for corners in (first, second):
        for edge in (corners[1] - corners[0], corners[2] - corners[1]):
            normal = np.array([-edge[1], edge[0]])
            a, b = first @ normal, second @ normal
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True


@dataclass(eq=False)
class Item:
    """A furniture model somewhere in the room."""

    entry: Entry
    x: float
    z: float
    yaw: float
    recolour: Recolour
    y: float = 0.0  # of its foot
    scale: Sequence[float] = (1.0, 1.0, 1.0)
    instance: int = 0  # 1, 2, … for the chairs

    def __post_init__(self):
        self.width, self.height, self.depth = np.array(self.entry.dims_m) * self.scale

    def corners(self, shrink: float = 1.0) -> np.ndarray:
        """Footprint (4, 2): x and z of its corners in order."""
        corners = SQUARE * [self.width / 2, self.depth / 2] * shrink
        flat = np.c_[corners[:, 0], np.zeros(4), corners[:, 1]]
        return (flat @ rotation_y(self.yaw).T)[:, [0, 2]] + [self.x, self.z]

    def point(self, offset: Sequence[float]) -> tuple[float, float]:
        """x and z of a point given in the object's own axes."""
        moved = rotation_y(self.yaw) @ np.asarray(offset, float)
        return self.x + moved[0], self.z + moved[2]


class Scene:
    """A room and what stands in it.

    Args:
        entries: the catalogue.
        chairs: keys of the chair models that may be used, by type.
        rng: every draw of the layout.
    """

    def __init__(self, entries: Mapping[str, Entry], chairs: Mapping[str, list[str]], rng: Generator):
        self.entries, self.chairs, self.rng = entries, chairs, rng
        self.items: list[Item] = []
        self.recipe, self.clutter = "", 0.0
        self.width = self.depth = self.height = 0.0

    @property
    def all_chairs(self) -> list[str]:
        """Chair models of every type; one that stands in for a missing type is listed twice."""
        return flatten(self.chairs)

    @property
    def chair_items(self) -> list[Item]:
        """The chairs that were placed; their instances are 1, 2, …"""
        return [item for item in self.items if item.instance]

    def pick(self, keys: Sequence[str]) -> str:
        """One of a list of models."""
        return keys[int(self.rng.integers(len(keys)))]

    def distractor(self, *roles: str) -> str:
        """One of the models that take certain places in a scene."""
        return self.pick([key for role in roles for key in DISTRACTORS[role]])

    def recolour(self, share: float = 0.5) -> Recolour:
        """A variation that is strong for a share of the objects: other colours altogether."""
        return Recolour(self.rng, bool(self.rng.random() < share))

    def floor_point(self, margin: float) -> tuple[float, float]:
        """A point at least a margin from the walls."""
        half_width, half_depth = self.width / 2 - margin, self.depth / 2 - margin
        return self.rng.uniform(-half_width, half_width), self.rng.uniform(-half_depth, half_depth)

    def add(self, item: Item, shrink: float = 0.95, ignore: Sequence[Item] = ()) -> Item | None:
        """Place an object where it is, if that is inside the room and clear of what stands on the floor."""
        corners = item.corners(shrink)
        if (np.abs(corners) > [self.width / 2 - 0.02, self.depth / 2 - 0.02]).any():
            return None
        obstacles = (o for o in self.items if o not in ignore and o.y < 0.05 and o.height > _FLAT_M)
        if any(overlap(corners, obstacle.corners(shrink)) for obstacle in obstacles):
            return None
        self.items.append(item)
        return item

    def add_chair(
        self, key: str, x: float, z: float, yaw: float, recolour: Recolour | None = None, ignore: Sequence[Item] = ()
    ) -> Item | None:
        """Place a labelled chair, about 3 % larger or smaller, if there is room."""
        rng = self.rng
        scale = rng.normal(1, 0.03) * np.array([rng.normal(1, 0.03), 1, rng.normal(1, 0.03)])
        item = Item(self.entries[key], x, z, yaw, recolour or self.recolour(), scale=scale)
        if self.add(item, 0.9, ignore) is None:
            return None
        item.instance = len(self.chair_items) + 1
        return item

    def against_wall(self, item: Item, gap: float, reach: float) -> None:
        """Put an object's back to one of the walls; reach is a share of the free length, in [0, 1]."""
        side = int(self.rng.integers(4))
        length, across = (self.width, self.depth) if side % 2 == 0 else (self.depth, self.width)
        along = self.rng.uniform(-1, 1) * max(0.0, length / 2 - item.width / 2 - 0.05) * reach
        out = across / 2 - item.depth / 2 - gap
        item.yaw = YAW_OF_WALL[side]
        item.x, item.z = ((along, -out), (-out, along), (along, out), (out, along))[side]

    def put(self, key: str, tries: int = 12, wall: bool = False) -> Item | None:
        """Find a free place for a distractor, on the floor or against a wall."""
        natural = key in DISTRACTORS["people"] + DISTRACTORS["plants"]
        for _ in range(tries):
            item = Item(self.entries[key], 0, 0, 0, self.recolour(0 if natural else 0.35))
            if wall:
                self.against_wall(item, gap=0.03, reach=1.0)
            else:
                item.x, item.z = self.floor_point(0.3)
                item.yaw = self.rng.uniform(0, 2 * math.pi)
            if self.add(item):
                return item
        return None

    def put_on_top(self, table: Item, count: int) -> None:
        """Small things on a table, where they fit and do not overlap."""
        for _ in range(count):
            key = self.distractor("tabletop")
            item = Item(self.entries[key], 0, 0, self.rng.uniform(0, 2 * math.pi), self.recolour(0.3))
            if min(table.width, table.depth) < max(item.width, item.depth):
                continue
            room = np.maximum(0, np.array([table.width - item.width, table.depth - item.width]) / 2 - 0.05)
            a, b = self.rng.uniform(-1, 1, 2) * room
            item.x, item.z = table.point([a, 0, b])
            item.y = table.y + table.height + 0.002
            if not any(other.y > 0.05 and overlap(item.corners(), other.corners()) for other in self.items):
                self.items.append(item)

    def put_around(
        self, table: Item, key: str, count: int, recolour: Recolour | None = None, mix: Sequence[str] | None = None
    ) -> None:
        """Chairs at a table, facing it, tucked in or pulled out; half of them come from a mix where one is given."""
        for x, z, towards in self._seats(table, self.entries[key].dims_m[0], count):
            model = self.pick(mix) if mix and self.rng.random() < 0.5 else key
            pulled = self.rng.uniform(-0.25, 0.05) if self.rng.random() < 0.75 else self.rng.uniform(0.05, 0.5)
            reach = self.entries[model].dims_m[2] / 2 + pulled
            place = table.point([x + math.sin(towards) * reach, 0, z + math.cos(towards) * reach])
            yaw = table.yaw + towards + math.pi + self.rng.normal(0, 0.12 if self.rng.random() < 0.8 else 0.5)
            self.add_chair(model, *place, yaw, recolour, ignore=(table,))

    def _seats(self, table: Item, chair_width: float, count: int) -> list[tuple[float, float, float]]:
        """Points on a table's edge in its own axes, and the direction that leads away from it there."""
        rng = self.rng
        is_round = abs(table.width - table.depth) < 0.12 * table.width and table.width < 1.35
        if is_round:
            start = rng.uniform(0, 2 * math.pi)
            angles = [start + 2 * math.pi * k / max(count, 2) + rng.normal(0, 0.1) for k in range(count)]
            return [(math.sin(a) * table.width / 2, math.cos(a) * table.width / 2, a) for a in angles]
        per_side = max(1, int(table.width / (chair_width + 0.12)))
        along = [((k + 0.5) / per_side - 0.5) * table.width for k in range(per_side)]
        seats = [(x, table.depth / 2, 0.0) for x in along] + [(x, -table.depth / 2, math.pi) for x in along]
        seats += [(table.width / 2, 0, math.pi / 2), (-table.width / 2, 0, -math.pi / 2)]
        if rng.random() < 0.5:
            rng.shuffle(seats)
        return seats[:count]
