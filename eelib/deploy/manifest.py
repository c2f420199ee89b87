"""The manifest of an export: what its files are, what they compute, and where images leave. numpy alone."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from eelib.deploy.evidence import OF_BOXES
from eelib.deploy.router import Router, from_plain, to_plain
from eelib.files import InputError, read_json, shorten, write_json

MANIFEST = "manifest.json"
FORMAT = 2


class DeploymentError(InputError):
    """An export folder, an image or a rule is not what it should be; the message names it."""


@dataclass(frozen=True)
class Graph:
    """An ONNX file of the folder, and the names of its outputs."""

    file: str
    sha256: str
    outputs: tuple[str, ...]

    def __post_init__(self):
        if Path(self.file).name != self.file or self.file in ("", "."):
            raise DeploymentError(f"file is {shorten(self.file)}; expected the name of a file in the export's folder")


@dataclass(frozen=True)
class Stage(Graph):
    """The graph from the stage before to an exit, or to a blank gate, ``blank1`` or ``blank2``."""

    exit: str

    @property
    def gate(self) -> bool:
        """Whether it answers with the probability that an image holds an object, in place of boxes."""
        return self.outputs[:1] == ("holds_object",)


@dataclass(frozen=True)
class Input:
    """What the first stage reads: (batch, channels, size, size)."""

    size: int
    channels: str = "RGB"
    dtype: str = "float32"
    range: tuple[float, ...] = (0.0, 1.0)


@dataclass(frozen=True)
class Postprocess:
    """Scores at or below the threshold are dropped; ``topk`` boxes enter the suppression of overlaps."""

    score_threshold: float
    nms_threshold: float
    topk: int

    def __post_init__(self):
        if not (0 <= self.score_threshold <= 1 and 0 <= self.nms_threshold <= 1 and 1 <= self.topk <= 10_000):
            raise DeploymentError("postprocess: expected thresholds from 0 to 1, and a topk from 1 to 10000")


@dataclass(frozen=True)
class Category:
    """A class: its id in COCO results, and its name. They stand in the order of the labels from 1."""

    id: int
    name: str


@dataclass(frozen=True)
class Manifest:
    """What an export holds.

    Attributes:
        format, opset: of this file and of the graphs.
        stages: in the order in which they run; ``stages_int8`` likewise, empty where nothing was quantised.
        plain: the last exit alone, without what it passes; ``plain_int8`` likewise.
        suppression: of overlapping boxes.
        monolithic: every exit in one graph, to measure the stages against.
        evidence: columns of the output ``evidence`` of the early exits.
        router: that images obey; None is the full path.
        int8: how the stages were quantised.
        config: of the checkpoint's training, where it states one.
    """

    format: int
    opset: int
    input: Input
    stages: tuple[Stage, ...]
    plain: Stage
    stages_int8: tuple[Stage, ...]
    plain_int8: Stage | None
    suppression: Graph
    monolithic: Graph
    evidence: tuple[str, ...]
    postprocess: Postprocess
    categories: tuple[Category, ...]
    router: Router | None
    checkpoint_sha256: str
    int8: object
    config: object
    versions: dict[str, str]

    def __post_init__(self):
        if not self.stages or self.stages[-1].gate or not self.categories or not 1 <= self.input.size <= 4096:
            raise DeploymentError("stages: expected stages that end in an exit, categories, and a size from 1 to 4096")
        names, gates = [stage.exit for stage in self.stages], sum(stage.gate for stage in self.stages)
        named = [stage.exit for stage in self.stages if stage.gate] == [f"blank{k + 1}" for k in range(gates)]
        if len(set(names)) < len(names) or not named:
            raise DeploymentError(f"stages: of {shorten(names)}; expected different exits, and gates blank1, blank2")
        if self.stages_int8 and [stage.exit for stage in self.stages_int8] != names:
            raise DeploymentError("stages_int8: expected none, or the exits of stages")
        for plain in (self.plain, *([self.plain_int8] if self.plain_int8 else ())):
            if plain.exit != names[-1] or plain.outputs[:2] != ("scores", "boxes"):
                raise DeploymentError(f"plain: is {shorten(plain.exit)}; expected scores and boxes of {names[-1]}")
        if bool(self.stages_int8) != bool(self.plain_int8):
            raise DeploymentError("plain_int8: expected where there are stages_int8, and only there")
        for stage in (*self.stages, *self.stages_int8):
            last = stage.exit == self.exits[-1]
            needed = ("holds_object",) if stage.gate else ("scores", "boxes") + ("evidence",) * (not last)
            if stage.outputs[: len(needed)] != needed:
                raise DeploymentError(f"stages: outputs of {stage.exit} are {stage.outputs}; expected first {needed}")
        if self.router:
            self.check_router(self.router)

    @property
    def exits(self) -> tuple[str, ...]:
        """Names of the exits in the order in which they run."""
        return tuple(stage.exit for stage in self.stages if not stage.gate)

    @property
    def gates(self) -> tuple[int, ...]:
        """For each blank gate the number of exits before it."""
        places = [k for k, stage in enumerate(self.stages) if stage.gate]
        return tuple(place - position for position, place in enumerate(places))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all the evidence that the detector has."""
        return (*self.evidence, *OF_BOXES, *(f"blank{k + 1}" for k in range(len(self.gates))))

    @property
    def files(self) -> set[str]:
        """Names of all graphs."""
        graphs = (*self.stages, self.plain, *self.stages_int8, self.plain_int8, self.suppression, self.monolithic)
        return {graph.file for graph in graphs if graph}

    def check_router(self, router: Router) -> None:
        """:class:`DeploymentError` unless a router is of this detector."""
        unknown = [name for name in router.confidence.evidence if name not in self.columns]
        places = tuple(gate.before for gate in router.gates)
        for what, theirs, ours in (
            ("checkpoint", router.checkpoint_sha256[:12], self.checkpoint_sha256[:12]),
            ("input size", router.size, self.input.size),
            ("exits", ", ".join(router.exits), ", ".join(self.exits)),
            ("blank gates", places, self.gates if places else ()),
            ("evidence", ", ".join(unknown), ""),
        ):
            if theirs != ours:
                here = ours or ", ".join(self.columns)
                raise DeploymentError(f"router: is of another {what}, {theirs}; this detector has {here}: route again")

    def write(self, folder: Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_json(folder / MANIFEST, to_plain(self))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an export folder.

    Raises:
        DeploymentError: no folder, no manifest, no JSON, another format, or a key that is missing or wrong.
    """
    path = folder / MANIFEST
    try:
        values = read_json(path, DeploymentError)
    except FileNotFoundError:
        raise DeploymentError(f"{path}: no such manifest; write one with `eelib export --out {folder}`") from None
    if values.get("format") != FORMAT:
        version = shorten(values.get("format"))
        raise DeploymentError(f"{path}: format is {version}; expected {FORMAT}: export again")
    try:
        return from_plain(Manifest, values, "manifest")
    except InputError as error:
        raise DeploymentError(f"{path}: {error}") from None


def read_graph(folder: Path, graph: Graph) -> bytes:
    """A graph whose SHA-256 is the manifest's.

    Raises:
        DeploymentError: the file is missing, lies outside the folder, or is not the one that was exported.
    """
    path = folder / graph.file
    if path.resolve().parent != folder.resolve():
        raise DeploymentError(f"{path}: is a link out of the folder; expected a file in it")
    if path.exists() and not path.is_file():  # a pipe or a device has no end
        raise DeploymentError(f"{path}: is no file; expected an ONNX graph")
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DeploymentError(f"{path}: graph {reason}; {folder / MANIFEST} lists it") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != graph.sha256:
        raise DeploymentError(f"{path}: SHA-256 is {digest[:12]}…; {MANIFEST} says {graph.sha256[:12]}…")
    return content
