"""Data sets that are broken or that mean harm."""

import json
from pathlib import Path

import pytest
from PIL import Image

from showroom.__main__ import main
from showroom.roles import SPLITS


def content_of(names: list[str]) -> dict:
    """A split with a box on its first image."""
    sizes = {"width": 8, "height": 8, "view": 0, "recipe": "hero", "dark": False, "blur": 0}
    images = [{"id": k + 1, "file_name": f"{name}.jpg", "scene": k} | sizes for k, name in enumerate(names)]
    box = {"id": 1, "image_id": 1, "category_id": 62, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    box |= {"visibility": 1.0, "touches_edge": True, "model": "sc/chair"}
    return {"images": images, "annotations": [box], "categories": [{"id": 62, "name": "chair"}]}


@pytest.fixture
def rooms(tmp_path):
    """The folder of a data set."""
    folder = tmp_path / "rooms"
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (8, 8)).save(folder / split / f"{name}.jpg")
        (folder / f"{split}.json").write_text(json.dumps(content_of(["a", "b"])))
    (folder / "ATTRIBUTION.csv").write_text("license,library,creator")
    (folder / "README.md").write_text("")
    return folder


def refused(capsys, action: str, folder: Path, *options: str) -> str:
    """The line that an action on the folder prints; it must have written nothing."""
    before = sorted(folder.parent.rglob("*"))
    assert main([action, str(folder), *options]) == 2
    assert sorted(folder.parent.rglob("*")) == before
    printed = capsys.readouterr().err
    assert printed.startswith("showroom: ") and printed.count("\n") == 1 and len(printed) < 600
    return printed


@pytest.mark.parametrize("name", ["../base/train/a.jpg", "/etc/passwd", "..", ".", "", "x/a.jpg", "..\\a.jpg", "a\0"])
def test_no_file_outside_the_set_is_read(rooms, capsys, name):
    content = content_of(["a", "b"])
    content["images"][0]["file_name"] = name
    (rooms / "val.json").write_text(json.dumps(content))
    assert "expected a plain name" in refused(capsys, "sheet", rooms)


@pytest.mark.parametrize(
    ("action", "name"),
    [("sheet", "val/b.jpg"), ("sheet", "val.json"), ("sheet", "val"), ("datasheet", "test.json")]
    + [("datasheet", "ATTRIBUTION.csv")],
)
def test_no_link_is_followed(rooms, tmp_path, capsys, action, name):
    elsewhere = tmp_path / "elsewhere"
    (rooms / name).rename(elsewhere)
    (rooms / name).symlink_to(elsewhere)
    assert f"{name}: is a link" in refused(capsys, action, rooms)


BROKEN = {
    "no JSON": (lambda content: "{", "not JSON"),
    "no text": (lambda content: b"\xff\xfe", "not UTF-8"),
    "deep": (lambda content: "[" * 100_000, "not JSON"),
    "a list": (lambda content: [], "key 'images' is missing or no list"),
    "no annotations": (lambda content: content | {"annotations": None}, "key 'annotations' is missing or no list"),
    "no images": (lambda content: content | {"images": [], "annotations": []}, "there is no image"),
    "no info": (lambda content: content | {"info": [1]}, "key 'info' is [1]"),
    "an id twice": (lambda content: content | {"images": content["images"] * 2}, "ids must be unique"),
    "no scene": (lambda content: _with(content, "images", "scene", "x" * 999), "images[0]: key 'scene' is 'xxx"),
    "an id that is true": (lambda content: _with(content, "images", "id", True), "expected a whole number"),
    "a flat image": (lambda content: _with(content, "images", "width", 0), "not positive"),
    "another image": (lambda content: _with(content, "annotations", "image_id", 9), "is no image's 'id'"),
    "half a box": (lambda content: _with(content, "annotations", "bbox", [1, 2]), "expected [x, y, width, height]"),
    "NaN": (lambda content: _with(content, "annotations", "area", float("nan")), "expected a number"),
    "infinity": (lambda content: _with(content, "annotations", "bbox", [0, 0, 1e999, 1]), "annotations[0]: key 'bbox'"),
}


def _with(content: dict, section: str, key: str, value: object) -> dict:
    content[section][0][key] = value
    return content


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_set_is_one_line_and_status_two(rooms, capsys, name):
    change, message = BROKEN[name]
    changed = change(content_of(["a", "b"]))
    if not isinstance(changed, str | bytes):
        changed = json.dumps(changed)
    path = rooms / "train.json"
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    for action in (["sheet", rooms, "--split", "train"], ["datasheet", rooms]):
        printed = refused(capsys, *action)
        assert str(path) in printed and message in printed


def test_a_missing_split_is_named(rooms, capsys):
    (rooms / "calibrate.json").unlink()
    assert "calibrate.json: no such file" in refused(capsys, "sheet", rooms, "--split", "calibrate")
