"""What is committed under reports/ and checkpoints/ belongs together: its freshness, not the code's behaviour."""

import json

import pytest

from eelib.config import ROOT
from eelib.files import file_sha256
from studies.report import reports


@pytest.fixture(scope="module")
def values():
    if not any((ROOT / "reports" / name).exists() for name in reports.REPORTS):
        pytest.skip("not released yet")
    return reports.context(ROOT / "reports" / "metrics", ROOT / "reports" / "phases")


@pytest.mark.parametrize("name", reports.REPORTS)
def test_a_committed_report_is_what_its_metrics_give(name, values):
    assert reports.render(name, values) == (ROOT / "reports" / name).read_text()


RELEASED = {
    "baseline": ("baseline", "plane"),
    "exits_256": (
        "exits", "training", "routing", "calibration", "guarantee", "predictability", "validation", "bench",
        "acceleration",
    ),
    "phases_start": ("causal", "ablation", "generalisation"),
}  # fmt: skip


@pytest.mark.parametrize(("weights", "name"), [(w, n) for w, names in RELEASED.items() for n in names])
def test_committed_metrics_are_of_the_released_weights(weights, name):
    path = ROOT / "reports" / "metrics" / f"{name}.json"
    if path.exists():  # a study that was not run with these weights is not there at all
        assert json.loads(path.read_text())["checkpoint_sha256"] == file_sha256(ROOT / "checkpoints" / f"{weights}.pth")


def test_committed_phases_start_from_the_weights_that_are_kept_for_them():
    files = list((ROOT / "reports" / "metrics" / "phases").glob("*.json"))
    started = {json.loads(path.read_text())["start_sha256"] for path in files}
    assert len(files) >= 10 and started == {file_sha256(ROOT / "checkpoints" / "phases_start.pth")}
