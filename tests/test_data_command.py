"""``eelib data`` tells what a set holds and all that is wrong with it, and writes what is right."""

import json

import pytest
from PIL import Image

from eelib.cli import main
from eelib.config import ROOT

COCO = ROOT / "tests" / "fixtures" / "coco"
OWN = ["--data", str(COCO / "annotations" / "instances_train2017.json"), "--images", str(COCO / "train2017")]


@pytest.fixture
def changed(tiny):
    """Writes the small set's ``test.json`` anew after a change; gives its path."""

    def change(edit):
        path = tiny / "test.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
        return str(path)

    return change


def test_a_sound_file(tiny, capsys):
    assert main(["data", "check", "--data", str(tiny / "test.json"), "--decode"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:6] == ["test", "2", "1", "2", "1", "0"]
    assert "counted and decoded in" in out and "error" not in out and "warning" not in out


def test_all_faults_are_printed_and_the_first_is_the_error(changed, capsys):
    def edit(content):
        content["annotations"][0]["bbox"] = [0, 0, 0, 1]
        content["annotations"][1]["iscrowd"] = "?"
        content["images"][1]["file_name"] = None

    path = changed(edit)
    assert main(["data", "check", "--data", path]) == 2
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines()].count("error") == 3
    assert printed.err.startswith(f"eelib: {path}: images[1]: 'file_name' is null") and printed.err.count("\n") == 1
    assert "and 2 more, `eelib data check` lists them" in printed.err
    assert main(["data", "check", "--data", path, "--json"]) == 2
    (row,) = json.loads(capsys.readouterr().out)
    assert [problem["severity"] for problem in row["problems"]].count("error") == 3


def test_what_is_left_out_and_what_is_doubted(changed, capsys):
    def edit(content):
        content["categories"].append({"id": 7, "name": "stool"})
        content["annotations"][0]["category_id"] = 7
        content["images"].append(content["images"][0] | {"id": 5})

    path = changed(edit)
    assert main(["data", "check", "--data", path, "--category", "chair"]) == 0
    out = capsys.readouterr().out
    assert f"warning: {path}: 1 boxes of other categories are left out: 'stool' 1" in out
    assert f"warning: {path}: picture '1.jpg' is there under 2 ids" in out
    assert main(["data", "check", "--data", path, "--category", "chair", "--category", "stool"]) == 0
    assert "test       objects: chair 1, stool 1" in capsys.readouterr().out


def test_nothing_that_is_left_is_told(changed, capsys):
    path = changed(lambda content: content["annotations"].clear())
    assert main(["data", "check", "--data", path]) == 0
    assert "no object of 'chair' is left: there is no box" in capsys.readouterr().out


def test_splits_to_choose_and_calibrate_by_without_an_object(tiny, capsys):
    content = json.loads((tiny / "val.json").read_text())
    content["annotations"] = []
    (tiny / "val.json").write_text(json.dumps(content))
    assert main(["data", "check", "--data", str(tiny)]) == 0
    assert "'val' has no object: no epoch can be chosen by it" in capsys.readouterr().out
    (tiny / "val.json").unlink()
    assert main(["data", "check", "--data", str(tiny)]) == 2
    assert "val.json: no such annotation file" in capsys.readouterr().err


def test_a_split_that_cannot_be_drawn_is_an_error(tiny, capsys):
    folder = tiny / "set"
    folder.mkdir()
    (tiny / "train.json").rename(folder / "result.json")
    (tiny / "train").rename(folder / "images")
    assert main(["data", "check", "--data", str(folder)]) == 0  # one file is the split that the command asks for
    (folder / "train").mkdir()
    (folder / "result.json").rename(folder / "train" / "_annotations.coco.json")
    (folder / "test").mkdir()
    (folder / "test" / "_annotations.coco.json").write_bytes((folder / "train" / "_annotations.coco.json").read_bytes())
    for path in (folder / "images").iterdir():
        path.rename(folder / "train" / path.name)
    capsys.readouterr()
    assert main(["data", "check", "--data", str(folder)]) == 2
    assert "2 images, 1 of them with an object, are too few to draw val, calibrate" in capsys.readouterr().err


def test_fix_writes_a_sound_file_elsewhere(changed, tiny, capsys):
    def edit(content):
        content["annotations"][0]["bbox"] = [50, 40, 30, 30]
        content["annotations"].append(content["annotations"][1] | {"id": 9})
        content["categories"].append({"id": 7, "name": "stool"})

    path, out = changed(edit), tiny / "clean.json"
    assert main(["data", "check", "--data", path, "--fix", path]) == 2
    assert "is the file that is read; expected another one" in capsys.readouterr().err
    (tiny / "link.json").hardlink_to(path)
    assert main(["data", "check", "--data", path, "--fix", str(tiny / "link.json")]) == 2
    capsys.readouterr()
    assert main(["data", "check", "--data", path, "--fix", str(out)]) == 0
    assert "2 images, 3 boxes" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["annotations"][0]["bbox"] == [50, 40, 14, 8] and len(content["categories"]) == 2
    assert main(["data", "check", "--data", str(out), "--images", str(tiny / "test")]) == 0
    assert main(["data", "check", "--fix", str(out)]) == 2
    assert "--fix: needs --data with one COCO JSON" in capsys.readouterr().err


def test_conversion(tiny, capsys):
    pytest.importorskip("globox")
    (tiny / "set" / "labels").mkdir(parents=True)
    (tiny / "set" / "data.yaml").write_text("names: [chair]")
    (tiny / "set" / "labels" / "1.txt").write_text("0 0.5 0.5 0.5 0.5")
    yaml, out = str(tiny / "set" / "data.yaml"), str(tiny / "my.json")
    for data in (yaml, str(tiny / "set")):
        assert main(["data", "check", "--data", data]) == 2
        assert f"eelib data convert {tiny / 'set'} --from yolo --out my.json" in capsys.readouterr().err
    argv = ["data", "convert", str(tiny / "set"), "--from", "yolo", "--images", str(tiny / "test"), "--out", out]
    assert main(argv) == 0
    assert "2 images, 1 boxes of chair" in capsys.readouterr().out
    assert main(["data", "check", "--data", out, "--images", str(tiny / "test"), "--decode"]) == 0


def test_all_broken_images_are_told(tiny, capsys):
    (tiny / "test" / "1.jpg").write_bytes(b"x")
    Image.new("L", (5, 5)).save(tiny / "test" / "2.jpg")
    assert main(["data", "check", "--data", str(tiny / "test.json"), "--decode"]) == 2
    printed = capsys.readouterr()
    assert f"image 1: {tiny / 'test' / '1.jpg'}: image cannot be decoded" in printed.out
    assert f"image 2: {tiny / 'test' / '2.jpg'}: image of 5 x 5 px; {tiny / 'test.json'} says 64 x 48" in printed.out
    assert printed.err.count("\n") == 1 and "and 1 more" in printed.err


def test_several_categories_are_given_one_by_one(capsys):
    assert main(["data", "check", "--json", "--category", "couch", "--category", "chair", *OWN]) == 0
    assert json.loads(capsys.readouterr().out)[0]["categories"] == {"couch": 1, "chair": 9}
