"""Export: one ONNX graph a stage, and a manifest, for :mod:`eelib.deploy.runtime`."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from eelib.checkpoints import TrainingError, load_checkpoint, load_released
from eelib.coco import Source
from eelib.config import DataConfig
from eelib.deploy.evidence import raw_columns
from eelib.deploy.graphs import ExitStage, FullStage, Monolith, build_stages
from eelib.deploy.manifest import (
    FORMAT,
    MANIFEST,
    Category,
    DeploymentError,
    Graph,
    Input,
    Manifest,
    Postprocess,
    Stage,
    read_manifest,
)
from eelib.deploy.router import Router
from eelib.evaluate import source_for, versions
from eelib.files import file_sha256, locked
from eelib.hub import path_of
from eelib.model import SCORE_THRESHOLD, EarlyExitSSDLite

OPSET = 18
POSTPROCESS = Postprocess(SCORE_THRESHOLD, 0.55, 300)
SHOWROOM_IDS = {"chair": 62}  # of the embedded data set, as in COCO


def export(
    detector: EarlyExitSSDLite | Path | str,
    out: Path | str,
    router: Router | Path | str | None = None,
    source: Source | Path | str | None = None,
    int8: bool = False,
    gates: bool | None = None,
) -> Manifest:
    """Write the graphs of a detector and their manifest.

    The folder is built beside the files that it replaces, and the manifest comes last: an export that is interrupted
    leaves an earlier one whole. Files that no earlier export wrote are left alone.

    Args:
        detector: a checkpoint, the name of a released detector, or what :func:`eelib.load` gave; its file is exported.
        out: folder, created.
        router: a router, its file, or the result of :func:`eelib.route`; without one every image takes the full path.
        source: data set, or its folder, whose category ids the results shall carry, and whose ``calibrate`` gives
            the ranges of int8; without one the ids are 1, 2, … in the order of the labels, and showroom's for its own
            chairs.
        int8: write int8 graphs, too; see :func:`eelib.deploy.int8.quantise`.
        gates: whether to export the blank gates, which cost time even if no router reads them; None exports them only
            if the router does.

    Returns:
        The manifest.

    Raises:
        TrainingError: no checkpoint, one of another architecture, or untrained weights.
        RouterError: ``router`` is no router.
        DeploymentError: ``out`` is a file, or the router is of another detector.
        DataError: ``source`` lacks a class of the detector, or has no images to calibrate int8 on.

    Examples:
        >>> manifest = eelib.export(model, "exported")
        >>> [stage.exit for stage in manifest.stages]
        ['exit1', 'exit2', 'full']
    """
    out, path = Path(out), path_of(detector)
    if out.exists() and not out.is_dir():
        raise DeploymentError(f"{out}: output is not a folder")
    model = load_released(path).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.running_mean.any():
            raise TrainingError(f"{path}: untrained weights; the statistics of '{name}' have never seen an image")
    source = None if source is None else source_for(model, source)
    router = Router.load(router) if isinstance(router, str | Path) else getattr(router, "router", router)
    if not (router is None or router.reads_gates if gates is None else gates):
        model.blank = nn.ModuleDict()
    with new_graphs(out) as folder:
        _build(model, path, folder, router, source).write(folder)
        if int8:
            from eelib.deploy.int8 import quantise

            quantise(folder, source=source)
        return install(folder, out)


@torch.no_grad()
def _build(model: EarlyExitSSDLite, path: Path, folder: Path, router: Router | None, source: Source | None) -> Manifest:
    """Write the float graphs."""
    state, stages, entries = load_checkpoint(path), build_stages(model), []
    image = features = torch.rand(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
    for name, stage in stages.items():
        entries.append(Stage(**write_graph(stage, features, stage.outputs, folder, name), exit=name))
        features = model.segment(image, 0, model.stages[name])
    plain = entries[-1]
    if len(entries) > 1:  # the last exit alone: the detector as it would be without early exits and gates
        alone = FullStage(model, 0) if model.head is not None else ExitStage(model, plain.exit, 0, last=True)
        plain = Stage(**write_graph(alone, image, alone.outputs, folder, "plain"), exit=plain.exit)
    every = [f"{kind}_{name}" for name in model.exit_names for kind in ("scores", "boxes")]
    return Manifest(
        format=FORMAT,
        opset=OPSET,
        input=Input(model.size),
        stages=tuple(entries),
        plain=plain,
        stages_int8=(),
        plain_int8=None,
        suppression=_write_suppression(folder),
        monolithic=Graph(**write_graph(Monolith(list(stages.values())), image, every, folder, "monolithic")),
        evidence=raw_columns(len(model.classes)),
        postprocess=POSTPROCESS,
        categories=_categories(model, state, source),
        router=router,
        checkpoint_sha256=file_sha256(path),
        int8=None,
        config=state.get("config"),
        versions=versions(),
    )


def _categories(model: EarlyExitSSDLite, state: dict, source: Source | None) -> tuple[Category, ...]:
    if source is not None:
        return tuple(Category(**row) for row in Source(source.files, model.classes).category_rows())
    data = (state.get("config") or {}).get("data", {})
    of_showroom = data.get("root") == DataConfig().root and not data.get("files")
    ids = SHOWROOM_IDS if of_showroom and set(model.classes) <= SHOWROOM_IDS.keys() else {}
    return tuple(Category(ids.get(name, label), name) for label, name in enumerate(model.classes, 1))


def write_graph(module: nn.Module, example: Tensor, outputs: Sequence[str], folder: Path, name: str) -> dict:
    """Export a module with a dynamic batch; returns ``file``, ``sha256`` and ``outputs`` of its entry.

    The file's name carries its hash, so that it never replaces a graph which an earlier manifest lists.
    """
    path, content = folder / f"{name}.onnx", io.BytesIO()  # torch refuses a path that is not UTF-8
    names = ["features", *outputs]
    with warnings.catch_warnings():
        # torch's newer exporter gives a graph of the same speed, in 8 s a stage instead of 0.4 s,
        # and with one dependency more.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval().requires_grad_(False), (example,), content, dynamo=False, opset_version=OPSET,
            input_names=names[:1], output_names=names[1:], dynamic_axes={key: {0: "batch"} for key in names},
        )  # fmt: skip
    path.write_bytes(content.getvalue())
    return named_by_hash(path, outputs)


def named_by_hash(path: Path, outputs: Sequence[str]) -> dict:
    """Rename a graph after its hash; what its entry of the manifest says."""
    digest = file_sha256(path)
    target = path.rename(path.with_name(f"{path.stem}-{digest[:8]}.onnx"))
    return {"file": target.name, "sha256": digest, "outputs": tuple(outputs)}


def _write_suppression(folder: Path) -> Graph:
    """A graph that holds one NonMaxSuppression: candidates (1, N, 4), best first, to indices kept."""
    # the operator's corners may come in either order, so x first is as good as y first
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        suppression (float[1, candidates, 4] boxes, float[1, 1, candidates] scores) => (int64[detections, 3] kept)
        <int64[1] most = {{ {POSTPROCESS.topk} }}, float[1] iou = {{ {POSTPROCESS.nms_threshold} }}>
        {{ kept = NonMaxSuppression(boxes, scores, most, iou) }}
    """)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "suppression.onnx")
    return Graph(**named_by_hash(folder / "suppression.onnx", ["kept"]))


@contextlib.contextmanager
def new_graphs(out: Path) -> Iterator[Path]:
    """A folder for graphs that :func:`install` moves to ``out``: inside it, so that moving is renaming.

    One export at a time builds there, and takes away what a killed one left.

    Raises:
        BlockingIOError: another process exports to ``out``.
    """
    try:
        with locked(out / ".new.partial") as folder:
            try:
                for path in folder.iterdir():
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path.name != ".lock":
                        path.unlink()
                yield folder
            finally:
                shutil.rmtree(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()  # if there is nothing else in it
        raise


def install(folder: Path, out: Path) -> Manifest:
    """Move new graphs to an export's folder, then their manifest, then drop the graphs of earlier or killed exports."""
    new = read_manifest(folder)
    for path in (*folder.glob("*.onnx"), folder / MANIFEST):
        path.replace(out / path.name)
    for path in out.glob("*-????????.onnx"):
        if path.name not in new.files and file_sha256(path).startswith(path.stem[-8:]):  # named as we name them
            path.unlink()
    return new
