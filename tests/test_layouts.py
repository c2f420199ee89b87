"""Folders as tools write them, and images that are not where a file says."""

import json
import unicodedata

import pytest
from PIL import Image

from eelib.coco import Source, inspect, open_root, read_split
from eelib.data import DetectionDataset
from eelib.faults import DataError
from eelib.layouts import find_images, images_beside, whole_file


def content(*names):
    """COCO content of images with a chair each."""
    box = {"bbox": [1, 1, 9, 9], "category_id": 1, "iscrowd": 0}
    return {
        "images": [{"id": i, "file_name": name, "width": 20, "height": 16} for i, name in enumerate(names)],
        "annotations": [{"id": i + 1, "image_id": i, **box} for i in range(len(names))],
        "categories": [{"id": 1, "name": "chair"}],
    }


def place(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16)).save(root / name)


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(*names)))
    return path


NAMES = tuple(f"{k}.jpg" for k in range(4))


def test_roboflow(tmp_path):
    for part in ("train", "valid", "test"):
        write(tmp_path / part / "_annotations.coco.json", *NAMES)
        place(tmp_path / part, *NAMES)
    source = open_root(tmp_path)
    assert {split: images.name for split, (_, images) in source.files.items()} == {
        "train": "train", "val": "valid", "test": "test",
    }  # fmt: skip
    sizes = {split: len(DetectionDataset(split, source)) for split in ("train", "val", "calibrate", "test")}
    assert sizes == {"train": 3, "val": 4, "calibrate": 1, "test": 4}  # calibrate is drawn from train
    assert images_beside(tmp_path / "train" / "_annotations.coco.json") == tmp_path / "train"


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("annotations/instances_default.json", "images", ""),  # CVAT
        ("annotations/instances_default.json", "images/default", ""),
        ("result.json", "images", "images\\"),  # Label Studio
        ("result.json", "images", "../../label-studio/data/media/upload/1/"),
        ("labels.json", "data", ""),  # FiftyOne
        ("annotations.json", "JPEGImages", "JPEGImages/"),  # LabelMe's labelme2coco
        ("train/_annotations.coco.json", "train", ""),  # Roboflow without a division
    ],
)
def test_tools_that_write_one_file(annotations, images, prefix, tmp_path):
    path = write(tmp_path / annotations, *(prefix + name for name in NAMES))
    place(tmp_path / images, *NAMES)
    source = open_root(tmp_path)
    assert [len(DetectionDataset(split, source)) for split in ("train", "val", "calibrate", "test")] == [1, 1, 1, 1]
    assert whole_file(tmp_path)[0] == path
    alone = Source({"test": (path, images_beside(path))})
    assert len(DetectionDataset("test", alone)) == 4
    assert not [
        p for p in inspect(path, "chair", images_beside(path))[1] if p.severity != "note" and "segm" not in str(p)
    ]


def test_cvat_in_parts(tmp_path):
    for part in ("train", "Validation"):
        write(tmp_path / "annotations" / f"instances_{part}.json", *NAMES)
        place(tmp_path / "images" / part, *NAMES)
    source = open_root(tmp_path)
    assert list(source.files) == ["train", "val"] and len(DetectionDataset("val", source)) == 4
    path = tmp_path / "annotations" / "instances_train.json"
    assert images_beside(path) == tmp_path / "images" / "train"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["data.yaml", "labels/train/a.txt"], "yolo"),
        (["train/labels/a.txt"], "yolo"),
        (["Annotations/a.xml"], "voc"),
        (["a.json"], "labelme"),
    ],
)
def test_another_format_points_to_the_converter(files, kind, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"shapes": [], "imagePath": "a.jpg"}')
    expected = f"looks like {kind.upper()}, not COCO JSON; `eelib data convert {tmp_path} --from {kind} --out my.json`"
    with pytest.raises(DataError, match=expected):
        open_root(tmp_path)


def test_images_are_found_by_their_last_part(tmp_path):
    place(tmp_path, "a.jpg", "B c.JPG", "sub/d.jpg", "x/e.jpg", "y/e.jpg", unicodedata.normalize("NFD", "стул й.jpg"))
    names = {
        "a.jpg": "a.jpg",
        "sub/d.jpg": "sub/d.jpg",  # as it stands
        "C:\\Users\\me\\b c.jpg": "B c.JPG",
        "/home/me/photos/y/e.jpg": "y/e.jpg",  # the folder decides between two
        unicodedata.normalize("NFC", "стул й.jpg"): unicodedata.normalize("NFD", "стул й.jpg"),
    }
    assert find_images(tmp_path, names) == names
    assert find_images(tmp_path, ["https://host/up/B%20c.jpg?token=1"]) == {
        "https://host/up/B%20c.jpg?token=1": "B c.JPG"
    }
    assert find_images(tmp_path, ["d.jpg"]) == {"d.jpg": "sub/d.jpg"}
    assert find_images(tmp_path, ["e.jpg", "none.jpg", "", "\0", "z" * 5000, ".."]) == {}
    assert find_images(tmp_path, ["1/a.jpg", "2/a.jpg"]) == {}  # one of them has another picture
    assert find_images(tmp_path / "none", ["a.jpg"]) == {}


def test_a_found_image_is_the_one_that_is_read(tmp_path):
    path = write(tmp_path / "a.json", "photos\\0.jpg", "/mnt/other/1.JPG")
    place(tmp_path / "images", "0.jpg", "deep/1.jpg")
    source = Source({"test": (path, tmp_path / "images")})
    names = [image["file_name"] for image in read_split("test", source).content["images"]]
    assert names == ["0.jpg", "deep/1.jpg"]
    assert len(DetectionDataset("test", source)) == 2
    notes = [str(p) for p in inspect(path, "chair", tmp_path / "images")[1] if "is found as" in str(p)]
    assert notes == [
        r"images[0] (id 0): file 'photos\\0.jpg' is found as '0.jpg' (2 of this kind; also images[1] (id 1))"
    ]
