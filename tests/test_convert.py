"""YOLO, Pascal VOC and LabelMe as COCO; the boxes are read by globox."""

import json

import pytest
from PIL import Image

from eelib.coco import inspect, read_coco
from eelib.convert import convert
from eelib.faults import DataError

globox = pytest.importorskip("globox")


@pytest.fixture
def photos(tmp_path):
    """Three images of 40 x 20 px; the last one is stored lying and shown upright."""
    folder = tmp_path / "set" / "images" / "train"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (40, 20)).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(folder / "c.jpg", exif=exif)
    return tmp_path / "set"


def boxes(path):
    """Boxes by file name and category."""
    content = read_coco(path, None).content
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"].rpartition("/")[2] for i in content["images"]}
    rows = [(files[a["image_id"]], names[a["category_id"]], pytest.approx(a["bbox"])) for a in content["annotations"]]
    return list(files.values()), list(names.values()), rows


WANT = [("a.jpg", "stool", [10, 5, 20, 10]), ("a.jpg", "chair", [0, 0, 4, 4]), ("c.jpg", "chair", [4, 2, 8, 4])]


def yolo(folder):
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    (folder / "data.yaml").write_text("names: {0: chair, 1: stool, 2: sofa}\n")
    (labels / "a.txt").write_text("1 0.5 0.5 0.5 0.5\n\n0 0 0 0.1 0 0.1 0.2 0 0.2\n")  # a box, a polygon
    (labels / "c.txt").write_bytes(
        b"\xef\xbb\xbf0 0.2 0.2 0.2 0.2 0.9\n"
    )  # with a score, in pixels of the upright image
    return folder


def voc(folder):
    notes = folder / "Annotations"
    notes.mkdir()
    rows = {"a.jpg": [("stool", 10, 5, 30, 15), ("chair", 0, 0, 4, 4)], "b.png": [], "c.jpg": [("chair", 4, 2, 12, 6)]}
    for name, found in rows.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
            "</bndbox></object>"
            for label, a, b, c, d in found
        )
        size = "<size><width>40</width><height>20</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (notes / f"{name[0]}.xml").write_text(text)
    return folder


def labelme(folder):
    def shape(label, points, kind="rectangle"):
        return {"label": label, "points": points, "shape_type": kind}

    triangle = shape("chair", [[0, 0], [4, 0], [0, 4]], "polygon")
    shapes = {
        "a.jpg": [shape("stool", [[30, 15], [10, 5]]), triangle],
        "b.png": [],
        "c.jpg": [shape("chair", [[4, 2], [12, 6]])],
    }
    for name, rows in shapes.items():
        content = {"imagePath": f"..\\images\\{name}", "imageWidth": 40, "imageHeight": 20, "shapes": rows}
        (folder / f"{name[0]}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("make", [yolo, voc, labelme])
def test_boxes_in_pixels_of_the_upright_image(make, photos, tmp_path):
    folder, out = make(photos), tmp_path / "my.json"
    told = convert(folder, make.__name__, out)
    assert told.startswith("3 images, 3 boxes of ")
    files, names, rows = boxes(out)
    assert files == ["a.jpg", "b.png", "c.jpg"] and rows == WANT
    assert names == (["chair", "stool", "sofa"] if make is yolo else ["chair", "stool"])
    assert not [p for p in inspect(out, ("chair", "stool"), folder)[1] if p.severity == "error"]


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_last_line_with_a_name_is_the_last_class(name, end, newline, photos, tmp_path):
    folder = yolo(photos)
    (folder / "data.yaml").unlink()
    (folder / name).write_text(f"chair\nstool\nsofa{end}", newline=newline)
    convert(folder, "yolo", tmp_path / "my.json")
    assert boxes(tmp_path / "my.json")[1:] == (["chair", "stool", "sofa"], WANT)


def test_a_split_and_images_elsewhere(photos, tmp_path):
    folder = yolo(photos)
    convert(folder / "labels", "yolo", tmp_path / "my.json", photos / "images")
    assert boxes(tmp_path / "my.json")[2] == WANT


@pytest.mark.parametrize(
    ("make", "name", "text", "message"),
    [
        (yolo, "labels/train/a.txt", "0 0.5 0.5\n", r"a.txt: line 1 is '0 0.5 0.5': not a box of YOLO"),
        (yolo, "labels/train/a.txt", "\n0 x 0.5 0.1 0.1\n", r"a.txt: line 2 is .*: not a box of YOLO"),
        (yolo, "labels/train/a.txt", "9 0.5 0.5 0.1 0.1\n", r"a.txt: line 1 .*IndexError"),
        (yolo, "data.yaml", "names: 3\n", "data.yaml: key 'names' is not a list of classes"),
        (voc, "Annotations/a.xml", "<annotation>", "a.xml: cannot be read"),
        (
            voc,
            "Annotations/a.xml",
            "<annotation><filename>no.jpg</filename></annotation>",
            "image 'no.jpg' is not under",
        ),
        (labelme, "a.json", "[", "a.json: cannot be read"),
        (labelme, "a.json", '{"shapes": 3}', "a.json: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(make, name, text, message, photos, tmp_path):
    folder = make(photos)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        convert(folder, make.__name__, tmp_path / "my.json")
    assert not (tmp_path / "my.json").exists()


def test_nothing_to_convert(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        convert(tmp_path / "none", "voc", tmp_path / "my.json")
    with pytest.raises(DataError, match="no voc annotation with an image under"):
        convert(tmp_path, "voc", tmp_path / "my.json")
