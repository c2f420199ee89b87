import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eelib.checkpoints import save_checkpoint
from eelib.config import ROOT, override
from eelib.data import DetectionDataset
from eelib.evaluate import coco_ap, detect_exits
from eelib.model import EarlyExitSSDLite
from eelib.records import record
from eelib.routed_ap import RoutedAP
from studies.phases.analysis import recorded_values
from studies.phases.confidence import confidence, mean_max
from studies.phases.config import EXIT_NAMES, load, parse
from studies.phases.detector import ExitMaps, RecordedDetector, RecordedExits, prior_boxes
from studies.phases.loss import assign, class_rows, exit_weights, recorded_loss
from studies.phases.trained import build_detector, route_split

PHASE_1_4 = load(ROOT / "params" / "phase_1_4.yaml")
WORKING = load(ROOT / "params" / "phase_2_0_recorded.yaml")
PHASE_1_2 = load(ROOT / "params" / "phase_1_2.yaml")


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def exits_of(model):
    return RecordedExits(model, PHASE_1_4.temperature, PHASE_1_4.thresholds)


def test_parameter_counts_of_the_record():
    """The record, section A.3."""
    heads = exits_of(PHASE_1_4.model)
    assert [parameters(heads.branches[n]) for n in EXIT_NAMES] == [59_428, 164_900, 1_032_228]
    assert [parameters(p) for p in heads.projections.values()] == [14_448, 151_200]


def test_the_full_head_switch():
    """Defect 13: the heavy head costs more than the rest of the recorded detector together."""
    heavy, light = (exits_of(PHASE_1_4.model.model_copy(update={"full_head": k})) for k in ("heavy", "light"))
    assert parameters(heavy.branches["full"]) == 1_032_228
    assert parameters(light.branches["full"]) < 50_000
    maps = [[torch.rand(1, c, 4, 4)] for c in (80, 112, 672)]
    shapes = [[m.shape for levels in heads.eval()(maps)[2][1:] for m in levels] for heads in (heavy, light)]
    assert shapes[0] == shapes[1]


def test_trunk_maps_of_the_record():
    detector = RecordedDetector(PHASE_1_4).eval()
    with torch.no_grad():
        shapes = [tuple(m.shape) for (m,) in detector.trunk_maps(torch.rand(1, 3, 320, 320))]
    assert shapes == [(1, 80, 20, 20), (1, 112, 20, 20), (1, 672, 20, 20)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_infimum_of_the_rules(values):
    """Phase 1.2 cannot fall below 0.35, its own threshold; mean max not below 0.5 (B.11, check 6)."""
    p = torch.tensor([values])
    assert float(confidence(p, PHASE_1_2.confidence)) >= 0.35 - 1e-6 >= PHASE_1_2.thresholds.exit1 - 2e-6
    assert float(mean_max(p)) >= 0.5


@pytest.mark.parametrize(("p", "expected"), [(0.459, 0.8 * 0.459 + 0.2 * 0.541), (0.39, 0.4 * 0.61), (0.9, 0.9)])
def test_confidence_of_phase_1_4_on_a_uniform_field(p, expected):
    assert math.isclose(float(confidence(torch.full((1, 2400), p), PHASE_1_4.confidence)), expected, abs_tol=1e-5)


def test_count_factor_and_penalty():
    p = torch.tensor([[0.9, 0.1, 0.1], [0.9, 0.9, 0.1]])
    one, two = confidence(p, PHASE_1_4.confidence).tolist()
    assert math.isclose(one, 0.5 * 0.9, abs_tol=1e-6)
    assert math.isclose(two, 0.85 * 0.9, abs_tol=1e-6)


def test_column_pairs_join_neighbouring_columns_of_one_channel():
    cls = torch.arange(12 * 4).float().view(1, 12, 2, 2)
    assert class_rows([cls], "column_pairs", "channel_major")[0, 0].tolist() == [0, 1]
    assert class_rows([cls], "permuted")[0, 0].tolist() == [0, 4]


def test_exit_weights_ramp():
    assert exit_weights(PHASE_1_4, 0) == (0.2, 0.3, 0.5)
    assert exit_weights(PHASE_1_4, 2) == pytest.approx((0.25, 0.35, 0.4))
    assert exit_weights(PHASE_1_4, 19) == (0.3, 0.4, 0.3)


@pytest.mark.parametrize("phase", ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9"])
def test_loss_identity_of_the_record(phase):
    """The recorded total is the weighted sum of the recorded parts (B.11, check 1)."""
    row = defaultdict(float, recorded_values(phase))
    full = 0.5 if phase == "1.9" else 0.3
    total = 0.3 * row["loss_exit1"] + 0.4 * row["loss_exit2"] + full * row["loss_full"]
    total += 0.05 * row["loss_cascade"] + 0.02 * row["loss_confidence_order"] + 0.1 * row["loss_exit_distribution"]
    assert math.isclose(total, row["loss_total"], abs_tol=1e-4)


def test_the_class_loss_does_not_supervise_the_confidence():
    """Defect 1: rows of column pairs push both channels of a box alike."""
    torch.manual_seed(0)
    cls = (0.1 * torch.randn(2, 12, 20, 20)).requires_grad_()
    outputs = [ExitMaps(name, [cls], [torch.zeros(2, 24, 20, 20)]) for name in EXIT_NAMES]
    targets = [{"boxes": torch.tensor([[40.0, 40, 120, 160]])}] * 2
    gradient = {}
    for layout in ("column_pairs", "permuted"):
        config = PHASE_1_4.model_copy(
            update={
                "targets": PHASE_1_4.targets.model_copy(update={"class_layout": layout, "assignment": "background"})
            }
        )
        total, _ = recorded_loss(outputs, targets, torch.ones(3), (0.5, 0.5), config, 10.0, torch.Generator())
        (grad,) = torch.autograd.grad(total, cls)
        pairs = grad.view(2, 6, 2, 20, 20)
        gradient[layout] = float((pairs[:, :, 1] - pairs[:, :, 0]).mean().abs() / grad.abs().mean())
    assert gradient["column_pairs"] < 0.05
    assert gradient["permuted"] > 0.9


def test_assignment_switch():
    priors = prior_boxes([(20, 20)])
    targets = [{"boxes": priors[1234:1235]}]
    values = PHASE_1_4.model_dump(mode="json")
    for assignment, positives in (("random", 10), ("background", 0)):
        config = parse(override(values, {"targets.assignment": assignment}))
        assert (assign(targets, priors, config, torch.Generator()) >= 0).sum() == positives
    config = parse(override(values, {"targets.assignment": "iou"}))
    assert assign(targets, priors, config, torch.Generator())[0, 1234] == 0


def test_frozen_switches():
    detector = RecordedDetector(PHASE_1_4)
    assert not any(p.requires_grad for p in detector.heads.projections.parameters())
    assert all(t.requires_grad for t in detector.heads.temperatures.values())
    assert not any(p.requires_grad for p in detector.backbone.parameters())


@pytest.mark.parametrize("head", ["heavy", "light"])
@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_the_map_and_the_tail_are_two_switches(single, truncated, head):
    """Defects 11 and 12, each alone and both, on either full head."""
    model = {"single_map": single, "full_truncated": truncated, "full_head": head}
    config = parse({"phase": "t", "model": model, "data": {"augment": "flip"}})
    detector = RecordedDetector(config).eval()
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        maps, exits = detector(image), list(detector.exits(image))
    grids = [(20, 20)] if single else [(n, n) for n in (20, 10, 5, 3, 2, 1)]
    assert [m.grids_hw for m in maps] == [grids] * 3
    boxes = 2400 if single else 3234  # the second is SSDLite's count
    assert [o.name for o in exits] == list(EXIT_NAMES)
    assert [tuple(o.bbox_regression.shape) for o in exits] == [(1, boxes, 4)] * 3
    assert [tuple(o.default_boxes.shape) for o in exits] == [(boxes, 4)] * 3
    assert len(detector.backbone_tail) == (0 if truncated else 1 if single else 5)


def test_the_tail_comes_from_the_start_checkpoint(tmp_path):
    donor = EarlyExitSSDLite(())
    path = save_checkpoint(tmp_path / "start.pth", {"model": donor.state_dict()})
    model = {"start": str(path), "train_trunk": False}
    detector = build_detector(parse({"phase": "t", "model": model, "data": {"augment": "flip"}}))
    assert torch.equal(detector.backbone_tail[0][3][0].weight, donor.backbone.features[1][3][0].weight)
    assert torch.equal(detector.backbone_tail[4][1][0].weight, donor.backbone.extra[3][1][0].weight)
    assert not any(p.requires_grad for p in detector.backbone_tail.parameters())


@pytest.mark.parametrize("phase", [PHASE_1_4, WORKING], ids=["corners", "offsets"])
def test_records_of_a_phase_are_the_librarys(phase, tiny):
    """Recording, routing and AP are those of any detector, whatever a phase's boxes mean."""
    phase = parse(override(phase.model_dump(mode="json"), {"data.root": str(tiny), "model.start": None}))
    torch.manual_seed(0)
    detector = RecordedDetector(phase)
    run = route_split(detector, phase, "test")
    dataset = DetectionDataset("test", tiny, 320, keep_crowd=True)
    assert run.records.exit_names == EXIT_NAMES and run.confidences.shape == (2, 3)
    results = detect_exits(detector, dataset)
    for k, name in enumerate(EXIT_NAMES):
        assert 0 < int(run.records.counts[k].sum()) <= len(results[name])
        ap = coco_ap(dataset.coco, results[name], dataset.image_ids)["AP"]
        assert RoutedAP(run.records, run.coco).of_exit(k) == pytest.approx(ap, abs=1e-9)
    mine, theirs = run.records, record(detector, dataset, "test", "", "")
    assert np.allclose(mine.detections(2, 1).boxes_xyxy, theirs.detections(2, 1).boxes_xyxy, atol=1e-3)
