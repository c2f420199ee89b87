import json

import pytest
import torch

from eelib.__main__ import main
from eelib.checkpoints import save_checkpoint
from eelib.config import ROOT
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite


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


COCO = ROOT / "tests" / "fixtures" / "coco"
OWN = ["--data", str(COCO / "annotations" / "instances_train2017.json"), "--images", str(COCO / "train2017")]


def test_data_coco_prints_the_counts(capsys):
    assert main(["data", "coco", "--root", str(COCO)]) == 1  # an image file is missing
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split()[:6] == ["train", "8", "6", "6", "1", "0"]
    assert "test: 1 image files are missing, first" in printed.err
    assert main(["data", "check", "--json", "--category", "couch", *OWN, "--decode"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])[0]["boxes"] == 1


def test_data_coco_says_how_to_obtain_it(tmp_path, capsys):
    (tmp_path / "val2017").mkdir()
    assert main(["data", "coco", "--root", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "cocodataset.org" in printed.out and "18 GB" in printed.out
    lacking = "annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/"
    assert printed.err == f"eelib: {tmp_path}: not COCO 2017 yet; missing {lacking}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data", "check", "--images", "x"], "--images x: needs --data with the COCO JSON"),
        (["data", "check", "--data", "none.json"], "--data none.json: neither a COCO JSON nor a folder"),
        (["data", "check", *OWN, "--category", "stool"], "'categories' has no 'stool'"),
        (["validate", "--phase", "1.4", *OWN], "need --checkpoint"),
        (["train", "params/coco.yaml", "--out", "{tmp}", *OWN, "--category", "stool"], "has no 'stool'"),
        (["train", "params/coco.yaml", "--out", "{tmp}", "--set", "data.rot=x"], "did you mean 'root'"),
    ],
)
def test_bad_data_is_refused(argv, message, tmp_path, capsys):
    settings = ["--set", "model.weights=none"] if argv[0] == "train" else []
    assert main([part.format(tmp=tmp_path) for part in argv] + settings) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("eelib: ") and error.count("\n") == 1


def test_a_detector_trains_on_coco_and_is_validated_on_own_files(tmp_path, capsys):
    small = ["data.image_sizes=[[0, 64]]", "optim.epochs=1", "optim.batch_size=4", "optim.workers=0"]
    sets = [part for s in [f"data.root={COCO}", "model.weights=none", *small] for part in ("--set", s)]
    train = ["train", str(ROOT / "params" / "coco.yaml"), "--out"]
    assert main([*train, str(tmp_path), *sets]) == 0
    checkpoint = str(tmp_path / "released.pth")
    assert main(["validate", "--checkpoint", checkpoint, "--json", *OWN]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["images"] == 10 and answer["exits"]["full"]["AP"] < 0.2
    assert main(["validate", "--checkpoint", checkpoint, "--data", str(COCO)]) == 2
    assert "missing.jpg: image file is missing" in capsys.readouterr().err
    # the same JSON as the training file: val is drawn from it
    assert main([*train, str(tmp_path / "own"), *OWN, *sets[2:]]) == 0


def test_weights_without_a_network_are_named(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("eelib.train.EarlyExitSSDLite", offline)
    assert main(["train", str(ROOT / "params" / "coco.yaml"), "--out", str(tmp_path)]) == 2
    assert "key 'model.weights' is 'imagenet', but they cannot be downloaded (no network)" in capsys.readouterr().err


def test_a_setting_without_a_value_is_refused(capsys):
    assert main(["run", "notebooks/05_routing.ipynb", "--set", "seed"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err


def test_training_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    config = ROOT / "params" / "baseline.yaml"
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
        (["--policy", "max_score", "--budget", "1.5"], "budget 1.5: expected a share of full's time"),
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
    ratios = {"exit1": 0.5, "exit2": 0.7, "full": 1.0}
    times = {"exits": {name: {"ratio": ratio, "passed_ratio": 0.0} for name, ratio in ratios.items()}}
    times["checkpoint_sha256"] = file_sha256(tmp_path / "w.pth")
    (tmp_path / "times.json").write_text(json.dumps(times))
    paths = {"checkpoint": "w.pth", "times": "times.json", "records": "records"}
    options = {"data": tiny, "grid": 3} | {key: tmp_path / name for key, name in paths.items()}
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def test_route_prints_what_it_measured(small_study, tmp_path, capsys):
    assert main(["route", "--policy", "max_score", "--budget", "0.8", "--json", "--resamples", "5", *small_study]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["time_ratio"] <= 1 and len(answer["thresholds"]) == 2 and len(answer["AP_interval"]) == 2
    assert main(["route", "--policy", "max_score", "--resamples", "5", *small_study]) == 0
    assert "exit shares  exit1" in capsys.readouterr().out
    # two images certify nothing, and the message says how many would do
    assert main(["route", "--guarantee", "epsilon=0.05", "delta=0.1", *small_study]) == 2
    assert "2 images cannot certify epsilon 0.05 at delta 0.1; at least 45 are needed" in capsys.readouterr().err
    assert main(["route", "--guarantee", "epsilon=0.9", "delta=0.5", "--json", "--resamples", "5", *small_study]) == 0
    assert len(json.loads(capsys.readouterr().out)["cuts"]) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--policy", "gumbel"], "policy: 'gumbel' is unknown; expected one of fixed,"),
        (["--policy", "fixed", "--thresholds", "0.5", "1.5"], "threshold of exit2 is 1.5; expected [0, 1]"),
        (["--policy", "fixed", "--limit", "0"], "limit 0: expected 1 or more"),
        (["--policy", "fixed", "--resamples", "0"], "resamples 0: expected 1 or more"),
        (["--policy", "fixed", "--calibration", "beta"], "calibration: 'beta' is unknown; expected one of isotonic,"),
        (["--guarantee", "epsilon=0.9", "delta=0.5", "--calibrate-on", "val"], "certifying on 'val'"),
    ],
)
def test_route_refuses(argv, message, small_study, capsys):
    assert main(["route", *argv, *small_study]) == 2
    assert message in capsys.readouterr().err


def test_route_takes_thresholds_and_charges_what_the_policy_reads(small_study, tmp_path, capsys):
    times = json.loads((tmp_path / "times.json").read_text())
    times["exits"]["full"]["passed_ratio"] = 0.1
    (tmp_path / "times.json").write_text(json.dumps(times))
    argv = ["--policy", "patience", "--thresholds", "1", "1", "--resamples", "5", "--json"]
    assert main(["route", *argv, *small_study]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["thresholds"] == [1, 1] and "budget" not in answer
    assert answer["time_ratio"] == pytest.approx(
        0.7 * answer["exit_shares"]["exit2"] + 1.1 * answer["exit_shares"]["full"]
    )


def test_route_takes_another_data_set(small_study, tiny, capsys):
    argv = ["route", "--policy", "fixed", "--resamples", "5", "--json", *small_study]
    assert main(argv) == 0 and json.loads(capsys.readouterr().out)["policy"] == "fixed"
    assert main([*argv, "--data", str(tiny / "none")]) == 2
    assert f"--data {tiny / 'none'}: neither a COCO JSON nor a folder" in capsys.readouterr().err


def test_records_of_another_checkpoint_are_refused(small_study, tmp_path, capsys):
    assert main(["route", "--policy", "fixed", "--resamples", "5", *small_study]) == 0
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "w.pth", {"model": EarlyExitSSDLite().state_dict()})
    name = file_sha256(tmp_path / "w.pth")[:8]
    for path in (tmp_path / "records").iterdir():
        path.rename(path.with_name(path.stem[:-8] + name + path.suffix))
    assert main(["route", "--policy", "fixed", *small_study]) == 2
    assert "records of another checkpoint; checkpoint_sha256 is" in capsys.readouterr().err
