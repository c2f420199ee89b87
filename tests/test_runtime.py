"""The deployed detector: routing, bad folders, awkward images, no torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import nms

from eelib.__main__ import main
from eelib.config import ROOT
from eelib.data import SHOWROOM
from eelib.deploy.export import export
from eelib.deploy.images import find_images
from eelib.deploy.runtime import DeploymentError, EarlyExitSession, Evidence, fixed, forced, make_policy
from eelib.preprocess import read_image, to_input


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    export(ROOT / "checkpoints" / "exits.pth", path)
    return path


@pytest.fixture(scope="module")
def session(folder):
    return EarlyExitSession(folder)


@pytest.fixture(scope="module")
def images():
    files = sorted((SHOWROOM / "val").glob("*.jpg"))[:13]
    return np.stack([to_input(read_image(file), 320) for file in files])


@pytest.fixture(scope="module")
def mixed(session, images):
    """A policy that sends about half of the images on at either exit."""
    best = {}
    for name in ("exit1", "exit2"):
        best[name] = float(np.median([d.scores[0] for d in session.detect(images, forced(name))]))
    return fixed(best)


def test_an_image_leaves_alike_whatever_the_batch(session, images, mixed):
    alone = [session.detect(images[i : i + 1], mixed)[0] for i in range(len(images))]
    assert {d.exit_name for d in alone} == {"exit1", "exit2", "full"}
    for order in (np.arange(13), np.arange(13)[::-1], np.array([3, 3, 7, 3])):
        for image, found in zip(order, session.detect(images[order], mixed), strict=True):
            assert found.exit_name == alone[image].exit_name
            np.testing.assert_allclose(found.scores, alone[image].scores, atol=1e-6)
            np.testing.assert_allclose(found.boxes_xyxy, alone[image].boxes_xyxy, atol=1e-3)


def test_stages_run_only_for_the_images_that_go_on(folder, images, mixed):
    session = EarlyExitSession(folder)
    seen = {}

    class Counted:
        def __init__(self, name, stage):
            self.name, self.stage = name, stage

        def run(self, outputs, inputs):
            seen[self.name] = seen.get(self.name, 0) + len(inputs["features"])
            return self.stage.run(outputs, inputs)

    session._stages = [Counted(n, s) for n, s in zip(session.exits, session._stages, strict=True)]
    left = [d.exit_name for d in session.detect(images, mixed)]
    assert seen == {"exit1": 13, "exit2": 13 - left.count("exit1"), "full": left.count("full")}
    seen.clear()
    session.detect(images, forced("exit1"))
    assert seen == {"exit1": 13}


def test_extreme_thresholds_are_first_and_last_exit(session, images):
    for threshold, name in ((0.0, "exit1"), (1.1, "full")):
        policy = make_policy(session, "fixed", [threshold])
        assert {d.exit_name for d in session.detect(images[:2], policy)} == {name}
    policy = make_policy(session, "fixed", [1.1, 0.0])
    assert {d.exit_name for d in session.detect(images[:2], policy)} == {"exit2"}


def test_suppression_is_torchvisions(session):
    """Against torchvision on random boxes: more candidates than top k, a few, one, none."""
    rng = np.random.default_rng(0)
    for count, best in ((1000, 1.0), (40, 1.0), (1, 1.0), (50, 0.0005)):
        corner = rng.uniform(-20, 300, (2, count))
        boxes = np.concatenate((corner, corner + rng.uniform(5, 120, (2, count)))).astype(np.float32)
        scores = (rng.permutation(count) + 1).astype(np.float32) / count * np.float32(best)
        found = session.suppress(boxes, scores, "full")
        order = np.argsort(-scores)[:300]
        order = order[scores[order] > 0.001]
        clipped, ranked = torch.from_numpy(boxes[:, order].clip(0, 320).T.copy()), torch.from_numpy(scores[order])
        keep = nms(clipped, ranked, 0.55)
        np.testing.assert_array_equal(found.boxes_xyxy, clipped[keep].numpy())
        np.testing.assert_array_equal(found.scores, ranked[keep].numpy())


def test_no_images_give_no_detections(session):
    assert session.detect(np.zeros((0, 3, 320, 320), np.float32), forced("full")) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 319, 320), np.float32), r"\(1, 3, 319, 320\); expected an array of shape \(B, 3, 320, 320\)"),
        (np.zeros((3, 320, 320), np.float32), r"expected an array of shape \(B, 3, 320, 320\)"),
        (np.zeros((1, 3, 320, 320), np.uint8), "uint8; expected float32"),
        ([1], "images: list"),
        (np.full((1, 3, 320, 320), np.nan, np.float32), "image 0: score at exit1 is nan; expected finite pixels"),
    ],
)
def test_wrong_arrays(session, images, message):
    with pytest.raises(DeploymentError, match=message):
        session.detect(images, forced("full"))


def test_a_policy_that_needs_other_evidence(session, images):
    with pytest.raises(DeploymentError, match="needs the evidence 'entropy'; this export gives exit, max_score, count"):
        session.detect(images[:1], lambda seen: seen["entropy"] > 0.5)
    with pytest.raises(DeploymentError, match="needs the evidence 'entropy'; this export gives max_score, count"):
        make_policy(session, "fixed", [0.5], "entropy")
    assert fixed({"exit1": 2}, "count")(Evidence(exit="exit1", max_score=0.9, count=1))


def test_unknown_policies_and_thresholds(session):
    with pytest.raises(DeploymentError, match="policy: 'gumbel' is unknown; expected fixed, exit1, exit2, full"):
        make_policy(session, "gumbel")
    for wrong in ([0.1, 0.2, 0.3], [float("nan")]):
        with pytest.raises(DeploymentError, match="expected one number, or one for each of exit1, exit2"):
            make_policy(session, "fixed", wrong)


def _copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_broken_folders(folder, tmp_path, capsys):
    copy = _copy(folder, tmp_path)
    stage, manifest = copy / "stage_exit2.onnx", copy / "manifest.json"
    content, listed = stage.read_bytes(), manifest.read_text()

    def message():
        assert main(["detect", str(SHOWROOM / "val"), "--export", str(copy), "--out", str(tmp_path / "r.json")]) == 2
        return capsys.readouterr().err

    stage.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "stage_exit2.onnx: SHA-256 is" in message()
    stage.unlink()
    assert "stage_exit2.onnx: stage is missing" in message()
    stage.write_bytes(content)
    for text, expected in (
        ("{", "not a manifest"),
        ("[]", "format is 'list'; expected 1"),
        (json.dumps(json.loads(listed) | {"format": 0}), "format is 0; expected 1"),
        (json.dumps(json.loads(listed) | {"stages": []}), "key 'stages' is missing or empty"),
    ):
        manifest.write_text(text)
        assert expected in message()
    manifest.unlink()
    assert "no such manifest; write one with `eelib export" in message()
    assert not (tmp_path / "r.json").exists()


def _awkward(folder):
    """Images of one scene in every mode; returns their upright sizes by name."""
    folder.mkdir()
    scene = Image.open(sorted((SHOWROOM / "val").glob("*.jpg"))[0]).resize((200, 120))
    grey = np.asarray(scene.convert("L"))
    scene.convert("L").save(folder / "grey.png")
    scene.convert("RGBA").save(folder / "rgba.png")
    scene.convert("CMYK").save(folder / "cmyk.jpg")
    scene.convert("P").save(folder / "palette.gif")
    scene.convert("1").save(folder / "bits.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(grey.astype(np.int32) * 257).save(folder / "deeper.tif")
    Image.fromarray(grey.astype(np.float32)).save(folder / "float.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by 90 degrees
    scene.save(folder / "rotated.jpg", exif=exif)
    scene.resize((1, 1)).save(folder / "dot.png")
    scene.resize((2000, 7)).save(folder / "strip.png")
    return dict.fromkeys(("grey.png", "rgba.png", "cmyk.jpg", "palette.gif", "bits.png"), (200, 120)) | {
        "deep.png": (200, 120), "deeper.tif": (200, 120), "float.tif": (200, 120), "rotated.jpg": (120, 200),
        "dot.png": (1, 1), "strip.png": (2000, 7),
    }  # fmt: skip


def test_images_of_any_size_and_mode(folder, tmp_path, capsys):
    sizes = _awkward(tmp_path / "in")
    argv = ["detect", str(tmp_path / "in"), "--export", str(folder), "--policy", "exit1"]
    assert main([*argv, "--out", str(tmp_path / "r.json"), "--draw", str(tmp_path / "drawn")]) == 0
    assert "(exit1 11, exit2 0, full 0)" in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    assert {r["file_name"] for r in results} == sizes.keys()
    for result in results:
        (x, y, width, height), (limit_x, limit_y) = result["bbox"], sizes[result["file_name"]]
        assert min(x, y, width, height) >= 0
        assert x + width <= limit_x + 0.01 and y + height <= limit_y + 0.01
    for name, size in sizes.items():
        with Image.open(tmp_path / "drawn" / name.replace(name.split(".")[1], "png")) as drawn:
            assert drawn.size == size


def test_depth_and_transparency_are_scaled_not_cut(tmp_path):
    _awkward(tmp_path / "in")
    grey = np.asarray(read_image(tmp_path / "in" / "grey.png")).astype(int)
    for name in ("deep.png", "deeper.tif", "float.tif"):
        assert np.abs(np.asarray(read_image(tmp_path / "in" / name)).astype(int) - grey).max() <= 1, name
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255


def test_a_broken_image_is_skipped_and_the_status_says_so(folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    good = sorted((SHOWROOM / "val").glob("*.jpg"))[0]
    shutil.copy(good, tmp_path / "in" / "b.jpg")
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    (tmp_path / "in" / "c.jpg").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    argv = ["detect", str(tmp_path / "in"), "--export", str(folder), "--out", str(tmp_path / "r.json")]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert "in/a.jpg: image cannot be decoded" in captured.err and "in/c.jpg: image cannot" in captured.err
    assert "2 of 3 images are broken" in captured.err
    assert {r["image_id"] for r in json.loads((tmp_path / "r.json").read_text())} == {2}


def test_all_images_broken_give_an_empty_list(folder, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    argv = ["detect", str(tmp_path / "a.jpg"), "--export", str(folder), "--out", str(tmp_path / "r.json")]
    assert main(argv) == 1
    assert json.loads((tmp_path / "r.json").read_text()) == []


@pytest.mark.parametrize(("path", "message"), [("empty", "folder without images"), ("none", "no such image or folder")])
def test_nothing_to_detect_in(folder, tmp_path, capsys, path, message):
    (tmp_path / "empty").mkdir()
    assert main(["detect", str(tmp_path / path), "--export", str(folder), "--out", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err


def test_ids_are_those_of_the_coco_file_beside_the_folder(tiny):
    content = json.loads((tiny / "val.json").read_text())
    content["images"][0]["id"] = 77
    (tiny / "val.json").write_text(json.dumps(content))
    assert [s.image_id for s in find_images(tiny / "val")] == [77, 2]
    (tiny / "val.json").unlink()
    assert [s.image_id for s in find_images(tiny / "val")] == [1, 2]


def test_detect_does_not_import_torch(folder, tmp_path):
    """In a process of its own: torch is loaded in this one already."""
    shutil.copy(sorted((SHOWROOM / "val").glob("*.jpg"))[0], tmp_path)
    argv = ["detect", str(tmp_path), "--export", str(folder), "--out", str(tmp_path / "r.json")]
    code = (
        "import sys\nfrom eelib.__main__ import main\n"
        f"status = main({argv!r})\n"
        "assert status == 0, status\n"
        "loaded = {'torch', 'torchvision', 'papermill', 'pycocotools'} & set(sys.modules)\n"
        "assert not loaded and 'onnxruntime' in sys.modules, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert json.loads((tmp_path / "r.json").read_text())
