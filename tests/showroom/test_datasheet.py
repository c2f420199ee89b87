"""Tables and contact sheets."""

import json

import pytest
from PIL import Image

from showroom import ROOT, ShowroomError, datasheet
from showroom.__main__ import main

SHOWROOM = ROOT / "data" / "showroom"


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
    assert main(["sheet", str(SHOWROOM), "--count", "9", "--columns", "3", "--out", str(path)]) == 0
    with Image.open(path) as image:
        assert image.size == (720, 720)
    assert main(["sheet", str(SHOWROOM), "--out", str(tmp_path / "sheet.bmp")]) == 2
    assert "suffix '.bmp' is unknown" in capsys.readouterr().err


def test_a_sheet_shows_slivers_and_refuses_what_is_no_image(tmp_path, capsys):
    image = {"id": 1, "file_name": "a.jpg", "width": 320, "height": 320, "scene": 0, "view": 0}
    image |= {"recipe": "of tomorrow", "dark": False, "blur": 0}
    box = {"id": 1, "image_id": 1, "bbox": [5, 5, 1, 0.5], "area": 1, "iscrowd": 1, "visibility": 0.1}
    box |= {"touches_edge": False, "model": "sc/chair"}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 62, "name": "chair"}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "val").mkdir()
    Image.new("RGB", (320, 320)).save(tmp_path / "val" / "a.jpg")
    assert main(["sheet", str(tmp_path)]) == 0
    (tmp_path / "val" / "a.jpg").write_text("no image")
    assert main(["sheet", str(tmp_path)]) == 2
    assert "a.jpg: not an image that can be read" in capsys.readouterr().err


def test_an_author_cannot_break_a_table(tmp_path):
    text = 'license,library,creator\nCC0,own,"a | b <!-- /licences -->\nc"\n'
    (tmp_path / "ATTRIBUTION.csv").write_text(text)
    cell = datasheet.markdown(datasheet.licences(tmp_path)).splitlines()[2]
    assert cell == r"| CC0 | own | 1 | a \| b &lt;!-- /licences --> c (1) |"
    (tmp_path / "ATTRIBUTION.csv").write_text("licence\nCC0\n")
    with pytest.raises(ShowroomError, match="ATTRIBUTION.csv: expected CSV with columns license"):
        datasheet.licences(tmp_path)
