"""Two data sets as one, and data sets that are broken or that mean harm."""

import json

import pytest
from PIL import Image

from showroom.__main__ import main
from showroom.roles import SPLITS


def content_of(names: list[str], **info) -> dict:
    """A split with a box on its first image."""
    sizes = {"width": 8, "height": 8, "view": 0, "recipe": "hero", "dark": False, "blur": 0}
    images = [{"id": k + 1, "file_name": f"{name}.jpg", "scene": k} | sizes for k, name in enumerate(names)]
    box = {"id": 1, "image_id": 1, "category_id": 62, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    box |= {"visibility": 1.0, "touches_edge": True, "model": "sc/chair"}
    categories = [{"id": 62, "name": "chair"}]
    return {"info": info, "images": images, "annotations": [box], "categories": categories}


@pytest.fixture
def sets(tmp_path):
    """The folders of a base and of renders for train."""
    base, more = tmp_path / "base", tmp_path / "more"
    for folder, splits, names, info in (
        (base, SPLITS, ["a", "b"], {}),
        (more, ["train"], ["a"], {"settings": {"split": "train", "seed": 7}}),
    ):
        for split in splits:
            (folder / split).mkdir(parents=True)
            for name in names:
                Image.new("RGB", (8, 8)).save(folder / split / f"{name}.jpg")
            (folder / f"{split}.json").write_text(json.dumps(content_of(names, **info)))
    (base / "ATTRIBUTION.csv").write_text("key")
    return base, more


def test_joined_sets_share_nothing_but_the_held_out_splits(sets, tmp_path, capsys):
    base, more = map(str, sets)
    out = tmp_path / "out"
    assert main(["join", base, more, "--out", str(out)]) == 0 and "3 images of" in capsys.readouterr().out
    train = json.loads((out / "train.json").read_text())
    assert [(i["id"], i["scene"], i["file_name"]) for i in train["images"]] == [
        (1, 0, "a.jpg"), (2, 1, "b.jpg"), (3, 2, "7_a.jpg")
    ]  # fmt: skip
    assert [(a["id"], a["image_id"]) for a in train["annotations"]] == [(1, 1), (2, 3)]
    assert all((out / "train" / image["file_name"]).exists() for image in train["images"])
    assert (out / "test.json").read_bytes() == (sets[0] / "test.json").read_bytes()
    assert main(["join", base, more, "--out", str(out)]) == 2
    assert "exists; expected a new folder" in capsys.readouterr().err
    assert main(["join", base, base, "--out", str(tmp_path / "other")]) == 2
    assert "expected renders of train" in capsys.readouterr().err
    assert main(["join", str(out), more, "--out", str(tmp_path / "other")]) == 2
    assert "7_a.jpg is in" in capsys.readouterr().err


def refused(sets, tmp_path, capsys) -> str:
    """The line that joining the sets prints; it must have written nothing."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["join", *map(str, sets), "--out", str(tmp_path / "out")]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().err
    assert printed.startswith("showroom: ") and printed.count("\n") == 1 and len(printed) < 600
    return printed


@pytest.mark.parametrize("name", ["../base/train/a.jpg", "/etc/passwd", "..", ".", "", "x/a.jpg", "..\\a.jpg", "a\0"])
@pytest.mark.parametrize("number", [0, 1])
def test_join_reads_no_file_outside_the_sets(sets, tmp_path, capsys, name, number):
    path = sets[number] / "train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    assert "expected a plain name" in refused(sets, tmp_path, capsys)


@pytest.mark.parametrize("seed", ["../../evil/x", 7.5, None, True])
def test_join_takes_no_path_for_a_seed(sets, tmp_path, capsys, seed):
    content = content_of(["a"], settings={"split": "train", "seed": seed})
    (sets[1] / "train.json").write_text(json.dumps(content))
    assert "key 'info.settings'" in refused(sets, tmp_path, capsys)


@pytest.mark.parametrize("name", ["more/train/a.jpg", "base/val/b.jpg", "base/ATTRIBUTION.csv", "base/test.json"])
def test_join_follows_no_link(sets, tmp_path, capsys, name):
    secret = tmp_path / "secret"
    (tmp_path / name).rename(secret)
    (tmp_path / name).symlink_to(secret)
    assert f"{name}: is a link" in refused(sets, tmp_path, capsys)


def test_join_follows_no_linked_folder(sets, tmp_path, capsys):
    (sets[1] / "train").rename(tmp_path / "elsewhere")
    (sets[1] / "train").symlink_to(tmp_path / "elsewhere")
    assert "more/train: is a link" in refused(sets, tmp_path, capsys)
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    assert "out: exists" in refused(sets, tmp_path, capsys)


def test_join_copies_only_what_the_json_names(sets, tmp_path):
    (sets[0] / "train" / "left.over").symlink_to("/etc/passwd")
    assert main(["join", *map(str, sets), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["7_a.jpg", "a.jpg", "b.jpg"]


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
def test_a_broken_set_is_one_line_and_status_two(sets, tmp_path, capsys, name):
    change, message = BROKEN[name]
    changed = change(content_of(["a", "b"]))
    if not isinstance(changed, str | bytes):
        changed = json.dumps(changed)
    path = sets[0] / "train.json"
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    printed = refused(sets, tmp_path, capsys)
    assert str(path) in printed and message in printed
    for action in (["sheet", str(sets[0]), "--split", "train"], ["datasheet", str(sets[0])]):
        (sets[0] / "README.md").write_text("")
        assert main(action) == 2
        assert str(path) in capsys.readouterr().err


def test_a_missing_split_is_named(sets, tmp_path, capsys):
    (sets[0] / "calibrate.json").unlink()
    assert "calibrate.json: no such file" in refused(sets, tmp_path, capsys)
