"""COCO 2017's layout and any COCO files, on a fixture with the awkward cases."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from eelib import data, sources
from eelib.config import ROOT, ConfigError, DataConfig, parse
from eelib.data import DetectionDataset, OnAccess, build_transform, load_split, split_sha256
from eelib.data_command import counts, synthesise
from eelib.sources import DataError, Source, open_root, open_source, read_index, split_index

COCO = ROOT / "tests" / "fixtures" / "coco"
REFUSED = COCO / "refused"
TRAIN = COCO / "annotations" / "instances_train2017.json"


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A copy of the fixture, small as it is, indexed as a large file is."""
    monkeypatch.setattr(sources, "INDEX_FROM_BYTES", 1)
    monkeypatch.setattr(sources, "INDEX", tmp_path / "index")
    return Path(shutil.copy(TRAIN, tmp_path))


def test_counts_of_the_fixture():
    rows = {split: counts(split, open_root(COCO)) for split in sources.SPLITS}
    keys = ("images", "with_category", "boxes", "crowd", "missing_files")
    assert {split: tuple(row[key] for key in keys) for split, row in rows.items()} == {
        "train": (8, 6, 6, 1, 0),  # without a chair: no annotation at all, and a person beside a couch
        "val": (1, 1, 1, 0, 0),
        "calibrate": (1, 1, 2, 0, 0),
        "test": (3, 2, 2, 0, 1),
    }
    assert rows["test"]["first_missing"] == str(COCO / "val2017" / "missing.jpg")


def test_only_the_category_is_kept():
    index = read_index(TRAIN)
    everything = json.loads(TRAIN.read_text())
    chairs = [a for a in everything["annotations"] if a["category_id"] == 62]
    assert index.content["annotations"] == chairs and index.others == len(everything["annotations"]) - len(chairs) == 3
    assert [c["name"] for c in index.content["categories"]] == ["chair"]
    assert len(index.content["images"]) == 10  # the others are negatives
    assert {a["category_id"] for a in read_index(TRAIN, "couch").content["annotations"]} == {63}


def test_splits_of_coco_are_disjoint_and_the_same_everywhere():
    source = open_root(COCO)
    ids = {split: {i["id"] for i in split_index(split, source).content["images"]} for split in sources.SPLITS}
    assert ids["val"] == {49} and ids["calibrate"] == {9} and ids["test"] == {139, 285, 632}
    assert ids["train"] == {25, 30, 34, 36, 42, 61, 64, 71}
    hashes = {split_sha256(split, source) for split in sources.SPLITS}
    assert len(hashes) == 4 and split_sha256("test", source) == read_index(source.files["test"][0]).sha256
    assert split_sha256("test", open_root(COCO, "couch")) not in hashes


def test_a_share_of_a_larger_file_is_drawn(tmp_path):
    source = Source({"train": (synthesise(tmp_path / "a.json", 500, 900), tmp_path)})
    parts = [{i["id"] for i in split_index(s, source).content["images"]} for s in ("train", "val", "calibrate")]
    assert list(map(len, parts)) == [460, 20, 20] and len(set.union(*parts)) == 500
    own_val = Source({"train": source.files["train"], "val": source.files["train"]})
    assert len(split_index("train", own_val).content["images"]) == 480
    with pytest.raises(DataError, match="data.files: no 'test'; given: train"):
        split_index("test", source)
    two = Source({"train": (synthesise(tmp_path / "b.json", 2, 4), tmp_path)})
    with pytest.raises(DataError, match="2 images are too few to draw val and calibrate from them"):
        split_index("train", two)


def test_awkward_images_are_read():
    train = DetectionDataset("train", COCO)
    by_name = {train.coco.imgs[i]["file_name"]: k for k, i in enumerate(train.image_ids)}
    for name, k in by_name.items():
        image, target = train[k]
        assert image.shape == (3, 64, 96) and image.dtype == torch.uint8, name
        # the fixture's chairs are darker than its walls, whatever the mode of the file
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            assert image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float().mean() < 100 < image[:, :4].float().mean(), name
    assert len(train[by_name["000000000034.jpg"]][1]["boxes"]) == 0
    assert len(train[by_name["crowd.jpg"]][1]["boxes"]) == 1
    crowd = DetectionDataset("train", COCO, keep_crowd=True, masks=True)[by_name["crowd.jpg"]][1]
    assert len(crowd["boxes"]) == 2 and crowd["mask"].all()  # the crowd's mask is the whole image


def test_half_a_pixel_over_the_edge_is_clamped():
    val = DetectionDataset("val", COCO, build_transform(96))
    assert val.coco.imgs[49]["file_name"] == "椅子 стул.jpg"
    assert val.objects(0)[0, 2] == 96.5 and val[0][1]["boxes"][0, 2] == 96


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("duplicate_image_id", r"images\[1\]: 'id' 9 is there twice"),
        ("duplicate_annotation_id", r"annotations\[1\]: 'id' \d+ is there twice"),
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


def _changed(tmp_path, change):
    content = json.loads(TRAIN.read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


def test_other_categories_do_not_matter(tmp_path):
    """train2017 itself has a box of height 0 (annotation 918, a hot dog; cocodataset/cocoapi issue 355)."""

    def flatten(content):
        person = next(a for a in content["annotations"] if a["category_id"] == 1)
        person["bbox"][3] = 0

    path = _changed(tmp_path, flatten)
    assert len(read_index(path).content["annotations"]) == 10
    with pytest.raises(DataError, match="has no area"):
        read_index(path, "person")
    with pytest.raises(DataError, match="'categories' has no 'stool'; the first of 3: person, chair, couch"):
        read_index(path, "stool")


def test_what_annotations_may_lack(tmp_path):
    def strip(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation["id"] = number  # pycocotools takes a match with id 0 for none
            del annotation["area"], annotation["iscrowd"]

    first = read_index(_changed(tmp_path, strip)).content["annotations"][0]
    assert (first["id"], first["iscrowd"], first["area"]) == (1, 0, 30 * 40)
    with pytest.raises(DataError, match="'id' is '9'; expected a whole number"):
        read_index(_changed(tmp_path, lambda content: content["images"][0].update(id="9")))


def test_the_index_is_kept_until_the_file_changes(indexed):
    first = read_index(indexed)
    again = read_index(indexed)
    assert not first.cached and again.cached and again == first
    (kept,) = sources.INDEX.iterdir()
    kept.write_text(kept.read_text()[:100])  # damaged
    assert read_index(indexed) == first and not list(sources.INDEX.glob("*.partial"))
    assert not read_index(indexed, "couch").cached and read_index(indexed).cached
    indexed.write_text(indexed.read_text().replace("10,\n    10,\n    30", "11,\n    10,\n    30"))
    os.utime(indexed, ns=(1, 1))  # the same size; the time of change tells
    changed = read_index(indexed)
    assert not changed.cached and changed.sha256 != first.sha256
    assert changed.content["annotations"][0]["bbox"] == [11, 10, 30, 40]


def test_decoded_on_access_or_kept_gives_the_same_samples(monkeypatch):
    arguments = ("train", COCO, build_transform(64, "ssd"))
    kept = DetectionDataset(*arguments, seed=2, masks=True)
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 8 * 96 * 64 * 4 - 1)  # a byte less than the eight images and masks
    large = DetectionDataset(*arguments, seed=2, masks=True)
    assert isinstance(kept.images, list) and isinstance(large.images, OnAccess) and isinstance(large.masks, OnAccess)
    for k in range(len(kept)):
        (a, x), (b, y) = kept[k], large[k]
        assert torch.equal(a, b) and torch.equal(x["boxes"], y["boxes"]) and torch.equal(x["mask"], y["mask"])
    assert len(large.images[2:4]) == 2 and torch.equal(large.images[-1], kept.images[-1])
    in_worker = next(iter(data.loader(large, 8, shuffle=True, epoch=1, workers=1)))
    assert torch.equal(in_worker[0], next(iter(data.loader(kept, 8, shuffle=True, epoch=1)))[0])


def test_own_files_in_a_configuration():
    files = {"test": {"annotations": "tests/a.json", "images": "tests/a"}}
    config = parse({"phase": "t", "data": {"files": files, "category": "stool"}})
    assert open_source(config.data) == Source({"test": (ROOT / "tests/a.json", ROOT / "tests/a")}, "stool")
    assert open_source(DataConfig()) == open_root(ROOT / "data" / "showroom")
    with pytest.raises(ConfigError, match="key 'data.root' is 'x' but cannot act: 'data.files' names the files"):
        parse({"phase": "t", "data": {"files": files, "root": "x"}})
    with pytest.raises(ConfigError, match="unknown key 'data.files.test.image'"):
        parse({"phase": "t", "data": {"files": {"test": files["test"] | {"image": "x"}}}})


def test_pycocotools_sees_one_category():
    coco = load_split("train", COCO)
    assert coco.getCatIds() == [62] and len(coco.anns) == 7


def test_polygons_are_read_as_written(tmp_path):
    """However the file is laid out: keys in any order, empty polygons, a decoy inside a string."""

    def change(content):
        chairs = [a for a in content["annotations"] if a["category_id"] == 62]
        chairs[0]["segmentation"] = []
        chairs[1] = dict(reversed(chairs[1].items()))
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 62] + chairs
        content["info"]["description"] = 'a "segmentation": [[1, 2]] in a string, "bbox": [1], \\ and }{'

    path = _changed(tmp_path, change)
    everything = json.loads(path.read_text())
    for indent in (None, 2):
        path.write_text(json.dumps(everything, indent=indent))
        content = read_index(path).content
        assert content["annotations"] == [a for a in everything["annotations"] if a["category_id"] == 62]
        assert content["info"] == everything["info"]
    path.write_text(path.read_text()[:-200])
    with pytest.raises(DataError, match=r"changed.json: not valid JSON \(.*line \d+"):
        read_index(path)
    broken = json.dumps(everything).replace("[[12, 8", "[[12,, 8")
    path.write_text(broken)
    assert len(broken) > len(json.dumps(everything))
    read_index(path, "couch")  # not looked at
    with pytest.raises(DataError, match="not valid JSON"):
        read_index(path)
