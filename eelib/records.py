"""Record once, route many: what every exit found on every image of a split, in one file.

One pass runs all exits. Every routing policy, threshold and bound is afterwards a replay of
this file, which belongs to one checkpoint and one data set and says so by their hashes.
"""

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from eelib.checkpoints import load_released
from eelib.data import DetectionDataset, batches, build_transform, split_sha256
from eelib.files import file_sha256, write_atomic
from eelib.model import Detections, ExitOutput, chair_probability
from eelib.sources import Source

MAX_DETECTIONS = 100  # an image and exit; COCO's AP looks at no more
CUTS = (0.1, 0.3, 0.5)  # scores above which boxes are counted
# Evidence of an exit on an image, in the order of the columns. All of it is at hand when the
# exit decides: `agreement` compares with the exit before, which has run by then.
EVIDENCE = (
    "top_score", "second_score", "top5_mean", "score_sum", "undecided", *(f"count_{int(100 * c)}" for c in CUTS),
    "log_size", "box_certainty", "agreement",
)  # fmt: skip


class RecordsError(ValueError):
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
        evidence: float32 (N, E, F), columns :data:`EVIDENCE`.
    """

    split: str
    split_sha256: str
    checkpoint_sha256: str
    exit_names: tuple[str, ...]
    image_ids: tuple[int, ...]
    counts: Tensor
    boxes_xyxy: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    evidence: Tensor

    def __post_init__(self):
        for name, scores in zip(self.exit_names, self.scores, strict=True):
            bad = ~((scores >= 0) & (scores <= 1))  # NaN fails both comparisons
            if bad.any():
                value = scores[bad][0].item()
                raise RecordsError(f"records of {self.split}: a score of {name} is {value}; expected [0, 1]")
        if self.evidence.isnan().any():
            image, exit_, column = self.evidence.isnan().nonzero()[0].tolist()
            raise RecordsError(
                f"records of {self.split}: evidence '{EVIDENCE[column]}' of image {self.image_ids[image]} "
                f"at {self.exit_names[exit_]} is NaN"
            )

    @classmethod
    def of(
        cls,
        split: str,
        hashes: tuple[str, str],
        image_ids: Sequence[int],
        detections: Mapping[str, Sequence[Detections]],
        evidence: Tensor | None = None,
    ) -> "ExitRecords":
        """Records from the detections of every image.

        Args:
            split, hashes: what the records are of; the hashes are the split's and the checkpoint's.
            image_ids: N ids, ascending.
            detections: exit to the detections of the N images, exits in the order in which they are computed.
            evidence: (N, E, F); None for a detector that does not route by it.
        """
        if evidence is None:
            evidence = torch.zeros(len(image_ids), len(detections), len(EVIDENCE))
        return cls(
            split,
            *hashes,
            tuple(detections),
            tuple(image_ids),
            torch.tensor([[len(d.scores) for d in found] for found in detections.values()]),
            tuple(torch.cat([d.boxes for d in found]) for found in detections.values()),
            tuple(torch.cat([d.scores for d in found]) for found in detections.values()),
            evidence,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def detections(self, exit_index: int, row: int) -> Detections:
        """Detections of one exit on the image of a row."""
        start = int(self.counts[exit_index, :row].sum())
        rows = slice(start, start + int(self.counts[exit_index, row]))
        return Detections(self.boxes_xyxy[exit_index][rows], self.scores[exit_index][rows])

    def column(self, name: str) -> Tensor:
        """One column of the evidence at every exit, (N, E)."""
        return self.evidence[..., EVIDENCE.index(name)]

    def rows(self, kept: Sequence[int]) -> "ExitRecords":
        """The records of some images, by their rows in rising order."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[torch.as_tensor(kept)] = True
        chosen = [mask.repeat_interleave(count) for count in self.counts]
        return replace(
            self,
            image_ids=tuple(i for i, keep in zip(self.image_ids, mask.tolist(), strict=True) if keep),
            counts=self.counts[:, mask],
            boxes_xyxy=tuple(b[c] for b, c in zip(self.boxes_xyxy, chosen, strict=True)),
            scores=tuple(s[c] for s, c in zip(self.scores, chosen, strict=True)),
            evidence=self.evidence[mask],
        )

    def with_scores(self, scores: Sequence[Tensor]) -> "ExitRecords":
        """The same boxes under other scores, such as calibrated ones; the evidence stays."""
        return replace(self, scores=tuple(s.float() for s in scores))


def detections_of_exits(
    model: nn.Module, dataset: DetectionDataset, batch_size: int = 16
) -> Iterator[tuple[ExitOutput, list[int], list[Detections]]]:
    """Run every exit on a data set in order.

    Args:
        model: has ``exits(images)`` and ``postprocess(output, size_hw)``.

    Yields:
        For each batch and exit: its raw output, image ids, and detections in pixels of the original images.
    """
    model.eval()
    with torch.no_grad():
        for images, targets in batches(dataset, batch_size):
            size_hw = tuple(images.shape[-2:])
            ids = [target["image_id"] for target in targets]
            for output in model.exits(images):
                found = [
                    _to_original(detections, dataset.coco.imgs[i], size_hw)
                    for i, detections in zip(ids, model.postprocess(output, size_hw), strict=True)
                ]
                yield output, ids, found


def _to_original(detections: Detections, image: dict, size_hw: tuple[int, int]) -> Detections:
    x, y = image["width"] / size_hw[1], image["height"] / size_hw[0]
    return Detections(detections.boxes * torch.tensor([x, y, x, y]), detections.scores)


def box_certainty(p: Tensor) -> Tensor:
    """Mean of 1 - H2(p), the binary entropy in bits of each image."""
    q = p.clamp(1e-7, 1 - 1e-7)
    return (1 + (q * q.log2() + (1 - q) * (1 - q).log2())).mean(1)


def evidence_of(
    detections: Detections, before: Detections | None, size_hw: tuple[int, int], box_certainty: float
) -> list[float]:
    """Evidence of an exit on one image, in the order of :data:`EVIDENCE`.

    ``undecided`` is the summed binary entropy of the scores in bits: it counts the boxes that
    are neither clearly a chair nor clearly none. ``log_size`` is the score-weighted mean of
    log2 of the boxes' side as a share of the image's (0 is the whole image, -10 stands for no box).

    Args:
        detections: of this exit, best first.
        before: of the exit before; None at the first.
        size_hw: of the original image in pixels.
        box_certainty: mean of 1 - H2(p) over the default boxes, before suppression.
    """
    scores = detections.scores
    top = torch.cat((scores[:5], scores.new_zeros(5)))[:5]
    q = scores.clamp(1e-7, 1 - 1e-7)
    undecided = -(q * q.log2() + (1 - q) * (1 - q).log2()).sum()
    width, height = (detections.boxes[:, 2:] - detections.boxes[:, :2]).clamp(min=1e-3).unbind(1)
    log_size = 0.5 * (width * height / (size_hw[0] * size_hw[1])).log2().clamp(min=-10)
    size = (log_size * scores).sum() / scores.sum() if len(scores) else torch.tensor(-10.0)
    values = [top[0], top[1], top.mean(), scores.sum(), undecided, *((scores > c).sum() for c in CUTS), size]
    return [float(v) for v in values] + [box_certainty, 0.0 if before is None else agreement(before, detections)]


def agreement(first: Detections, second: Detections) -> float:
    """How far two exits say the same of one image, in [0, 1].

    Twice the summed agreement over the summed scores, where a box of ``second`` agrees with
    the free box of ``first`` that overlaps it most, from IoU 0.5 on, by the smaller of the two
    scores: a Dice coefficient of soft sets. Two exits that find nothing agree fully.
    """
    total = float(first.scores.sum() + second.scores.sum())
    if total < 0.1:  # less than a tenth of a chair between them
        return 1.0
    if not len(first.scores) or not len(second.scores):
        return 0.0
    overlaps = box_iou(second.boxes, first.boxes)
    shared = 0.0
    # Boxes below 5 % of a chair cannot matter to the sum; most of the recorded ones are.
    for row in range(int((second.scores > 0.05).sum())):
        best, column = overlaps[row].max(0)
        if best >= 0.5:
            shared += float(torch.minimum(second.scores[row], first.scores[column]))
            overlaps[:, column] = 0
    return min(1.0, 2 * shared / total)


def record(
    model: nn.Module,
    dataset: DetectionDataset,
    split: str,
    split_hash: str,
    checkpoint_hash: str,
    progress: Callable[[str], None] | None = None,
) -> ExitRecords:
    """Run every exit on a split once and keep what routing may want to know.

    Args:
        model: yields :class:`eelib.model.ExitOutput` from ``model.exits(images)``.
        dataset: of the split, with a transform that resizes and nothing else.
        split, split_hash, checkpoint_hash: the identity to write down.
        progress: called with a line every tenth of the images.
    """
    names = tuple(model.exit_names)
    found: dict[str, list[Detections]] = {name: [] for name in names}
    rows: list[list[list[float]]] = []
    told = 0
    for output, ids, detections in detections_of_exits(model, dataset):
        name = output.name
        index, certainty = names.index(name), box_certainty(chair_probability(output.cls_logits)).tolist()
        for k, image_id in enumerate(ids):
            image = dataset.coco.imgs[image_id]
            best = Detections(*(t[:MAX_DETECTIONS] for t in detections[k]))
            before = found[names[index - 1]][len(found[name])] if index else None
            if index == 0:
                rows.append([])
            rows[len(found[name])].append(evidence_of(best, before, (image["height"], image["width"]), certainty[k]))
            found[name].append(best)
        done = len(found[names[-1]]) * 10 // len(dataset)
        if progress and done > told:
            told = done
            progress(f"{split}: {len(found[names[-1]])} of {len(dataset)} images recorded")
    return ExitRecords.of(split, (split_hash, checkpoint_hash), dataset.image_ids, found, torch.tensor(rows))


def save_records(records: ExitRecords, path: Path | str) -> Path:
    """Write records atomically, loadable with ``weights_only=True``.

    ``torch.save`` stores the parts of its zip archive as they are; here they are deflated, which
    ``torch.load`` reads as well and saves a seventh of what is kept in git.
    """
    plain = io.BytesIO()
    torch.save(dict(vars(records)), plain)

    def write(file: io.BufferedWriter) -> None:
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
            for entry in source.infolist():
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), zipfile.ZIP_DEFLATED, 9)

    return write_atomic(path, write)


def load_records(path: Path | str, split_hash: str, checkpoint_hash: str) -> ExitRecords:
    """Read records and check that they are of this data set and this checkpoint.

    Raises:
        RecordsError: no such file, no records, or records of something else.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RecordsError(f"{path}: no such records") from None
    except Exception as error:  # torch raises a different type for each way of being no records
        raise RecordsError(f"{path}: not exit records ({str(error).splitlines()[0]})") from None
    fields = ExitRecords.__dataclass_fields__.keys()
    if not isinstance(values, dict) or values.keys() != fields:
        raise RecordsError(f"{path}: not exit records; expected the keys {', '.join(fields)}")
    for key, what, expected in (
        ("checkpoint_sha256", "checkpoint", checkpoint_hash),
        ("split_sha256", "data set", split_hash),
    ):
        if values[key] != expected:
            raise RecordsError(
                f"{path}: records of another {what}; {key} is {values[key][:12]}…, expected {expected[:12]}…"
            )
    if values["evidence"].shape[1:] != (len(values["exit_names"]), len(EVIDENCE)):
        raise RecordsError(f"{path}: evidence of shape {tuple(values['evidence'].shape)}; record the split again")
    return ExitRecords(**values)


def records_of(
    split: str,
    checkpoint: Path | str,
    root: Path | str | Source,
    folder: Path | str,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExitRecords:
    """Records of a split from ``folder``, made and kept there when they are not.

    The file's name carries both hashes, so a new checkpoint or data set makes a new file.

    Args:
        split: its name.
        checkpoint: released detector; images are resized to its input.
        root: data set.
        limit: images; None takes all.
    """
    hashes = split_sha256(split, root), file_sha256(checkpoint)
    size = "all" if limit is None else str(limit)
    path = Path(folder) / f"{split}_{size}_{hashes[0][:8]}_{hashes[1][:8]}.pt"
    if path.exists():
        return load_records(path, *hashes)
    model = load_released(checkpoint)
    dataset = DetectionDataset(split, root, build_transform(model.size), keep_crowd=True, limit=limit)
    records = record(model, dataset, split, *hashes, progress)
    save_records(records, path)
    return records
