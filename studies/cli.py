"""``eelib study``: what the notebooks tell, from the command line; and ``eelib bench``."""

import functools
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

from eelib.door import say
from eelib.files import InputError, check_target, look_up
from eelib.hub import DEFAULT, path_of
from eelib.options import Level, Set

REPORTS = Path("runs/reports")  # folder of metrics/ and figures/

_flushed = functools.partial(print, flush=True)
app = App("study", help="The studies of the notebooks: run one, compare systems, search, write reports.")


@app.command
def run(
    notebook: Path, /, *, params: Path | None = None, out: Path | None = None, limit: PositiveInt | None = None,
    set_: Set = None,
) -> int:  # fmt: skip
    """Execute a notebook by papermill, after its parameters were checked.

    Example: eelib study run notebooks/05_routing.ipynb --params params/phase_1_4.yaml --set seed=1

    Args:
        params: parameter file (YAML).
        out: executed copy; by default in runs/executed.
        limit: number of images to evaluate, if the notebook has this parameter.
        set_: KEY=VALUE in place of a parameter; may be given several times.
    """
    from eelib.config import read_settings

    settings = read_settings(set_ or ())
    if not notebook.is_file():
        raise InputError(f"{notebook}: no such notebook")
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    from studies.batch import run_notebook

    out, settings = out or Path("runs/executed") / notebook.name, settings | ({"limit": limit} if limit else {})
    try:
        run_notebook(notebook, out, params, settings)
    except papermill.PapermillExecutionError as error:
        say(f"{notebook}: a cell failed: {error.ename}: {error.evalue}; see {out}")
        return 1
    except DeadKernelError:
        say(f"{notebook}: its kernel died, which a lack of memory does; see {out}")
        return 1
    except NoSuchKernel:
        raise InputError("the Jupyter kernel 'python3' is not installed: pip install ipykernel") from None
    print(f"executed {out}")
    return 0


@app.command
def plane(config: Path, /, *, reports: Path = REPORTS, recompute: bool = False, set_: Set = None) -> None:
    """Measure AP and time of every system, in float and int8, without training anything. Takes hours.

    Example: eelib study plane params/plane.yaml

    Args:
        config: parameter file of the systems (YAML).
        reports: folder of metrics/, and of the match flags of each plane.
        recompute: judge the times and match flags of an earlier run again, by the present file and without weights.
        set_: KEY=VALUE in place of a value of the file; may be given several times.
    """
    from eelib.config import read_settings
    from eelib.files import write_json
    from studies.compress import plane as study
    from studies.metrics import read_metrics

    settings = study.load(config, read_settings(set_ or ()))
    path = reports / "metrics" / f"{settings.name}.json"
    if recompute:
        report = read_metrics(path) | {"plane": settings.model_dump(mode="json")}
        write_json(path, study.recompute(reports, report))
    else:
        study.run(settings, reports, log=_flushed)
    print(f"wrote {path}; notebook 07_acceleration shows it")


@app.command
def search(config: Path, /, *, out: Path = Path("runs/search"), set_: Set = None) -> None:
    """Search widths, input sizes, maps and places of exits by short trainings. An hour.

    Example: eelib study search params/search.yaml

    Args:
        config: parameter file with the key `search` (YAML).
        out: folder of the trials and of search.json; a search that was stopped goes on there.
        set_: KEY=VALUE in place of a value of the file; may be given several times.
    """
    from eelib.config import read_settings
    from studies.compress import search as study
    from studies.parameters import load_study

    settings, space = load_study(config, "search", study.Space, read_settings(set_ or ()))
    result = study.search(settings, space, out, log=_flushed)
    print(f"chosen: {result['chosen']}; params/searched.yaml trains it")


@app.command
def prune(checkpoint: str, /, *, width: Level, out: Path, images: PositiveInt = 64) -> None:
    """Prune a detector to a share of its channels: weights to start a narrower one from.

    Example: eelib study prune checkpoints/baseline.pth --width 0.75 --out runs/starts/width_75.pth

    Args:
        checkpoint: a released name, or a path.
        width: share of the channels of every layer that stays, above 0 and below 1.
        out: checkpoint that is written.
        images: number of training images on which the importance of the channels is measured.
    """
    path = path_of(checkpoint)
    check_target("--out", out)
    from studies.compress.prune import prune_checkpoint

    print(f"wrote {prune_checkpoint(path, width, out, images)}")


@app.command
def learning_curve(
    config: Path, /, *, out: Path = Path("runs/learning_curve"), reports: Path = REPORTS, set_: Set = None
) -> None:
    """Train the baseline on more and more images with equal steps: AP on val, with intervals. Half an hour.

    Args:
        config: parameter file with the key `curve` (YAML).
        out: folder of the checkpoints.
        reports: folder of metrics/.
        set_: KEY=VALUE in place of a value of the file; may be given several times.
    """
    from eelib.config import read_settings
    from studies import learning_curve as study
    from studies.parameters import load_study

    settings, curve = load_study(config, "curve", study.Curve, read_settings(set_ or ()))
    for gain in study.learning_curve(settings, curve, out, reports, log=_flushed)["gains"]:
        low, high = gain["interval"]
        print(f"{gain['from']} to {gain['to']} images: AP {gain['AP']:+.3f}, 95 % [{low:+.3f}, {high:+.3f}]")


@app.command
def generalisation(*, rendered: Path, checkpoint: str = "baseline", reports: Path = REPORTS) -> None:
    """AP on images of training, on new scenes with its chair models, and on val's new models.

    Args:
        rendered: folder of `python -m showroom render --split train` with a new seed.
        checkpoint: a released name, or a path.
        reports: folder of metrics/.
    """
    path, showroom = path_of(checkpoint), look_up("data/showroom")
    if not rendered.is_dir():
        raise InputError(f"--rendered {rendered}: no such folder; `python -m showroom render --split train` makes it")
    from studies.generalisation import generalisation as study

    sets = {
        "images of train": ("train", showroom),
        "new scenes, chairs of train": ("train", rendered),
        "new scenes, new chairs (val)": ("val", showroom),
    }
    for row in study(path, sets, Path("runs/records"), reports, progress=_flushed)["sets"]:
        low, high = row["interval"]
        print(f"{row['name']}: AP {row['AP']:.3f}, 95 % [{low:.3f}, {high:.3f}], {row['images']} images")


@app.command
def report(*, reports: Path = REPORTS) -> None:
    """Write the four written reports from the measured results, and the tables in LaTeX.

    Args:
        reports: folder of metrics/, phases/ and tables/.
    """
    if not (reports / "metrics").is_dir():
        raise InputError(f"{reports / 'metrics'}: no such folder; `make reproduce` makes it")
    from studies.report import latex, thesis
    from studies.report.reports import write_all

    for path in write_all(reports):
        print(f"wrote {path}")
    print(f"laid out {len(latex.write_tables(reports, thesis.captions('tables')))} tables in {reports / 'tables'}")


@app.command
def thesis(*, reports: Path = Path("reports"), out: Path = Path("runs/thesis")) -> None:
    """Write one PDF of all figures and tables with their captions; needs pdflatex.

    Args:
        reports: folder of figures/ and tables/.
        out: folder of the document.
    """
    if not (reports / "tables").is_dir():
        raise InputError(f"{reports / 'tables'}: no such folder; `make reproduce` makes it")
    from studies.report import thesis as document

    print(f"wrote {document.build(reports, out)}")
    for name in document.without_caption(reports):
        say(f"{name}: no caption in {document.CAPTIONS}")


@app.command
def readme(*, reports: Path = Path("reports")) -> None:
    """Write the measured numbers between the marks of README.md.

    Args:
        reports: folder of metrics/.
    """
    from studies.report.readme import write

    print(f"wrote {write(look_up('README.md'), reports)}")


@app.command
def widen(graph: Path, /, *, out: Path = Path("runs/pretrained/start.pth")) -> None:
    """Widen a narrow MobileNetV3 that was trained on COCO: weights to start the baseline from.

    Args:
        graph: JSON file of the narrow detector that `make pretrained` fetches.
        out: checkpoint that is written.
    """
    if not graph.is_file():
        raise InputError(f"{graph}: no such file; `make pretrained` fetches it")
    from eelib.checkpoints import save_checkpoint
    from studies.widen import start_weights

    print(f"wrote {save_checkpoint(out, start_weights(graph))}")


def bench(
    checkpoint: str = DEFAULT, /, *, export: Path | None = None, quick: bool = False,
    reports: Annotated[Path, Parameter("--reports")] = REPORTS,
) -> None:  # fmt: skip
    """Time every runtime, exit and batch size in turn; print ratios to the released baseline.

    Args:
        checkpoint: a released name, or a path.
        export: folder of `eelib export`; written afresh without it.
        quick: few repeats, no int8.
        reports: folder of metrics/bench.json.
    """
    path, folder = path_of(checkpoint), export or Path("runs/bench_export")
    from eelib.deploy.export import export as write_export
    from eelib.files import write_json
    from studies import bench as study

    if export is None:
        write_export(path, folder, int8=not quick)
    result = study.run(path, folder, Path("runs/bench_baseline"), quick=quick, log=_flushed)
    print(
        "Times as shares of the baseline's at the same batch size and threads: 1.000 is the released detector without"
    )
    print("exits at 320 px, from image tensor to final detections, on onnxruntime; plain is this one without exits.")
    print(study.table(result["times"]).to_string(index=False))
    print(f"All images of test, one thread, milliseconds a call. Router: {result['router']}.")
    print(study.latency_table(result["routed"]).to_string(index=False))
    cost = ", ".join(f"{share:.2f} % at {name}" for name, share in result["evidence_percent"].items())
    print(f"Evidence costs, in percent of the time without exits: {cost}.")
    for goal in result["goals"]:
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['value']:6.3f} (goal {goal['limit']})  {goal['goal']}")
    print(f"wrote {write_json(reports / 'metrics' / 'bench.json', result)}")
