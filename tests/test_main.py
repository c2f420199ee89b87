"""The command line: what each command answers, and that bad input is one line and exit status 2."""

import errno
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eelib import door
from eelib.checkpoints import save_checkpoint
from eelib.cli import main
from eelib.config import ROOT
from eelib.deploy.router import Router
from eelib.detections import Detections
from eelib.files import InputError, file_sha256
from eelib.model import EarlyExitSSDLite

COCO = ROOT / "tests" / "fixtures" / "coco"
OWN = ["--data", str(COCO / "annotations" / "instances_train2017.json"), "--images", str(COCO / "train2017")]
PHASE = str(ROOT / "params" / "phase_1_4.yaml")


def refused(argv, message, capsys):
    """Status 2, and one line that holds the message."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("eelib: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "Did you mean"),
        (["detect", "--threads", "-1", "x.jpg"], "--threads"),
        (["train", "params/none.yaml", "--out", "runs/x"], "no such parameter file"),
        (["train", "params/none.yaml"], "--out"),
        (["phases", "validate", "9.9"], "phase_9_9.yaml: no such parameter file"),
        (["phases", "ablate", PHASE], "key 'base' is missing; expected the parameter file of an ablation"),
        (["phases", "ablate", PHASE, "--part", "3/2"], "expected K/N with K from 1 to N"),
        (["evaluate", "--limit", "-2"], "--limit"),
        (["study", "run", "notebooks/05_routing.ipynb", "--limit", "3"], "key 'limit' is not a parameter of"),
        (["bench", "none.pth"], "none.pth: no such checkpoint"),
        (["evaluate", "none"], "none: not released; expected one of"),
        (["study", "run", "notebooks/none.ipynb"], "no such notebook"),
        (["study", "run", "notebooks/05_routing.ipynb", "--set", "seed"], "expected KEY=VALUE"),
        (["study", "plane", PHASE], "phase_1_4.yaml"),
        (["study", "search", PHASE], "key 'search' is None; expected a group of"),
        (["study", "learning-curve", PHASE], "key 'curve' is None; expected a group of"),
        (["study", "prune", "none.pth", "--width", "0.5", "--out", "x.pth"], "none.pth: no such checkpoint"),
        (["study", "prune", "none.pth", "--width", "1.5", "--out", "x.pth"], "--width"),
        (["study", "generalisation", "--rendered", "none"], "none: no such folder"),
        (["study", "report", "--reports", "none"], "none/metrics: no such folder"),
        (["study", "widen", "none.json"], "none.json: no such file"),
        (["data", "check", "--images", "x"], "--images x: needs --data with the COCO JSON"),
        (["data", "check", "--data", "none.json"], "--data none.json: neither a COCO JSON nor a folder"),
        (["data", "check", *OWN, "--category", "stool"], "'categories' has no 'stool'"),
        (["train", "params/coco.yaml", "--out", "{tmp}", *OWN, "--category", "stool"], "has no 'stool'"),
        (["train", "params/coco.yaml", "--out", "{tmp}", "--set", "data.rot=x"], "did you mean 'root'"),
        (["train", "params/coco.yaml", "--out", "{tmp}", "--set", "optim.lr=[1"], "--set optim.lr: not valid YAML"),
        (["train", "params/coco.yaml", "--out", "{tmp}", "--set", "optim.lr=.inf"], "optim.lr"),
        (["train", PHASE, "--out", "{tmp}"], "phase_1_4.yaml"),
        (["check", "params/coco.yaml", "--images", "0"], "--images"),
        (["detect"], "nothing to detect in"),
        (["detect", "none.jpg"], "none.jpg: no such image, video or folder"),
        (["detect", "--router", "a", "--exit", "full", "x"], "expected one of them"),
        (["detect", "--min-score", "60", "x"], "--min-score"),
        (["detect", "--runtime", "tvm", "x"], "--runtime"),
    ],
)
def test_bad_input_is_one_line_and_status_two(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    refused([part.format(tmp=tmp_path) for part in argv], message, capsys)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (InputError("a.json: key 'b' is 3"), 2, "a.json: key 'b' is 3"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "a.txt: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "standard output: No space left on device"),
        (ModuleNotFoundError("No module named 'av'", name="av"), 2, "needs the package av: pip install '.[video]'"),
        (MemoryError(), 2, "out of memory"),
        (ValueError("odd\nsecond"), 70, "eelib train: ValueError: odd; this is a fault of eelib, --traceback"),
        (KeyboardInterrupt(), 130, "the same command with --resume goes on"),
        (KeyboardInterrupt("stopped; x.json holds 3"), 130, "stopped; x.json holds 3"),
        (InputError("x" * 5000 + "\ny"), 2, "xxx..."),
    ],
)
def test_whatever_happens_is_a_status_and_a_line(error, status, text, capsys):
    def call(argv):
        raise error

    assert door.enter(call, ["train", "x"]) == status
    line = capsys.readouterr().err
    assert text in line and line.startswith("eelib: ") and line.count("\n") == 1 and len(line) < 1100
    assert door.enter(call, ["train", "--traceback"]) == status
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_and_a_full_disk_end_quietly():
    eelib = f"{sys.executable} -m eelib data coco --help"
    pipe = subprocess.run(["bash", "-c", f"{eelib} | true; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True)
    assert (pipe.returncode, pipe.stderr) == (141, b"")
    full = subprocess.run(["bash", "-c", f"{eelib} > /dev/full"], cwd=ROOT, capture_output=True, text=True)
    assert (full.returncode, full.stderr) == (2, "eelib: standard output: No space left on device\n")


def test_outside_of_a_checkout_the_library_is_all_there_is(tmp_path):
    path = "import os, sys; sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'studies'))]"
    link = tmp_path / "lib" / "eelib"
    link.parent.mkdir()
    link.symlink_to(ROOT / "eelib")
    code = f"{path}; sys.path.insert(0, {str(link.parent)!r}); from eelib.cli import main; sys.exit(main(['--help']))"
    run = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, env={})
    assert run.returncode == 0 and "detect" in run.stdout and "study" not in run.stdout


def test_help_imports_no_torch():
    code = "import sys; from eelib.cli import main; main(['detect', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def write_summary(folder, name, ap):
    (folder / f"phase_{name}" / "seed0").mkdir(parents=True)
    at_score = {"score": 0.5, "precision": 0.0, "recall": 0.0, "detections_per_image": 0.0}
    content = json.dumps({"AP": ap, "AP50": 0.3, "at_score": at_score})
    (folder / f"phase_{name}" / "seed0" / f"final_summary_phase{name}.json").write_text(content)


def test_phases_are_validated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["phases", "validate", "1.3", "--compute-map", "--runs", str(tmp_path)]) == 2
    assert "make reproduce" in capsys.readouterr().err
    names = [path.stem.removeprefix("phase_") for path in (ROOT / "params").glob("phase_1_*.yaml")]
    for name in names:
        write_summary(tmp_path, name, 0.25)
    assert main(["phases", "validate", "1.4", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "look closer"
    assert main(["phases", "validate", "1.4", "--all", "--runs", str(tmp_path)]) == 2
    assert "expected a phase or --all" in capsys.readouterr().err
    assert main(["phases", "validate", "--all", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names) == 10  # nine phases, and 1.1 in both forms
    assert all("Decision: look closer." in line for line in lines)
    assert main(["phases", "validate", "--all", "--runs", str(tmp_path / "a clone has none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all("retrain with proper matching" in line for line in lines)


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


def test_a_detector_is_checked_trained_and_evaluated_on_own_files(tmp_path, capsys):
    values = [f"data.root={COCO}", "data.size=96", "model.weights=none", "optim.compile=false"]
    values += ["optim.epochs=1", "optim.batch_size=4", "optim.workers=0", "optim.warmup_steps=0"]
    sets = [part for value in values for part in ("--set", value)]
    config, run = str(ROOT / "params" / "coco.yaml"), str(tmp_path / "run")
    few = ["--images", "4", "--steps", "10"]
    assert main(["check", config, *few, *sets]) in (0, 1)  # so small an image may be out of reach
    assert "default boxes of full" in capsys.readouterr().out
    assert main(["train", config, "--out", run, *sets]) == 0
    checkpoint = str(tmp_path / "run" / "released.pth")
    refused(["train", config, "--out", run, *sets], "holds a run already; expected --resume", capsys)
    assert main(["evaluate", checkpoint, "--json", *OWN]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["images"] == 10 and answer["exits"]["full"]["AP"] < 0.2
    refused(["evaluate", checkpoint, "--data", str(COCO)], "missing.jpg: image file is missing", capsys)
    both = ["--category", "chair", "--category", "couch"]
    refused(["evaluate", checkpoint, *OWN, *both], "expected --category for each", capsys)
    # the same JSON as the training file: val is drawn from it
    assert main(["train", config, "--out", str(tmp_path / "own"), *OWN, *sets[2:]]) == 0


def test_weights_without_a_network_are_named(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(importlib.import_module("eelib.train"), "EarlyExitSSDLite", offline)
    argv = ["train", str(ROOT / "params" / "coco.yaml"), "--out", str(tmp_path), "--set", "optim.warmup_steps=0"]
    refused(
        [*argv, "--set", f"data.root={COCO}", "--set", "model.weights=imagenet", "--set", "model.start=null"],
        "key 'model.weights' is 'imagenet', but they cannot be downloaded (no network)", capsys,
    )  # fmt: skip


def test_training_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    sets = ["--set", "model.start=null", "--set", "model.weights=none"]
    config = str(ROOT / "params" / "baseline.yaml")
    refused(["train", config, "--out", str(tmp_path / "file"), *sets], "not a folder", capsys)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector whose batch norms have seen noise, and its export."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("detector"), EarlyExitSSDLite()
    model.size = 64
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 64, 64))
    save_checkpoint(folder / "w.pth", {"model": model.eval().state_dict(), "plan": model.plan})
    ratios = {"exit1": 0.5, "exit2": 0.7, "full": 1.0}
    times = {"exits": {name: {"ratio": ratio, "passed_ratio": 0.1} for name, ratio in ratios.items()}}
    times["checkpoint_sha256"] = file_sha256(folder / "w.pth")
    (folder / "times.json").write_text(json.dumps(times))
    assert main(["export", str(folder / "w.pth"), "--out", str(folder / "deploy")]) == 0
    return folder


@pytest.fixture
def study(detector, tiny):
    """A command line of `route` or `certify` on four images."""
    options = ["--times", str(detector / "times.json"), "--records", str(tiny / "records"), "--resamples", "5"]
    return lambda *argv: [argv[0], str(detector / "w.pth"), *argv[1:], "--data", str(tiny), *options]


@pytest.fixture
def pictures(tmp_path):
    """Two images, a file that is none, and a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("none")
    (folder / "b.json").mkdir()
    return folder


def test_detect_writes_a_folder_as_coco_and_as_lines(detector, pictures, tmp_path, capsys):
    argv = ["detect", str(pictures), "--export", str(detector / "deploy"), "--min-score", "0", "--out"]
    assert main([*argv, str(tmp_path / "o.jsonl"), "--batch", "2"]) == 0
    printed = capsys.readouterr()
    assert "a.jpg (full)" in printed.out and "2 images" in printed.out and "full 2 (100%)" in printed.out
    assert "no router: every image takes the full path" in printed.err
    assert "skipped files that are no image: 1 (notes.txt)" in printed.err
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [(line["file_name"], line["image_id"], line["exit"]) for line in lines] == [
        ("a.jpg", 1, "full"), ("a.png", 2, "full")
    ]  # fmt: skip
    assert main([*argv, str(tmp_path / "o.json"), "--draw", str(tmp_path / "drawn")]) == 0
    rows = json.loads((tmp_path / "o.json").read_text())
    boxes = [row for line in lines for row in line["detections"]]
    assert len(rows) == len(boxes) > 0
    for row, box in zip(rows, boxes, strict=True):
        assert row["bbox"] == box["bbox"] and row["score"] == pytest.approx(box["score"], abs=1e-6)
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"a.jpg", "a.png.jpg"}
    assert len((tmp_path / "o.images.jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".*partial"))


def test_a_broken_image_ends_no_folder(detector, pictures, tmp_path, capsys):
    (pictures / "b.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:300])
    argv = ["detect", str(pictures), "--export", str(detector / "deploy"), "--exit", "exit1", "--out"]
    assert main([*argv, str(tmp_path / "o.json")]) == 1
    printed = capsys.readouterr()
    assert "b.jpg: image cannot be decoded" in printed.err and "exit1 2 (100%)" in printed.out
    assert "1 of 3 images or videos are broken" in printed.err


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("out", ["o.json", "o.jsonl"])
@pytest.mark.parametrize(("happens", "status"), [(_interrupt, 130), (lambda: os.close(-1), 2)])
def test_what_was_detected_is_kept_when_it_ends_early(out, happens, status, detector, pictures, tmp_path, monkeypatch):
    """Ctrl-C, or an error as of a full disk, while the second image is drawn."""
    plot, drawn = Detections.plot, []

    def ends_early(found, *args):
        drawn.append(found)
        if len(drawn) == 2:
            happens()
        return plot(found, *args)

    monkeypatch.setattr(Detections, "plot", ends_early)
    argv = ["detect", str(pictures), "--export", str(detector / "deploy"), "--min-score", "0"]
    assert main([*argv, "--out", str(tmp_path / out), "--draw", str(tmp_path / "drawn")]) == status
    lines = (tmp_path / ("o.images.jsonl" if out == "o.json" else out)).read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["a.jpg", "a.png"]
    assert json.loads(
        (tmp_path / out).read_text().splitlines()[0] if out == "o.jsonl" else (tmp_path / out).read_text()
    )
    assert not list(tmp_path.glob(".*partial"))


def test_ids_are_those_of_the_annotations(detector, tiny, capsys):
    content = json.loads((tiny / "test.json").read_text())
    for image in content["images"]:
        image["id"] += 40
    (tiny / "test.json").write_text(json.dumps(content))
    Image.new("RGB", (20, 20)).save(tiny / "test" / "0.png")
    argv = ["detect", str(tiny / "test"), "--export", str(detector / "deploy"), "--out", str(tiny / "o.json")]
    assert main(argv) == 0
    lines = [json.loads(line) for line in (tiny / "o.images.jsonl").read_text().splitlines()]
    assert {line["file_name"]: line["image_id"] for line in lines} == {"0.png": 43, "1.jpg": 41, "2.jpg": 42}
    assert "1 of 3 images are not in" in capsys.readouterr().err
    content["images"][1]["id"] = -(10**400)  # longer than any reader of results takes
    (tiny / "test.json").write_text(json.dumps(content))
    assert main(argv) == 0 and "2 of 3 images are not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{folder}"], "expected a file that ends in .json"),
        (["--out", "{folder}/b.json"], "is a folder; expected a file"),
        (["--out", "{folder}/a.txt"], "expected a file that ends in .json"),
        (["--out", "{folder}/a.jpg/o.json"], "a.jpg is a file; expected a folder"),
        (["--draw", "{folder}"], "is what is read, or the folder of it"),
        (["--draw", "{folder}/drawn.mp4"], "a video is drawn of one video or camera"),
        (["--exit", "exit9"], "exit: 'exit9' is unknown; expected one of exit1, exit2, full"),
        (["--router", "none.json"], "none.json: no such router"),
        (["--int8"], "no int8 graphs: export again, with --int8"),
        (["--export", "none"], "no such manifest; write one with `eelib export --out none`"),
    ],
)
def test_detect_refuses_before_it_writes(options, message, detector, pictures, tmp_path, capsys):
    options = [part.format(folder=pictures) for part in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "o.json")]
    export = [] if "--export" in options else ["--export", str(detector / "deploy")]
    before = sorted(tmp_path.rglob("*"))
    refused(["detect", str(pictures), *export, *out, *options], message, capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_router_is_chosen_exported_and_obeyed(detector, study, pictures, tmp_path, capsys):
    file = str(tmp_path / "router.json")
    assert main(study("route", "--policy", "max_score", "--grid", "3", "--out", file)) == 0
    out = capsys.readouterr().out
    assert "exit shares  exit1" in out and "full alone" in out and "a coin of" in out and f"wrote {file}" in out
    assert main(["export", str(detector / "w.pth"), "--router", file, "--out", str(tmp_path / "deploy")]) == 0
    assert "router: by top_score, mean time" in capsys.readouterr().out
    answers = []
    for options in (["--export", str(tmp_path / "deploy")], ["--export", str(detector / "deploy"), "--router", file]):
        assert main(["detect", str(pictures), *options, "--out", str(tmp_path / "o.json")]) == 0
        assert "router: by top_score" in capsys.readouterr().err
        answers.append((tmp_path / "o.json").read_text())
    assert answers[0] == answers[1]


def test_route_answers_in_json(study, capsys):
    assert main(study("route", "--policy", "max_score", "--budget", "0.8", "--json", "--grid", "3")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["time_ratio"] <= 1 and len(answer["thresholds"]) == 2 and len(answer["AP_interval"]) == 2
    assert len(answer["comparison"]["exits"]) == 3 and "notes" in answer
    assert main(study("route", "--policy", "patience", "--thresholds", "1", "1", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    shares = answer["exit_shares"]
    assert answer["thresholds"] == [1, 1] and "budget" not in answer  # what the policy reads of boxes is charged
    assert answer["time_ratio"] == pytest.approx(0.6 * shares["exit1"] + 0.8 * shares["exit2"] + 1.1 * shares["full"])


def test_certify_says_how_many_images_would_do(study, capsys):
    assert main(study("certify")) == 2
    assert "2 images cannot certify epsilon 0.05 at delta 0.1; at least 45 are needed" in capsys.readouterr().err
    assert main(study("certify", "--epsilon", "0.9", "--delta", "0.5", "--json")) == 0
    assert len(json.loads(capsys.readouterr().out)["cuts"]) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["route", "--calibrate-on", "test"], "nothing is ever tuned on test"),
        (["route", "--policy", "best"], "'best' is unknown; expected fixed,"),
        (["route", "--policy", "fixed", "--thresholds", "0.5", "1.5"], "threshold of exit2 is 1.5"),
        (["route", "--budget", "1.5"], "--budget"),
        (["route", "--limit", "0"], "--limit"),
        (["route", "--calibration", "beta"], "--calibration"),
        (["route", "--out", "{tmp}"], "is a folder; expected a file"),
        (["route", "--gates", "0.05"], "the detector has no blank gates"),
        (["route", "--data", "none"], "--data none: neither a COCO JSON nor a folder"),
        (["route", "--calibrate-on", "foo"], "split: 'foo' is unknown; expected one of train, val, calibrate, test"),
        (["certify", "--epsilon", "0"], "--epsilon"),
        (["certify", "--delta", "nan"], "--delta"),
        (["certify", "--epsilon", "0.9", "--delta", "0.5", "--calibrate-on", "val"], "certifying on 'val'"),
    ],
)
def test_routing_refuses(argv, message, study, tmp_path, capsys):
    argv = study(*(part.format(tmp=tmp_path) for part in argv))
    argv = argv if argv.count("--data") < 2 else argv[:-8] + argv[-6:]
    assert main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("eelib: ")


def test_a_relative_path_is_the_callers_in_every_option(study, tiny, monkeypatch):
    """Not that of a file with the same name in the repository."""
    monkeypatch.chdir(tiny)
    argv = [os.path.relpath(part) if part.startswith("/") else part for part in study("route", "--policy", "fixed")]
    assert not any(part.startswith("/") for part in argv) and main([*argv, "--out", "router.json"]) == 0
    assert Router.load(tiny / "router.json").times.exits == (0.5, 0.7, 1.0) and any((tiny / "records").iterdir())


def test_a_folder_whose_name_is_no_text(detector, pictures, tmp_path, capfd):
    folder = os.fsdecode(bytes(tmp_path / "caf") + b"\xe9")
    assert main(["export", str(detector / "w.pth"), "--out", folder]) == 0
    assert main(["detect", str(pictures / "a.jpg"), "--export", folder, "--out", f"{folder}/o.json"]) == 0
    assert os.path.exists(f"{folder}/o.json") and "caf\\udce9" in capfd.readouterr().out


def test_records_of_another_checkpoint_are_refused(detector, study, tiny, tmp_path, capsys):
    assert main(study("route", "--policy", "fixed")) == 0
    torch.manual_seed(1)
    state = {"model": EarlyExitSSDLite().state_dict(), "plan": torch.load(detector / "w.pth")["plan"]}
    other = save_checkpoint(tmp_path / "other.pth", state)
    name, new = file_sha256(detector / "w.pth")[:8], file_sha256(other)[:8]
    for path in (tiny / "records").iterdir():
        path.rename(path.with_name(path.name.replace(name, new)))
    argv = study("route", "--policy", "fixed")
    assert main([argv[0], str(other), *argv[2:]]) == 2
    assert "records of another checkpoint; checkpoint_sha256 is" in capsys.readouterr().err
