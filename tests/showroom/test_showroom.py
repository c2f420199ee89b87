"""The renderer of the embedded data set, and the embedded data against the renderer's own rules.

The last tests render three small scenes; they need the extra and the furniture.
"""

import importlib.util
import json
import math
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from eelib.__main__ import main
from eelib.config import ROOT
from eelib.data import load_split
from showroom import ShowroomError, catalogue, dataset, datasheet, models, recipes, render, roles, textures
from showroom.annotate import LEAST_VISIBILITY, annotate, is_crowd
from showroom.catalogue import Entry
from showroom.layout import Item, Scene, overlap
from showroom.materials import Recolour, linear, of_model
from showroom.view import Camera

SHOWROOM = ROOT / "data" / "showroom"
PROPERTIES = r"""
# two models of one archive
id=Blend Swap CC-0
id#1=Blend Swap CC-0#cube
name#1=Ta\u00bcble \
    long
model#1=/Things/Cube/cube.obj
width#1=200
depth#1=100
height#1=50
creator#1=Someone, else
id#2=Blend Swap CC-0#turned
name#2=Turned
model#2=/things/cube/CUBE.obj
width#2=100
depth#2=100
height#2=100
modelRotation#2=0 0 1 0 1 0 -1 0 0
"""
# A 2 x 2 x 2 cube off the origin: quads, one face by negative indices, a line without area, a normal of length 2.
OBJ = """
mtllib C:\\author\\cube.MTL
v 1 1 1
v 3 1 1
v 3 3 1
v 1 3 1
v 1 1 3
v 3 1 3
v 3 3 3
v 1 3 3
vt 0 0
vt 1 0
vt 1 1
vn 0 0 -2
usemtl wood
f 1/1/1 4/2/1 3/3/1 2/1/1
f -4 -3 -2 -1
usemtl glass
f 1 2 6 5
f 1 1 2
"""
MTL = "newmtl wood\nKd 0.5 0.4 0.3\nmap_Kd -s 2 3 1 none.jpg\nnewmtl\tglass\nKd 1 1 1\nd 0.4\nmap_Kd SUB\\Image.png\n"


@pytest.fixture
def archives(tmp_path):
    """A furniture folder with one archive."""
    Image.new("RGB", (4, 4), "red").save(tmp_path / "image.png")
    with zipfile.ZipFile(tmp_path / "BlendSwap-CC-0.sh3f", "w") as file:
        file.writestr(catalogue.CATALOGUE_FILE, PROPERTIES.encode("latin-1"))
        file.writestr("things/cube/cube.obj", OBJ)
        file.writestr("things/cube/cube.mtl", MTL)
        file.write(tmp_path / "image.png", "things/cube/sub/image.PNG")
    return tmp_path


def test_catalogue_reads_the_properties_of_a_model(archives):
    entries = catalogue.read_catalogue(archives)
    cube = entries["bs0/cube"]
    assert (cube.name, cube.licence, cube.creator) == ("Ta¼ble long", "CC0", "Someone, else")
    assert cube.dims_m == (2.0, 0.5, 1.0)
    assert entries["bs0/turned"].rotation == (0, 0, 1, 0, 1, 0, -1, 0, 0)
    assert catalogue.attribution(entries, ["bs0/cube"]).splitlines()[1] == (
        'bs0/cube,Ta¼ble long,"Someone, else",CC0,BlendSwap-CC-0'
    )


def test_bad_archives_are_named(archives, tmp_path):
    with pytest.raises(ShowroomError, match="the archives lack 1 models, such as sc/chair"):
        catalogue.attribution({}, ["sc/chair"])
    with pytest.raises(ShowroomError, match=r"no furniture archive .* in .*nowhere; run `make furniture`"):
        catalogue.furniture_folder(str(tmp_path / "nowhere"))
    with zipfile.ZipFile(archives / "Scopia.sh3f", "w") as file:
        file.writestr(catalogue.CATALOGUE_FILE, "id#7=Scopia#x\nname#7=X\nwidth#7=wide\n")
    with pytest.raises(ShowroomError, match=r"Scopia.sh3f: model #7: bad or missing property .*'wide'"):
        catalogue.read_catalogue(archives)
    (archives / "Scopia.sh3f").rename(archives / "Other.sh3f")
    with pytest.raises(ShowroomError, match="Other.sh3f: unknown library"):
        catalogue.read_catalogue(archives)


def test_model_has_the_size_of_the_catalogue_and_stands_on_the_floor(archives):
    entry = catalogue.read_catalogue(archives)["bs0/cube"]
    wood, glass = models.load(entry)
    points = np.concatenate([wood.vertices, glass.vertices])
    np.testing.assert_allclose(points.min(0), [-1, 0, -0.5], atol=1e-6)
    np.testing.assert_allclose(points.max(0), [1, 0.5, 0.5], atol=1e-6)
    assert [len(part.faces) for part in (wood, glass)] == [4, 2]  # fans of quads; the line is dropped
    np.testing.assert_allclose(np.linalg.norm(wood.normals, axis=1), 1, atol=1e-6)
    assert wood.uvs.max(0).tolist() == [2, 3]  # -s scales the texture
    assert wood.material.texture is None and glass.material.texture == "things/cube/sub/image.PNG"
    look = of_model(glass.material, catalogue.open_archive(entry.archive), Recolour(np.random.default_rng(0), False))
    assert look.glass


def test_rotation_is_applied_before_scaling(archives):
    entries = catalogue.read_catalogue(archives)
    plain, turned = (models.load(entries[f"bs0/{name}"])[0].normals for name in ("cube", "turned"))
    assert plain[:, 2].min() == -1 and turned[:, 0].min() == -1  # the face at -z goes to -x


def test_splits_share_no_chair_and_scenes_hold_nothing_ambiguous():
    train, val, calibrate, test = (
        {key for keys in roles.chairs_of(split).values() for key in keys} for split in roles.SPLITS
    )
    assert not train & val and not train & test and not val & test
    assert calibrate == test and len(val) == len(test) == 9
    assert not set(roles.AMBIGUOUS) & set(roles.all_models())
    assert not set(roles.DISTRACTORS) & (train | val | test)
    assert "sc/ext_chair" in roles.AMBIGUOUS
    with pytest.raises(ValueError, match="split: 'dev' is unknown"):
        roles.chairs_of("dev")


def entry(key: str) -> Entry:
    """A made-up model: chairs 0.5 x 0.9 x 0.5 m, everything else 1.2 x 0.7 x 0.8 m, small things on tables."""
    dims_m = (1.2, 0.7, 0.8)
    if key in roles.TABLETOP:
        dims_m = (0.1, 0.2, 0.1)
    if any(key in keys for keys in roles.CHAIRS.values()):
        dims_m = (0.5, 0.9, 0.5)
    return Entry(key, key, "", "CC0", "BlendSwap-CC-0", ROOT, "", dims_m)


ENTRIES = {key: entry(key) for key in roles.all_models()}


def scene_of(seed: int, recipe: str | None = None, split: str = "train") -> Scene:
    return recipes.build(ENTRIES, roles.chairs_of(split), np.random.default_rng(seed), recipe)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_layout_keeps_chairs_in_the_room_and_apart(recipe):
    chairs = 0
    for seed in range(6):
        scene = scene_of(seed, recipe, "val")
        placed = scene.chair_items
        chairs += len(placed)
        assert [chair.instance for chair in placed] == list(range(1, len(placed) + 1))
        assert {chair.entry.key for chair in placed} <= set(roles.VAL_CHAIRS)
        for number, chair in enumerate(placed):
            corners = chair.corners(0.9)
            assert (np.abs(corners) <= [scene.width / 2, scene.depth / 2]).all()
            assert not any(overlap(corners, other.corners(0.9)) for other in placed[:number])
    assert (chairs == 0) == (recipe == "neg")


def test_layout_depends_on_the_seed_alone():
    def facts(scene):
        return [(i.entry.key, i.x, i.z, i.yaw, i.recolour.hue) for i in scene.items], scene.recipe, scene.clutter

    assert facts(scene_of(5)) == facts(scene_of(5)) != facts(scene_of(6))


def test_recipes_come_in_their_shares():
    drawn = [recipes.draw(np.random.default_rng(seed)) for seed in range(2000)]
    assert math.isclose(sum(recipes.RECIPES.values()), 1)
    for recipe, share in recipes.RECIPES.items():
        # five standard errors
        assert abs(drawn.count(recipe) / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


def test_chairs_at_a_table_face_it():
    rng = np.random.default_rng(0)
    scene = Scene(ENTRIES, roles.chairs_of("train"), rng)
    scene.width = scene.depth = 8.0
    table = scene.add(Item(ENTRIES[roles.TABLES[0]], 0.5, -0.5, 0.7, Recolour(rng, False)))
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


@pytest.mark.parametrize(
    ("pixels", "visibility", "side_px", "crowd"),
    [(40, 0.06, 5, False), (39, 1.0, 6, True), (900, 0.059, 20, True), (400, 1.0, 4, True)],
)
def test_crowd_rule(pixels, visibility, side_px, crowd):
    assert is_crowd(pixels, visibility, side_px) is crowd


def test_annotations_of_a_buffer_by_hand():
    buffer = np.full((20, 30), -1)
    buffer[:10] = 0
    buffer[2:12, 0:8] = 3
    buffer[4:6, 2:4] = 0  # a hole
    buffer[15, 20] = 1
    lone, seen = annotate(buffer, {1: 10, 3: 75}, {1: "sc/chair", 3: "sc/armchair"})
    assert (seen["bbox"], seen["area"], seen["model"]) == ([0, 2, 8, 10], 76, "sc/armchair")
    assert (seen["visibility"], seen["iscrowd"], seen["touches_edge"]) == (1.0, 0, True)  # never above 1
    assert (coco_mask.decode(seen["segmentation"]) == (buffer == 3)).all()
    assert (lone["bbox"], lone["visibility"], lone["iscrowd"]) == ([20, 15, 1, 1], 0.1, 1)
    assert not lone["touches_edge"]
    assert annotate(np.zeros((4, 4), int), {}, {}) == []
    with pytest.raises(KeyError):
        annotate(buffer, {1: 10}, {1: "sc/chair"})


@pytest.fixture
def without_mitsuba(monkeypatch):
    """A renderer that writes parts without rendering; scene 1 fails. Returns the scenes that were made."""
    made = []

    def fake(out, furniture, settings, scene_id):
        made.append(scene_id)
        if scene_id == 1:
            raise RuntimeError("no light")
        image = {"file_name": f"{scene_id}.jpg", "width": 320, "height": 320, "scene": scene_id, "view": 0}
        annotation = {"bbox": [0, 0, 9, 9], "iscrowd": 0}
        part = {"settings": vars(settings), "views": [{"image": image, "annotations": [annotation] * scene_id}]}
        path = dataset.part_path(out, settings.split, scene_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(part))
        return "hero"

    monkeypatch.setattr(render, "start", lambda: None)
    monkeypatch.setattr(dataset, "_entries", lambda folder: ENTRIES)
    monkeypatch.setattr(dataset, "render_scene", fake)
    return made


def test_a_failing_scene_is_skipped_and_the_next_start_goes_on(without_mitsuba, archives, capsys):
    out = archives / "out"
    argv = ["showroom", "render", "--split", "val", "--scenes", "3", "--seed", "4", "--out", str(out)]
    argv += ["--workers", "1", "--furniture", str(archives)]
    assert main(argv) == 1
    printed = capsys.readouterr()
    assert "2/3 scene 1: FAILED RuntimeError: no light" in printed.out and "1 scenes failed: [1]" in printed.err
    content = json.loads((out / "val.json").read_text())
    assert [(image["id"], image["scene"]) for image in content["images"]] == [(1, 0), (2, 2)]
    assert [(a["id"], a["image_id"]) for a in content["annotations"]] == [(1, 2), (2, 2)]
    assert (out / "ATTRIBUTION.csv").read_text().count("\n") == len(roles.all_models()) + 1
    assert without_mitsuba == [0, 1, 2]
    assert main(argv) == 1
    assert without_mitsuba == [0, 1, 2, 1]
    assert main([*argv, "--samples", "16"]) == 2  # other settings would mix two data sets in a folder
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mitsuba", "embreex", "cv2"])
def test_a_missing_extra_says_what_to_install(monkeypatch, name):
    for module in ("mitsuba", "embreex", "cv2", "pyoidn"):  # there or not, only one is missing now
        monkeypatch.setitem(sys.modules, module, None if module == name else object())
    with pytest.raises(ShowroomError, match=rf"{name} is not installed; run `pip install -r requirements-render.lock`"):
        render.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "dev"], "--split: 'dev' is unknown; expected one of train, val, calibrate, test"),
        (["--scenes", "0"], "--scenes: 0; expected 1 or more"),
        (["--furniture", "nowhere"], "no furniture archive"),
    ],
)
def test_bad_options_are_one_line_and_status_two(options, message, tmp_path, capsys):
    assert main(["showroom", "render", "--split", "val", "--scenes", "1", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


# ---- the embedded data


@pytest.fixture(scope="module")
def embedded():
    return datasheet.load(SHOWROOM)


@pytest.mark.parametrize("split", roles.SPLITS)
def test_embedded_boxes_are_the_extent_of_their_masks(embedded, split):
    annotations = embedded[split]["annotations"]
    for annotation in annotations[:: len(annotations) // 150]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = columns[0], rows[0]
        width, height = columns[-1] + 1 - x, rows[-1] + 1 - y
        assert annotation["bbox"] == [x, y, width, height]
        assert annotation["area"] == mask.sum()
        edges = (x == 0, y == 0, x + width == 320, y + height == 320)
        assert annotation["touches_edge"] == any(edges)


def test_embedded_annotations_keep_the_crowd_rule(embedded):
    for content in embedded.values():
        for annotation in content["annotations"]:
            visibility = annotation["visibility"]
            assert 0 <= visibility <= 1
            if abs(visibility - LEAST_VISIBILITY) > 0.0005:  # the JSON rounds it to three decimals
                assert annotation["iscrowd"] == is_crowd(annotation["area"], visibility, min(annotation["bbox"][2:]))


def test_embedded_masks_of_an_image_do_not_overlap(embedded):
    for content in embedded.values():
        by_image = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
        for masks in list(by_image.values())[::25]:
            assert coco_mask.area(coco_mask.merge(masks)) == sum(coco_mask.area(masks))


def test_embedded_splits_share_no_chair_and_hold_empty_images(embedded):
    seen = {s: {annotation["model"] for annotation in c["annotations"]} for s, c in embedded.items()}
    assert not seen["train"] & seen["val"] and not (seen["train"] | seen["val"]) & (seen["calibrate"] | seen["test"])
    # version 1 still has the daybed that new renders leave out
    for split, models_seen in seen.items():
        allowed = {key for keys in roles.chairs_of(split).values() for key in keys}
        assert models_seen - {"sc/ext_chair"} <= allowed
    for content in embedded.values():
        with_chair = {annotation["image_id"] for annotation in content["annotations"]}
        assert len(with_chair) < len(content["images"])
        assert {image["recipe"] for image in content["images"]} == set(recipes.RECIPES)
    scenes = [{image["scene"] for image in embedded[split]["images"]} for split in ("calibrate", "test")]
    assert not scenes[0] & scenes[1]


def test_every_model_is_attributed(embedded):
    listed = {line.split(",")[0] for line in (SHOWROOM / "ATTRIBUTION.csv").read_text().splitlines()[1:]}
    assert set(roles.all_models()) <= listed
    assert {annotation["model"] for content in embedded.values() for annotation in content["annotations"]} <= listed


def test_the_datasheet_holds_the_numbers_of_the_data():
    text = (SHOWROOM / "README.md").read_text()
    assert datasheet.fill(text, SHOWROOM) == text, "run `eelib showroom datasheet`"
    with pytest.raises(ShowroomError, match="no markers <!-- counts -->"):
        datasheet.fill("", SHOWROOM)
    for name in ("contact_sheet.jpg", "rendered_sheet.jpg"):
        assert name in text and (SHOWROOM / name).stat().st_size < 400_000


def test_tables_by_hand():
    boxes = [
        {"image_id": 1, "bbox": [0, 0, 8, 2], "area": 9, "iscrowd": 0, "visibility": 0.4, "touches_edge": True},
        {"image_id": 1, "bbox": [0, 0, 100, 100], "area": 9216, "iscrowd": 0, "visibility": 1, "touches_edge": False},
        {"image_id": 2, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 1, "visibility": 1, "touches_edge": False},
    ]
    boxes = [box | {"model": "sc/chair"} for box in boxes]
    images = [{"id": i, "scene": 7, "dark": i == 1, "blur": 0, "recipe": "hero"} for i in (1, 2)]
    contents = {"val": {"images": images, "annotations": boxes}}
    assert datasheet.counts(contents) == [
        {"split": "val", "images": 2, "scenes": 1, "boxes": 2, "crowd": 1, "without a chair": 1, "chair models": 1}
        | {"dark": "50%", "blurred": "0%"}
    ]
    (row,) = datasheet.box_sizes(contents)
    assert (row["small"], row["medium"], row["large"], row["half hidden"]) == ("50%", "0%", "50%", "50%")
    assert row["side p50 (px)"] == "52"
    hero = next(row for row in datasheet.recipe_counts(contents) if row["recipe"] == "hero")
    assert (hero["val"], hero["boxes an image"]) == (2, "1.0")
    assert datasheet.markdown([{"a": 1, "b": "x"}]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_sheet_shows_each_recipe(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    assert main(["showroom", "sheet", str(SHOWROOM), "--count", "9", "--columns", "3", "--out", str(path)]) == 0
    with Image.open(path) as image:
        assert image.size == (720, 720)
    assert main(["showroom", "sheet", str(SHOWROOM), "--out", str(tmp_path / "sheet.bmp")]) == 2
    assert "suffix '.bmp' is unknown" in capsys.readouterr().err


# ---- a small render


def _absent() -> str:
    """Why nothing can be rendered here, or nothing."""
    extra = [name for name in ("mitsuba", "pyoidn", "embreex", "cv2") if importlib.util.find_spec(name) is None]
    if extra:
        return f"{', '.join(extra)} not installed: pip install -r requirements-render.lock"
    try:
        catalogue.furniture_folder(None)
    except ShowroomError as error:
        return str(error)
    return ""


SETTINGS = dataset.Settings("val", seed=1, samples=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A scene with chairs and one without; the folder and the scenes' ids."""
    if _absent():
        pytest.skip(_absent())
    empty = next(i for i in range(1000) if recipes.draw(dataset.scene_rng(SETTINGS, i)) == "neg")
    folder = tmp_path_factory.mktemp("rendered")
    furniture = catalogue.furniture_folder(None)
    render.start()
    for scene_id in (0, empty):
        dataset.render_scene(folder, furniture, SETTINGS, scene_id)
    return folder, furniture, (0, empty)


@pytest.mark.timeout(1200)
def test_rendered_annotations_are_what_the_rays_see(rendered):
    folder, furniture, (scene_id, empty) = rendered
    content = dataset.merge(folder, "val", [scene_id, empty])
    composition = dataset.compose(catalogue.read_catalogue(furniture), SETTINGS, scene_id)
    buffer, _ = composition.caster.cast(composition.cameras[0])
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] == 1]
    # no chair without an annotation, and no other pixel in a mask
    painted = sum(coco_mask.decode(annotation["segmentation"]).astype(int) for annotation in annotations)
    assert (painted == (buffer > 0)).all() and len(annotations) == len(np.unique(buffer[buffer > 0])) > 0
    for annotation in annotations:
        rows, columns = np.nonzero(coco_mask.decode(annotation["segmentation"]))
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert 0 < annotation["visibility"] <= 1
        assert annotation["model"] in roles.VAL_CHAIRS
    assert content["images"][1]["recipe"] == "neg"
    assert not [annotation for annotation in content["annotations"] if annotation["image_id"] == 2]
    for image in content["images"]:
        pixels = np.asarray(Image.open(folder / "val" / image["file_name"]))
        assert pixels.shape == (320, 320, 3) and pixels.std() > 10


@pytest.mark.timeout(1200)
def test_the_same_seed_makes_the_same_image(rendered, tmp_path):
    folder, furniture, (scene_id, _) = rendered
    dataset.render_scene(tmp_path, furniture, SETTINGS, scene_id)
    for path in (f"val/{scene_id:06d}_0.jpg", f"parts/val/{scene_id:06d}.json"):
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_joined_sets_share_nothing_but_the_held_out_splits(tmp_path, capsys):
    base, more = tmp_path / "base", tmp_path / "more"
    for folder, names, info in ((base, ("a", "b"), {}), (more, ("a",), {"settings": {"split": "train", "seed": 7}})):
        for split in ("train", "val", "calibrate", "test") if folder == base else ("train",):
            (folder / split).mkdir(parents=True)
            images = [
                {"id": k + 1, "file_name": f"{n}.jpg", "width": 8, "height": 8, "scene": k} for k, n in enumerate(names)
            ]
            for image in images:
                Image.new("RGB", (8, 8)).save(folder / split / image["file_name"])
            boxes = [{"id": 1, "image_id": 1, "category_id": 62, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}]
            content = {
                "info": info,
                "images": images,
                "annotations": boxes,
                "categories": [{"id": 62, "name": "chair"}],
            }
            (folder / f"{split}.json").write_text(json.dumps(content))
    (base / "ATTRIBUTION.csv").write_text("key")
    argv = ["showroom", "join", str(base), str(more), "--out", str(tmp_path / "out")]
    assert main(argv) == 0 and "3 images of" in capsys.readouterr().out
    train = load_split("train", tmp_path / "out")
    assert [(i["id"], i["scene"], i["file_name"]) for i in train.dataset["images"]] == [
        (1, 0, "a.jpg"), (2, 1, "b.jpg"), (3, 2, "7_a.jpg")
    ]  # fmt: skip
    assert [(a["id"], a["image_id"]) for a in train.dataset["annotations"]] == [(1, 1), (2, 3)]
    assert all((tmp_path / "out" / "train" / i["file_name"]).exists() for i in train.dataset["images"])
    assert (tmp_path / "out" / "test.json").read_bytes() == (base / "test.json").read_bytes()
    assert main(argv) == 2 and "exists; expected a new folder" in capsys.readouterr().err
    argv = ["showroom", "join", str(base), str(base), "--out", str(tmp_path / "other")]
    assert main(argv) == 2 and "expected renders of train" in capsys.readouterr().err
    argv = ["showroom", "join", str(tmp_path / "out"), str(more), "--out", str(tmp_path / "other")]
    assert main(argv) == 2 and "7_a.jpg is in" in capsys.readouterr().err
