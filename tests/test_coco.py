"""COCO files and the splits that are made of them: what is read, what is refused, what is doubted."""

import copy
import json
import math
import re

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eelib.checking import counts
from eelib.coco import (
    SHOWROOM,
    Source,
    cleaned,
    inspect,
    open_root,
    open_source,
    part_of,
    read_coco,
    read_split,
)
from eelib.config import ROOT, ConfigError, DataConfig, parse
from eelib.data import DetectionDataset, load_split, split_sha256
from eelib.faults import DataError
from eelib.files import file_sha256
from eelib.layouts import SPLITS
from studies.phases.preflight import Outlined, object_mask

COCO = ROOT / "tests" / "fixtures" / "coco"
REFUSED = COCO / "refused"
TRAIN = COCO / "annotations" / "instances_train2017.json"


def problems(*arguments):
    """All problems of a file."""
    return inspect(*arguments)[1]


def base() -> dict:
    """Two images of 64 x 48 px with two chairs and a crowd, and a stool."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48, "scene": i} for i in (1, 2)]
    boxes = [
        (1, 62, [4, 6, 20, 30], 0),
        (1, 62, [30, 10, 20, 20], 0),
        (1, 62, [0, 0, 3, 3], 1),
        (2, 7, [5, 5, 9, 9], 0),
    ]
    annotations = [
        {
            "id": k, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
            "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]], "model": f"m{k}",
        }
        for k, (image, category, box, crowd) in enumerate(boxes, 1)
    ]  # fmt: skip
    categories = [{"id": 7, "name": "stool"}, {"id": 62, "name": "chair"}]
    return {"info": {"year": 2020}, "images": images, "annotations": annotations, "categories": categories}


def write(folder, change=lambda content: None, name="a.json"):
    """The base with a change, as a file; a change that returns text or bytes replaces it."""
    content = base()
    changed = change(content)
    raw = json.dumps(content) if changed is None else changed
    path = folder / name
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of the base's images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 48), (90 * i,) * 3).save(folder / f"{i}.jpg")
    return folder


def test_counts_of_the_fixture():
    source = open_root(COCO)
    rows = {split: counts(source, split, read_split(split, source).content) for split in SPLITS}
    keys = ("images", "with_category", "boxes", "crowd", "missing_files")
    assert {split: tuple(row[key] for key in keys) for split, row in rows.items()} == {
        "train": (8, 6, 6, 1, 0),  # without a chair: no annotation at all, and a person beside a couch
        "val": (1, 1, 1, 0, 0),
        "calibrate": (1, 1, 2, 0, 0),
        "test": (3, 2, 2, 0, 1),
    }
    assert rows["test"]["first_missing"] == str(COCO / "val2017" / "missing.jpg")


def test_only_the_category_is_kept():
    contents, everything = read_coco(TRAIN, segmentations=True), json.loads(TRAIN.read_text())
    chairs = [a for a in everything["annotations"] if a["category_id"] == 62]
    assert contents.content["annotations"] == chairs
    assert contents.left_out == {"person": 2, "couch": 1}
    assert [c["name"] for c in contents.content["categories"]] == ["chair"]
    assert contents.content["images"] == everything["images"]  # those without a chair are negatives
    assert contents.content["info"] == everything["info"]
    assert {a["category_id"] for a in read_coco(TRAIN, "couch").content["annotations"]} == {63}
    assert not any("segmentation" in a for a in read_coco(TRAIN).content["annotations"])


def test_splits_of_coco_are_disjoint_and_the_same_everywhere():
    source = open_root(COCO)
    ids = {split: {i["id"] for i in read_split(split, source).content["images"]} for split in SPLITS}
    assert ids["val"] == {49} and ids["calibrate"] == {9} and ids["test"] == {139, 285, 632}
    assert ids["train"] == {25, 30, 34, 36, 42, 61, 64, 71}
    hashes = {split_sha256(split, source) for split in SPLITS}
    assert len(hashes) == 4 and split_sha256("test", source) == file_sha256(source.files["test"][0])
    others = {
        split_sha256("test", open_root(COCO, names)) for names in ("couch", ["couch", "chair"], ["chair", "couch"])
    }
    assert len(others) == 3 and not others & hashes


def test_identities_of_showroom_are_the_hashes_of_its_files():
    assert all(split_sha256(split) == file_sha256(SHOWROOM / f"{split}.json") for split in SPLITS)


def many(images: int, objects: int) -> dict:
    content = base()
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(images)]
    content["annotations"] = [content["annotations"][0] | {"id": i + 1, "image_id": i} for i in range(objects)]
    return content


def test_a_share_of_a_larger_file_is_drawn(tmp_path):
    def source(images, objects, **files):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(many(images, objects)))
        return Source({name: (path, tmp_path) for name in ("train", *files)})

    whole = source(500, 400)
    parts = [{i["id"] for i in read_split(s, whole).content["images"]} for s in SPLITS]
    assert list(map(len, parts)) == [350, 50, 50, 50] and len(set.union(*parts)) == 500
    assert len(read_split("train", source(500, 400, val=True)).content["images"]) == 400
    assert len(read_split("test", source(2000, 400)).content["images"]) == 80
    assert len(read_split("test", source(60, 60)).content["images"]) == 6
    with pytest.raises(DataError, match="data.files: no 'test'; given: val, no 'train'"):
        read_split("test", Source({"val": whole.files["train"]}))
    with pytest.raises(DataError, match="3 images, 3 of them with an object, are too few to draw val, calibrate, test"):
        read_split("train", source(3, 3))


def test_each_drawn_split_has_an_object_or_is_refused(tmp_path):
    for objects in (4, 9):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(many(128, objects)))
        source = Source({"train": (path, tmp_path)})
        parts = {split: read_split(split, source).content for split in SPLITS}
        assert all(part["annotations"] for part in parts.values())
        assert sorted(i["id"] for part in parts.values() for i in part["images"]) == list(range(128))
        assert {len(parts[split]["images"]) for split in ("val", "calibrate", "test")} == {13}
    for objects in (0, 3):
        path.write_text(json.dumps(many(128, objects)))
        with pytest.raises(DataError, match="no object of 'chair'|3 of them with an object, are too few"):
            read_split("train", source)


def test_training_on_nothing_is_refused(tmp_path):
    def crowds(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    files = (write(tmp_path, crowds), tmp_path)
    with pytest.raises(DataError, match="no object of 'chair': there is nothing to train on"):
        read_split("train", Source({"train": files, "val": files, "calibrate": files}))


def test_awkward_images_are_read():
    train = DetectionDataset("train", COCO)
    by_name = {train.coco.imgs[i]["file_name"]: k for k, i in enumerate(train.image_ids)}
    for name, k in by_name.items():
        image, target = train[k]
        assert image.shape == (3, 64, 96), name
        # the fixture's chairs are darker than its walls, whatever the mode of the file
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            assert image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float().mean() < 100 < image[:, :4].float().mean(), name
    assert len(train[by_name["000000000034.jpg"]][1]["boxes"]) == 0
    assert len(train[by_name["crowd.jpg"]][1]["boxes"]) == 1
    crowd = Outlined("train", COCO, keep_crowd=True)
    index = by_name["crowd.jpg"]
    assert len(crowd[index][1]["boxes"]) == 2 and object_mask(crowd, index).all()  # the crowd's is the whole image


def test_half_a_pixel_over_the_edge_is_clamped():
    val = DetectionDataset("val", COCO, 96)
    assert val.coco.imgs[49]["file_name"] == "椅子 стул.jpg"
    assert val.objects(0)[0, 2] == 96.5 and val[0][1]["boxes"][0, 2] == 96


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("duplicate_image_id", r"images\[1\]: 'id' 9 is there twice"),
        ("duplicate_annotation_id", r"annotations\[1\] .*: 'id' \d+ is there twice"),
        ("box_over_the_edge", r"annotations\[0\] .* leaves the image of 96 x 64 px"),
        ("box_without_area", r"annotations\[2\] .* has no area"),
        ("unknown_image", r"annotations\[0\] .* unknown image_id 77"),
        ("size_of_another_image", r"000000000009.jpg: image of 96 x 64 px; .*refused.* says 120 x 64"),
    ],
)
def test_what_is_refused(name, message):
    path = REFUSED / f"{name}.json"
    with pytest.raises(DataError, match=message) as caught:
        DetectionDataset("test", Source({"test": (path, COCO / "train2017")}))
    assert str(path) in str(caught.value)


def test_a_missing_image_is_refused_for_training():
    with pytest.raises(DataError, match=r"missing.jpg: image file is missing \(1 of 3 in all\)"):
        DetectionDataset("test", COCO)


def test_other_categories_do_not_matter(tmp_path):
    """train2017 itself has a box of height 0 (annotation 918, a hot dog; cocodataset/cocoapi issue 355)."""

    def flatten(content):
        content["annotations"][3] |= {"bbox": [5, 5, 9, 0], "area": "none", "segmentation": [[math.nan]]}

    path = write(tmp_path, flatten)
    assert len(read_coco(path, segmentations=True).content["annotations"]) == 3
    with pytest.raises(DataError, match="'area' is \"none\"; expected a number"):
        read_coco(path, "stool")


def annotation(content, **values):
    content["annotations"][0] |= values


def without(entry, *keys):
    for key in keys:
        del entry[key]


# What a tool may write where COCO's meaning is plain: the file is read as the base is.
PLAIN = {
    "a byte-order mark": lambda c: b"\xef\xbb\xbf" + json.dumps(c).encode(),
    "iscrowd null": lambda c: annotation(c, iscrowd=None),
    "iscrowd text": lambda c: annotation(c, iscrowd="0"),
    "iscrowd of another kind": lambda c: annotation(c, iscrowd=False),
    "iscrowd from pandas": lambda c: annotation(c, iscrowd=0.0, image_id=1.0),
    "no iscrowd": lambda c: without(c["annotations"][0], "iscrowd"),
    "area text": lambda c: annotation(c, area="600"),
    "area null": lambda c: annotation(c, area=None),
    "no area": lambda c: without(c["annotations"][0], "area"),
    "box text": lambda c: annotation(c, bbox=["4", 6.0, "20", 30]),
    "ids text": lambda c: annotation(c, id="1", image_id="1", category_id="62") or c["images"][0].update(id="1"),
    "category id text": lambda c: c["categories"][1].update(id="62"),
    "size text": lambda c: c["images"][0].update(width="64", height=48.0),
    "size null": lambda c: c["images"][0].update(width=None, height=None),
    "size 0": lambda c: c["images"][0].update(width=0, height=0),
    "no size": lambda c: without(c["images"][0], "width", "height"),
    "a category twice": lambda c: c["categories"].append({"id": 62, "name": "chair"}),
    "a name twice": lambda c: c["categories"].insert(0, {"id": 0, "name": "chair", "supercategory": "none"}),
    "both names used": lambda c: c["categories"].append({"id": 9, "name": "chair"}) or annotation(c, category_id=9),
    "another list of categories": lambda c: c.update(project={"categories": [{"id": 62, "name": "seat"}]}),
    "one more before it": lambda c: '{"a": {"categories": [{"id": 62, "name": "x"}]}, ' + json.dumps(c)[1:],
    "in an image": lambda c: c["images"][0].update(categories=[{"id": 62, "name": "seat"}]),
    "in text": lambda c: c["info"].update(description='"categories": [{"id": 62, "name": "x"}], }] \\'),
}


@pytest.mark.parametrize("change", PLAIN.values(), ids=PLAIN)
def test_what_is_plain_is_read(change, tmp_path, photos):
    want, got = (read_coco(write(tmp_path, c), "chair", photos, True).content for c in (lambda c: None, change))
    keep = ("id", "image_id", "bbox", "area", "iscrowd", "segmentation", "model")
    assert [[a[k] for k in keep] for a in got["annotations"]] == [[a[k] for k in keep] for a in want["annotations"]]
    sizes = [(i["id"], i["file_name"], i["width"], i["height"], i["scene"]) for i in got["images"]]
    assert sizes == [(1, "1.jpg", 64, 48, 1), (2, "2.jpg", 64, 48, 2)]
    assert [c["name"] for c in got["categories"]] == ["chair"]
    assert {a["category_id"] for a in got["annotations"]} == {got["categories"][0]["id"]}
    assert all(type(a[k]) is int for a in got["annotations"] for k in ("id", "image_id", "category_id", "iscrowd"))


# What cannot be read, and the words that name it.
BROKEN = {
    "annotation id": (lambda c: annotation(c, id="x"), r"annotations\[0\]: 'id' is \"x\"; expected a whole number"),
    "image id a list": (
        lambda c: annotation(c, image_id=[1]),
        r"annotations\[0\]: 'image_id' is \[1\]; expected a whole",
    ),
    "image id half": (lambda c: annotation(c, image_id=1.5), r"annotations\[0\]: 'image_id' is 1.5"),
    "category a list": (lambda c: annotation(c, category_id=[62]), r"annotations\[0\]: 'category_id' is \[62\]"),
    "category unknown": (lambda c: annotation(c, category_id=8), r"annotations\[0\] \(id 1\): unknown category_id 8"),
    "image unknown": (lambda c: annotation(c, image_id=8), r"annotations\[0\] \(id 1\): unknown image_id 8"),
    "id of 80 bits": (lambda c: annotation(c, image_id=2**80), r"'image_id' is 1208925819614629174706176; expected"),
    "iscrowd": (lambda c: annotation(c, iscrowd=2), r"'iscrowd' is 2; expected 0 or 1"),
    "iscrowd text": (lambda c: annotation(c, iscrowd="yes"), r"'iscrowd' is \"yes\"; expected 0 or 1"),
    "area text": (lambda c: annotation(c, area="big"), r"'area' is \"big\"; expected a number"),
    "area below 0": (lambda c: annotation(c, area=-4), r"'area' is -4; expected a number of pixels from 0"),
    "area nan": (lambda c: annotation(c, area=math.nan), r"'area' is nan; expected"),
    "box nan": (
        lambda c: annotation(c, bbox=[math.nan, 1, 2, 3]),
        r"\(id 1\): 'bbox' is \[nan, 1, 2, 3\]; expected finite",
    ),
    "box inf": (lambda c: annotation(c, bbox=[1, 1, math.inf, 3]), r"'bbox' is \[1, 1, inf, 3\]; expected finite"),
    "box huge": (lambda c: annotation(c, bbox=[10**400, 1, 2, 3]), r"'bbox' is \[10{30}.*; expected finite"),
    "box float huge": (
        lambda c: json.dumps(c).replace("[4, 6, ", "[1e400, 6, "),
        r"'bbox' is \[1e400, 6, 20, 30\]; expected",
    ),
    "box of three": (
        lambda c: annotation(c, bbox=[1, 2, 3]),
        r"'bbox' is \[1, 2, 3\]; expected \[x, y, width, height\]",
    ),
    "box null": (lambda c: annotation(c, bbox=None), r"'bbox' is null"),
    "no box": (lambda c: without(c["annotations"][0], "bbox"), r"annotations\[0\]: key 'bbox' is missing"),
    "box flat": (lambda c: annotation(c, bbox=[1, 2, 0, 4]), r"'bbox' \[1, 2, 0, 4\] has no area"),
    "box outside": (
        lambda c: annotation(c, bbox=[50, 0, 40, 5]),
        r"'bbox' \[50, 0, 40, 5\] leaves the image of 64 x 48",
    ),
    "annotation null": (
        lambda c: c["annotations"].insert(0, None),
        r"annotations\[0\]: entry is null; expected an object",
    ),
    "image null": (lambda c: c["images"].append(None), r"images\[2\]: entry is null; expected an object"),
    "category null": (lambda c: c["categories"].append(None), r"categories\[2\]: entry is null; expected an object"),
    "name null": (lambda c: c["categories"][1].update(name=None), r"categories\[1\]: 'name' is null; expected text"),
    "file name null": (
        lambda c: c["images"][0].update(file_name=None),
        r"images\[0\]: 'file_name' is null; expected text",
    ),
    "file name number": (lambda c: c["images"][0].update(file_name=7), r"images\[0\]: 'file_name' is 7; expected text"),
    "no file name": (lambda c: without(c["images"][0], "file_name"), r"images\[0\]: key 'file_name' is missing"),
    "width": (
        lambda c: c["images"][0].update(width="wide"),
        r"images\[0\]: 'width' is \"wide\"; expected a whole number",
    ),
    "width below 0": (lambda c: c["images"][0].update(width=-64), r"images\[0\]: 'width' is -64"),
    "no size": (
        lambda c: without(c["images"][0], "width"),
        r"'width' or 'height' is missing, and .*folder.* not known",
    ),
    "ids twice": (lambda c: annotation(c, id=2), r"annotations\[1\] \(id 2\): 'id' 2 is there twice"),
    "images twice": (lambda c: c["images"][1].update(id=1), r"images\[1\]: 'id' 1 is there twice"),
    "category ids twice": (lambda c: c["categories"][0].update(id=62), r"categories\[1\]: 'id' 62 is there twice"),
    "no images": (lambda c: c["images"].clear(), r"'images' is empty; a split needs at least one image"),
    "no list of images": (lambda c: without(c, "images"), r"key 'images' is missing or not a list"),
    "no list of boxes": (lambda c: c.update(annotations={}), r"key 'annotations' is missing or not a list"),
    "no categories": (lambda c: without(c, "categories"), r"key 'categories' is missing or not a list"),
    "blank": (
        lambda c: c["categories"][1].update(name="chair "),
        r"'categories' has no 'chair'; did you mean 'chair '\?",
    ),
    "number": (lambda c: c["categories"][1].update(name=62), r"has no 'chair'; the first of 2: 'stool', '62'"),
    "results": (lambda c: json.dumps(c["annotations"]), r"not an object with the keys .*; expected COCO JSON"),
    "half": (lambda c: json.dumps(c)[:200], r"not valid JSON \(.* line 1 column"),
    "empty": (lambda c: b"", r"not valid JSON"),
    "latin-1": (
        lambda c: json.dumps(c).replace("chair", "Stühle").encode("latin-1"),
        r"'name' is .*; expected text in UTF-8",
    ),
    "utf-16": (lambda c: json.dumps(c).encode("utf-16"), r"not UTF-8 text"),
    "deep": (lambda c: "[" * 200_000, r"nested too deeply"),
    "deep inside": (
        lambda c: '{"info": ' + "[" * 5000 + "]" * 5000 + "," + json.dumps(c)[1:],
        r"nested too deeply|recursion",
    ),
    "deep in a box": (lambda c: json.dumps(c).replace("[4, 6, ", "[" * 900 + "4" + "]" * 900 + ",["), r"."),
    "half a character": (lambda c: json.dumps(c).replace("1.jpg", "\\ud800.jpg"), r"not valid JSON"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_one_line(change, message, tmp_path):
    path = write(tmp_path, change)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 500 + len(str(path))
    assert any(problem.severity == "error" for problem in problems(path))


def test_no_such_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="none.json: no such annotation file"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder; expected a COCO JSON file"):
        read_coco(tmp_path)


def test_ids_never_meet_zero(tmp_path):
    """pycocotools takes a match with id 0 for none."""
    for first in (0, -1, -5, None):

        def number(content, first=first):
            for k, a in enumerate(content["annotations"]):
                a["id"] = None if first is None else k + first

        ids = [a["id"] for a in read_coco(write(tmp_path, number)).content["annotations"]]
        assert ids == [1, 2, 3]


def test_categories_in_the_order_of_labels(tmp_path, photos):
    path = write(tmp_path)
    for names, ids in ((["stool", "chair"], [7, 62]), (["chair", "stool"], [62, 7]), (None, [7, 62])):
        data = DetectionDataset("test", Source({"test": (path, photos)}, names))
        assert data.category_ids == ids == data.coco.getCatIds()
        assert data[0][1]["labels"].tolist() == [ids.index(62) + 1] * 2
        assert data[1][1]["labels"].tolist() == [ids.index(7) + 1]
        assert data[1][1]["labels"].dtype == data[0][1]["labels"].dtype
    contents = read_coco(path, "stool")
    assert contents.left_out == {"chair": 3} and len(contents.content["annotations"]) == 1
    with pytest.raises(DataError, match="has no 'stol'; did you mean 'stool'"):
        read_coco(path, ["chair", "stol"])


def test_all_categories_are_those_of_train_without_roboflows_root(tmp_path):
    def root(content):
        content["categories"].insert(0, {"id": 0, "name": "seats", "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = "seats"

    train = write(tmp_path, root)
    test = write(tmp_path, lambda c: c["categories"].reverse(), "b.json")
    source = Source({"test": (test, tmp_path), "train": (train, tmp_path)}, None)
    assert source.names == ("stool", "chair")
    assert load_split("test", source).getCatIds() == [7, 62]


def test_pycocotools_sees_the_wanted_categories():
    assert load_split("train", COCO).getCatIds() == [62]
    both = load_split("train", open_root(COCO, ["couch", "chair"]))
    assert both.getCatIds() == [63, 62] and len(both.anns) > len(load_split("train", COCO).anns)


def test_boxes_of_an_image_whose_stored_size_is_stated(tmp_path, photos):
    """A photograph held upright, stored lying: its boxes belong to the upright one, whichever size is stated."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "grey").save(photos / "1.jpg", exif=exif)
    for size in ((48, 64), (64, 48)):

        def turn(content, size=size):
            content["images"][0] |= {"width": size[0], "height": size[1]}
            annotation(content, bbox=[4, 6, 20, 55])
            content["annotations"] = content["annotations"][:1]

        source = Source({"test": (write(tmp_path, turn), photos)})
        data = Outlined("test", source)
        assert data[0][0].shape == (3, 64, 48) and object_mask(data, 0).shape == (64, 48)
        assert (data.coco.imgs[1]["width"], data.coco.imgs[1]["height"]) == (48, 64)
    Image.new("RGB", (48, 64), "grey").save(photos / "1.jpg")
    with pytest.raises(DataError, match="leaves the image of 64 x 48"):
        DetectionDataset("test", source)


def test_all_faults_are_listed_with_counts(tmp_path):
    def change(content):
        for a in content["annotations"][:3]:
            a["bbox"] = [60, 40, 9, 9]
        content["annotations"][3]["iscrowd"] = "?"
        content["images"].append({"id": 3})

    path = write(tmp_path, change)
    listed = [problem for problem in problems(path, None) if problem.severity == "error"]
    assert len(listed) == 3
    assert str(listed[1]) == (
        "annotations[0] (id 1): 'bbox' [60, 40, 9, 9] leaves the image of 64 x 48 px "
        "(3 of this kind; also annotations[1] (id 2), annotations[2] (id 3))"
    )
    with pytest.raises(DataError, match=r"images\[2\].*; and 2 more, `eelib data check` lists them"):
        read_coco(path, None)


def normalise(content):
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x / 64, y / 48, w / 64, h / 48]


DOUBTFUL = {
    "pictures": (lambda c: c["images"][1].update(file_name="1.jpg"), "picture '1.jpg' is there under 2 ids"),
    "boxes": (
        lambda c: c["annotations"].append(c["annotations"][0] | {"id": 9}),
        r"box \[4, 6, 20, 30\] is there 2 times",
    ),
    "shares": (normalise, "every box lies in 0..1"),
    "crowds": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]] and None,
        "no object .* all 3 boxes are crowds",
    ),
    "nothing": (lambda c: c["annotations"].clear(), "no object of 'chair' is left: there is no box"),
    "others": (lambda c: None, "1 boxes of other categories are left out: 'stool' 1"),
}


@pytest.mark.parametrize(("change", "message"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_is_likely_wrong_is_a_warning(change, message, tmp_path):
    path = write(tmp_path, change)
    warnings = [p for p in problems(path) if p.severity == "warning"]
    assert any(re.search(message, str(p)) for p in warnings), warnings
    assert not any(p.severity == "error" for p in problems(path))
    read_coco(path)  # legal


def test_what_is_likely_wrong_is_logged_once(tmp_path, caplog):
    path = write(tmp_path, normalise)
    read_coco(path), read_coco(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: {path}: every box lies in 0..1: shares of the image in place of pixels? `--fix` multiplies them",
        f"warning: {path}: 1 boxes of other categories are left out: 'stool' 1",
    ]


def test_a_sound_file_has_no_problem(tmp_path, photos):
    assert problems(write(tmp_path), None, photos) == []
    assert problems(TRAIN, None, COCO / "train2017") == []


def test_what_is_cleaned(tmp_path, photos):
    def change(content):
        content["images"].append({"id": 5, "file_name": "C:\\photos\\1.jpg", "width": None, "height": None})
        content["images"].append(content["images"][0] | {"id": 6})
        rows = content["annotations"]
        rows[0]["bbox"] = [50, -9, 40, 20]
        rows[1]["segmentation"] = [[1, 2]]
        rows += [rows[1] | {"id": 10, "image_id": 6}, rows[1] | {"id": 11, "bbox": [math.nan] * 4}]
        rows.append(rows[1] | {"id": 12, "image_id": 9})

    content = cleaned(write(tmp_path, change), None, photos)
    assert [i["id"] for i in content["images"]] == [1, 2]  # two names ask for 1.jpg: 5 is not found, nor its size
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4]
    assert content["annotations"][0]["bbox"] == [50, 0, 14, 11]
    assert "segmentation" not in content["annotations"][1]
    pixels = cleaned(write(tmp_path, normalise), None)["annotations"][0]
    assert pixels["bbox"] == pytest.approx([4, 6, 20, 30]) and pixels["area"] == pytest.approx(600)


def test_own_files_in_a_configuration():
    files = {"test": {"annotations": "tests/a.json", "images": "tests/a"}}
    config = parse({"name": "t", "data": {"files": files, "category": "stool"}})
    assert open_source(config.data) == Source({"test": (ROOT / "tests/a.json", ROOT / "tests/a")}, ("stool",))
    several = parse({"name": "t", "data": {"files": files, "category": ["stool", "chair"]}})
    assert open_source(several.data).categories == ("stool", "chair")
    assert open_source(parse({"name": "t", "data": {"files": files, "category": None}}).data).categories is None
    assert open_source(DataConfig()) == open_root(ROOT / "data" / "showroom", None)
    with pytest.raises(ConfigError, match="key 'data.root' is 'x': expected no root beside data.files"):
        parse({"name": "t", "data": {"files": files, "root": "x"}})
    with pytest.raises(ConfigError, match="unknown key 'data.files.test.image'"):
        parse({"name": "t", "data": {"files": {"test": files["test"] | {"image": "x"}}}})


def test_a_part_of_contents_that_are_at_hand():
    source = open_root(COCO)
    whole = read_coco(TRAIN)
    assert part_of(whole, "val", source) == read_split("val", source)


VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        1.5,
        2**70,
        10**400,
        math.nan,
        math.inf,
        "",
        "1",
        "x",
        "a\nb",
        "é" * 300,
        [],
        [1],
        {},
        {"id": 1},
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_value_is_read_or_refused_in_one_line(data, tmp_path):
    content = copy.deepcopy(base())
    for _ in range(data.draw(st.integers(1, 3))):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 4)) == 0:
                break
            place = place[key]
        place[key] = copy.deepcopy(data.draw(VALUES))
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps(content))
    listed = problems(path, None)
    try:
        contents = read_coco(path, None, segmentations=True)
        assert not [p for p in listed if p.severity == "error"]
        assert msgspec.json.encode(contents.content)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        assert any(p.severity == "error" or p.message.startswith("'segmentation' is") for p in listed)
    try:
        content = cleaned(path, None)
    except DataError:
        return
    (tmp_path / "clean.json").write_bytes(msgspec.json.encode(content))
    left = [p.message for p in problems(tmp_path / "clean.json", None)]
    assert not any(message.startswith("'segmentation' is") for message in left)
    assert {p.message for p in problems(tmp_path / "clean.json", None) if p.severity == "error"} <= {
        "'images' is empty; a split needs at least one image"
    }
