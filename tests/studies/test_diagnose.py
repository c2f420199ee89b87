import pytest

from eelib.config import override, resolve
from studies.phases.config import load, parse
from studies.phases.preflight import preflight

REPAIRED = {"phase": "r", "data": {"augment": "flip"}}
MATCHING = {"objects are reached", "positives lie on objects"}


def failed(settings):
    checks = preflight(parse(override(REPAIRED, settings)), images=12)
    return {check.name for check in checks if not check.holds}


def test_the_repaired_configuration_passes():
    assert failed({}) == set()


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"data.flip_boxes": False}, {"boxes follow the image"}),
        ({"targets.assignment": "background"}, MATCHING | {"class loss trains the confidence"}),
        # a quality target of IoU 0 would ask nothing of random positives, so the class loss is SSD's here
        ({"targets.assignment": "random", "loss.classification": "hard_negative"}, MATCHING),
        ({"targets.class_layout": "column_pairs"}, {"class loss trains the confidence"}),
        ({"targets.class_index": "channel_major"}, {"class loss trains the confidence"}),
        ({"confidence.rule": "mean_max", "thresholds.tautology": "allowed"}, {"not everything leaves"}),
        ({"confidence.rule": "gated_mean"}, {"a detected chair may leave"}),
        (
            {"confidence.rule": "gated_mean", "confidence.gate": "hard_count", "confidence.min_count": 3},
            {"a detected chair may leave", "confidence can recover"},
        ),
        (
            {"thresholds.kind": "parameter", "loss.exit_distribution": 0.1, "loss.exit_rates": "hard"},
            {"thresholds can learn"},
        ),
        ({"temperature.from_routing": True, "temperature.clamp": "none"}, {"temperatures are bounded"}),
        ({"temperature.from_routing": True}, set()),
    ],
)
def test_a_defect_trips_its_check_alone(switches, expected):
    assert failed(switches) == expected


@pytest.mark.parametrize("phase", ["1_1", "1_2", "1_3", "1_4", "1_5", "1_6", "1_7", "1_8", "1_9"])
def test_no_recorded_phase_would_have_been_started(phase):
    checks = {check.name: check for check in preflight(load(resolve(f"params/phase_{phase}.yaml")), images=4)}
    assert not checks["objects are reached"].holds
    assert not checks["class loss trains the confidence"].holds
