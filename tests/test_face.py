"""The public names: documented, lazy, and a chain from a checkpoint to a deployed session."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from detectors import room
from PIL import Image

import eelib
from eelib import routers
from eelib.config import ROOT
from eelib.data import DataError, DetectionDataset
from eelib.deploy.router import Times
from eelib.hub import load


@pytest.fixture(scope="module")
def desk(tmp_path_factory, checkpoint, rooms):
    """A detector, in a folder as the examples take it: a picture, data, a parameter file, an export with a router."""
    folder = tmp_path_factory.mktemp("desk")
    Image.fromarray(room(5, 150)[0]).save(folder / "room.jpg")
    for name in ("params", "data", "checkpoints"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "my").symlink_to(rooms)
    optim = "{epochs: 1, batch_size: 8, warmup_steps: 0, eval_every: 1}"
    (folder / "my.yaml").write_text(
        f"name: my\noptim: {optim}\ndata: {{root: {rooms}, size: 96}}\nmodel: {{weights: none}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        times = Times((0.3, 0.5, 1.1), (0.0, 0.05, 0.1), (0.1, 0.2), "the plain detector", {})
        patch.setattr(routers, "measured_times", lambda *_: times)  # the machine's own would differ every time
        model = eelib.load(checkpoint("two exits"))
        router = eelib.route(model, rooms, options=routers.RouterOptions(resamples=5, grid=5))
        eelib.export(model, "deploy", router=router)
        router.save("deploy/router.json")
        yield model


@pytest.mark.parametrize("name", eelib.__all__)
def test_every_public_name_exists_and_its_example_runs(name, desk):
    value, module = getattr(eelib, name), importlib.import_module(eelib._PUBLIC[name])
    assert value is getattr(module, name) and name in dir(eelib)
    text = inspect.getdoc(module if name == "POLICIES" else value)  # a table has no docstring of its own
    assert "Examples:" in text and f"eelib.{name}" in text.split("Examples:")[1] or name == "Detections"
    example = doctest.DocTestParser().get_doctest(text, {"eelib": eelib, "model": desk}, name, None, None)
    told = []
    doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert example.examples and not told, "".join(told)


def test_the_page_of_the_site_holds_every_public_name():
    headings = re.findall(r"^ +heading: eelib\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(headings) == sorted(eelib.__all__)


def test_modules_do_not_hide_the_functions_of_their_names():
    importlib.import_module("eelib.train")
    importlib.import_module("eelib.evaluate")
    assert inspect.isfunction(eelib.train) and inspect.isfunction(eelib.evaluate)
    with pytest.raises(AttributeError, match="module 'eelib' has no attribute 'magic'; public are load, "):
        eelib.magic  # noqa: B018


def test_the_face_alone_imports_nothing_heavy():
    code = "import sys, eelib; eelib.Router; eelib.Detections; print({'torch', 'onnxruntime'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "set()"


def test_the_chain_of_the_readme(checkpoint, rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(room(5, 150)[0]).save("room.png")
    model = eelib.load(checkpoint("two exits"))
    found = model.predict("room.png", min_score=0.01)
    assert found.exit_name == "full" and len(found) and found.plot().size == (150, 150)
    assert eelib.evaluate(model, rooms, limit=8).keys() == {"exit1", "exit2", "full"}

    times = Times((0.3, 0.5, 1.1), (0.0, 0.05, 0.1), (0.1, 0.2), "the plain detector", {})
    monkeypatch.setattr(routers, "measured_times", lambda *_: times)  # the machine's own would differ every time
    options = routers.RouterOptions(
        records=tmp_path / "records", resamples=5, grid=5, evidence=("top_score", "raw_sum")
    )
    router = eelib.route(model, rooms, budget=0.6, options=options)
    router.save("router.json")
    assert eelib.Router.load("router.json") == router.router
    assert eelib.certify(model, rooms, epsilon=0.5, delta=0.4, options=options).router.promise.epsilon == 0.5

    eelib.export(model, "deploy", router=router, source=rooms, int8=True)
    for int8 in (False, True):
        session = eelib.Session("deploy", int8=int8)
        deployed = session.detect("room.png")
        assert deployed.exit_name in session.exits and deployed.classes == ("chair",)
        assert deployed.plot().size == (150, 150) and session.router == router.router
    as_routed = eelib.Session("deploy").detect("room.png", min_score=0)
    by_hand = model.predict("room.png", thresholds={as_routed.exit_name: 0.0}, min_score=0)
    if as_routed.exit_name != "full":
        np.testing.assert_allclose(as_routed.boxes_xyxy[:5], by_hand.boxes_xyxy[:5], atol=0.1)


def test_detections_print_a_line_each():
    boxes = np.array([[1, 2, 30.6, 40]] * 11, np.float32)
    found = eelib.Detections(boxes, np.linspace(0.9, 0.1, 11), np.full(11, 2), "exit1", ("chair", "stool"))
    lines = str(found).splitlines()
    assert lines[:2] == ["11 detections at exit1", "stool 0.90 at (1, 2, 31, 40)"] and len(lines) == 12
    assert lines[-1] == "..." and str(found.rows(slice(0))) == "0 detections at exit1"
    assert str(found.rows(slice(1))).startswith("1 detection at exit1\n")


def test_evaluate_takes_a_model_a_path_or_a_data_set(checkpoint, rooms, tiny):
    path = checkpoint("two exits")
    dataset = DetectionDataset("test", rooms, 96, keep_crowd=True, limit=6)
    answers = [
        eelib.evaluate(path, rooms, limit=6),
        eelib.evaluate(load(path), dataset),
        eelib.evaluate(str(path), dataset),
    ]
    assert answers[0] == answers[1] == answers[2] and set(answers[0]["full"]) >= {"AP", "AP50", "AP_small"}
    assert eelib.evaluate(path, tiny, "val").keys() == {"exit1", "exit2", "full"}
    with pytest.raises(DataError, match="split: 'none' is unknown"):
        eelib.evaluate(path, rooms, "none")
    with pytest.raises(DataError, match="no object on the 1 images: AP is not defined"):
        empty = next(k for k in range(16) if not len(DetectionDataset("val", rooms).objects(k)))
        dataset = DetectionDataset("val", rooms, 96)
        dataset.image_ids, dataset.images = dataset.image_ids[empty : empty + 1], dataset.images[empty : empty + 1]
        eelib.evaluate(path, dataset)


def test_wrong_input_is_refused(checkpoint, tmp_path):
    model = eelib.load(checkpoint("two exits"))
    with pytest.raises(ValueError, match=r"expected .*0\.\.255|\[0, 1\]"):
        model.predict(room(0)[0].astype(np.float32))
    for thresholds, message in (
        ({"exit3": 0.5}, "thresholds: no early exit 'exit3'; this detector has exit1, exit2"),
        ({"full": 0.5}, "thresholds: no early exit 'full'"),
        ({"exit1": 50}, "threshold of exit1 is 50; expected a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(room(0)[0], thresholds=thresholds)
    with pytest.raises(ValueError, match="min_score is nan; expected a number from 0 to 1"):
        model.predict(room(0)[0], min_score=float("nan"))
    with pytest.raises(ValueError, match="not released; expected one of"):
        eelib.load("magic")
    with pytest.raises(ValueError, match="was not loaded from a file"):
        eelib.export(type(model)(), tmp_path / "out")
