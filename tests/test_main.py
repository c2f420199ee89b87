import json

import pytest
import torch
import yaml

from eelib.__main__ import main
from eelib.config import ROOT, read_yaml
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite
from eelib.train import save_checkpoint


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "params/none.yaml", "--out", "runs/x"], "no such parameter file"),
        (["validate", "--phase", "9.9"], "phase_9_9.yaml: no such parameter file"),
        (["bench", "--checkpoint", "none.pth"], "no such checkpoint"),
        (["run", "notebooks/none.ipynb"], "no such notebook"),
    ],
)
def test_bad_input_is_one_line_and_status_two(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("eelib: ") and "Traceback" not in error


def test_validate_before_training_says_what_to_do(tmp_path, capsys):
    assert main(["validate", "--phase", "1.4", "--compute-map", "--runs", str(tmp_path)]) == 2
    assert "make reproduce" in capsys.readouterr().err


def test_validate_prints_the_decision(tmp_path, capsys):
    folder = tmp_path / "phase_1_4" / "seed0"
    folder.mkdir(parents=True)
    at_score = {"score": 0.5, "precision": 0.0, "recall": 0.0, "detections_per_image": 0.0}
    (folder / "final_summary_phase1_4.json").write_text(json.dumps({"AP": 0.01, "AP50": 0.02, "at_score": at_score}))
    assert main(["validate", "--phase", "1.4", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "retrain with proper matching"


def test_validate_all_prints_a_decision_a_phase(tmp_path, capsys):
    at_score = {"score": 0.5, "precision": 0.0, "recall": 0.0, "detections_per_image": 0.0}
    names = [path.stem.removeprefix("phase_") for path in (ROOT / "params").glob("phase_1_*.yaml")]
    for name in names:
        folder = tmp_path / f"phase_{name}" / "seed0"
        folder.mkdir(parents=True)
        content = json.dumps({"AP": 0.25, "AP50": 0.3, "at_score": at_score})
        (folder / f"final_summary_phase{name}.json").write_text(content)
    assert main(["validate", "--all", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names) == 10  # nine phases, and 1.1 in both forms
    assert all("Decision: look closer." in line for line in lines)


def test_a_setting_without_a_value_is_refused(capsys):
    assert main(["run", "notebooks/05_routing.ipynb", "--set", "seed"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err


def test_training_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    config = ROOT / "params" / "phase_2_0_baseline.yaml"
    assert main(["train", str(config), "--out", str(tmp_path / "file")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_training_a_recorded_phase_as_an_ssdlite_is_refused(tmp_path, capsys):
    config = ROOT / "params" / "phase_1_4.yaml"
    assert main(["train", str(config), "--out", str(tmp_path)]) == 2
    assert "key 'model.architecture' is 'recorded'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policy", "benefit", "--calibrate-on", "test"], "nothing is ever tuned on test"),
        (["--policy", "best"], "policy: 'best' is unknown; expected one of fixed,"),
        (["--policy", "max_score", "--thresholds", "1.4", "0.2"], "threshold of exit1 is 1.4; expected [0, 1]"),
        (["--policy", "max_score", "--budget", "1.5"], "--budget 1.5: expected a share of full's time"),
        (["--guarantee", "epsilon=0", "delta=0.1"], "epsilon is 0.0; expected a number between 0 and 1"),
        (["--guarantee", "epsilon=0.1", "delta=nan"], "delta is nan"),
        (["--guarantee", "epsilon=0.1"], "expected epsilon=NUMBER delta=NUMBER"),
        (["--policy", "fixed", "--checkpoint", "none.pth"], "none.pth"),
    ],
)
def test_routing_refuses_bad_input(argv, message, capsys):
    assert main(["route", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("eelib: ")


@pytest.fixture
def small_study(tiny, tmp_path):
    """Options of a study on four images with untrained exits."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "w.pth", {"model": EarlyExitSSDLite().state_dict()})
    times = {"exits": {name: {"ratio": ratio} for name, ratio in (("exit1", 0.5), ("exit2", 0.7), ("full", 1.0))}}
    (tmp_path / "times.json").write_text(json.dumps(times))
    values = read_yaml(ROOT / "params" / "report_policies.yaml") | {"root": str(tiny), "grid": 3}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    names = {"checkpoint": "w.pth", "times": "times.json", "params": "params.yaml", "records": "records"}
    return [part for key, name in names.items() for part in (f"--{key}", str(tmp_path / name))]


def test_route_prints_what_it_measured(small_study, tmp_path, capsys):
    assert main(["route", "--policy", "max_score", "--budget", "0.8", "--json", "--resamples", "5", *small_study]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["time_ratio"] <= 1 and len(answer["thresholds"]) == 2 and len(answer["AP_interval"]) == 2
    assert main(["route", "--policy", "max_score", "--resamples", "5", *small_study]) == 0
    assert "exit shares  exit1" in capsys.readouterr().out
    # two images certify nothing, and the message says how many would do
    assert main(["route", "--guarantee", "epsilon=0.05", "delta=0.1", *small_study]) == 2
    assert "2 images cannot certify epsilon 0.05 at delta 0.1; at least 45 are needed" in capsys.readouterr().err


def test_records_of_another_checkpoint_are_refused(small_study, tmp_path, capsys):
    assert main(["route", "--policy", "fixed", "--resamples", "5", *small_study]) == 0
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "w.pth", {"model": EarlyExitSSDLite().state_dict()})
    name = file_sha256(tmp_path / "w.pth")[:8]
    for path in (tmp_path / "records").iterdir():
        path.rename(path.with_name(path.stem[:-8] + name + path.suffix))
    assert main(["route", "--policy", "fixed", *small_study]) == 2
    assert "records of another checkpoint; checkpoint_sha256 is" in capsys.readouterr().err
