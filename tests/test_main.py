import json

import pytest

from eelib.__main__ import main
from eelib.config import ROOT


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
