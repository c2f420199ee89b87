"""Detection from an export folder, one stage at a time, on numpy, Pillow and onnxruntime or OpenVINO.

torch is never imported here: this is what a deployed detector needs. A stage runs only for the
images that go on; decoding sits in the stage's graph. Suppression sits beside it, in a graph of
its own: inside, images that go on would pay it too, and in numpy it takes four times as long.
"""

import timeit
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from eelib.deploy.evidence import OF_BOXES, Column, Confidence, Never, Raw, RouterError
from eelib.deploy.manifest import DeploymentError, Stage, read_manifest
from eelib.deploy.observe import MAX_DETECTIONS, evidence_of
from eelib.deploy.router import Gate, Router, Rule, check_range
from eelib.deploy.runners import RUNNERS, Run, open_graph, refused
from eelib.detections import Detections
from eelib.preprocess import ImageSource, as_image, to_input

# Images of one call of a graph: a stage's activations then stay in the cache. Measured on one
# thread, an image costs a sixth more at exit1 in one call of 32 than in calls of 1 to 4.
CHUNK = 4
_faster: dict[tuple, str] = {}  # the runtime that "auto" measured to be the faster, by graphs and threads


class Session:
    """A detector with early exits, loaded from a folder that :func:`eelib.export` wrote.

    Args:
        folder: of ``manifest.json`` and the graphs.
        threads: number of threads per operator, at least 1.
        int8: run the int8 graphs.
        runtime: ``"onnxruntime"``, ``"openvino"``, or ``"auto"``, which times both once on a blank image.

    Attributes:
        exits, classes: names in their order.
        size: side of the network input in pixels.
        router: decides where images leave; None runs every image through the network without its early exits.

    Raises:
        DeploymentError: no manifest or one of another format, a graph that is missing, is not the manifest's or is
            refused by the runtime, or a runtime that is not installed.

    Examples:
        >>> session = eelib.Session("deploy")
        >>> session.detect("room.jpg").plot().save("drawn.png")
    """

    def __init__(self, folder: Path | str, threads: int = 1, int8: bool = False, runtime: str = "onnxruntime"):
        self.folder, self.threads, self.int8 = Path(folder), threads, int8
        self.manifest = manifest = read_manifest(self.folder)
        if int8 and not manifest.stages_int8:
            raise DeploymentError(f"{self.folder}: no int8 graphs: export again, with --int8")
        if threads < 1:
            raise DeploymentError(f"threads is {threads}; expected 1 or more")
        self.exits, self.gates, self.size = manifest.exits, manifest.gates, manifest.input.size
        self.classes = tuple(category.name for category in manifest.categories)
        self.router: Router | None = manifest.router
        self.stages = manifest.stages_int8 if int8 else manifest.stages
        self.runtime = runtime if runtime != "auto" else self._choose_runtime()
        if self.runtime not in RUNNERS:
            raise DeploymentError(f"runtime: {runtime!r} is unknown; expected {', '.join(RUNNERS)} or auto")
        self._opened: dict[str, Run] = {}
        self._suppress = open_graph(self.folder, manifest.suppression).run
        for stage in self.stages if self.router and self.router.early else (self._plain,):
            self._run(stage)  # what is broken is said now

    @property
    def _plain(self) -> Stage:
        return self.manifest.plain_int8 if self.int8 else self.manifest.plain

    def _run(self, stage: Stage) -> Run:
        if stage.file not in self._opened:
            self._opened[stage.file] = RUNNERS[self.runtime](self.folder, stage, self.threads)
        return self._opened[stage.file]

    def _choose_runtime(self) -> str:
        key = (*(stage.sha256 for stage in self.stages), self.threads)
        if key not in _faster:
            times, image = {}, np.zeros((1, 3, self.size, self.size), np.float32)
            for runtime in RUNNERS:
                try:
                    run = RUNNERS[runtime](self.folder, self._plain, self.threads)
                except DeploymentError:  # not installed, or it cannot run the graph
                    continue
                times[runtime] = min(timeit.repeat(lambda run=run: run(image), number=1, repeat=10))
            _faster[key] = min(times, key=times.get, default="onnxruntime")
        return _faster[key]

    def describe(self) -> str:
        """What is detected, by which runtime, and where images leave."""
        kind = f"{', '.join(self.classes)} at {self.size} px, exits {', '.join(self.exits)}"
        way = f"router: {self.router.describe()}" if self.router else "no router: every image takes the full path"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{kind}; {self.runtime}, {'int8' if self.int8 else 'float'}, {threads}; {way}"

    def at_exit(self, name: str, confidence: Confidence | None = None) -> Rule:
        """The rule by which all images leave at one exit, or end at one gate, ``blank1`` or ``blank2``.

        Args:
            name: of the exit or gate.
            confidence: that is computed on the way; None computes nothing.

        Raises:
            RouterError: there is no such exit.
        """
        names = (*self.exits, *(f"blank{k + 1}" for k in range(len(self.gates))))
        if name not in names:
            raise RouterError(f"exit: {name!r} is unknown; expected one of {', '.join(names)}")
        place, count = names.index(name), len(self.exits)
        gates = tuple(Gate(before, np.inf if count + k == place else 0.0) for k, before in enumerate(self.gates))
        thresholds = tuple(-np.inf if k == place else np.inf for k in range(count - 1))
        return Rule(self.exits, confidence or Never(), thresholds, (Raw(),) * count, gates)

    def by_score(self, thresholds: Mapping[str, float]) -> Rule:
        """The rule by which an image leaves at the first exit whose best score reaches its threshold in [0, 1].

        An exit without a threshold is passed by.

        Raises:
            RouterError: a threshold of an exit that is not there or cannot be left early, or one that is not in [0, 1].
        """
        early = self.exits[:-1]
        for name, value in thresholds.items():
            if name not in early:
                expected = f"expected early exits, which are {', '.join(early) or 'none'}"
                raise RouterError(f"threshold of '{name}': {expected}")
            check_range(f"threshold of {name}", value)
        values = tuple(thresholds.get(name, np.inf) for name in early)
        return Rule(self.exits, Column("top_score"), values, (Raw(),) * len(self.exits), ())

    def walk(self, images: np.ndarray) -> Iterator[tuple[Stage, np.ndarray, dict[str, np.ndarray]]]:
        """Every stage in turn, whatever a rule says: the stage, its input, and its outputs by name.

        Args:
            images: float32 (B, 3, S, S) in [0, 1], RGB; S is :attr:`size`.
        """
        features = images
        for stage in self.stages:
            outputs = self._outputs(stage, features)
            yield stage, features, outputs
            features = outputs.get("next_features", features)  # an exit where a gate stands at the same cut gives none

    def detect(
        self, images: ImageSource | list[ImageSource], *, rule: Rule | None = None, min_score: float = 0.05
    ) -> Detections | list[Detections]:
        """Detect in one image or in a list of them.

        Args:
            images: each a path, a PIL image, or an array (H, W, 3) or (H, W), uint8 in 0..255 or float in [0, 1].
            rule: where images leave; None is the export's router, without one the full path.
            min_score: least score of a detection that is returned, in [0, 1].

        Returns:
            Detections in pixels of the upright image, for a list one each. An image that a blank gate ended has none,
            and the gate's name as ``exit_name``.

        Raises:
            ImageError: a file that cannot be read.
            ValueError: what is no image, or ``min_score`` outside [0, 1].
        """
        if not 0 <= min_score <= 1:
            raise DeploymentError(f"min_score is {min_score}; expected a number from 0 to 1")
        if not isinstance(images, list | tuple):
            return self.detect([images], rule=rule, min_score=min_score)[0]
        answers = []
        for first in range(0, len(images), CHUNK):
            originals = [as_image(image) for image in images[first : first + CHUNK]]
            batch = np.stack([to_input(image, self.size) for image in originals])
            for image, found in zip(originals, self.detect_batch(batch, rule, min_score), strict=True):
                scaled = found.scaled(image.width / self.size, image.height / self.size)
                answers.append(replace(scaled, image=image))
        return answers

    def detect_batch(self, images: np.ndarray, rule: Rule | None = None, min_score: float = 0.0) -> list[Detections]:
        """Detect in a batch; each image leaves where the rule says, whatever else is in the batch.

        Args:
            images: float32 (B, 3, S, S) in [0, 1], RGB; S is :attr:`size`.
            rule, min_score: as in :meth:`detect`.

        Returns:
            Detections in pixels of the network input.

        Raises:
            DeploymentError: wrong shape or type, an image with values that are not finite, a rule of other exits, or
                one that needs evidence which is not there.
        """
        expected = (3, self.size, self.size)
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1:] != expected:
            shape = getattr(images, "shape", type(images).__name__)
            raise DeploymentError(f"images: {shape}; expected an array of shape (B, 3, {self.size}, {self.size})")
        if images.dtype != np.float32:
            raise DeploymentError(f"images: {images.dtype}; expected float32 in [0, 1]")
        rule = rule or self.router
        if rule and (rule.exits != self.exits or len(rule.gates) not in (0, len(self.gates))):
            raise DeploymentError(f"rule: is of the exits {', '.join(rule.exits)}; here are {', '.join(self.exits)}")
        rows, answers = np.arange(len(images)), {}
        for first in range(0, len(images), CHUNK):
            chunk = slice(first, first + CHUNK)
            answers.update(self._route(images[chunk], rows[chunk], rule, min_score))
        return [answers[row] for row in rows]

    def _route(
        self, features: np.ndarray, rows: np.ndarray, rule: Rule | None, min_score: float
    ) -> Iterator[tuple[int, Detections]]:
        """Run the stages on the images that go on; yields row and detections of each that leaves."""
        early, index = rule is not None and rule.early, 0
        columns = self._columns(rule) if early else []
        # of the images that go on: what each gate says, evidence that the rule reads, and boxes of the exit before
        holds, seen = np.ones((len(rows), len(self.gates))), np.zeros((len(rows), len(self.exits), len(columns)))
        before: list[Detections | None] = [None] * len(rows)
        for stage in self.stages if early else (self._plain,):
            outputs = self._outputs(stage, features)
            found: list[Detections | None] = [None] * len(rows)
            if stage.gate:
                gate = int(stage.exit.removeprefix("blank")) - 1
                holds[:, gate] = _finite(outputs["holds_object"], stage.exit, rows)
                leaves = holds[:, gate] < (rule.gates[gate].threshold if rule.gates else 0)
            elif stage.exit == self.exits[-1]:
                _finite(outputs["scores"], stage.exit, rows)
                leaves = np.ones(len(rows), bool)
            else:
                raw, of_boxes = outputs["evidence"], np.zeros((len(rows), len(OF_BOXES)), np.float32)
                if rule.confidence.reads_boxes:
                    pairs = zip(outputs["boxes"], outputs["scores"], strict=True)
                    found = [self.suppress(*pair, stage.exit) for pair in pairs]
                    best = [detections.rows(slice(MAX_DETECTIONS)) for detections in found]
                    size_hw = self.size, self.size
                    of_boxes[:] = [evidence_of(*pair, size_hw) for pair in zip(best, before, strict=True)]
                    before = best
                evidence = np.concatenate((_finite(raw, stage.exit, rows), of_boxes, holds.astype(np.float32)), 1)
                seen[:, index] = evidence[:, columns]
                leaves, index = rule.leaves(seen, index), index + 1
            for row in np.flatnonzero(leaves):
                yield rows[row], self._answer(stage, outputs, row, found[row], rule, min_score)
            if leaves.all():
                return
            features = outputs.get("next_features", features)
            if leaves.any():  # no copy while all images go on
                features, rows, holds, seen = (values[~leaves] for values in (features, rows, holds, seen))
                before = [before[row] for row in np.flatnonzero(~leaves)]

    def _outputs(self, stage: Stage, features: np.ndarray) -> dict[str, np.ndarray]:
        """What a graph answers, by name; :class:`DeploymentError` where it is not what the manifest says of it."""
        try:
            values = self._run(stage)(features)
        except DeploymentError:
            raise
        except Exception as error:  # the runtimes raise types of their own
            raise refused(self.folder / stage.file, self.runtime, error) from None
        outputs, images = dict(zip(stage.outputs, values, strict=False)), len(features)
        places = outputs["scores"].shape[-1:] if "scores" in outputs else ()
        shapes = {
            "scores": (images, len(self.classes), *places), "boxes": (images, 4, *places),
            "evidence": (images, len(self.manifest.evidence)), "holds_object": (images,),
        }  # fmt: skip
        for name in stage.outputs:
            shape = outputs[name].shape if name in outputs else None
            if name == "scores" and shape == shapes[name] and not shape[-1]:
                shape = None  # not one box
            if shape is None or shape[:1] != (images,) or shape != shapes.get(name, shape):
                expected = shapes.get(name, f"({images}, ...)")
                raise DeploymentError(f"{self.folder / stage.file}: output '{name}' is {shape}; expected {expected}")
        if "scores" in outputs and (outputs["scores"].min() < 0 or outputs["scores"].max() > 1.001):
            raise DeploymentError(f"{self.folder / stage.file}: output 'scores' leaves [0, 1]")
        return outputs

    def _columns(self, rule: Rule) -> list[int]:
        """Places of a rule's evidence among the manifest's columns."""
        columns = self.manifest.columns
        for name in rule.confidence.evidence:
            if name not in columns:
                raise DeploymentError(f"rule: needs the evidence '{name}'; this export has {', '.join(columns)}")
        return [columns.index(name) for name in rule.confidence.evidence]

    def _answer(self, stage, outputs, row, found: Detections | None, rule: Rule | None, min_score: float) -> Detections:
        """Detections of an image that leaves, under calibrated scores."""
        if stage.gate:
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
            return Detections(*nothing, stage.exit, self.classes)
        calibrator = rule.calibrators[self.exits.index(stage.exit)] if rule else Raw()
        if found is None:
            least = min_score if isinstance(calibrator, Raw) else 0.0
            found = self.suppress(outputs["boxes"][row], outputs["scores"][row], stage.exit, least)
        scores = calibrator(found.scores.astype(np.float64)).astype(np.float32)
        return replace(found, scores=scores).rows(scores >= min_score)

    def suppress(self, boxes: np.ndarray, scores: np.ndarray, exit_name: str, min_score: float = 0.0) -> Detections:
        """Keep the best boxes of one image: threshold, top k, clip, suppression of overlaps within a class.

        Args:
            boxes: (4, A) rows x1, y1, x2, y2; the planes that the graphs write.
            scores: (K, A).
            exit_name: the exit that answers.
            min_score: least score that is kept.
        """
        rule, flat = self.manifest.postprocess, scores.reshape(-1)  # (K * A,)
        kept = np.flatnonzero((flat > rule.score_threshold) & (flat >= min_score))
        best = flat[kept]
        if len(kept) > rule.topk:
            top = np.argpartition(best, len(kept) - rule.topk)[-rule.topk :]
            kept, best = kept[top], best[top]
        order = np.argsort(-best, kind="stable")
        kept, best = kept[order], best[order]
        labels, places = np.divmod(kept, scores.shape[1])
        candidates = np.ascontiguousarray(boxes[:, places].clip(0, self.size).T)  # (N, 4)
        if not np.isfinite(candidates).all():
            raise DeploymentError(f"boxes at {exit_name} are not finite: the graph cannot be used")
        if len(kept) > 1:
            # far apart, so that boxes of different classes never overlap
            apart = candidates + (labels * 2 * self.size).astype(np.float32)[:, None]
            try:
                (chosen,) = self._suppress(None, {"boxes": apart[None], "scores": best[None, None]})
                chosen = chosen[:, 2]
                candidates, best, labels = candidates[chosen], best[chosen], labels[chosen]
            except Exception as error:  # a graph that is none of suppression
                raise refused(self.folder / self.manifest.suppression.file, "onnxruntime", error) from None
        return Detections(candidates, best, labels + 1, exit_name, self.classes)


def _finite(values: np.ndarray, exit_name: str, rows: np.ndarray) -> np.ndarray:
    """The output of a graph, (n, ...); :class:`DeploymentError` with the image where it is not finite."""
    sound = np.isfinite(values.reshape(len(values), -1).sum(1))
    if not sound.all():
        image = rows[int(np.argmin(sound))]
        raise DeploymentError(f"image {image}: output at {exit_name} is not finite; expected finite pixels")
    return values
