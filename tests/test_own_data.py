"""README's lines for data of one's own, on drawn shapes of two kinds, and what a user may change of the detector."""

import json
import os
import re
import shlex

import pytest
from shapes import KINDS, draw, write_shapes

import eelib
from eelib.checking import chosen_source
from eelib.checkpoints import save_checkpoint
from eelib.cli import main
from eelib.coco import read_split
from eelib.config import ROOT, ConfigError, load_config, parse
from eelib.fit import warmup_of
from eelib.model import EarlyExitSSDLite
from eelib.options import DataOptions
from eelib.preflight import preflight
from eelib.train import build_model

pytestmark = pytest.mark.slow  # `make slow`

# Two steps at 96 px, so that the lines run in seconds; what they reach at full length is in README.
SHORT = ["optim.epochs=2", "data.size=96", "optim.accelerator=cpu"]
SETS = [part for value in SHORT for part in ("--set", value)]


def readme_lines() -> list[list[str]]:
    """The commands of README's section on data of one's own."""
    section = (ROOT / "README.md").read_text().split("## Your own data")[1].split("\n## ")[0]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)[1]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("eelib ")]


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with what README's lines name."""
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "my", {"train": 8, "val": 3, "calibrate": 8, "test": 6})
    (tmp_path / "params").symlink_to(ROOT / "params")
    (tmp_path / "more").mkdir()
    for name in ("photo.jpg", "more/a.png"):
        draw(9)[0].save(tmp_path / name)
    return tmp_path


def test_readmes_lines_lead_from_a_folder_to_detections(there, capsys):
    lines = readme_lines()
    assert [line[0] for line in lines] == ["data", "check", "train", "evaluate", "route", "export", "detect"]
    for line in lines:
        short = {"check": ["--steps", "1", *SETS], "train": SETS}.get(line[0], [])
        # at 96 px the parts that all exits share are most of the time, so the budget is wider
        line = [part if part != "0.6" else "1" for part in line if not part.endswith(".mp4")]
        assert main([*line, *short]) in ((0, 1) if line[0] == "check" else (0,)), line
    printed = capsys.readouterr().out
    assert "6 images of test, disc, triangle" in printed and "categories: disc (id 1), triangle (id 2)" in printed
    found = [json.loads(line) for line in (there / "found.jsonl").read_text().splitlines()]
    assert [os.path.basename(row["file_name"]) for row in found] == ["photo.jpg", "a.png"]
    assert (there / "drawn" / "photo.jpg").is_file()
    assert eelib.load(there / "runs" / "my" / "released.pth").classes == KINDS


def test_one_file_of_a_tool_is_enough(there, capsys):
    """Its test split is drawn from it, too."""
    annotations = there / "cvat" / "annotations"
    annotations.mkdir(parents=True)
    (there / "my" / "train.json").rename(annotations / "instances_default.json")
    (there / "my" / "train").rename(there / "cvat" / "images")
    assert main(["train", "params/small.yaml", "--data", "cvat", "--out", "run", *SETS]) == 0
    assert main(["evaluate", "run/released.pth"]) == 0
    assert "1 images of test, disc, triangle" in capsys.readouterr().out


def test_the_warm_up_is_a_fifth_of_a_short_training_and_as_configured_in_a_long_one(there, capsys):
    optim = load_config(ROOT / "params" / "baseline.yaml").optim
    assert warmup_of(optim, 26 * 76) == 100 and warmup_of(optim, 30) == 6 and warmup_of(optim, 0) == 0
    sixty = ["train", "params/small.yaml", "--data", "my", "--out", "run", *SETS, "--set", "optim.warmup_steps=1000"]
    assert main(sixty) == 0
    assert "optim.warmup_steps: 0 in place of 1000, a fifth of the 2 steps" in capsys.readouterr().out


def test_shares_of_scales_and_the_width_of_the_exits(there):
    """Both reach the checkpoint; exits of another width than the start's are learnt anew."""
    start = EarlyExitSSDLite((8, 12))
    path = str(save_checkpoint(there / "start.pth", {"model": start.state_dict(), "plan": start.plan}))
    scales = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    model = {"exits": [8, 12], "exit_width": 32, "scales": scales, "start": path}
    values = {"name": "t", "model": model, "data": {"size": 96, "root": str(there / "my")}}
    detector = build_model(parse(values))
    assert detector.early.exit1.down[0][1][0].weight.shape[0] == 32
    assert start.early.exit1.down[0][1][0].weight.shape[0] == 96
    assert detector.plan["scales"] == scales and "scales" not in start.plan
    saved = save_checkpoint(there / "wide.pth", {"model": detector.state_dict(), "plan": detector.plan})
    again = eelib.load(saved)
    assert list(again.scales) == scales and again.early.exit2.down[0][1][0].weight.shape[0] == 32
    for wrong, key in (({"scales": scales[::-1]}, "model.scales"), ({"exits": []}, "model.exit_width")):
        with pytest.raises(ConfigError, match=key):
            parse(values | {"model": model | wrong})


def checks_of(root, steps=0, **groups):
    values = {"name": "t", "data": {"root": str(root), "size": 96}, "model": {"exits": [8]}}
    values = {key: values.get(key, {}) | groups.get(key, {}) if key != "name" else "t" for key in values | groups}
    return {check.name: check for check in preflight(parse(values), steps=steps)}


def test_a_preflight_proposes_scales_for_small_objects(there):
    """Objects of a twentieth of the image are out of reach of the smallest default boxes, until the advice is taken."""
    for path in (there / "my").glob("*.json"):
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            row["bbox"][2:] = [14, 11]
        path.write_text(json.dumps(content))
    check = checks_of(there / "my")["default boxes of full"]
    assert not check.holds and "AP stays near 0" in check.advice
    scales = json.loads(re.search(r"model.scales (\[.*?\])", check.advice)[1])
    better = checks_of(there / "my", model={"scales": scales})["default boxes of full"]
    reached = [float(re.match(r"[\d.]+", row.measured)[0]) for row in (check, better)]
    assert reached[1] > reached[0]


def test_a_preflight_says_what_cannot_learn(there):
    start = str(ROOT / "checkpoints" / "exits_256.pth")
    sound = checks_of(there / "my", 12, model={"exits": [8], "start": start}, optim={"batch_size": 8, "lr": 1e-3})
    assert {"encoding of boxes", "class loss", "gradient of each exit", "8 images by heart"} <= sound.keys()
    assert sound["encoding of boxes"].holds and sound["class loss"].holds and sound["gradient of each exit"].holds
    assert "fewer than 150 steps end near AP 0" in sound["length of the training"].advice
    still = checks_of(there / "my", 2, optim={"lr": 1e-9})
    assert not still["8 images by heart"].holds and "AP 0 here is AP 0 after hours" in still["8 images by heart"].advice
    assert "all images take one exit" in still["confidence of exit1"].advice
    unheard = checks_of(there / "my", 1, loss={"exit_weights": [0.0, 1.0]})
    assert not unheard["gradient of each exit"].holds
    wild = checks_of(there / "my", 12, optim={"lr": 1e9})
    assert not wild["8 images by heart"].holds


def test_one_json_is_divided_for_routing(there):
    """`eelib route --data my.json` calibrates on a part of it and measures on another."""
    (there / "my" / "test.json").rename(there / "one.json")
    source = chosen_source(DataOptions(data=there / "one.json", images=there / "my" / "test").settings("train"))
    ids = [{row["id"] for row in read_split(split, source).content["images"]} for split in ("calibrate", "test")]
    assert all(ids) and ids[0].isdisjoint(ids[1])
