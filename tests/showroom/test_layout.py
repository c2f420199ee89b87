"""Rooms before they are rendered: layout, recipes, cameras, textures."""

import math

import numpy as np
import pytest

from showroom import recipes, roles, textures
from showroom.layout import Item, Scene, overlap
from showroom.materials import Recolour, linear
from showroom.view import Camera


def scene_of(entries, seed: int, recipe: str | None = None, split: str = "train") -> Scene:
    return recipes.build(entries, roles.chairs_of(split), np.random.default_rng(seed), recipe)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_layout_keeps_chairs_in_the_room_and_apart(entries, recipe):
    chairs = 0
    for seed in range(6):
        scene = scene_of(entries, seed, recipe, "val")
        placed = scene.chair_items
        chairs += len(placed)
        assert [chair.instance for chair in placed] == list(range(1, len(placed) + 1))
        assert {chair.entry.key for chair in placed} <= set(roles.HELD_OUT["val"])
        for number, chair in enumerate(placed):
            corners = chair.corners(0.9)
            assert (np.abs(corners) <= [scene.width / 2, scene.depth / 2]).all()
            assert not any(overlap(corners, other.corners(0.9)) for other in placed[:number])
    assert (chairs == 0) == (recipe == "neg")


def test_layout_depends_on_the_seed_alone(entries):
    def facts(scene):
        return [(i.entry.key, i.x, i.z, i.yaw, i.recolour.hue) for i in scene.items], scene.recipe, scene.clutter

    assert facts(scene_of(entries, 5)) == facts(scene_of(entries, 5)) != facts(scene_of(entries, 6))


def test_recipes_come_in_their_shares():
    drawn = [recipes.draw(np.random.default_rng(seed)) for seed in range(2000)]
    assert math.isclose(sum(recipes.RECIPES.values()), 1)
    for recipe, share in recipes.RECIPES.items():
        # five standard errors
        assert abs(drawn.count(recipe) / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_chairs_at_a_table_face_it(entries):
    rng = np.random.default_rng(0)
    scene = Scene(entries, roles.chairs_of("train"), rng)
    scene.width = scene.depth = 8.0
    table = scene.add(Item(entries[roles.DISTRACTORS["tables"][0]], 0.5, -0.5, 0.7, Recolour(rng, False)))
    scene.put_around(table, "sc/chair3", 6)
    assert len(scene.chair_items) >= 4
    for chair in scene.chair_items:
        to_table = np.array([table.x - chair.x, table.z - chair.z])
        facing = np.array([math.sin(chair.yaw), math.cos(chair.yaw)])
        assert facing @ to_table / np.linalg.norm(to_table) > 0.3


def test_overlap_by_hand():
    square = np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float)
    diamond = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]], float)
    assert overlap(square, diamond)
    assert not overlap(square, square + [2, 0])  # touching
    assert not overlap(square, diamond + [-0.6, -0.6])  # the bounding boxes overlap, the shapes do not


def test_rays_of_a_camera():
    rays = Camera(np.array([0, 1.0, 0]), np.array([0, 1.0, 5]), 60.0).rays().reshape(320, 320, 3)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(rays[159:161, 159:161].mean((0, 1)), [0, 0, 1], atol=1e-4)
    assert rays[0, 160, 1] > 0 > rays[-1, 160, 1]  # rows go down
    assert rays[160, 0, 0] > 0 > rays[160, -1, 0]  # looking along +z, +x is on the left
    edge = rays[160, -1]
    assert math.isclose(math.degrees(math.atan2(-edge[0], edge[2])), 30, abs_tol=0.1)


@pytest.mark.parametrize("name", ["planks", "tiles", "brick", "carpet", "concrete", "paint", "wallpaper", "picture"])
def test_textures_repeat_with_the_seed(name, monkeypatch):
    monkeypatch.setattr(textures, "SIDE", 64)
    first, same, other = (getattr(textures, name)(np.random.default_rng(seed)) for seed in (1, 1, 2))
    if name != "picture":
        assert 0.5 < first.size_m == same.size_m < 5
        first, same, other = first.image, same.image, other.image
    assert first.dtype == np.uint8 and first.shape == (*first.shape[:1] * 2, 3)
    assert (first == same).all() and (first != other).any()


def test_no_surface_is_whiter_than_paint():
    assert linear(np.array([0, 0.5, 1.0])).tolist() == pytest.approx([0, 0.2140, 0.9], abs=1e-4)
