"""The command line: ``eelib --help`` lists the commands, and each typed function below is one.

A command imports what it uses when it runs, after the files that it needs were looked for: ``eelib detect`` and
``eelib data`` work without torch, and nobody waits for torch to hear that a file is missing. :mod:`eelib.door`
turns what goes wrong into a line and an exit status.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from eelib import __version__, door
from eelib.files import InputError
from eelib.help_text import Columns
from eelib.hub import DEFAULT, path_of
from eelib.options import NO_DATA, STUDY, DataOptions, Json, Level, Set, Share, StudyOptions, Threads

if TYPE_CHECKING:
    from eelib.routers import RoutedSystem

LIBRARY, CHECKOUT = Group("Your detector", sort_key=1), Group("This repository's studies", sort_key=2)

app = App(
    "eelib", help="Early-exit object detection: train, measure, route, certify, export and detect.",
    version=__version__, help_format="plaintext", help_formatter=Columns(), suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
    help_epilogue="Exit status: 0 done, 1 a check or an image failed, 2 bad input, 70 a fault of eelib (--traceback).",
)  # fmt: skip
data_app = App("data", help="Check a data set, count what it holds, and convert others to COCO JSON.", group=LIBRARY)
app.command(data_app)


@app.command(group=LIBRARY)
def train(
    config: Path, /, *, out: Path, resume: bool = False, overwrite: bool = False, tensorboard: bool = False,
    set_: Set = None, data: DataOptions = NO_DATA,
) -> None:  # fmt: skip
    """Train a detector and write its averaged weights to OUT/released.pth.

    Example: eelib train params/my.yaml --out runs/mine --set optim.epochs=20

    Args:
        config: parameter file (YAML).
        out: folder of checkpoints and losses, created.
        resume: go on after the last epoch of the run in the folder.
        overwrite: start anew where the folder holds a run.
        tensorboard: write losses and AP to OUT/tensorboard, too, for TensorBoard.
        set_: KEY=VALUE in place of a value of the file, such as optim.lr=1e-3; may be given several times.
    """
    settings = data.configure(config, set_)
    from eelib.train import train as run

    log = partial(print, flush=True)
    print(f"released {run(settings, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard, log=log)}")


@app.command(group=LIBRARY)
def evaluate(
    checkpoint: str = DEFAULT, /, *, limit: PositiveInt | None = None, as_json: Json = False,
    data: DataOptions = NO_DATA,
) -> None:  # fmt: skip
    """Print AP of every exit on test.

    Example: eelib evaluate runs/mine/released.pth --data my/test.json

    Args:
        checkpoint: a released name, or a path.
        limit: number of images, drawn with seed 0; by default all.
        as_json: one JSON object for machines.
    """
    path = path_of(checkpoint)
    source = data.source_for(path)
    import pandas as pd

    from eelib.checkpoints import load_released
    from eelib.data import DetectionDataset, split_sha256
    from eelib.evaluate import evaluate as measure
    from eelib.files import file_sha256

    model = load_released(path)
    if len(model.classes) != len(source.names):
        raise InputError(
            f"{path}: detects {len(model.classes)} categories ({', '.join(model.classes)}), the data set has "
            f"{len(source.names)} ({', '.join(source.names)}); expected --category for each, in this order"
        )
    dataset = DetectionDataset("test", source, model.size, keep_crowd=True, limit=limit)
    exits = measure(model, dataset)
    about = {"checkpoint": str(path), "checkpoint_sha256": file_sha256(path), "split": "test"}
    about |= {"split_sha256": split_sha256("test", source), "categories": source.names, "images": len(dataset)}
    if as_json:
        print(json.dumps(about | {"exits": exits}))
        return
    print(f"{len(dataset)} images of test, {', '.join(source.names)}")
    table = pd.DataFrame(exits).T.rename_axis(columns="exit")
    print(table.where(table >= 0).to_string(float_format="{:.3f}".format, na_rep="-"))  # no object has that size


@app.command(group=LIBRARY)
def route(
    checkpoint: str = DEFAULT, /, *, policy: str = "benefit", budget: Share = 0.75,
    thresholds: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None,
    calibration: Literal["isotonic", "platt", "none"] = "isotonic", grid: PositiveInt = 20,
    study: StudyOptions = STUDY, data: DataOptions = NO_DATA,
) -> None:  # fmt: skip
    """Choose thresholds for a budget of time, and measure them on test.

    Example: eelib route runs/mine/released.pth --budget 0.75 --out router.json

    Args:
        checkpoint: a released name, or a path.
        policy: such as fixed, max_score or benefit; an unknown one lists them all.
        budget: mean time, as a share of the time that this detector takes without its early exits.
        thresholds: one for each exit but the last, in place of a budget.
        calibration: how scores are calibrated.
        grid: number of thresholds that are tried at each exit.
    """
    path = path_of(checkpoint).resolve()
    options, source = study.options(calibration=calibration, grid=grid), data.source_for(path, "train")
    from eelib import routers

    _tell_router(routers.route(path, source, policy, budget, thresholds, options), study)


@app.command(group=LIBRARY)
def certify(
    checkpoint: str = DEFAULT, /, *, epsilon: Level = 0.05, delta: Level = 0.1,
    bound: Literal["hoeffding_bentkus", "betting"] = "hoeffding_bentkus",
    study: StudyOptions = STUDY, data: DataOptions = NO_DATA,
) -> None:  # fmt: skip
    """Find the fastest thresholds that are certified to lose little, and measure them on test.

    With probability 1 - DELTA, the F1 of an image is on average at most EPSILON lower than full's.

    Args:
        checkpoint: a released name, or a path.
        epsilon: mean loss of F1 against full, between 0 and 1.
        delta: probability that the promise fails, between 0 and 1.
        bound: statistical test that the certificate rests on.
    """
    path = path_of(checkpoint).resolve()
    options, source = study.options(), data.source_for(path, "train")
    from eelib import routers

    _tell_router(routers.certify(path, source, epsilon, delta, bound, options), study)


def _tell_router(system: "RoutedSystem", study: StudyOptions) -> None:
    """Write the router, and print what it gives; beside it each exit alone, and the best coin of its exits."""
    if study.out:
        system.router.save(study.out)
    answer, lines = system.stated | system.measured | {"comparison": system.comparison, "notes": system.notes}, []
    if study.as_json:
        print(json.dumps(answer))
        return
    if "epsilon" in answer:
        lines.append(
            f"guarantee    mean loss <= {answer['epsilon']} with probability {1 - answer['delta']:g} "
            f"({answer['bound']}, n = {answer['n']}, p = {answer['p_value']:.3g}); on test {answer['risk_on_test']:.4f}"
        )
    thresholds = [f"exit{k + 1} {t:.4f}" for k, t in enumerate(answer["thresholds"] or ())]
    none = "none certified: all images take full" if "epsilon" in answer else "none: there is no early exit"
    lines.append("thresholds   " + ("  ".join(thresholds) or none))
    lines.append("exit shares  " + "  ".join(f"{name} {share:.3f}" for name, share in answer["exit_shares"].items()))
    for title, key, sign in (("AP on test ", "AP", ""), ("beside full", "AP_minus_full", "+")):
        low, high = answer[f"{key}_interval"]
        lines.append(f"{title}  {answer[key]:{sign}.4f}  [{low:{sign}.4f}, {high:{sign}.4f}]")
    lines.append(f"time         {answer['time_ratio']:.3f}, where 1.000 is {system.router.times.unit}")
    if "gates" in answer:
        gates, on_test = answer["gates"], answer["gates_on_test"]
        lines.append(
            f"blank gates  objects lost <= {gates['epsilon']} with probability {1 - gates['delta']:g}; on test "
            f"{on_test['risk']:.4f}, of the empty images {on_test['blank_ended']:.0%} end"
        )
    here = answer["comparison"]
    for other in ({"name": "this router"} | here, *here["exits"], here["coin"]):
        lines.append(f"on {here['split']}  AP {other['AP']:.4f} at {other['time_ratio']:.3f}  {other['name']}")
    print("\n".join([*lines, *(f"note: {note}" for note in answer["notes"])]))
    if study.out:
        print(f"wrote {study.out}: `eelib export --router {study.out}` lets images leave by it")


@app.command(group=LIBRARY)
def export(
    checkpoint: str = DEFAULT, /, *, out: Path, router: Path | None = None, int8: bool = False,
    data: DataOptions = NO_DATA,
) -> None:  # fmt: skip
    """Write a detector as ONNX graphs, one for each stage, with a manifest: what `eelib detect` needs.

    Example: eelib export runs/mine/released.pth --router router.json --out deploy

    Args:
        checkpoint: a released name, or a path.
        out: folder of the graphs, created.
        router: file of `eelib route` or `eelib certify`; without one every image takes the full path.
        int8: write int8 stages, too, calibrated on the split `calibrate`.
    """
    path = path_of(checkpoint)
    source = None if data == NO_DATA else data.source_for(path, "calibrate")
    from eelib.deploy.export import export as write

    manifest = write(path, out, router, source, int8)
    for stage in (*manifest.stages, *manifest.stages_int8):
        size = (out / stage.file).stat().st_size / 2**20
        print(f"{stage.exit:6} {stage.file}  {size:.1f} MiB  sha256 {stage.sha256[:12]}")
    print("categories: " + ", ".join(f"{category.name} (id {category.id})" for category in manifest.categories))
    print(f"router: {manifest.router.describe() if manifest.router else 'none, every image takes the full path'}")
    print(f"exported {out}: `eelib detect photo.jpg --export {out}` detects with it")


@app.command(group=LIBRARY)
def detect(
    *inputs: str, export: Path = Path("runs/deploy"), out: Path = Path("runs/detections.json"),
    draw: Path | None = None, min_score: Share = 0.05, draw_score: Share = 0.3, recursive: bool = False,
    int8: bool = False, router: Path | None = None, exit_: Annotated[str | None, Parameter("--exit")] = None,
    runtime: Literal["onnxruntime", "openvino", "auto"] = "onnxruntime", threads: Threads = 1,
    batch: Annotated[int, Parameter(validator=Number(gte=1, lte=1024))] = 1,
) -> int:  # fmt: skip
    """Detect in images, folders, videos and cameras with an export; torch is not needed.

    Example: eelib detect photo.jpg clip.mp4 "more/*.png" camera:0 --out found.jsonl --draw drawn

    Args:
        inputs: images, videos, folders, patterns, and camera:0 (or another number).
        export: folder of `eelib export`.
        out: results, written as they come: .json is a COCO list, .jsonl a line for each image.
        draw: folder of drawn images and videos, or a video file for one video.
        min_score: lowest score that is reported, 0 to 1; take 0 to measure COCO's AP.
        draw_score: lowest score that is drawn, 0 to 1.
        recursive: read the folders inside a folder, too.
        int8: use the int8 stages of `eelib export --int8`.
        router: file of `eelib route` or `eelib certify`, in place of the router in the export.
        exit_: let every image leave at this exit, whatever a router says.
        runtime: what runs the graphs; auto measures both and takes the faster one.
        threads: number of threads of the runtime, 1 to 64.
        batch: number of images that run at once, 1 to 1024.
    """
    if not inputs:
        raise InputError("detect: nothing to detect in; expected images, videos, folders, patterns or camera:0")
    if router and exit_:
        raise InputError("--router and --exit: expected one of them")
    from eelib import detecting
    from eelib.deploy.inputs import find
    from eelib.deploy.router import Router
    from eelib.deploy.runtime import Session
    from eelib.files import look_up

    given, session = find(inputs, recursive), Session(look_up(export), threads, int8, runtime)
    if router:
        session.router = Router.load(router)
        session.manifest.check_router(session.router)
    rule = session.at_exit(exit_) if exit_ else None
    return detecting.run(session, given, out, draw, min_score, draw_score, batch, rule)


@app.command(group=LIBRARY)
def check(
    config: Path, /, *, images: PositiveInt = 64, steps: Annotated[int, Parameter(validator=Number(gte=0))] = 100,
    set_: Set = None, data: DataOptions = NO_DATA,
) -> int:  # fmt: skip
    """Check in about a minute whether a training can work at all.

    It looks for the causes of AP 0, of confidences of 0, and of all images leaving at one exit.

    Args:
        config: parameter file (YAML).
        images: number of training images that are looked at.
        steps: steps of a training on eight small images that are to be learnt by heart; 0 leaves it out.
        set_: KEY=VALUE in place of a value of the file; may be given several times.
    """
    settings = data.configure(config, set_)
    from eelib.preflight import preflight

    checks = preflight(settings, images, steps)
    for row in checks:
        advice = "" if row.holds else f"; {row.advice}"
        print(f"{'ok  ' if row.holds else 'FAIL'}  {row.name}: {row.measured}{advice}")
    return 0 if all(row.holds for row in checks) else 1


@app.command(group=LIBRARY)
def release(checkpoint: Path, name: str, /, *, half: bool = False) -> None:
    """Measure trained weights on test, and release them in checkpoints/ with an entry in its manifest.

    Args:
        checkpoint: released.pth of a training.
        name: file name in checkpoints/, such as mine.pth.
        half: store the weights in half precision, which halves the file.
    """
    path = path_of(checkpoint)
    from eelib.release import release as run

    entry = run(path, name, half=half)
    for exit_, ap in entry["test"].items():
        print(f"{name} {exit_}: AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f} on {entry['images']} test images")


@data_app.command(name="check")
def data_check(
    *, fix: Path | None = None, decode: bool = False, as_json: Json = False, data: DataOptions = NO_DATA
) -> int:
    """Count what a data set holds and name all that is wrong with it, with the first examples.

    Without --data, showroom is checked.

    Args:
        fix: write the JSON of --data without its faults to this file.
        decode: decode every image, too.
        as_json: one JSON list for machines.
    """
    source = data.source()
    from eelib import checking

    if fix:
        checking.fix(source, data.category, fix)
        return 0
    return checking.check(source, decode, as_json)


@data_app.command(name="coco")
def data_coco(
    *, root: Path, category: tuple[str, ...] | None = None, decode: bool = False, as_json: Json = False
) -> int:
    """Check COCO 2017 in a folder, or say how to obtain what is missing.

    Args:
        root: folder of annotations/, train2017/ and val2017/.
        category: category to look for; may be given several times; by default chair.
        decode: decode every image, too.
        as_json: one JSON list for machines.
    """
    from eelib import checking

    return checking.check_coco(root, category, decode, as_json)


@data_app.command(name="convert")
def data_convert(
    folder: Path, /, *, kind: Annotated[Literal["yolo", "voc", "labelme"], Parameter("--from")], out: Path,
    images: Path | None = None,
) -> None:  # fmt: skip
    """Write YOLO, Pascal VOC or LabelMe files as one COCO JSON.

    Args:
        folder: folder of the annotations; the images are there, too, or in --images.
        kind: format of the annotations.
        out: JSON file that is written.
        images: folder of the images.
    """
    from eelib.convert import convert

    print(f"wrote {out}: {convert(folder, kind, out, images)}")


def _bench() -> None:
    """Time every runtime and exit; only in a checkout of eelib."""
    raise InputError("bench: needs the checkout of eelib, which this folder is not in")


# What a checkout adds: name, where it is, and its help.
STUDIES = (
    ("bench", "studies.cli:bench", "Time every runtime and exit, as ratios to the released baseline."),
    ("phases", "studies.phases.cli:app", "The nine recorded phases: check, train, validate, ablate."),
    ("study", "studies.cli:app", "The studies of the notebooks: run one, compare systems, search, write reports."),
)


def add_studies() -> None:
    """Add the commands of the checkout, if there is one: that of an editable install, or around the working folder."""
    if "study" in app:
        return
    if importlib.util.find_spec("studies") is None:
        here = Path.cwd()
        root = next((folder for folder in (here, *here.parents) if (folder / "studies/phases/cli.py").is_file()), None)
        if root is None:
            app.command(_bench, name="bench", group=LIBRARY)
            return
        sys.path.append(str(root))
    for name, where, text in STUDIES:
        app.command(where, name=name, help=text, group=CHECKOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is one of :mod:`eelib.door`."""

    def run(words: list[str]) -> object:
        add_studies()
        return app(words, exit_on_error=False, print_error=False, result_action="return_value")

    return door.enter(run, argv)
