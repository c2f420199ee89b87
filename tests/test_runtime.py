"""The deployed detector: where images leave, bad folders, awkward images, both runtimes, no torch."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectors import room
from PIL import Image
from torchvision.ops import nms

import eelib
from eelib.config import ROOT
from eelib.deploy import runtime
from eelib.deploy.evidence import Column, Function, Raw, RouterError
from eelib.deploy.manifest import DeploymentError
from eelib.deploy.router import Gate, Rule
from eelib.deploy.runners import open_graph
from eelib.deploy.runtime import Session
from eelib.preprocess import ImageError


@pytest.fixture(scope="module")
def session(exported):
    return Session(exported("two exits"))


@pytest.fixture(scope="module")
def gated(exported):
    return Session(exported("gates"))


def medians(session, images, exits=("exit1", "exit2")) -> dict[str, float]:
    """The best score that half of the images reach at each exit."""
    answers = {name: session.detect_batch(images, session.at_exit(name)) for name in exits}
    return {name: float(np.median([d.scores[0] for d in found])) for name, found in answers.items()}


@pytest.fixture(scope="module")
def mixed(session, looks):
    """A rule that sends about half of the images on at either exit."""
    return session.by_score(medians(session, looks))


def blank_rule(session, images) -> Rule:
    """Either gate ends a third of the images that come to it, whatever the exits say."""
    holds = probabilities(session, images)
    first = float(np.quantile(holds[:, 0], 1 / 3))
    second = float(np.quantile(holds[holds[:, 0] >= first, 1], 1 / 3))
    rule = session.by_score(medians(session, images))
    return replace(rule, gates=(Gate(0, first), Gate(0, second)))


def probabilities(session, images) -> np.ndarray:
    """What each gate gives for each image, by its graph: (N, 2)."""
    columns = []
    for stage in session.manifest.stages[:2]:
        run = open_graph(session.folder, stage).run
        holds, images = run(["holds_object", "next_features"], {"features": images})
        columns.append(holds)
    return np.stack(columns, 1)


def counted(session) -> dict[str, int]:
    """Counts the images that each stage of a session is run on from here on."""
    seen: dict[str, int] = {}
    for stage in session.stages:
        run = session._run(stage)

        def call(features, name=stage.exit, run=run):
            seen[name] = seen.get(name, 0) + len(features)
            return run(features)

        session._opened[stage.file] = call
    return seen


def test_an_image_leaves_alike_whatever_the_batch(session, looks, mixed):
    alone = [session.detect_batch(looks[i : i + 1], mixed)[0] for i in range(len(looks))]
    assert {d.exit_name for d in alone} == {"exit1", "exit2", "full"}
    for order in (np.arange(12), np.arange(12)[::-1], np.array([3, 3, 7, 3])):
        for image, found in zip(order, session.detect_batch(looks[order], mixed), strict=True):
            assert found.exit_name == alone[image].exit_name
            np.testing.assert_allclose(found.scores, alone[image].scores, atol=1e-5)


def test_stages_run_only_for_the_images_that_go_on(exported, looks, mixed):
    session = Session(exported("two exits"))
    seen = counted(session)
    left = [d.exit_name for d in session.detect_batch(looks, mixed)]
    assert seen == {"exit1": 12, "exit2": 12 - left.count("exit1"), "full": left.count("full")}
    seen.clear()
    session.detect_batch(looks, session.at_exit("exit1"))
    assert seen == {"exit1": 12}
    seen.clear()
    session.detect_batch(looks)  # the plain detector, in a graph of its own
    assert not seen


def test_a_blank_gate_ends_images_and_the_batch_is_compacted(exported, gated, looks):
    session, rule = Session(exported("gates")), blank_rule(gated, looks)
    holds, seen = probabilities(gated, looks), counted(session)
    found = session.detect_batch(looks, rule)
    for row, detections in enumerate(found):
        ended = [f"blank{k + 1}" for k in range(2) if holds[row, k] < rule.gates[k].threshold]
        if ended:
            assert detections.exit_name == ended[0] and len(detections) == 0
        else:
            assert detections.exit_name in session.exits and len(detections)
    left = [d.exit_name for d in found]
    assert left.count("blank1") >= 3 and left.count("blank2") >= 2
    first, second = 12 - left.count("blank1"), 12 - left.count("blank1") - left.count("blank2")
    assert [seen[name] for name in ("blank1", "blank2", "exit1")] == [12, first, second]
    alone = [session.detect_batch(looks[i : i + 1], rule)[0].exit_name for i in range(12)]
    assert alone == left


def test_all_images_end_at_a_gate_that_is_named(gated, looks):
    for name in ("blank1", "blank2"):
        assert {d.exit_name for d in gated.detect_batch(looks, gated.at_exit(name))} == {name}


def test_extreme_thresholds_are_first_and_last_exit(session, looks):
    for thresholds, name in (({"exit1": 0.0}, "exit1"), ({"exit1": 1.0, "exit2": 0.0}, "exit2"), ({}, "full")):
        assert {d.exit_name for d in session.detect_batch(looks, session.by_score(thresholds))} == {name}


def test_suppression_is_torchvisions_within_each_class(exported):
    """Against torchvision on random boxes: more candidates than top k, a few, one, none."""
    session, rng = Session(exported("three exits, two classes")), np.random.default_rng(0)
    for count, best in ((1000, 1.0), (40, 1.0), (1, 1.0), (50, 0.0005)):
        corner = rng.uniform(-20, 90, (2, count))
        boxes = np.concatenate((corner, corner + rng.uniform(5, 40, (2, count)))).astype(np.float32)
        scores = ((rng.permutation(2 * count) + 1) / (2 * count) * best).astype(np.float32).reshape(2, count)
        found = session.suppress(boxes, scores, "full")
        order = np.argsort(-scores.ravel())[:300]
        order = order[scores.ravel()[order] > 0.001]
        ranked, labels = torch.from_numpy(scores.ravel()[order]), torch.from_numpy(order // count)
        clipped = torch.from_numpy(boxes[:, order % count].clip(0, 96).T.copy())
        keep = nms(clipped + 1000 * labels[:, None], ranked, 0.55)
        np.testing.assert_array_equal(found.boxes_xyxy, clipped[keep].numpy())
        np.testing.assert_array_equal(found.scores, ranked[keep].numpy())
        np.testing.assert_array_equal(found.labels, labels[keep].numpy() + 1)


def test_no_images_give_no_detections(session):
    assert session.detect_batch(np.zeros((0, 3, 96, 96), np.float32)) == [] and session.detect([]) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 95, 96), np.float32), r"\(1, 3, 95, 96\); expected an array of shape \(B, 3, 96, 96\)"),
        (np.zeros((3, 96, 96), np.float32), r"expected an array of shape \(B, 3, 96, 96\)"),
        (np.zeros((1, 3, 96, 96), np.uint8), "uint8; expected float32"),
        ([1], "images: list"),
        (np.full((1, 3, 96, 96), np.nan, np.float32), "image 0: output at exit1 is not finite; expected finite pixels"),
    ],
)
def test_wrong_arrays(session, images, message, mixed):
    with pytest.raises(DeploymentError, match=message):
        session.detect_batch(images, mixed)


def test_an_image_that_is_not_finite_is_named_by_its_place(session, gated, looks):
    spoilt = looks.copy()
    spoilt[7, 0, 5, 5] = np.nan
    for of, rule, where in ((session, None, "full"), (gated, blank_rule(gated, looks), "blank1")):
        with pytest.raises(DeploymentError, match=f"image 7: output at {where} is not finite"):
            of.detect_batch(spoilt, rule)


def test_rules_that_do_not_fit(session, looks):
    with pytest.raises(RouterError, match="threshold of 'exit3': expected early exits, which are exit1, exit2"):
        session.by_score({"exit3": 0.5})
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(RouterError, match="threshold of exit1 is .*; expected a number from 0 to 1"):
            session.by_score({"exit1": wrong})
    with pytest.raises(RouterError, match="exit: 'exit3' is unknown; expected one of exit1, exit2, full"):
        session.at_exit("exit3")
    with pytest.raises(DeploymentError, match="rule: is of the exits exit1, full; here are exit1, exit2, full"):
        session.detect_batch(looks, Rule(("exit1", "full"), Column("top_score"), (0.5,), (Raw(),) * 2, ()))
    lacks = Rule(session.exits, Column("class_1"), (0.5, 0.5), (Raw(),) * 3, ())
    with pytest.raises(DeploymentError, match="rule: needs the evidence 'class_1'; this export has top_score, "):
        session.detect_batch(looks, lacks)


def half(evidence: np.ndarray) -> np.ndarray:
    """A confidence of the user's own: whether the exit is the second, whatever the image."""
    return np.full(len(evidence), float(evidence.shape[1] == 2))


def double(evidence: np.ndarray) -> np.ndarray:
    """No confidence: beyond 1."""
    return np.full(len(evidence), 2.0)


def test_a_function_of_the_users_own_decides(session, looks):
    def rule(name):
        return Rule(session.exits, Function(name, ("top_score",)), (0.5, 0.5), (Raw(),) * 3, ())

    assert {d.exit_name for d in session.detect_batch(looks, rule(f"{__name__}:half"))} == {"exit2"}
    for name, message in (
        (f"{__name__}:double", "gave 2.0; expected 4 numbers in"),
        (f"{__name__}:none", "expected module:function to import"),
        ("no_such_module:none", "expected module:function to import"),
        ("numpy:pi", "is of type float; expected a function"),
    ):
        with pytest.raises(RouterError, match=message):
            session.detect_batch(looks, rule(name))


def test_class_evidence_decides_where_there_are_classes(exported, looks):
    session = Session(exported("three exits, two classes"))
    never = Rule(session.exits, Column("class_2", "complement"), (0.0, 1.0, 1.0), (Raw(),) * 4, ())
    assert {d.exit_name for d in session.detect_batch(looks, never)} == {"exit1"}


def test_broken_folders(exported, tmp_path):
    copy = shutil.copytree(exported("plain"), tmp_path / "copy")
    manifest = copy / "manifest.json"
    listed = json.loads(manifest.read_text())
    stage = copy / listed["stages"][0]["file"]
    content = stage.read_bytes()

    def message() -> str:
        with pytest.raises(DeploymentError) as error:
            Session(copy)
        return str(error.value)

    stage.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{stage.name}: SHA-256 is" in message()
    stage.unlink()
    assert f"{stage.name}: graph is missing; {manifest} lists it" in message()
    stage.symlink_to(exported("plain") / stage.name)
    assert "is a link out of the folder" in message()
    stage.unlink()
    os.mkfifo(stage)
    assert f"{stage.name}: is no file; expected an ONNX graph" in message()
    stage.unlink()
    stage.write_bytes(content)
    entry = listed["stages"][0]
    for text, expected in (
        ("{", "manifest.json: not valid JSON"),
        ("[]", "manifest.json: expected an object of JSON, got list"),
        (json.dumps(listed | {"format": 0}), "format is 0; expected 2: export again"),
        (json.dumps(listed | {"stages": []}), "stages: expected stages that end in an exit"),
        (json.dumps(listed | {"input": {"size": "96"}}), "manifest.input.channels is missing"),
        (json.dumps(listed | {"stages": [entry | {"file": "../x.onnx"}]}), "expected the name of a file in the export"),
        (json.dumps(listed | {"stages": [entry | {"outputs": ["boxes"]}]}), "outputs of full are ('boxes',)"),
        (json.dumps(listed | {"stages": [entry | {"exit": "x" * 5000}]}), "expected scores and boxes of xxx"),
        (json.dumps(listed | {"stages": [entry, entry]}), "expected different exits, and gates"),
        (json.dumps(listed | {"input": listed["input"] | {"size": 10**6}}), "and a size from 1 to 4096"),
        (json.dumps(listed | {"postprocess": listed["postprocess"] | {"topk": -1}}), "and a topk from 1 to 10000"),
        (json.dumps(listed | {"colour": 1}), "manifest.colour is unknown; expected format, "),
    ):
        manifest.write_text(text)
        assert expected in message(), text[:200]
    manifest.unlink()
    assert "no such manifest; write one with `eelib export" in message()


def test_a_graph_that_no_runtime_takes_is_named(exported, tmp_path):
    from eelib.files import file_sha256

    copy = shutil.copytree(exported("plain"), tmp_path / "copy")
    values = json.loads((copy / "manifest.json").read_text())
    name = values["plain"]["file"]
    (copy / name).write_bytes(b"no graph")
    for entry in (values["plain"], values["stages"][0]):
        entry["sha256"] = file_sha256(copy / name)
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DeploymentError, match=f"{name}: onnxruntime refuses the graph"):
        Session(copy)


def test_images_of_any_kind(session, tmp_path):
    pixels = room(0, 200)[0]
    image = Image.fromarray(pixels).resize((200, 120))
    image.save(tmp_path / "room.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    whole = np.asarray(image)
    found = session.detect(
        [tmp_path / "room.png", str(tmp_path / "room.png"), image, whole, whole / 255.0], min_score=0.01
    )
    for other in found[1:]:
        np.testing.assert_array_equal(other.scores, found[0].scores)
    for detections, size in (
        (found[0], (200, 120)),
        (session.detect(tmp_path / "turned.jpg", min_score=0.01), (120, 200)),
    ):
        assert detections.image.size == size and detections.plot().size == size and len(detections)
        assert (detections.boxes_xyxy >= 0).all() and (detections.boxes_xyxy <= np.tile(size, 2) + 0.01).all()
        assert detections.scores.min() >= 0.01 and (np.diff(detections.scores) <= 0).all()
    assert session.detect(whole[..., 0]).exit_name == "full"  # grey
    assert len(session.detect(image, min_score=1.0)) == 0 < len(session.detect(image, min_score=0))


def test_what_is_no_image_is_refused(session, tmp_path):
    (tmp_path / "room.jpg").write_bytes(b"")
    for wrong, kind in (
        (tmp_path / "room.jpg", ImageError), (tmp_path / "none.jpg", ImageError), (room(0)[0] * 1.0, ValueError),
        (np.zeros((4, 4, 5), np.uint8), ValueError), ({"image": 1}, ValueError),
    ):  # fmt: skip
        with pytest.raises(kind):
            session.detect(wrong)
    with pytest.raises(DeploymentError, match="min_score is 2; expected a number from 0 to 1"):
        session.detect(room(0)[0], min_score=2)


def test_options_that_are_wrong(exported):
    for options, message in (
        ({"threads": 0}, "threads is 0; expected 1 or more"),
        ({"runtime": "magic"}, "runtime: 'magic' is unknown; expected onnxruntime, openvino or auto"),
        ({"int8": True}, "no int8 graphs: export again, with --int8"),
    ):
        with pytest.raises(DeploymentError, match=message):
            Session(exported("plain"), **options)


def test_openvino_detects_the_same(exported, gated, looks):
    pytest.importorskip("openvino")
    rule, other = blank_rule(gated, looks), Session(exported("gates"), runtime="openvino")
    for mine, theirs in zip(other.detect_batch(looks, rule), gated.detect_batch(looks, rule), strict=True):
        assert mine.exit_name == theirs.exit_name
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4)


def test_auto_takes_the_faster_runtime_and_remembers_it(exported, monkeypatch):
    seconds = {"onnxruntime": 0.004, "openvino": 0.001}
    monkeypatch.setattr(runtime, "_faster", {})
    monkeypatch.setattr(runtime.timeit, "repeat", lambda call, **_: [seconds[call()]])
    runners = {name: (lambda *_, name=name: lambda image: name) for name in seconds}
    monkeypatch.setattr(runtime, "RUNNERS", runners)
    assert Session(exported("plain"), runtime="auto").runtime == "openvino"
    seconds["openvino"] = 0.01
    assert Session(exported("plain"), runtime="auto").runtime == "openvino"
    assert Session(exported("plain"), runtime="auto", threads=2).runtime == "onnxruntime"


def test_signals_are_handled_after_openvinos_graphs_are_gone(exported):
    pytest.importorskip("openvino")
    code = """
        import os, signal, sys
        import numpy as np
        from eelib.deploy.runtime import Session

        signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
        sessions = [Session(sys.argv[1], runtime="openvino") for _ in range(3)]
        sessions[0].detect_batch(np.zeros((1, 3, 96, 96), np.float32))
        while sessions:
            del sessions[0]
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code), str(exported("plain"))]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).stdout == "handled\n"


def test_an_openvino_that_is_missing_is_told(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeploymentError, match="runtime 'openvino' is not installed: pip install"):
        Session(exported("plain"), runtime="openvino")
    monkeypatch.setattr(runtime, "_faster", {})
    assert Session(exported("plain"), runtime="auto").runtime == "onnxruntime"


def test_the_face_names_the_session():
    assert eelib.Session is Session


def test_detecting_imports_no_torch(exported, tmp_path):
    """In a process of its own: torch is loaded in this one already."""
    Image.fromarray(room(0)[0]).save(tmp_path / "room.png")
    code = (
        "import sys, eelib, eelib.deploy.router, eelib.deploy.evidence, eelib.deploy.manifest\n"
        f"found = eelib.Session({str(exported('two exits'))!r}).detect({str(tmp_path / 'room.png')!r})\n"
        "assert found.exit_name == 'full' and len(found)\n"
        "loaded = {'torch', 'torchvision', 'scipy', 'sklearn', 'pydantic', 'yaml', 'pycocotools'} & set(sys.modules)\n"
        "assert not loaded and 'onnxruntime' in sys.modules, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
