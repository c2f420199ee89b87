"""The commands that are killed, each in a folder with small real inputs and the results of an earlier run."""

import importlib.util
import json
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from detectors import random_detector, saved, write_rooms
from PIL import Image

from eelib.cli import main
from eelib.config import parse
from eelib.deploy.export import export
from eelib.deploy.runtime import Session
from eelib.deploy.video import VideoWriter
from eelib.files import file_sha256, write_json
from eelib.hub import read_manifest
from eelib.release import release
from eelib.train import train
from kill.campaign import Command
from showroom import __main__ as showroom
from showroom import dataset, render

IMAGES = 8
EXITS = ("exit1", "exit2", "full")


def _training(root: Path, **optim: object) -> dict:
    values = {"epochs": 2, "batch_size": 4, "warmup_steps": 1, "eval_every": 1, "accelerator": "cpu", "compile": False}
    return {
        "name": "tiny",
        "model": {"exits": [8, 12], "weights": "none"},
        "data": {"root": str(root), "size": 96, "augment": "mosaic", "calm": 0.5},
        "optim": values | optim,
    }


def _prepare_training(folder: Path) -> None:
    # beside all folders of the campaign, since a resume asks for the same data
    root = folder.parent / "rooms"
    write_rooms(root, IMAGES)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(_training(root)))


def _prepare_second_training(folder: Path) -> None:
    _prepare_training(folder)
    train(parse(_training(folder.parent / "rooms", lr=1e-4, epochs=1)), folder / "run", log=str)


def _train(option: str | None, folder: Path) -> int:
    argv = ["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]
    return main(argv + ([option] if option else []))


def _detector(folder: Path, **kind: object) -> Path:
    return saved(random_detector(**kind), folder / "w.pth")


def _prepare_export(folder: Path) -> None:
    """An earlier export of another detector, with a file of the user's beside it."""
    export(_detector(folder, cuts=(8,), full=False), folder / "deploy")
    (folder / "deploy" / "notes.txt").write_text("mine")
    write_rooms(folder / "rooms", 4)
    _detector(folder, cuts=())


def _opens(folder: Path) -> None:
    Session(folder / "deploy")


def _prepare_detect(folder: Path) -> None:
    """Two pictures, a video, an export, and the results and drawings of an earlier run."""
    export(_detector(folder, cuts=()), folder / "deploy")
    (folder / "own").mkdir()
    write_rooms(folder / "rooms", 2)
    for name in ("1.png", "2.png"):
        (folder / "rooms" / "test" / name).rename(folder / "own" / name)
    video = VideoWriter(folder / "own" / "clip.mp4", Fraction(5))
    for number in range(4):
        video.add(Image.new("RGB", (64, 48), (40 * number, 90, 90)))
    video.close()
    for name in ("found.json", "found.jsonl"):
        assert _detect(name, folder, "--min-score", "0.5") == 0


def _detect(out: str, folder: Path, *options: str) -> int:
    inputs = [str(folder / "own"), str(folder / "own" / "clip.mp4")]
    argv = ["detect", *inputs, "--export", str(folder / "deploy"), "--out", str(folder / out)]
    return main([*argv, "--draw", str(folder / "drawn"), *options])


def _prepare_release(folder: Path) -> None:
    """A name that was released before, and another."""
    write_rooms(folder.parent / "rooms", IMAGES)
    config = parse(_training(folder.parent / "rooms")).model_dump(mode="json")
    from eelib.checkpoints import save_checkpoint

    for seed in (1, 0):
        model = random_detector(seed=seed)
        state = {"model": model.state_dict(), "plan": model.plan, "config": config, "history": [{"epoch": 1}]}
        save_checkpoint(folder / "run.pth", state)
        if seed:
            for name in ("mine.pth", "other.pth"):
                release(folder / "run.pth", name, folder / "checkpoints")


def _release(folder: Path) -> None:
    release(folder / "run.pth", "mine.pth", folder / "checkpoints")


def _others_stay(folder: Path) -> None:
    """Only what is released anew may be between two states: its hash tells, and the next release puts it right."""
    entry = read_manifest(folder / "checkpoints")["other.pth"]
    assert file_sha256(folder / "checkpoints" / "other.pth") == entry["sha256"]


def _prepare_routing(folder: Path) -> None:
    """A detector with times, and the router of an earlier run."""
    path = _detector(folder)
    write_rooms(folder / "rooms", IMAGES)
    ratios = dict(zip(EXITS, (0.5, 0.7, 1.0), strict=True))
    times = {"exits": {name: {"ratio": ratio, "passed_ratio": 0.1} for name, ratio in ratios.items()}}
    # beside all folders of the campaign, since a router states where its times are from
    write_json(folder.parent / "times.json", times | {"checkpoint_sha256": file_sha256(path)})
    assert _route(folder, "--policy", "fixed") == 0


def _choose(command: str, folder: Path, *options: str) -> int:
    argv = [command, str(folder / "w.pth"), "--data", str(folder / "rooms"), "--times", f"{folder.parent}/times.json"]
    argv += ["--records", str(folder / "records"), "--out", str(folder / "router.json"), "--resamples", "5"]
    return main([*argv, *options])


def _route(folder: Path, *options: str) -> int:
    return _choose("route", folder, *(options or ("--policy", "max_score", "--grid", "3", "--limit", "6")))


def _furniture() -> Path | None:
    """Where the renderer's extra and its models are, unless one is missing."""
    folder = os.environ.get("FURNITURE")
    try:
        from showroom.catalogue import furniture_folder

        there = furniture_folder(Path(folder) if folder else None)
    except Exception:
        return None
    return there if all(map(importlib.util.find_spec, ("mitsuba", "embreex", "cv2", "pyoidn"))) else None


def _prepare_render(folder: Path) -> None:
    if _furniture():
        assert _render(folder, scenes=1) == 0
    else:
        _render_plainly(folder, scenes=1)


def _render(folder: Path, scenes: int = 2) -> int:
    argv = ["render", "--split", "val", "--scenes", str(scenes), "--samples", "1", "--workers", "1"]
    return showroom.main([*argv, "--out", str(folder / "set"), "--furniture", str(_furniture())])


def _render_plainly(folder: Path, scenes: int = 2) -> int:
    """Without the extra: all but the light, whose place a picture takes that is drawn from the scene's number."""
    scene = SimpleNamespace(recipe="plain", clutter=0.0)
    render.start = lambda: None
    render.radiance = lambda room, camera, samples, seed: None
    dataset.read_catalogue = lambda furniture: {}
    dataset.attribution = lambda entries, models: "model,author\na,b\n"
    dataset.compose = lambda entries, settings, number: SimpleNamespace(scene=scene, room=None, cameras=[None])
    dataset.film.expose = lambda light, rng: (rng.integers(0, 255, (64, 64, 3), np.uint8), {"dark": False})
    dataset.annotations_of = lambda composition, camera: [{"bbox": [1, 2, 30, 30], "iscrowd": 0}]
    settings = dataset.Settings("val", 0, samples=1)
    return len(dataset.render_split(folder / "set", folder, settings, scenes))


def _scenes_stay(folder: Path) -> None:
    """All pictures that a split lists are there."""
    content = json.loads((folder / "set" / "val.json").read_text())
    assert all((folder / "set" / "val" / image["file_name"]).exists() for image in content["images"])


def _resumed(folder: Path) -> int:
    return _train("--resume", folder)


COMMANDS = [
    Command("train", _prepare_training, lambda folder: _train(None, folder), _resumed),
    Command(
        "train --overwrite", _prepare_second_training, lambda folder: _train("--overwrite", folder), results=["run/*"]
    ),
    Command(
        "export", _prepare_export, lambda folder: main(["export", str(folder / "w.pth"), "--out", f"{folder}/deploy"]),
        results=["deploy/*-*.onnx", "deploy/manifest.json"], usable=_opens,
    ),
    Command(
        "export --int8", _prepare_export,
        lambda folder: main(
            ["export", f"{folder}/w.pth", "--out", f"{folder}/deploy", "--int8", "--data", f"{folder}/rooms"]
        ),
        results=["deploy/*-*.onnx", "deploy/manifest.json"], usable=_opens,
    ),
    *[
        Command(
            f"detect --out .{kind}", _prepare_detect, lambda folder, kind=kind: _detect(f"found.{kind}", folder),
            results=["found*", "drawn/*"],
        )
        for kind in ("json", "jsonl")
    ],
    Command("release", _prepare_release, _release, results=["checkpoints/**/*"], usable=_others_stay),
    Command("route", _prepare_routing, _route, results=["router.json", "records/*"]),
    Command(
        "certify", _prepare_routing, lambda folder: _choose("certify", folder, "--limit", "6", "--epsilon", "0.5"),
        results=["router.json", "records/*"],
    ),
    Command(
        "render" if _furniture() else "render (without light)", _prepare_render,
        _render if _furniture() else _render_plainly, results=["set/**/*"], usable=_scenes_stay,
    ),
]  # fmt: skip
