"""The nine kinds of scene, and the clutter that is common to all of them."""

import math
from collections.abc import Mapping

from numpy.random import Generator

from showroom.catalogue import Entry
from showroom.layout import YAW_OF_WALL, Item, Scene
from showroom.materials import Recolour
from showroom.roles import CHAIRS, DISTRACTORS

FULL_TURN = 2 * math.pi


def draw(rng: Generator) -> str:
    """A recipe by its share: the first draw of a scene."""
    return str(rng.choice(list(RECIPES), p=list(RECIPES.values())))


def build(
    entries: Mapping[str, Entry], chairs: Mapping[str, list[str]], rng: Generator, recipe: str | None = None
) -> Scene:
    """Furnish a room by a recipe, drawn by its share where none is named."""
    scene = Scene(entries, chairs, rng)
    scene.recipe = recipe or draw(rng)
    low, high = (5, 12) if scene.recipe in ("cafe", "class") else (3, 7.5)
    scene.width, scene.depth = rng.uniform(low, high, 2)
    scene.height = rng.uniform(2.4, 3.2)
    _RECIPES[scene.recipe][1](scene, scene.recolour())
    if scene.recipe in ("living", "neg", "hero") and rng.random() < 0.3:
        scene.put(scene.distractor("beds"), wall=True)
    if scene.recipe != "neg" and rng.random() < 0.2:  # a stray chair of another kind
        scene.add_chair(scene.pick(scene.all_chairs), *scene.floor_point(0.4), rng.uniform(0, FULL_TURN))
    _clutter(scene)
    _people(scene)
    _hang(scene)
    return scene


def _dining(scene: Scene, recolour: Recolour) -> None:
    """A table with one to seven chairs, mostly alike."""
    rng, chairs = scene.rng, scene.chairs
    yaw = rng.choice([0, math.pi / 2]) + rng.normal(0, 0.05)
    key = scene.distractor("tables")
    table = scene.add(Item(scene.entries[key], *rng.uniform(-0.6, 0.6, 2), yaw, scene.recolour()))
    if table:
        mix = chairs["dining"] if rng.random() < 0.25 else None
        key = scene.pick(chairs["dining"] + chairs["arm"][:2])
        scene.put_around(table, key, int(rng.integers(1, 8)), recolour, mix)
        scene.put_on_top(table, int(rng.integers(0, 5)))


def _living(scene: Scene, recolour: Recolour) -> None:
    """A sofa, a coffee table and one to three seats turned to the middle."""
    rng, chairs = scene.rng, scene.chairs
    scene.put(scene.distractor("sofas"), wall=True)
    table = scene.put(scene.distractor("coffee_tables"))
    if table:
        scene.put_on_top(table, int(rng.integers(0, 3)))
    for _ in range(int(rng.integers(1, 4))):
        key = scene.pick(chairs["arm"] + chairs["dining"][:6] + chairs["other"])
        for _ in range(8):
            x, z = scene.floor_point(0.5)
            yaw = math.atan2(-x, -z) + rng.normal(0, 0.6)
            if scene.add_chair(key, x, z, yaw, recolour if rng.random() < 0.5 else None):
                break


def _office(scene: Scene, recolour: Recolour) -> None:
    """One to four desks, each with a chair."""
    rng, chairs = scene.rng, scene.chairs
    for _ in range(int(rng.integers(1, 5))):
        desk = scene.put(scene.distractor("desks"), wall=rng.random() < 0.6)
        if not desk:
            continue
        key = scene.pick(chairs["office"] * 3 + chairs["dining"])
        side = 1 if rng.random() < 0.8 else -1
        reach = desk.depth / 2 + scene.entries[key].dims_m[2] / 2 + rng.uniform(-0.25, 0.4)
        place = desk.point([rng.uniform(-0.25, 0.25) * desk.width, 0, side * reach])
        yaw = desk.yaw + (math.pi if side > 0 else 0) + rng.normal(0, 0.5)
        scene.add_chair(key, *place, yaw, ignore=(desk,))
        scene.put_on_top(desk, int(rng.integers(1, 4)))


def _cafe(scene: Scene, recolour: Recolour) -> None:
    """Two to five tables of a kind, each with two to four chairs."""
    rng, chairs = scene.rng, scene.chairs
    chair = scene.pick(chairs["dining"] + chairs["arm"])
    table_key = scene.distractor("small_tables", "tables")
    mix = chairs["dining"] if rng.random() < 0.3 else None
    for _ in range(int(rng.integers(2, 6))):
        table = scene.put(table_key)
        if table:
            scene.put_around(table, chair, int(rng.integers(2, 5)), recolour, mix)
            scene.put_on_top(table, int(rng.integers(0, 3)))


def _class(scene: Scene, recolour: Recolour) -> None:
    """Rows of one chair, all turned the same way, a few missing."""
    rng, chairs = scene.rng, scene.chairs
    key = scene.pick(chairs["dining"] + chairs["office"] * 2)
    columns, rows = rng.integers(2, 5, 2)
    gap_x, gap_z = rng.uniform(0.75, 1.3), rng.uniform(0.9, 1.5)
    yaw = rng.choice([0, math.pi / 2, math.pi])
    for column in range(columns):
        for row in range(rows):
            if rng.random() < 0.12:
                continue
            x = (column - (columns - 1) / 2) * gap_x + rng.normal(0, 0.04)
            z = (row - (rows - 1) / 2) * gap_z + rng.normal(0, 0.04)
            scene.add_chair(key, x, z, yaw + rng.normal(0, 0.1), recolour)


def _hero(scene: Scene, recolour: Recolour) -> None:
    """One chair, sometimes two, in the middle: seen from near."""
    rng = scene.rng
    for _ in range(1 if rng.random() < 0.7 else 2):
        scene.add_chair(scene.pick(scene.all_chairs), *rng.uniform(-0.8, 0.8, 2), rng.uniform(0, FULL_TURN))


def _bar(scene: Scene, recolour: Recolour) -> None:
    """A high table or a counter with one to five high chairs."""
    rng = scene.rng
    scale = (rng.uniform(1, 1.8), rng.uniform(1, 1.15), 1)
    place = (*rng.uniform(-0.4, 0.4, 2), rng.uniform(0, FULL_TURN))
    table = scene.add(Item(scene.entries[scene.distractor("bar_tables")], *place, scene.recolour(), scale=scale))
    if table:
        scene.put_around(table, scene.pick(scene.chairs["bar"]), int(rng.integers(1, 6)), recolour)
    for _ in range(2):
        scene.put(scene.distractor("low_cabinets"), wall=True)


def _scattered(scene: Scene, recolour: Recolour) -> None:
    """Two to eight chairs of any kind anywhere."""
    rng = scene.rng
    for _ in range(int(rng.integers(2, 9))):
        key = scene.pick(scene.all_chairs)
        for _ in range(6):
            if scene.add_chair(key, *scene.floor_point(0.4), rng.uniform(0, FULL_TURN)):
                break


def _negative(scene: Scene, recolour: Recolour) -> None:
    """No chair: sofas, tables, beds and desks alone."""
    for _ in range(3):
        key = scene.distractor("sofas", "tables", "coffee_tables", "beds", "desks")
        scene.put(key, wall=scene.rng.random() < 0.6)


def _clutter(scene: Scene) -> None:
    """Distractors in proportion to the scene's clutter, drawn from [0, 1]."""
    rng = scene.rng
    scene.clutter = float(rng.beta(1.3, 1.5))
    shelves = DISTRACTORS["storage"] + DISTRACTORS["low_cabinets"]
    against_walls = DISTRACTORS["storage"] + shelves + DISTRACTORS["doors"] + DISTRACTORS["sofas"][:8]
    for _ in range(int(scene.clutter * 6)):
        scene.put(scene.pick(against_walls), tries=6, wall=True)
    for _ in range(int(scene.clutter * rng.integers(1, 6))):
        scene.put(scene.distractor("on_floor", "plants", "floor_lamps"), tries=5)
    for _ in range(int(rng.integers(0, 3) * (scene.clutter + 0.4))):
        scene.put(scene.distractor("plants", "floor_lamps"), tries=5, wall=True)
    for item in list(scene.items):
        if item.entry.key in shelves and item.height < 1.3 and rng.random() < 0.6:
            scene.put_on_top(item, 2)


def _people(scene: Scene) -> None:
    """Sometimes someone on a chair, sometimes someone standing."""
    rng = scene.rng
    if scene.chair_items and rng.random() < 0.12:
        chair = scene.chair_items[int(rng.integers(len(scene.chair_items)))]
        if chair.entry.key not in CHAIRS["bar"] + CHAIRS["other"]:
            person = Item(scene.entries[scene.distractor("seated_people")], 0, 0, chair.yaw, scene.recolour(0))
            person.x, person.z = chair.point([0, 0, (person.depth - chair.depth) / 2 + 0.12])
            scene.items.append(person)
    if rng.random() < 0.15:
        scene.put(scene.distractor("people"), tries=6)


def _hang(scene: Scene) -> None:
    """A lamp from the ceiling and a thing on a wall, sometimes."""
    rng = scene.rng
    if rng.random() < 0.5:
        place = (*rng.uniform(-0.5, 0.5, 2), rng.uniform(0, FULL_TURN))
        lamp = Item(scene.entries[scene.distractor("hanging")], *place, scene.recolour(0.4))
        lamp.y = scene.height - lamp.height
        scene.items.append(lamp)
    if scene.recipe != "hero" and rng.random() < 0.5:
        thing = Item(scene.entries[scene.distractor("on_wall")], 0, 0, YAW_OF_WALL[0], scene.recolour(0.1))
        scene.against_wall(thing, gap=0.01, reach=0.75)
        thing.y = 0.12 if "adiator" in thing.entry.key else rng.uniform(1.3, 1.6)
        if thing.y + thing.height < scene.height:
            scene.items.append(thing)


# Each recipe's share of the scenes, and what furnishes its rooms.
_RECIPES = {
    "dining": (0.24, _dining),
    "living": (0.15, _living),
    "hero": (0.13, _hero),
    "office": (0.12, _office),
    "cafe": (0.12, _cafe),
    "clutter": (0.08, _scattered),
    "class": (0.06, _class),
    "bar": (0.06, _bar),
    "neg": (0.04, _negative),
}
RECIPES = {name: share for name, (share, _) in _RECIPES.items()}
