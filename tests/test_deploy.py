"""The exported graphs compute what the model computes, and the manifest says so."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from detectors import CLASSES, DETECTORS, random_detector, saved, write_rooms

import eelib
from eelib.anchors import default_boxes
from eelib.checkpoints import load_checkpoint, load_released, save_checkpoint
from eelib.coco import DataError, Source
from eelib.deploy.evidence import Column, Raw, RouterError
from eelib.deploy.export import export, new_graphs
from eelib.deploy.graphs import Decoder, build_stages
from eelib.deploy.manifest import DeploymentError, read_manifest
from eelib.deploy.router import Gate, Router, Times
from eelib.deploy.runtime import Session
from eelib.files import InputError, file_sha256
from eelib.heads import flatten_predictions
from eelib.model import EarlyExitSSDLite, ExitOutput


def assert_same(mine, theirs):
    """Equal detections to 1e-4 of a score and of the image's side.

    Detections whose scores are equal to a float's last digits may change places, so each box must have its
    counterpart of the same class, and places are compared by score alone. At the score of the last box that enters
    the suppression, either of two may.
    """
    np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4, rtol=0)
    distance = np.abs(mine.boxes_xyxy[:, None] - theirs.boxes_xyxy).max(-1) / 96  # (N, N)
    distance += np.abs(mine.scores[:, None] - theirs.scores) + (mine.labels[:, None] != theirs.labels)
    clear = mine.scores > mine.scores.min(initial=1) + 1e-4
    assert distance.min(0)[clear].max(initial=0) < 1e-4 and distance.min(1)[clear].max(initial=0) < 1e-4


QUICK = "gates", "three exits, two classes"


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow) for kind in DETECTORS]
)
def test_detections_are_the_models(kind, checkpoint, exported, looks):
    model, session = load_released(checkpoint(kind)).eval(), Session(exported(kind))
    assert session.exits == model.exit_names and session.classes == model.classes
    with torch.inference_mode():
        expected = {output.name: model.postprocess(output, (96, 96)) for output in model.exits(torch.tensor(looks))}
    for name in model.exit_names:
        for batch in (1, 12):
            rule = session.at_exit(name)
            found = [
                d for first in range(0, 12, batch) for d in session.detect_batch(looks[first : first + batch], rule)
            ]
            assert sum(map(len, found)) > 500 and {d.exit_name for d in found} == {name}
            for mine, theirs in zip(found, expected[name], strict=True):
                assert_same(mine, theirs)
    assert len({label for d in found for label in d.labels.tolist()}) == len(model.classes)


@pytest.mark.parametrize("kind", DETECTORS)
def test_whole_graphs_agree_with_the_stages(kind, exported, looks):
    from eelib.deploy.runners import open_graph

    session = Session(exported(kind))
    every = open_graph(session.folder, session.manifest.monolithic).run(None, {"features": looks[:3]})
    plain = open_graph(session.folder, session.manifest.plain).run(None, {"features": looks[:3]})
    for mine, theirs in zip(every[-2:], plain, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3, rtol=1e-4)
    for name, scores, boxes in zip(session.exits, every[::2], every[1::2], strict=True):
        for row, found in enumerate(session.detect_batch(looks[:3], session.at_exit(name))):
            assert_same(found, session.suppress(boxes[row], scores[row], name))


@pytest.mark.parametrize("kind", DETECTORS)
def test_manifest_and_graphs(kind, exported):
    manifest = read_manifest(exported(kind))
    names = [stage.exit for stage in manifest.stages]
    assert (
        names
        == {
            "two exits": ["exit1", "exit2", "full"],
            "gates": ["blank1", "blank2", "exit1", "exit2", "full"],
            "three exits, two classes": ["exit1", "blank1", "blank2", "exit2", "exit3", "full"],
            "truncated": ["exit1", "exit2"],
            "plain": ["full"],
        }[kind]
    )
    assert manifest.router is None and manifest.input.size == 96
    assert {path.name for path in exported(kind).iterdir()} == manifest.files | {"manifest.json"}
    for entry in (*manifest.stages, manifest.plain, manifest.monolithic):
        model = onnx.load(exported(kind) / entry.file)
        onnx.checker.check_model(model, full_check=True)
        assert [value.name for value in model.graph.output] == list(entry.outputs)
        assert model.opset_import[0].version == manifest.opset
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"BatchNormalization", "Softmax", "Transpose", "Loop", "Shape"}, operators
        for value in [*model.graph.input, *model.graph.output]:
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_without_a_router_images_take_the_full_path_and_the_session_says_so(exported, looks):
    session = Session(exported("gates"))
    assert {d.exit_name for d in session.detect_batch(looks)} == {"full"}
    assert "no router: every image takes the full path" in session.describe()


@torch.no_grad()
def test_decoder_by_hand():
    """One map of one cell of 320 px, two boxes: centre 160, sizes from the scales 0.5 and sqrt(0.5)."""
    classes, offsets = torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(1, 8, 1)
    classes.weight.zero_(), offsets.weight.zero_()
    classes.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 3.0]))
    offsets.bias.copy_(torch.tensor([10.0, 0, 0, 0, 0, 0, 0, 5 * np.log(2)]))
    decoder = Decoder([torch.nn.Sequential(classes)], [torch.nn.Sequential(offsets)], [(1, 1)], (0.5, 1.0), ((),))
    scores, boxes = decoder([torch.zeros(1, 1, 1, 1)])
    side = 320 * 0.5**0.5
    torch.testing.assert_close(scores, torch.tensor([[[0.5, 1 / (1 + np.exp(-2))]]]).float())
    # the first is shifted by its own width, the second is twice as high
    wanted = [[240, 80, 400, 240], [160 - side / 2, 160 - side, 160 + side / 2, 160 + side]]
    torch.testing.assert_close(boxes[0].T, torch.tensor(wanted), atol=1e-3, rtol=0)


@torch.no_grad()
def test_wild_offsets_stay_finite_and_equal():
    torch.manual_seed(0)
    classes, offsets = torch.nn.Conv2d(2, 12, 1), torch.nn.Conv2d(2, 24, 1)
    offsets.weight.mul_(1e4)
    grids, scales, ratios = [(3, 3)], (0.2, 0.4), ((1.5, 2.2),)
    values = torch.randn(2, 2, 3, 3)
    decoder = Decoder([torch.nn.Sequential(classes)], [torch.nn.Sequential(offsets)], grids, scales, ratios)
    scores, boxes = decoder([values])
    raw = ExitOutput(
        "x", flatten_predictions([classes(values)], 2), flatten_predictions([offsets(values)], 4),
        default_boxes(grids, scales, ratios, (320, 320)),
    )  # fmt: skip
    assert boxes.isfinite().all()
    theirs = EarlyExitSSDLite.postprocess(raw, (320, 320), nms_threshold=1.0)
    for row in range(2):
        order = scores[row, 0].argsort(descending=True)
        mine = boxes[row][:, order].t().clamp(0, 320).numpy()
        np.testing.assert_allclose(mine, theirs[row].boxes_xyxy, atol=0.1, rtol=1e-4)


def test_ids_are_those_of_the_data_set(tmp_path, exported):
    of_export = [(c.id, c.name) for c in read_manifest(exported("three exits, two classes")).categories]
    assert of_export == [(1, "chair"), (2, "stool")]
    path = saved(random_detector(cuts=(), classes=CLASSES), tmp_path / "w.pth")
    manifest = export(path, tmp_path / "out", source=write_rooms(tmp_path / "rooms", 2, CLASSES))
    assert [(c.id, c.name) for c in manifest.categories] == [(62, "chair"), (63, "stool")]
    files = {"train": (tmp_path / "rooms" / "train.json", tmp_path / "rooms" / "train")}
    other = saved(random_detector(cuts=(), classes=("lamp",)), tmp_path / "lamp.pth")
    with pytest.raises(DataError, match="lamp"):
        export(other, tmp_path / "lamps", source=Source(files, None))
    assert not (tmp_path / "lamps").exists()


def test_chairs_of_showroom_have_its_id(tmp_path):
    state = {"data": {"root": "data/showroom"}}
    model = random_detector(cuts=())
    path = save_checkpoint(tmp_path / "w.pth", {"model": model.state_dict(), "plan": model.plan, "config": state})
    assert [(c.id, c.name) for c in export(path, tmp_path / "out").categories] == [(62, "chair")]


@torch.no_grad()
def test_export_leaves_the_model_alone():
    model = random_detector(blank_gate=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    build_stages(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_new_export_replaces_an_old_one_and_a_failed_one_leaves_it(tmp_path, checkpoint):
    (tmp_path / "notes.txt").write_text("mine")
    first = export(checkpoint("plain"), tmp_path)
    second = export(checkpoint("truncated"), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == second.files | {"manifest.json", "notes.txt"} and not (first.files - second.files) & names
    with pytest.raises(eelib.files.InputError):
        export(checkpoint("plain"), tmp_path, router=tmp_path / "none.json")
    assert {path.name for path in tmp_path.iterdir()} == names and Session(tmp_path).exits == ("exit1", "exit2")


def test_one_export_at_a_time_takes_away_what_a_killed_one_left(tmp_path, checkpoint):
    (tmp_path / ".new.partial" / ".new.partial").mkdir(parents=True)
    (tmp_path / ".new.partial" / "exit1.onnx").write_text("half")
    digest = hashlib.sha256(b"moved before its manifest").hexdigest()
    (tmp_path / f"exit9-{digest[:8]}.onnx").write_text("moved before its manifest")
    (tmp_path / "other-12345678.onnx").write_text("mine")
    manifest = export(checkpoint("plain"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == manifest.files | {"manifest.json", "other-12345678.onnx"}
    with new_graphs(tmp_path), pytest.raises(BlockingIOError, match="another process writes"):
        export(checkpoint("truncated"), tmp_path)
    assert Session(tmp_path).exits == ("full",)


def _changed(checkpoint, path, change):
    state = load_checkpoint(checkpoint)
    change(state)
    return save_checkpoint(path, state)


def test_bad_checkpoints(tmp_path, checkpoint):
    untrained = save_checkpoint(tmp_path / "new.pth", {"model": EarlyExitSSDLite().state_dict()})
    foreign = save_checkpoint(tmp_path / "foreign.pth", {"model": {"layer.weight": torch.zeros(1)}})
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")

    def spoil(state):
        state["model"]["early.exit1.context.0.1.0.weight"][0] = float("nan")

    def narrow(state):
        last = "early.exit1.predictors.0.1."
        state["model"] |= {
            last + key: state["model"][last + key][:3] for key in ("weight", "bias")
        }  # a layer by itself

    cases = {
        untrained: "have never seen an image",
        foreign: "checkpoint of another architecture; it lacks key",
        tmp_path / "text.pth": "not a checkpoint",
        tmp_path / "empty.pth": "not a checkpoint",
        tmp_path / "none.pth": "no such checkpoint",
        _changed(checkpoint("two exits"), tmp_path / "nan.pth", spoil): "holds values that are not finite",
        _changed(checkpoint("two exits"), tmp_path / "narrow.pth", narrow): "layers that do not fit one another",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=message) as error:
            export(path, tmp_path / "out")
        assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_export_into_a_file_is_refused(tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeploymentError, match="output is not a folder"):
        export(checkpoint("plain"), tmp_path / "file")


def router_of(checkpoint, **changes) -> Router:
    """By the best score, at the exits of the detector with gates."""
    exits = ("exit1", "exit2", "full")
    values = {
        "exits": exits, "confidence": Column("top_score"), "thresholds": (0.5, 0.5), "calibrators": (Raw(),) * 3,
        "gates": (), "times": Times((0.4, 0.6, 1.0), (0.0, 0.1, 0.2), (0.1, 0.2), "the plain detector", {}),
        "promise": None, "gates_promise": None, "size": 96, "checkpoint_sha256": file_sha256(checkpoint),
        "data_sha256": {},
    }  # fmt: skip
    return Router(**(values | changes))


def test_a_router_travels_with_its_detector(tmp_path, checkpoint, looks):
    path = checkpoint("gates")
    router = router_of(path, gates=(Gate(0, 0.4), Gate(0, 0.5)))
    export(path, tmp_path / "out", router.save(tmp_path / "router.json"))
    session = Session(tmp_path / "out")
    assert session.router == router and "by top_score" in session.describe()
    places = [d.exit_name for d in session.detect_batch(looks)]
    assert places == [d.exit_name for d in session.detect_batch(looks, router)]


def test_gates_are_exported_where_the_router_reads_them_and_left_out_where_not(tmp_path, checkpoint, exported, looks):
    path, whole = checkpoint("gates"), Session(exported("gates"))
    by_score, by_gate = router_of(path), router_of(path, confidence=Column("blank1"))
    assert export(path, tmp_path / "by_gate", by_gate).gates == whole.gates == (0, 0)
    assert export(path, tmp_path / "by_score", by_score).gates == ()
    session = Session(tmp_path / "by_score")
    for mine, theirs in zip(session.detect_batch(looks), whole.detect_batch(looks, by_score), strict=True):
        assert mine.exit_name == theirs.exit_name
        assert_same(mine, theirs)
    with pytest.raises(DeploymentError, match="rule: needs the evidence 'blank1'"):
        session.detect_batch(looks, by_gate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_sha256": "0" * 64}, "router: is of another checkpoint, 000000000000; this detector has"),
        ({"size": 320}, "router: is of another input size, 320; this detector has 96: route again"),
        ({"exits": ("exit1", "exit2", "last")}, "router: is of another exits, exit1, exit2, last"),
        ({"gates": (Gate(1, 0.5), Gate(1, 0.5))}, r"router: is of another blank gates, \(1, 1\)"),
        ({"confidence": Column("class_2")}, "router: is of another evidence, class_2; this detector has top_score"),
        ({"confidence": Column("blank3")}, "router: is of another evidence, blank3"),
    ],
)
def test_a_router_of_another_detector_is_refused(changes, message, checkpoint, exported):
    router = router_of(checkpoint("gates"), **changes)
    with pytest.raises(DeploymentError, match=message):
        replace(read_manifest(exported("gates")), router=router)


def test_an_export_with_the_router_of_another_detector_leaves_nothing(checkpoint, tmp_path):
    with pytest.raises(DeploymentError, match="router: is of another checkpoint"):
        export(checkpoint("truncated"), tmp_path / "out", router_of(checkpoint("gates")))
    assert not (tmp_path / "out").exists()


def test_what_is_no_router_is_refused(checkpoint, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RouterError, match=r"r.json: router.exits is missing"):
        export(checkpoint("plain"), tmp_path / "out", tmp_path / "r.json")
    assert not (tmp_path / "out").exists()
