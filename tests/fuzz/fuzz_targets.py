"""The readers: of each a sound input, how a case spoils it, and the errors that are its own.

This runs in a child process (:mod:`fuzz_worker`); the parent knows the names in ``fuzz_names`` alone.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from fuzz_cases import Case, Special, build, damaged, deepened, edited
from PIL import Image, PngImagePlugin
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detectors import DETECTORS, random_detector, room, saved, write_rooms

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import ROOT, load_config, read_yaml, saved_config
from eelib.files import LONGEST, InputError, file_sha256

HASH = "a" * 64
TARGETS: dict[str, "Target"] = {}


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: writes a case's input into a folder and reads it.
        errors: that it may raise.
        names: what their message must hold, the input's name.
    """

    read: Callable[[Case, Path], object]
    errors: tuple[type[Exception], ...] = (InputError,)
    names: str = ""


def target(name: str, names: str, *errors: type[Exception]):
    """Enter a function as a target."""

    def enter(read: Callable[[Case, Path], object]) -> Callable[[Case, Path], object]:
        TARGETS[name] = Target(read, errors or (InputError,), names)
        return read

    return enter


@functools.cache
def home() -> Path:
    """A folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory()
    home.keep = folder  # removed at the exit
    return Path(folder.name)


@functools.cache
def rooms() -> Path:
    """Four images a split."""
    return write_rooms(home() / "rooms", 4)


@functools.cache
def checkpoint() -> Path:
    """A small random detector with blank gates."""
    return saved(random_detector(**DETECTORS["gates"]), home() / "gates.pth")


@functools.cache
def export_folder() -> Path:
    """Its export, with a router."""
    from eelib.deploy.export import export

    export(checkpoint(), home() / "export", router=routers()[0], gates=True)
    return home() / "export"


@functools.cache
def routers() -> list:
    """A router of each kind, for the detector."""
    from eelib.deploy.evidence import Benefit, Column, Isotonic, Platt, Raw, Regressor
    from eelib.deploy.router import Budget, Gate, Guarantee, Router, Times

    features = [2 * 2 * (index + 1) for index in range(2)]
    regressors = tuple(Regressor((0.0,) * n, (1.0,) * n, (0.1,) * n, 0.2) for n in features)
    promise = Guarantee("f1", 0.05, 0.1, 100, "betting", 0.01, (0.3, 0.3, 0.3), 0.02)
    objects = Guarantee("objects", 0.05, 0.1, 100, "betting", 0.01, (), 0.02)
    times = Times((0.4, 0.6, 1.1), (0.0, 0.1, 0.1), (0.2, 0.3), "session", {"cpu": "any"})
    common = {
        "exits": ("exit1", "exit2", "full"), "thresholds": (0.5, 0.6), "times": times, "size": 96,
        "calibrators": (Raw(), Platt(1.1, 0.1), Isotonic((0.0, 0.5, 1.0), (0.0, 0.4, 1.0))),
        "gates": (Gate(0, 0.1), Gate(0, 0.2)), "checkpoint_sha256": file_sha256(checkpoint()),
        "data_sha256": {"val": HASH, "calibrate": HASH},
    }  # fmt: skip
    kinds = (
        (Column("top_score"), Budget(0.7, 0.68), objects),
        (Benefit(("top_score", "count_30"), regressors, 0.0, 0.1), promise, None),
        (Column("blank1", "complement"), None, None),
    )
    return [Router(confidence=c, promise=p, gates_promise=g, **common) for c, p, g in kinds]


def as_json(base: object, case: Case) -> bytes:
    """Plain data with edits as JSON, then damaged."""
    return damaged(deepened(json.dumps(edited(base, case))).encode(), case)


# ---- parameter files


@functools.cache
def parameters(*names: str) -> list[dict]:
    """Whole parameter files."""
    return [read_yaml(ROOT / "params" / f"{name}.yaml") for name in names]


def write_yaml(base: dict, case: Case, folder: Path) -> Path:
    """A parameter file of a case."""
    content = deepened(yaml.safe_dump(edited(base, case), sort_keys=False))
    (folder / "case.yaml").write_bytes(damaged(content.encode(errors="replace"), case))
    return folder / "case.yaml"


@target("parameter file", "case.yaml")
def _(case: Case, folder: Path) -> object:
    bases = parameters("exits_256", "coco", "baseline")
    return load_config(write_yaml(bases[case.choice % 3], case, folder))


@target("phase parameters", "case.yaml")
def _(case: Case, folder: Path) -> object:
    from studies.phases.config import load

    bases = parameters("phase_1_1", "phase_1_4", "phase_1_9")
    return load(write_yaml(bases[case.choice % 3], case, folder))


@target("study parameters", "case.yaml")
def _(case: Case, folder: Path) -> object:
    from studies import learning_curve
    from studies.compress import plane, search
    from studies.parameters import load_study

    base = parameters("plane", "search", "learning_curve")[case.choice % 3]
    path = write_yaml(base, case, folder)
    if case.choice % 3 == 0:
        return plane.load(path)
    return load_study(path, *(("search", search.Space), ("curve", learning_curve.Curve))[case.choice % 3 - 1])


# ---- data


@functools.cache
def annotations() -> dict:
    """A COCO file with polygons and run lengths."""
    content = json.loads((rooms() / "train.json").read_text())
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content["annotations"][0]["segmentation"] = {"size": [96, 96], "counts": [100, 200, 96 * 96 - 300]}
    lengths = {"size": [96, 96], "counts": [5000, 200, 96 * 96 - 5200]}
    text = coco_mask.frPyObjects(lengths, 96, 96)["counts"].decode()
    content["annotations"][1]["segmentation"] = lengths | {"counts": text}
    return content


@target("annotations", "case.json")
def _(case: Case, folder: Path) -> object:
    from eelib import coco
    from eelib.data import DetectionDataset

    path, images = folder / "case.json", rooms() / "train"
    path.write_bytes(as_json(annotations(), case))
    category = (None, "chair", ["chair", "stool"])[case.choice % 3]
    coco.inspect(path, category, images)  # lists what is wrong, and never refuses
    source = coco.Source(dict.fromkeys(("train", "val", "calibrate", "test"), (path, images)), category)
    with contextlib.suppress(coco.DataError):
        json.dumps(coco.cleaned(path, category, images), allow_nan=False)
    found = coco.read_coco(path, category, images, segmentations=True)
    with contextlib.suppress(coco.DataError):  # an image that is missing is not this file's fault
        dataset = DetectionDataset("test", source, 96, keep_crowd=True)
        assert all(target["boxes"].isfinite().all() for _, target in (dataset[i] for i in range(len(dataset))))
    for row in found.content["annotations"]:
        _mask_of(row.get("segmentation"), found.content, row["image_id"])
    return found


def _mask_of(shape: object, content: dict, image_id: int) -> None:
    from pycocotools.coco import COCO

    image = next(image for image in content["images"] if image["id"] == image_id)
    size = image["height"], image["width"]
    if shape is not None and np.prod(size) < 10**7:
        coco = COCO()
        coco.imgs = {image_id: image}
        mask = coco.annToMask({"image_id": image_id, "segmentation": shape})
        assert mask.shape == size and mask.dtype == np.uint8 and mask.max(initial=0) <= 1


SHAPES = (
    [[10, 10, 50, 10, 50, 40, 10, 40]], [[1.5, 2.5, 9.5, 2.5, 9.5, 20.5], [30, 30, 60, 30, 45, 44]],
    {"size": [48, 64], "counts": [1000, 200, 1872]}, {"size": [48, 64], "counts": "Xo1P1"},
    {"size": [48, 64], "counts": "Wja1"},
)  # fmt: skip


@target("segmentation", "", ValueError)
def _(case: Case, folder: Path) -> object:
    from eelib import segmentation

    raw = as_json(SHAPES[case.choice % len(SHAPES)], case)
    shape = segmentation.read(raw, (48, 64))
    return _mask_of(shape, {"images": [{"id": 1, "height": 48, "width": 64}]}, 1)


@target("image ids", "")
def _(case: Case, folder: Path) -> object:
    from eelib.deploy.inputs import find

    shutil.copytree(rooms() / "test", folder / "test")
    content = json.loads((rooms() / "test.json").read_text())
    (folder / "test.json").write_bytes(as_json(content, case))
    found = find([str(folder / "test")])
    ids = [picture.image_id for picture in found.pictures]
    assert len(ids) == 4 == len(set(ids)) and all(-(2**63) <= number < 2**63 for number in ids), ids
    return found


# ---- images

MODES = (
    ("RGB", "PNG"), ("L", "PNG"), ("I;16", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"),
    ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "TIFF"), ("F", "TIFF"), ("I", "TIFF"), ("I;16", "TIFF"),
    ("RGB", "BMP"), ("P", "GIF"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "PPM"), ("L", "PPM"), ("RGB", "ICO"),
    ("RGB", "TGA"), ("L", "PCX"), ("RGB", "JPEG2000"), ("RGB", "DDS"), ("RGB", "SGI"), ("RGB", "AVIF"),
)  # fmt: skip


@functools.cache
def pictures() -> list[bytes]:
    """A sound file of each mode and format, and files whose parts unpack to more than they should."""
    base, files = Image.fromarray(room(1)[0]).resize((48, 40)), []
    for mode, kind in MODES:
        file = io.BytesIO()
        grey = np.asarray(base.convert("L"))
        image = {"I;16": grey.astype(np.uint16) * 257, "F": grey / np.float32(255), "I": grey.astype(np.int32) * 9}
        made = Image.fromarray(image[mode]) if mode in image else base.convert(mode)
        exif = made.getexif()
        exif[0x0112] = 6
        made.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        files.append(file.getvalue())
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 2**21, zip=True)
    for options in ({"pnginfo": text}, {"icc_profile": bytes(2**21)}):
        file = io.BytesIO()
        base.save(file, "PNG", **options)
        files.append(file.getvalue())
    return files


def png_of_size(content: bytes, width: int, height: int) -> bytes:
    """A PNG that states another size, with the right checksum."""
    head = struct.pack(">II", width, height) + content[24:29]
    return content[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + content[33:]


@target("image", "case.img")
def _(case: Case, folder: Path) -> object:
    from eelib.preprocess import read_image, read_sizes, to_input

    files, path = pictures(), folder / "case.img"
    content = files[case.choice % len(files)]
    if case.choice >= 300 and content[:4] == b"\x89PNG":
        sides = (0, 1, 9_000, 60_000, 2**31 - 1)
        content = png_of_size(content, sides[case.choice % 5], sides[case.choice // 5 % 5])
    path.write_bytes(damaged(content, case))
    image = read_image(path)
    assert image.mode == "RGB" and read_sizes(path)[0] == image.size
    pixels = to_input(image, 96)
    assert pixels.shape == (3, 96, 96) and pixels.min() >= 0 and pixels.max() <= 1
    return image


@functools.cache
def video() -> bytes:
    """Four frames."""
    import av

    path = home() / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(room(number)[0], format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path.read_bytes()


@target("video", "case.mp4")
def _(case: Case, folder: Path) -> object:
    from eelib.deploy.video import Video

    (folder / "case.mp4").write_bytes(damaged(video(), case))
    with Video(folder / "case.mp4") as opened:
        for number, (image, _) in enumerate(opened):
            assert image.mode == "RGB"
            if number > 100:
                break


# ---- weights


class Odd:
    """An object that no checkpoint may hold."""


def tensor_of(value: Special) -> object:
    """A tensor, an array or an object that a pickle may hold."""
    kind, number = value
    if kind == "array":
        return np.zeros((number, 3), (np.float32, np.int64, np.float64, "U3", bool)[number % 5])
    if kind == "object":
        return (Odd(), print, {1, 2}, b"bytes", (1, (2,)), torch.float16, Path("x"), 1j)[number % 8]
    makers = (
        lambda: torch.zeros(3), lambda: torch.zeros(0), lambda: torch.tensor(1.0), lambda: torch.full((16,), torch.nan),
        lambda: torch.ones(16, 16, 3, 3).to_sparse(), lambda: torch.ones(16, device="meta"),
        lambda: torch.zeros(16, dtype=torch.complex64), lambda: torch.zeros(16, dtype=torch.bool),
        lambda: torch.full((16,), torch.inf), lambda: torch.zeros(1).expand(2**20, 2**20),
        lambda: torch.quantize_per_tensor(torch.ones(16), 0.1, 0, torch.qint8), lambda: torch.zeros(16, 3, 3, 3).half(),
        lambda: torch.zeros(2, 2, 2, 2, 2, 2), lambda: torch.nn.Parameter(torch.zeros(16)),
        lambda: torch.zeros(1000, 1000, 0, 0), lambda: torch.zeros(16, 3, 3, 3, dtype=torch.int64),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return makers[number % len(makers)]()


@functools.cache
def states() -> list[dict]:
    """Checkpoints: of a detector without exits, as small as it gets, and of one with gates; with a configuration."""
    config = load_config(ROOT / "params" / "exits_256.yaml").model_dump(mode="json")
    about = {"config": config, "history": [{"epoch": 1, "loss": 0.5, "full_AP": 0.1}], "epoch": 1}
    plain = random_detector(cuts=(5,), full=False)
    return [{"model": model.state_dict(), "plan": model.plan, **about} for model in (plain, random_detector())]


def write_checkpoint(base: dict, case: Case, folder: Path) -> Path:
    """A checkpoint of a case."""
    path, state, content = folder / "case.pth", edited(base, case, tensor_of), io.BytesIO()
    try:
        torch.save(state, content, _use_new_zipfile_serialization=case.choice % 7 != 0)
    except Exception:  # what cannot be written need not be read
        torch.save({"model": []}, content)
    path.write_bytes(damaged(content.getvalue(), case))
    return path


@target("checkpoint", "case.pth")
def _(case: Case, folder: Path) -> object:
    path = write_checkpoint(states()[case.choice % 10 == 0], case, folder)
    model = load_released(path)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, model.size, model.size))
    return saved_config(load_checkpoint(path), path)


@functools.cache
def trainer():
    """A training of a small model, for its last.pth."""
    from eelib.config import OptimConfig
    from eelib.fit import Trainer

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optim = OptimConfig(epochs=3, batch_size=2, warmup_steps=0, accelerator="cpu", eval_every=1)

    def step(model: torch.nn.Module, batch: torch.Tensor, _: float) -> tuple[torch.Tensor, dict]:
        loss = model(batch).square().mean()
        return loss, {"loss": loss.detach()}

    made = Trainer(model, step, optim)
    made.folder = home() / "run"
    fit_once(made, made.folder, 1)
    made.state_of = load_checkpoint(made.folder / "last.pth")
    return made


def fit_once(made, folder: Path, epochs: int, resume: bool = False) -> object:
    """Train it, on what it has."""
    from eelib.fit import fit

    made.optim = made.optim.model_copy(update={"epochs": epochs})
    batches = lambda epoch: [torch.ones(2, 2)]  # noqa: E731
    score = lambda model, epoch: {"full_AP": 0.1}  # noqa: E731
    return fit(made, batches, folder, identity={"a": 1}, resume=resume, evaluate=score, log=lambda line: None)


@target("manifest of releases", "manifest.json")
def _(case: Case, folder: Path) -> object:
    from eelib.hub import path_of, read_manifest

    shutil.copytree(released(), folder / "checkpoints")
    manifest = folder / "checkpoints" / "manifest.json"
    manifest.write_bytes(as_json(json.loads(manifest.read_text()), case))
    with contextlib.chdir(folder):
        read_manifest(folder / "checkpoints")
        return path_of("one"), path_of(folder / "checkpoints" / "two.pth")


@functools.cache
def released() -> Path:
    """A folder of released weights, which are any bytes here, and its manifest."""
    folder = home() / "checkpoints"
    folder.mkdir()
    entries, real = {}, json.loads((ROOT / "checkpoints" / "manifest.json").read_text())
    for name, entry in zip(("one.pth", "two.pth"), real.values(), strict=False):
        (folder / name).write_text(name)
        entries[name] = entry | {"sha256": file_sha256(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(entries))
    return folder


# ---- exports


@functools.cache
def manifest() -> dict:
    """Of the export."""
    return json.loads((export_folder() / "manifest.json").read_text())


@target("export manifest", "manifest.json")
def _(case: Case, folder: Path) -> object:
    from eelib.deploy.manifest import read_manifest

    router = routers()[case.choice % 3].to_dict()
    router.pop("format")
    (folder / "manifest.json").write_bytes(as_json(manifest() | {"router": router}, case))
    return read_manifest(folder)


@target("export folder", "")
def _(case: Case, folder: Path) -> object:
    """A session opens what it is given, and detects: graphs that are spoilt have the hash that the manifest states."""
    from eelib.deploy.runtime import Session

    content = edited(manifest(), case)
    spoilt = graphs_of(content)[case.choice % 4 :][:1] if not case.edits else []
    for path in export_folder().glob("*.onnx"):
        (folder / path.name).symlink_to(path)
    names = {path.name for path in export_folder().iterdir()}
    for entry in spoilt:
        path = folder / entry["file"]
        graph = spoilt_graph(path.read_bytes(), case)
        path.unlink()
        path.write_bytes(graph)
        entry["sha256"] = file_sha256(path)
    for path in folder.glob("*.onnx"):
        if path.is_symlink():
            source = path.resolve()
            path.unlink()
            path.hardlink_to(source)
    (folder / "manifest.json").write_text(deepened(json.dumps(content)))
    session = Session(folder)
    images = [room(1)[0], room(2)[0]]
    for rule in (None, session.at_exit(session.exits[0]), session.at_exit(session.exits[-1])):
        for found in session.detect(images, rule=rule, min_score=0.3):
            assert np.isfinite(found.boxes_xyxy).all() and ((found.scores >= 0) & (found.scores <= 1)).all()
            assert all(found.classes[label - 1] for label in found.labels)
    return names


def graphs_of(content: object) -> list[dict]:
    """Entries of a manifest that name a file that is there."""
    entries = [*content["stages"], content["plain"], content["suppression"]]
    return [entry for entry in entries if (export_folder() / entry["file"]).is_file()]


def spoilt_graph(content: bytes, case: Case) -> bytes:
    """A graph of a case: bytes that are damaged, or a sound graph that computes something else."""
    import onnx
    from onnx import numpy_helper

    if case.choice % 2:
        return damaged(content, case)
    model = onnx.load_from_string(content)
    graph = model.graph
    for damage in case.damages:
        node = graph.node[int(damage.place * (len(graph.node) - 1))]
        weight = graph.initializer[int(damage.place * (len(graph.initializer) - 1))] if graph.initializer else None
        match damage.data[0] % 8:
            case 0:
                node.op_type = ("Relu", "Loop", "If", "None", "Reshape", "Softmax", "Shape")[damage.data[-1] % 7]
            case 1 if weight is not None:
                values = np.array(numpy_helper.to_array(weight))
                values.flat[: 1 + damage.data[-1]] = np.nan if values.dtype.kind == "f" else 2**31 - 1
                weight.CopyFrom(numpy_helper.from_array(values, weight.name))
            case 2 if weight is not None and weight.dims:
                weight.dims[0] = 2**20 * damage.data[-1]
            case 3:
                del graph.output[:1]
            case 4:
                node.input[:] = list(node.input)[::-1]
            case 5:
                graph.input[0].type.tensor_type.elem_type = damage.data[-1] % 17
            case 6:
                graph.output.reverse()
            case 7:
                graph.output[0].name = graph.node[0].output[0]
    return model.SerializeToString()


@target("router", "case.json")
def _(case: Case, folder: Path) -> object:
    from eelib.deploy.router import Router

    path = folder / "case.json"
    path.write_bytes(as_json(routers()[case.choice % 3].to_dict(), case))
    router = Router.load(path)
    assert len(path.read_bytes()) < 10**7
    rng, columns = np.random.default_rng(0), len(router.confidence.evidence)
    evidence = rng.random((20, len(router.exits), columns)) * 3
    holds = rng.random((20, len(router.gates)))
    with np.errstate(all="ignore"):  # numbers near the largest: not finite, and refused where they are used
        with contextlib.suppress(InputError, IndexError):
            router.route(evidence, holds)
        for calibrator in router.calibrators:
            scores = calibrator(rng.random(9))
            assert scores.shape == (9,)
    router.describe()
    return Router.from_dict(router.to_dict())


# ---- records, metrics and notebooks


def array_of(value: object) -> object:
    """What an archive of arrays holds for a drawn value."""
    if isinstance(value, Special):
        shape = (value.number % 7, *([3] * (value.number % 3)))
        kinds = (np.float32, np.int64, np.uint16, bool, "U4", np.float64, np.complex64, "S3")
        return np.full(shape, value.number % 5, kinds[value.number % 8])
    return value


@functools.cache
def archives() -> tuple[dict, dict]:
    """Arrays of exit records, and of match flags, as lists."""
    from synthetic import noisy

    from eelib.records import save_records
    from eelib.routed_ap import RoutedAP

    coco, made = noisy(6)
    save_records(made, home() / "records.npz")
    RoutedAP(made, coco).save(home() / "flags.npz", "data", "weights")
    loaded = (np.load(home() / f"{name}.npz") for name in ("records", "flags"))
    return tuple({key: values[key] for key in values} for values in loaded)


def write_archive(base: dict, case: Case, folder: Path) -> Path:
    """An archive of a case: an edit is of a whole array, or of some of its values."""
    arrays = dict(base)
    for edit in case.edits:
        key = list(arrays)[edit.route[0] % len(arrays)] if arrays else "a"
        try:
            values = np.array(array_of(edit.value))
            if edit.op == "delete":
                arrays.pop(key, None)
            elif edit.op in ("swap", "repeat"):
                arrays[key] = np.roll(arrays[key], edit.route[-1]) if edit.op == "swap" else np.tile(arrays[key], 2)
            elif edit.op == "rename":
                changed = np.array(arrays[key])
                changed.reshape(-1)[edit.route[-1] % max(1, changed.size) :][:1] = values.reshape(-1)[:1]
                arrays[key] = changed
            else:
                arrays[key] = values
        except (ValueError, TypeError, OverflowError, KeyError, RecursionError):
            arrays[key] = np.zeros(3)
    content = io.BytesIO()
    np.savez(content, **arrays)
    content = content.getvalue()
    if case.choice % 10 == 0:  # an archive that unpacks to far more than it holds
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("counts.npy", content[:200] + bytes(2**26))
        content = packed.getvalue()
    (folder / "case.npz").write_bytes(damaged(content, case))
    return folder / "case.npz"


@target("exit records", "case.npz")
def _(case: Case, folder: Path) -> object:
    from eelib.records import load_records

    records = load_records(write_archive(archives()[0], case, folder), "data", "weights")
    for index in range(len(records.exit_names)):
        for row in range(len(records)):
            assert np.isfinite(records.detections(index, row).boxes_xyxy).all()
    return records.rows([0]).gates


@target("match flags", "case.npz")
def _(case: Case, folder: Path) -> object:
    from eelib.routed_ap import RoutedAP

    flags = RoutedAP.load(write_archive(archives()[1], case, folder), "data", "weights")
    ap = flags.per_iou(np.zeros(flags.images, int))
    assert ap.shape == (10,) and ((ap == -1) | ((ap >= 0) & (ap <= 1 + 1e-9))).all()
    return ap


@target("times", "case.json")
def _(case: Case, folder: Path) -> object:
    from eelib.routers import read_times

    exits = {name: {"ratio": ratio, "passed_ratio": 0.1} for name, ratio in (("exit1", 0.5), ("full", 1.0))}
    path = folder / "case.json"
    path.write_bytes(as_json({"checkpoint_sha256": file_sha256(checkpoint()), "exits": exits}, case))
    times = read_times(path, ("exit1", "full"), checkpoint())
    assert np.isfinite([*times.exits, *times.passing]).all()
    return times


@target("metrics", "case.json")
def _(case: Case, folder: Path) -> object:
    from studies.metrics import read_metrics

    path = folder / "case.json"
    path.write_bytes(as_json({"a": {"b": [1, {"c": 2.5}]}, "exits": {"full": {"AP": 0.4}}}, case))
    return read_metrics(path)


@target("summary of a phase", "final_summary_phase1_4.json")
def _(case: Case, folder: Path) -> object:
    from studies.phases.config import load
    from studies.phases.scorecard import validate

    at_score = {"score": 0.5, "precision": 0.1, "recall": 0.2, "detections_per_image": 3.0}
    path = folder / "final_summary_phase1_4.json"
    path.write_bytes(as_json({"AP": 0.2, "AP50": 0.3, "at_score": at_score}, case))
    answer = validate(load(ROOT / "params" / "phase_1_4.yaml"), folder, compute=False)
    return "{AP:.3f} {AP50:.3f} {precision:.3f} {recall:.3f} {detections_per_image:.1f} {score}".format(**answer)


@target("notebook", "case.ipynb")
def _(case: Case, folder: Path) -> object:
    from studies.batch import check_parameters

    names = ("05_routing", "05f_blank", "02_anchor_matching")
    base = json.loads((ROOT / "notebooks" / f"{names[case.choice % 3]}.ipynb").read_text())
    base["cells"] = base["cells"][:6]
    path = folder / "case.ipynb"
    path.write_bytes(as_json(base, case))
    return check_parameters(path, None, {})


@target("graph of TensorFlow.js", "")  # a file of weights that is missing is named itself
def _(case: Case, folder: Path) -> object:
    from studies.widen import read_graph

    weights = [{"name": f"w{k}", "shape": [2, 3], "dtype": "float32"} for k in range(2)]
    weights.append({"name": "q", "shape": [4], "dtype": "float32"})
    weights[2]["quantization"] = {"dtype": "uint8", "scale": 0.1, "min": -1.0}
    base = {"weightsManifest": [{"paths": ["case.bin"], "weights": weights}]}
    (folder / "case.bin").write_bytes(bytes(64))
    (folder / "case.json").write_bytes(as_json(base, case))
    return read_graph(folder / "case.json")


# ---- the run that goes on


@target("last.pth", "")
def _(case: Case, folder: Path) -> object:
    made = trainer()
    if case.choice % 3:
        write_checkpoint(made.state_of, case, folder).rename(folder / "last.pth")
        shutil.copy(made.folder / "best.pth", folder)
    else:
        write_checkpoint(load_checkpoint(made.folder / "best.pth"), case, folder).rename(folder / "best.pth")
        shutil.copy(made.folder / "last.pth", folder)
    return fit_once(made, folder, 1 + case.choice % 2, resume=True)


# ---- the command line


class Refused(InputError):
    """What the command line said."""


NUMBERS = {
    "detect": ("--threads", "--min-score", "--draw-score", "--batch", "--exit", "--runtime"),
    "route": ("--budget", "--thresholds", "--grid", "--limit", "--gates", "--resamples", "--calibration", "--policy"),
    "certify": ("--epsilon", "--delta", "--bound", "--limit", "--calibrate-on"),
    "evaluate": ("--limit", "--data", "--images", "--category"),
    "check": ("--images", "--set"),
    "train": ("--set", "--data"),
    "export": ("--router", "--out", "--data"),
    "data check": ("--data", "--images", "--fix"),
    "study run": ("--limit", "--set", "--params"),
    "study plane": ("--set", "--reports"),
    "study search": ("--set",),
    "study prune": ("--width", "--images"),
    "phases preflight": ("--images",),
    "phases validate": ("--score",),
    "phases ablate": ("--part",),
    "phases train": ("--set",),
}
# What each is given, so that a command whose options are all well ends at a file that is not there.
GIVEN = {
    "detect": ["none.jpg"], "route": ["none.pth"], "certify": ["none.pth"], "evaluate": ["none.pth"],
    "check": [str(ROOT / "params/coco.yaml"), "--set", "model.start=none.pth"],
    "train": [str(ROOT / "params/coco.yaml"), "--out", "run", "--set", "model.start=none.pth"],
    "export": ["none.pth", "--out", "x"], "data check": ["--data", "none.json"], "study run": ["none.ipynb"],
    "study plane": [str(ROOT / "params/plane.yaml"), "--set", "systems=0"],
    "study search": [str(ROOT / "params/search.yaml"), "--set", "search=0"],
    "study prune": ["none.pth", "--out", "x"], "phases preflight": ["none.yaml"], "phases validate": ["9.9"],
    "phases ablate": ["none.yaml"],
    "phases train": [str(ROOT / "params/phase_1_4.yaml"), "--set", "model.start=none.pth"],
}  # fmt: skip
KEYS = ("optim.lr", "seed", "optim", "a.b.c", "model.exits", "data.category", "name", "", "optim.epochs.x", "phase")


def as_argument(value: object) -> str:
    """A drawn value as the shell would hand it over."""
    text = value if isinstance(value, str) else deepened(json.dumps(value))
    return text.replace("\0", "").encode(errors="replace").decode()


@target("command line", "")
def _(case: Case, folder: Path) -> object:
    from eelib.cli import main

    command = list(NUMBERS)[case.choice % len(NUMBERS)]
    argv = [*command.split(), *GIVEN[command]]
    for edit in case.edits:
        option = NUMBERS[command][edit.route[0] % len(NUMBERS[command])]
        text = as_argument(build(edit.value))[:100_000]
        if option == "--set":
            key = KEYS[edit.route[-1] % len(KEYS)]
            text = text if edit.op == "delete" else f"{key}={text}"
        argv += [f"{option}={text}"] if edit.op == "rename" else [option, text]
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(argv)
    lines = said.getvalue().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("eelib: "), (status, said.getvalue()[-3000:], argv)
    assert len(lines[0]) <= LONGEST + len("eelib: "), lines[0]
    raise Refused(lines[0].removeprefix("eelib: "))


# What a reader must not do, so that a test can see that it would be seen.
FAULTS = {
    "a crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "a hang": signal.pause,
    "all memory": lambda: bytes(2**40),
    "a fault": lambda: 1 // 0,
}
for fault, act in FAULTS.items():
    target(fault, "")(lambda _case, _folder, act=act: act())
