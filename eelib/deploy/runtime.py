"""Detection from an export folder, one stage at a time, on numpy, onnxruntime and Pillow alone.

torch is never imported here: this is what a deployed detector needs. A stage runs only for the
images that go on; decoding sits in the stage's graph. Suppression sits beside it, in a graph of
its own: inside, images that go on would pay it too, and in numpy it takes four times as long.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from eelib.detections import Detections
from eelib.files import InputError

MANIFEST = "manifest.json"
FORMAT = 1
# Images of one call of a graph: a stage's activations then stay in the cache. Measured on one
# thread, an image costs a sixth more at exit1 in one call of 32 than in calls of 1 to 4.
CHUNK = 4


class DeploymentError(InputError):
    """An export folder, an image or a policy is not what it should be; the message names it."""


class Evidence(dict):
    """What a policy sees of one image at one exit: ``exit`` (name), ``max_score``, ``count``."""

    def __missing__(self, key: str) -> float:
        raise DeploymentError(f"policy needs the evidence '{key}'; this export gives {', '.join(self)}")


# True sends the image on to the next exit.
Policy = Callable[[Evidence], bool]


def fixed(thresholds: Mapping[str, float], evidence: str = "max_score") -> Policy:
    """Leave at the first exit whose evidence reaches its threshold.

    Args:
        thresholds: exit name to threshold; an exit without one is passed by.
        evidence: key of :class:`Evidence`.
    """

    def goes_on(seen: Evidence) -> bool:
        return seen[evidence] < thresholds.get(seen["exit"], float("inf"))

    return goes_on


def forced(exit_name: str) -> Policy:
    """Every image leaves at one exit."""
    return lambda seen: seen["exit"] != exit_name


class EarlyExitSession:
    """A detector with early exits, loaded from a folder that ``eelib export`` wrote.

    Args:
        path: the folder of ``manifest.json`` and the graphs.
        threads: of onnxruntime inside an operator, at least 1.
        stages: key of the manifest that lists the graphs, ``"stages"`` or ``"stages_int8"``.

    Raises:
        DeploymentError: no manifest or one of another format, a missing graph, or a graph
            whose SHA-256 is not the manifest's.
    """

    def __init__(self, path: Path | str, threads: int = 1, stages: str = "stages"):
        self.path, self.threads = Path(path), threads
        self.manifest = read_manifest(self.path)
        if stages not in self.manifest:
            raise DeploymentError(f"{self.path / MANIFEST}: no '{stages}': export again, with --int8")
        entries = self.manifest[stages]
        self.exits = tuple(entry["exit"] for entry in entries)
        self._stages = [self.graph(entry) for entry in entries]
        self._suppression = self.graph(self.manifest["suppression"])
        self.size = self.manifest["input"]["size"]

    def graph(self, entry: Mapping[str, str]) -> onnxruntime.InferenceSession:
        """Open one graph of the manifest after its hash is checked."""
        return open_graph(self.path, entry, self.threads)

    def detect(self, images: np.ndarray, policy: Policy) -> list[Detections]:
        """Detect in a batch; each image leaves where the policy says, whatever else is in the batch.

        Args:
            images: float32 (B, 3, S, S) in [0, 1], RGB; S is ``size``.
            policy: asked at every exit but the last, once an image.

        Raises:
            DeploymentError: wrong shape or type, an image with values that are not finite, or a
                policy that needs evidence which is not there.
        """
        self._check(images)
        detections: list[Detections | None] = [None] * len(images)
        for first in range(0, len(images), CHUNK):
            chunk = images[first : first + CHUNK]
            for index, found in self._route(chunk, policy, first):
                detections[index] = found
        return detections

    def _route(self, features: np.ndarray, policy: Policy, first: int) -> Iterable[tuple[int, Detections]]:
        index = list(range(first, first + len(features)))
        for name, stage in zip(self.exits, self._stages, strict=True):
            scores, boxes, *rest = stage.run(None, {"features": features})
            last, going_on = name == self.exits[-1], []
            for row, image in enumerate(index):
                seen = evidence(name, scores[row])
                if not np.isfinite(seen["max_score"]):
                    raise DeploymentError(
                        f"image {image}: score at {name} is {seen['max_score']}; expected finite pixels"
                    )
                if not last and policy(seen):
                    going_on.append(row)
                else:
                    yield image, self.suppress(boxes[row], scores[row], name)
            if not going_on:
                return
            # no copy while all images go on
            features = rest[0] if len(going_on) == len(index) else rest[0][going_on]
            index = [index[row] for row in going_on]

    def suppress(self, boxes: np.ndarray, scores: np.ndarray, exit_name: str) -> Detections:
        """Keep the best boxes of one image: threshold, top k, clip, suppression of overlaps.

        Args:
            boxes: (4, A) rows x1, y1, x2, y2; the planes that the graphs write.
            scores: (A,).
        """
        rule = self.manifest["postprocess"]
        kept = np.flatnonzero(scores > rule["score_threshold"])
        best = scores[kept]
        if len(kept) > rule["topk"]:
            top = np.argpartition(best, len(kept) - rule["topk"])[-rule["topk"] :]
            kept, best = kept[top], best[top]
        order = np.argsort(-best, kind="stable")
        kept, best = kept[order], best[order]
        candidates = np.ascontiguousarray(boxes[:, kept].clip(0, self.size).T)  # (N, 4)
        if len(kept) > 1:
            (chosen,) = self._suppression.run(None, {"boxes": candidates[None], "scores": best[None, None]})
            candidates, best = candidates[chosen[:, 2]], best[chosen[:, 2]]
        return Detections(candidates, best, np.ones(len(best), np.int64), exit_name)

    def _check(self, images: np.ndarray) -> None:
        expected = (3, self.size, self.size)
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != expected:
            shape = getattr(images, "shape", type(images).__name__)
            raise DeploymentError(f"images: {shape}; expected an array of shape (B, 3, {self.size}, {self.size})")
        if images.dtype != np.float32:
            raise DeploymentError(f"images: {images.dtype}; expected float32 in [0, 1]")


def evidence(exit_name: str, scores: np.ndarray) -> Evidence:
    """Evidence of one image from the scores (A,) of all default boxes, before suppression."""
    return Evidence(exit=exit_name, max_score=float(scores.max()), count=int(np.count_nonzero(scores > 0.5)))


def read_manifest(folder: Path) -> dict:
    """The manifest of an export folder, checked for its format.

    Raises:
        DeploymentError: no folder, no manifest, no JSON, another format or a key missing.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise DeploymentError(f"{path}: no such manifest; write one with `eelib export --out {folder}`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, NotADirectoryError) as error:
        raise DeploymentError(f"{path}: not a manifest ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DeploymentError(f"{path}: format is {found!r}; expected {FORMAT}: export again")
    for key in ("stages", "suppression", "input", "postprocess", "categories", "policy"):
        if not manifest.get(key):
            raise DeploymentError(f"{path}: key '{key}' is missing or empty: export again")
    return manifest


def open_graph(folder: Path, entry: Mapping[str, str], threads: int = 1) -> onnxruntime.InferenceSession:
    """Open a graph whose SHA-256 is the manifest's.

    Raises:
        DeploymentError: the file is missing or is not the one that was exported.
    """
    path = folder / entry["file"]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DeploymentError(f"{path}: stage is missing; {folder / MANIFEST} lists it") from None
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise DeploymentError(f"{path}: SHA-256 is {found[:12]}…; {MANIFEST} says {entry['sha256'][:12]}…")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # a warning for each initialiser that an optimisation dropped helps nobody
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def make_policy(
    session: EarlyExitSession, name: str, threshold: Sequence[float] = (), key: str | None = None
) -> Policy:
    """The policy of a command line.

    Args:
        name: ``"fixed"`` or the exit at which all images leave.
        threshold: for ``fixed``: one value for all exits, one an exit but the last, or none for
            the manifest's.
        key: evidence of ``fixed``; None takes the manifest's.

    Raises:
        DeploymentError: an unknown name, a wrong number of thresholds or one that is no number,
            or evidence that the export lacks.
    """
    if name in session.exits:
        return forced(name)
    if name != "fixed":
        raise DeploymentError(f"policy: {name!r} is unknown; expected fixed, {', '.join(session.exits)}")
    default, early = session.manifest["policy"], session.exits[:-1]
    key = key or default["evidence"]
    known = [k for k in evidence("", np.zeros(1)) if k != "exit"]
    if key not in known:
        raise DeploymentError(f"policy 'fixed' needs the evidence '{key}'; this export gives {', '.join(known)}")
    if not len(threshold):
        return fixed(default["thresholds"], key)
    if len(threshold) not in (1, len(early)) or not np.isfinite(threshold).all():
        raise DeploymentError(
            f"threshold: {list(threshold)}; expected one number, or one for each of {', '.join(early)}"
        )
    values = list(threshold) * len(early) if len(threshold) == 1 else threshold
    return fixed(dict(zip(early, values, strict=True)), key)
