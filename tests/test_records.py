import dataclasses
import math

import numpy as np
import pytest
import torch
from synthetic import detections_of, noisy
from torchvision.ops import box_iou

from eelib.checkpoints import save_checkpoint
from eelib.data import DetectionDataset, split_sha256
from eelib.deploy.evidence import EVIDENCE, OF_BOXES, OF_RAW_SCORES
from eelib.deploy.observe import agreement, evidence_of, iou
from eelib.evaluate import detect_exits
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite, raw_evidence
from eelib.records import MAX_DETECTIONS, RecordsError, load_records, record, records_of, save_records


@pytest.fixture
def made():
    return noisy(6)[1]


def equal(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    return a == b if not (a and isinstance(a[0], np.ndarray)) else all(map(equal, a, b))


def test_a_file_gives_back_what_was_saved(made, tmp_path):
    again = load_records(save_records(made, tmp_path / "r.npz"), "data", "weights")
    assert all(equal(value, getattr(again, name)) for name, value in vars(made).items())


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        (("data", "other weights"), "r.npz: records of another checkpoint; checkpoint_sha256 is weights"),
        (("other data", "weights"), "r.npz: records of another data set; split_sha256 is data"),
    ],
)
def test_records_of_something_else_are_refused(made, tmp_path, hashes, message):
    path = save_records(made, tmp_path / "r.npz")
    with pytest.raises(RecordsError, match=message):
        load_records(path, *hashes)


def test_a_file_is_the_same_twice(made, tmp_path):
    first, second = (save_records(made, tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert first == second


def test_what_is_no_records_file_is_refused(tmp_path, made):
    with pytest.raises(RecordsError, match="no such records"):
        load_records(tmp_path / "none.npz", "data", "weights")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(RecordsError, match="text.npz: not exit records"):
        load_records(tmp_path / "text.npz", "data", "weights")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(RecordsError, match="other.npz: not exit records"):
        load_records(tmp_path / "other.npz", "data", "weights")
    whole = save_records(made, tmp_path / "r.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordsError, match="cut.npz: not exit records"):
        load_records(tmp_path / "cut.npz", "data", "weights")


WRONG = {
    "scores: a score of exit2": lambda r: r.scores[1].__setitem__(0, math.nan),
    "a score of exit1": lambda r: r.scores[0].__setitem__(0, 1.5),
    "scores of full: expected the best first": lambda r: r.scores[2].__setitem__(
        slice(None), np.linspace(0.1, 0.9, len(r.scores[2]))
    ),
    "boxes_xyxy of exit1: expected corners": lambda r: r.boxes_xyxy[0].__setitem__((0, 2), -1e3),
    "boxes_xyxy of exit2: expected corners": lambda r: r.boxes_xyxy[1].__setitem__((0, 0), math.nan),
    "labels of exit1: expected 1 or more": lambda r: r.labels[0].__setitem__(0, 0),
    "counts: expected 0 to 100": lambda r: r.counts.__setitem__((0, 0), -1),
    "boxes_xyxy of exit1: expected floats": lambda r: r.counts.__setitem__((0, 0), r.counts[0, 0] + 1),
    "evidence 'top5_mean' of image 4 at exit2 is NaN": lambda r: r.evidence.__setitem__(
        (3, 1, EVIDENCE.index("top5_mean")), math.nan
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_is_refused(made, message):
    WRONG[message](made)
    with pytest.raises(RecordsError, match=message.removeprefix("scores: ")):
        dataclasses.replace(made)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exit_names", ("exit1", "exit1", "full")),
        ("image_ids", (1, 2, 3, 4, 6, 5)),
        ("counts", np.zeros((3, 6))),
        ("evidence", np.zeros((6, 3, 2), np.float32)),
        ("labels", ()),
    ],
)
def test_fields_of_another_shape_type_or_order_are_refused(made, field, value):
    with pytest.raises(RecordsError, match=f"records of calibrate: {field}: expected"):
        dataclasses.replace(made, **{field: value})


def test_evidence_by_hand():
    values = evidence_of(detections_of([(0, 0, 80, 80, 0.5), (0, 0, 20, 20, 0.2)]), None, (320, 320))
    named = dict(zip(OF_BOXES, values, strict=True))
    assert [named["second_score"], named["top5_mean"]] == pytest.approx([0.2, 0.14], rel=1e-6)
    assert named["count_10"] == 2 and named["count_30"] == 1 and named["count_50"] == 0
    assert math.isclose(named["undecided"], 1 + 0.721928, rel_tol=1e-5)  # H2(0.5) + H2(0.2)
    assert math.isclose(named["log_size"], (0.5 * -2 + 0.2 * -4) / 0.7, rel_tol=1e-5)
    assert named["agreement"] == 0
    nothing = evidence_of(detections_of([]), None, (320, 320))
    assert dict(zip(OF_BOXES, nothing, strict=True))["log_size"] == -10


def test_agreement_by_hand():
    sure, half = detections_of([(0, 0, 10, 10, 0.8)]), detections_of([(0, 0, 10, 10, 0.4)])
    nothing = detections_of([])
    assert math.isclose(agreement(sure, sure), 1, rel_tol=1e-6)
    assert math.isclose(agreement(sure, half), 2 * 0.4 / 1.2, rel_tol=1e-6)
    assert agreement(sure, detections_of([(50, 50, 60, 60, 0.8)])) == 0
    assert agreement(nothing, nothing) == 1 and agreement(sure, nothing) == 0
    twice = detections_of([(0, 0, 10, 10, 0.8)] * 2)  # a box agrees once
    assert math.isclose(agreement(sure, twice), 2 * 0.8 / 2.4, rel_tol=1e-6)
    assert agreement(sure, dataclasses.replace(sure, labels=np.array([2]))) == 0  # of another class


def test_iou_equals_torchvision():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate((c := rng.uniform(0, 50, (n, 2)), c + rng.uniform(1, 40, (n, 2))), 1) for n in (5, 7))
    np.testing.assert_allclose(iou(a, b), box_iou(torch.tensor(a), torch.tensor(b)).numpy(), rtol=1e-9)


def test_raw_evidence_by_hand():
    scores = torch.tensor([[[0.5, 0.0, 0.2]]])  # (B, K, A)
    named = dict(zip(OF_RAW_SCORES, raw_evidence(scores, 1)[0].tolist(), strict=True))
    assert named["top_score"] == 0.5 and math.isclose(named["raw_second"], 0.2, rel_tol=1e-6)
    assert math.isclose(named["box_certainty"], 1 - (1 + 0.721928) / 3, abs_tol=1e-5)  # H2(0.5), H2(0), H2(0.2)
    assert math.isclose(named["raw_sum"], 0.7, rel_tol=1e-5)
    assert [named[f"raw_count_{cut}"] for cut in (10, 30, 50)] == [2, 1, 0]
    two = raw_evidence(torch.tensor([[[0.5, 0.1], [0.2, 0.9]]]), 2)[0]
    assert torch.allclose(two[[0, 1, -2, -1]], torch.tensor([0.9, 0.5, 0.5, 0.9]))


def test_one_pass_finds_what_detection_finds(tiny, tmp_path):
    torch.manual_seed(0)
    model = EarlyExitSSDLite()
    data = DetectionDataset("test", tiny, 320, keep_crowd=True)
    made = record(model, data, "test", "data", "weights")
    results = detect_exits(model, data)
    for k, name in enumerate(made.exit_names):
        for row, i in enumerate(made.image_ids):
            expected = [r for r in results[name] if r["image_id"] == i][:MAX_DETECTIONS]
            assert made.detections(k, row).to_coco(i, [62]) == expected
    assert made.evidence.shape == (2, 3, len(EVIDENCE))


def test_records_are_made_once_and_again_for_another_checkpoint(tiny, tmp_path):
    lines = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / "w.pth", {"model": EarlyExitSSDLite().state_dict()})
        for _ in range(2):
            made = records_of("val", tmp_path / "w.pth", tiny, tmp_path / "records", progress=lines.append)
            assert made.checkpoint_sha256 == file_sha256(tmp_path / "w.pth")
            assert made.split_sha256 == split_sha256("val", tiny)
    assert len(list((tmp_path / "records").iterdir())) == 2 and len(lines) == 2
