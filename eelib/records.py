"""Record once, route many: what every exit found on every image of a split, in one file.

One pass runs all exits. Every routing policy, threshold and bound is afterwards a replay of
this file, which belongs to one checkpoint and one data set and says so by their hashes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from eelib.checkpoints import load_released
from eelib.coco import Source
from eelib.data import DetectionDataset, batches, split_sha256
from eelib.deploy.evidence import EVIDENCE, OF_BOXES, check_evidence, columns_of
from eelib.deploy.observe import MAX_DETECTIONS, evidence_of
from eelib.detections import Detections
from eelib.files import InputError, file_sha256, refuse_bomb, write_atomic
from eelib.model import ExitOutput, class_scores, raw_evidence

PACKED = 100  # records unpack to less than so many times their size
FORMAT = 2  # of the files; 1 had no names of evidence
Read = TypeVar("Read")


class RecordsError(InputError):
    """Exit records do not fit; the message names the file and what was expected."""


@dataclass(frozen=True)
class ExitRecords:
    """Detections and evidence of every exit on a split.

    Detections of an image and exit are best first and at most :data:`MAX_DETECTIONS`; those of
    all images follow each other in the order of ``image_ids``.

    Attributes:
        split, split_sha256, checkpoint_sha256: what the records are of.
        exit_names: E names in the order in which the exits are computed.
        image_ids: N ids, ascending.
        counts: int64 (E, N), detections of each exit and image.
        boxes_xyxy: for each exit float32 (D, 4), pixels of the original image.
        scores: for each exit float32 (D,), in [0, 1].
        labels: for each exit int64 (D,), from 1.
        evidence: float32 (N, E, F).
        evidence_names: of its F columns; :func:`eelib.deploy.evidence.columns_of` says which a detector has.

    Raises:
        RecordsError: a field of another shape, type, range or order.

    Examples:
        >>> dataset = eelib.DetectionDataset("val", "my", model.size, keep_crowd=True)
        >>> records: eelib.ExitRecords = eelib.record(model, dataset, "val", "hash of the split", "hash of the weights")
        >>> records.column("top_score").shape == (len(dataset), len(records.exit_names))
        True
    """

    split: str
    split_sha256: str
    checkpoint_sha256: str
    exit_names: tuple[str, ...]
    image_ids: tuple[int, ...]
    counts: np.ndarray
    boxes_xyxy: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    evidence: np.ndarray
    evidence_names: tuple[str, ...] = EVIDENCE

    def __post_init__(self):
        exits, images = len(self.exit_names), len(self.image_ids)
        self._expect(exits and len(set(self.exit_names)) == exits, "exit_names", "different names")
        rising = all(a < b for a, b in zip(self.image_ids, self.image_ids[1:], strict=False))
        self._expect(rising, "image_ids", "rising")
        self._shaped("counts", self.counts, (exits, images), "i")
        self._expect(bool(((self.counts >= 0) & (self.counts <= MAX_DETECTIONS)).all()), "counts", "0 to 100 each")
        check_evidence(f"records of {self.split}", self.evidence_names)
        self._shaped("evidence", self.evidence, (images, exits, len(self.evidence_names)), "f")
        if np.isnan(self.evidence).any():
            image, exit_, column = np.argwhere(np.isnan(self.evidence))[0]
            where = f"'{self.evidence_names[column]}' of image {self.image_ids[image]} at {self.exit_names[exit_]}"
            raise RecordsError(f"records of {self.split}: evidence {where} is NaN")
        for field in ("boxes_xyxy", "scores", "labels"):
            self._expect(len(getattr(self, field)) == exits, field, f"one array for each of {exits} exits")
        for k, name in enumerate(self.exit_names):
            total = int(self.counts[k].sum())
            boxes, scores, labels = self.boxes_xyxy[k], self.scores[k], self.labels[k]
            self._shaped(f"boxes_xyxy of {name}", boxes, (total, 4), "f")
            self._shaped(f"scores of {name}", scores, (total,), "f")
            self._shaped(f"labels of {name}", labels, (total,), "iu")
            bad = ~((scores >= 0) & (scores <= 1))  # NaN fails both comparisons
            self._expect(not bad.any(), f"a score of {name}", f"[0, 1], not {scores[bad][:1]}")
            inside = np.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all() and (abs(boxes) < 1e6).all()
            self._expect(bool(inside), f"boxes_xyxy of {name}", "corners in pixels, the lesser first")
            ends = np.cumsum(self.counts[k])[:-1]
            rises = np.diff(scores) > 0
            rises[ends[(ends > 0) & (ends < total)] - 1] = False  # from one image to the next
            self._expect(not rises.any(), f"scores of {name}", "the best first in every image")
            self._expect(not total or labels.min() >= 1, f"labels of {name}", "1 or more")

    def _expect(self, holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise RecordsError(f"records of {self.split}: {field}: expected {expected}")

    def _shaped(self, field: str, values: np.ndarray, shape: tuple[int, ...], kinds: str) -> None:
        fits = isinstance(values, np.ndarray) and values.shape == shape and values.dtype.kind in kinds
        actual = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        self._expect(fits, field, f"{'whole numbers' if 'i' in kinds else 'floats'} {shape}, not {actual}")

    @classmethod
    def of(
        cls,
        identity: tuple[str, str, str],
        image_ids: Sequence[int],
        detections: Mapping[str, Sequence[Detections]],
        evidence: np.ndarray | None = None,
        evidence_names: tuple[str, ...] = EVIDENCE,
    ) -> "ExitRecords":
        """Records from the detections of each image.

        Args:
            identity: split, its hash, the checkpoint's hash.
            image_ids: N ids, ascending.
            detections: exit name to N detections, best first, in pixels of the original images.
            evidence: (N, E, F), columns ``evidence_names``; None is zero, for records that only AP is computed from.
        """
        if evidence is None:
            evidence = np.zeros((len(image_ids), len(detections), len(evidence_names)))
        best = {name: [image.rows(slice(MAX_DETECTIONS)) for image in images] for name, images in detections.items()}

        def joined(field: str, kind: type, empty: tuple[int, ...]) -> tuple[np.ndarray, ...]:
            parts = ([getattr(image, field) for image in images] for images in best.values())
            return tuple(np.concatenate([np.zeros(empty, kind), *arrays]).astype(kind) for arrays in parts)

        return cls(
            *identity,
            exit_names=tuple(best),
            image_ids=tuple(map(int, image_ids)),
            counts=np.array([[len(image) for image in images] for images in best.values()], np.int64),
            boxes_xyxy=joined("boxes_xyxy", np.float32, (0, 4)),
            scores=joined("scores", np.float32, (0,)),
            labels=joined("labels", np.int64, (0,)),
            evidence=np.asarray(evidence, np.float32),
            evidence_names=evidence_names,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def detections(self, exit_index: int, row: int) -> Detections:
        """Detections of one exit on the image of a row."""
        start = int(self.counts[exit_index, :row].sum())
        rows = slice(start, start + int(self.counts[exit_index, row]))
        parts = (values[exit_index][rows] for values in (self.boxes_xyxy, self.scores, self.labels))
        return Detections(*parts, self.exit_names[exit_index])

    def column(self, name: str) -> np.ndarray:
        """One column of the evidence at every exit, (N, E)."""
        return self.columns((name,))[..., 0]

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """Some columns of the evidence in the order given, (N, E, len(names)).

        Raises:
            RecordsError: the detector has no such evidence.
        """
        missing = [name for name in names if name not in self.evidence_names]
        if missing:
            have = ", ".join(self.evidence_names)
            raise RecordsError(f"records of {self.split}: no evidence '{missing[0]}'; these have {have}")
        return self.evidence[..., [self.evidence_names.index(name) for name in names]]

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the blank gates, in the order in which they run."""
        return tuple(name for name in self.evidence_names if name.startswith("blank"))

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The evidence that costs next to nothing: of raw scores and of the gates, without that of single classes."""
        return tuple(n for n in self.evidence_names if n not in OF_BOXES and not n.startswith("class_"))

    def rows(self, rows: Sequence[int]) -> "ExitRecords":
        """The records of some images, by their rows in rising order."""
        mask = np.zeros(len(self), bool)
        mask[np.asarray(rows, np.int64)] = True
        chosen = [np.repeat(mask, count) for count in self.counts]

        def taken(values: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
            return tuple(array[rows] for array, rows in zip(values, chosen, strict=True))

        return replace(
            self,
            image_ids=tuple(i for i, keep in zip(self.image_ids, mask.tolist(), strict=True) if keep),
            counts=self.counts[:, mask],
            boxes_xyxy=taken(self.boxes_xyxy),
            scores=taken(self.scores),
            labels=taken(self.labels),
            evidence=self.evidence[mask],
        )

    def with_scores(self, scores: Sequence[np.ndarray]) -> "ExitRecords":
        """The same boxes under other scores, such as calibrated ones; the evidence stays."""
        return replace(self, scores=tuple(np.asarray(values, np.float32) for values in scores))


def detections_of_exits(
    model: nn.Module, dataset: DetectionDataset, batch_size: int = 16
) -> Iterator[tuple[ExitOutput, list[int], list[Detections], np.ndarray]]:
    """Run every exit on a data set, whose transform resizes and nothing else, in order.

    Yields:
        For each batch and exit: its raw output, image ids, detections in pixels of the original images, and the
        probability by each blank gate that an image holds an object, (B, G): 1 by a gate that has not run yet.
    """
    model.eval()
    device, gates = next(model.parameters()).device, getattr(model, "blank", {})
    with torch.no_grad():
        for images, targets in batches(dataset, batch_size):
            size_hw = tuple(images.shape[-2:])
            ids = [target["image_id"] for target in targets]
            maps: list[Tensor] = []
            for output in model.exits(images.to(device), *([maps] if gates else ())):
                ran = [gates[cut](maps[int(cut) - 1]) for cut in gates if int(cut) <= len(maps)]
                holds = np.ones((len(ids), len(gates)))
                for column, logits in enumerate(ran):
                    holds[:, column] = logits.sigmoid().cpu().numpy()
                output = ExitOutput(output.name, *(part.cpu() for part in output[1:]))
                originals = [dataset.coco.imgs[image_id] for image_id in ids]
                detections = [
                    found.scaled(image["width"] / size_hw[1], image["height"] / size_hw[0])
                    for image, found in zip(originals, model.postprocess(output, size_hw), strict=True)
                ]
                yield output, ids, detections, holds


def record(
    model: nn.Module,
    dataset: DetectionDataset,
    split: str,
    split_hash: str,
    checkpoint_hash: str,
    progress: Callable[[str], None] | None = None,
) -> ExitRecords:
    """Run every exit once on a split, and keep the detections and the evidence that routing needs.

    Args:
        model: has ``exits(images)`` and ``postprocess(output, size_hw)``.
        dataset: of the split, with a transform that resizes and nothing else.
        split, split_hash, checkpoint_hash: the identity to write down.
        progress: called with a line every tenth of the images.

    Examples:
        >>> dataset = eelib.DetectionDataset("val", "my", model.size, keep_crowd=True)
        >>> records = eelib.record(model, dataset, "val", "hash of the split", "hash of the weights")
        >>> len(records) == len(dataset)
        True
    """
    names = tuple(model.exit_names)
    detections: dict[str, list[Detections]] = {name: [] for name in names}
    evidence: dict[str, list[np.ndarray]] = {name: [] for name in names}
    columns, tenths = EVIDENCE, 0
    for output, ids, batch, holds in detections_of_exits(model, dataset):
        index, scores = names.index(output.name), class_scores(output.cls_logits).transpose(1, 2)  # (B, K, A)
        here, before, of_boxes = detections[output.name], detections[names[index - 1]] if index else None, []
        for image_id, found in zip(ids, batch, strict=True):
            best, image = found.rows(slice(MAX_DETECTIONS)), dataset.coco.imgs[image_id]
            of_boxes.append(evidence_of(best, before[len(here)] if before else None, (image["height"], image["width"])))
            here.append(best)
        columns, raw = columns_of(scores.shape[1], holds.shape[1]), raw_evidence(scores, scores.shape[1]).numpy()
        evidence[output.name].append(np.concatenate((raw, np.array(of_boxes), holds), 1))
        done = len(detections[names[-1]])
        if progress and done * 10 // len(dataset) > tenths:
            tenths = done * 10 // len(dataset)
            progress(f"{split}: {done} of {len(dataset)} images recorded")
    stacked = np.stack([np.concatenate(parts) for parts in evidence.values()], 1)  # (N, E, F)
    return ExitRecords.of((split, split_hash, checkpoint_hash), dataset.image_ids, detections, stacked, columns)


def read_arrays(
    path: Path | str, split_hash: str, checkpoint_hash: str, build: Callable[[dict], Read], what: str, kind: str
) -> Read:
    """What ``build`` makes of the arrays of a file, checked to be of this data set and this checkpoint.

    Args:
        what, kind: the file in words, in short and in full.

    Raises:
        RecordsError: no such file, a file of another kind, or of something else.
    """
    try:
        refuse_bomb(path, PACKED, RecordsError)
        with np.load(path) as file:
            values = dict(file)
        made = build(values)
        hashes = ("checkpoint_sha256", "checkpoint", checkpoint_hash), ("split_sha256", "data set", split_hash)
        for key, of, expected in hashes:
            if (actual := str(values[key])) != expected:
                raise RecordsError(f"{what} of another {of}; {key} is {actual[:12]}…, expected {expected[:12]}…")
        return made
    except FileNotFoundError:
        raise RecordsError(f"{path}: no such {what}") from None
    except RecordsError as error:
        raise RecordsError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except Exception as error:  # numpy raises a different type for each way of being no archive
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RecordsError(f"{path}: not {kind} ({reason})") from None


_BY_EXIT = ("boxes_xyxy", "scores", "labels")


def save_records(records: ExitRecords, path: Path | str) -> Path:
    """Write records atomically, as a zip of plain arrays."""
    values = {key: value for key, value in vars(records).items() if key not in _BY_EXIT}
    values |= {key: np.concatenate(getattr(records, key)) for key in _BY_EXIT}
    values["labels"] = values["labels"].astype(np.uint16)
    return write_atomic(path, lambda file: np.savez_compressed(file, **values))


def load_records(path: Path | str, split_hash: str, checkpoint_hash: str) -> ExitRecords:
    """Read records that :func:`save_records` wrote; checks and errors are those of :func:`read_arrays`."""
    return read_arrays(path, split_hash, checkpoint_hash, _of_arrays, "records", "exit records")


def _of_arrays(values: dict[str, np.ndarray]) -> ExitRecords:
    ends = np.cumsum(values["counts"].sum(1))[:-1]
    fields = values | {key: tuple(np.split(values[key], ends)) for key in _BY_EXIT}
    fields |= {key: str(values[key]) for key in ("split", "split_sha256", "checkpoint_sha256")}
    fields["labels"] = tuple(labels.astype(np.int64) for labels in fields["labels"])
    fields |= {key: tuple(values[key].tolist()) for key in ("exit_names", "image_ids", "evidence_names")}
    return ExitRecords(**fields)


def records_of(
    split: str,
    checkpoint: Path | str,
    root: Path | str | Source,
    folder: Path | str,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExitRecords:
    """Records of a split from ``folder``, made and kept there when they are not.

    The file's name carries both hashes, so a new checkpoint or data set makes a new file, and :data:`FORMAT`. Images
    are resized to the detector's input; a ``limit`` of None takes all.
    """
    hashes = split_sha256(split, root), file_sha256(checkpoint)
    size = "all" if limit is None else str(limit)
    path = Path(folder) / f"{split}_{size}_{hashes[0][:8]}_{hashes[1][:8]}_{FORMAT}.npz"
    if path.exists():
        return load_records(path, *hashes)
    model = load_released(checkpoint)
    dataset = DetectionDataset(split, root, model.size, keep_crowd=True, limit=limit)
    records = record(model, dataset, split, *hashes, progress)
    save_records(records, path)
    return records
