import json

import pytest
import torch

from eelib import routers
from eelib.checkpoints import save_checkpoint
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite
from eelib.routers import RouterOptions, certify, measured_times, read_times, route
from eelib.routing import PolicyError


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pth", {"model": EarlyExitSSDLite().state_dict()})
    return tmp_path / "w.pth"


def test_times_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(PolicyError, match="no such file of times"):
        read_times(tmp_path / "none.json", ("exit1", "full"), tmp_path / "w.pth")
    times, weights = tmp_path / "times.json", tmp_path / "w.pth"
    times.write_text(json.dumps({"exits": {"full": {"ratio": 1, "passed_ratio": 0.1}}}))
    with pytest.raises(PolicyError, match="no keys exits.<name>.ratio and passed_ratio"):
        read_times(times, ("exit1", "full"), weights)
    weights.write_bytes(b"1")
    with pytest.raises(PolicyError, match="times of other weights than .*w.pth"):
        read_times(times, ("full",), weights)
    times.write_text(json.dumps(json.loads(times.read_text()) | {"checkpoint_sha256": file_sha256(weights)}))
    assert read_times(times, ("full",), weights) == ([1.0], [0.1])


def test_without_a_file_the_exits_are_timed_here(checkpoint, tiny, tmp_path, monkeypatch):
    images = []

    def exit_times(model, image):
        images.append(image)
        return {
            name: {"ratio": r, "passed_ratio": 0.1} for name, r in zip(model.exit_names, (0.5, 0.7, 1.0), strict=True)
        }

    monkeypatch.setattr(routers, "exit_times", exit_times)
    assert measured_times(checkpoint, tiny) == ([0.5, 0.7, 1.0], [0.1, 0.1, 0.1])
    assert images[0].shape == (1, 3, 320, 320) and images[0].min() >= 0 and images[0].max() <= 1
    options = RouterOptions(records=tmp_path / "records", resamples=5, grid=3)
    system = route(checkpoint, tiny, "max_score", 0.8, options=options)
    assert system.stated["policy"] == "max_score" and system.measured["time_ratio"] <= 1
    with pytest.raises(PolicyError, match=r"thresholds \[0.5\]: expected 2, one for each exit but the last"):
        route(checkpoint, tiny, "max_score", thresholds=[0.5], options=options)
    certified = certify(checkpoint, tiny, 0.9, 0.5, options=options)
    assert certified.stated["n"] == 2 and certified.setting.thresholds


@pytest.mark.parametrize("budget", [0, 1.5, float("nan")])
def test_a_budget_out_of_range_is_refused_before_anything_is_read(budget):
    with pytest.raises(PolicyError, match="expected a share of full's time, above 0 and up to 1"):
        route("none.pth", budget=budget)
