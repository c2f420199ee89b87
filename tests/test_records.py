import dataclasses
import math

import pytest
import torch
from synthetic import noisy

from eelib.checkpoints import save_checkpoint
from eelib.data import DetectionDataset, split_sha256
from eelib.deploy.evidence import EVIDENCE
from eelib.evaluate import detect_exits, to_results
from eelib.files import file_sha256
from eelib.model import Detections, EarlyExitSSDLite
from eelib.records import (
    MAX_DETECTIONS,
    RecordsError,
    agreement,
    evidence_of,
    load_records,
    record,
    records_of,
    save_records,
)


@pytest.fixture
def made():
    return noisy(6)[1]


def test_a_file_gives_back_what_was_saved(made, tmp_path):
    path = save_records(made, tmp_path / "r.pt")
    again = load_records(path, "data", "weights")
    for name, value in vars(made).items():
        other = getattr(again, name)
        same = (a.equal(b) for a, b in zip(value, other, strict=True)) if name in ("boxes_xyxy", "scores") else None
        assert all(same) if same else value.equal(other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize(
    ("hashes", "message"),
    [
        (("data", "other weights"), "r.pt: records of another checkpoint; checkpoint_sha256 is weights"),
        (("other data", "weights"), "r.pt: records of another data set; split_sha256 is data"),
    ],
)
def test_records_of_something_else_are_refused(made, tmp_path, hashes, message):
    path = save_records(made, tmp_path / "r.pt")
    with pytest.raises(RecordsError, match=message):
        load_records(path, *hashes)


def test_a_file_is_deflated_and_the_same_twice(made, tmp_path):
    first, second = (save_records(made, tmp_path / name).read_bytes() for name in ("a.pt", "b.pt"))
    assert first == second
    torch.save(dict(vars(made)), tmp_path / "plain.pt")
    assert len(first) < 0.9 * (tmp_path / "plain.pt").stat().st_size
    kept = load_records(tmp_path / "plain.pt", "data", "weights")  # what was kept before is still read
    assert torch.equal(kept.evidence, made.evidence)


def test_records_of_other_evidence_are_refused(made, tmp_path):
    path = save_records(dataclasses.replace(made, evidence=made.evidence[..., :-1]), tmp_path / "r.pt")
    with pytest.raises(RecordsError, match=r"evidence of shape .*; record the split again"):
        load_records(path, "data", "weights")


def test_what_is_no_records_file_is_refused(tmp_path):
    with pytest.raises(RecordsError, match="no such records"):
        load_records(tmp_path / "none.pt", "data", "weights")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(RecordsError, match="text.pt: not exit records"):
        load_records(tmp_path / "text.pt", "data", "weights")
    save_checkpoint(tmp_path / "w.pt", {"model": {}})
    with pytest.raises(RecordsError, match="expected the keys split,"):
        load_records(tmp_path / "w.pt", "data", "weights")


@pytest.mark.parametrize("value", [math.nan, 1.5, -0.1])
def test_a_score_that_is_no_probability_is_refused(made, value):
    made.scores[1][0] = value
    with pytest.raises(RecordsError, match="a score of exit2 is"):
        dataclasses.replace(made)


def test_evidence_that_is_not_a_number_is_refused(made):
    made.evidence[3, 1, EVIDENCE.index("top5_mean")] = math.nan
    with pytest.raises(RecordsError, match="evidence 'top5_mean' of image 4 at exit2 is NaN"):
        dataclasses.replace(made)


def test_evidence_by_hand():
    boxes = torch.tensor([[0.0, 0, 80, 80], [0, 0, 20, 20]])
    values = evidence_of(Detections(boxes, torch.tensor([0.5, 0.2])), None, (320, 320), 0.7)
    named = dict(zip(EVIDENCE, values, strict=True))
    assert named["top_score"] == 0.5 and math.isclose(named["top5_mean"], 0.14, rel_tol=1e-6)
    assert named["count_10"] == 2 and named["count_30"] == 1 and named["count_50"] == 0
    assert math.isclose(named["undecided"], 1 + 0.721928, rel_tol=1e-5)  # H2(0.5) + H2(0.2)
    assert math.isclose(named["log_size"], (0.5 * -2 + 0.2 * -4) / 0.7, rel_tol=1e-5)
    assert named["box_certainty"] == 0.7 and named["agreement"] == 0
    nothing = evidence_of(Detections(torch.zeros(0, 4), torch.zeros(0)), None, (320, 320), 1.0)
    assert dict(zip(EVIDENCE, nothing, strict=True))["log_size"] == -10


def test_agreement_by_hand():
    one, far = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60]])
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0))
    sure, half = Detections(one, torch.tensor([0.8])), Detections(one, torch.tensor([0.4]))
    assert math.isclose(agreement(sure, sure), 1, rel_tol=1e-6)
    assert math.isclose(agreement(sure, half), 2 * 0.4 / 1.2, rel_tol=1e-6)
    assert agreement(sure, Detections(far, torch.tensor([0.8]))) == 0
    assert agreement(nothing, nothing) == 1 and agreement(sure, nothing) == 0
    twice = Detections(one.repeat(2, 1), torch.tensor([0.8, 0.8]))  # a box agrees once
    assert math.isclose(agreement(sure, twice), 2 * 0.8 / 2.4, rel_tol=1e-6)


def test_one_pass_finds_what_detection_finds(tiny, tmp_path):
    torch.manual_seed(0)
    model = EarlyExitSSDLite()
    data = DetectionDataset("test", tiny, 320, keep_crowd=True)
    made = record(model, data, "test", "data", "weights")
    results = detect_exits(model, data)
    for k, name in enumerate(made.exit_names):
        for row, i in enumerate(made.image_ids):
            expected = [r for r in results[name] if r["image_id"] == i][:MAX_DETECTIONS]
            assert to_results(i, made.detections(k, row), 62) == expected
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
