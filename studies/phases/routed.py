"""A trained phase on a split: what every exit finds, and where its images leave."""

from typing import NamedTuple

import torch
from pycocotools.coco import COCO
from torch import Tensor

from eelib.coco import open_source
from eelib.data import DetectionDataset, split_sha256
from eelib.detections import Detections
from eelib.model import SIZE
from eelib.records import ExitRecords, detections_of_exits
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.detector import RecordedDetector
from studies.phases.loss import first_exit_of_groups
from studies.phases.trainer import final_thresholds, routing_group


class Routed(NamedTuple):
    """A phase on a split.

    Attributes:
        coco: annotations of the split.
        records: detections of every exit, ranked without temperature.
        confidences: (N, 3).
        probabilities: (N, 3), mean over the boxes after the temperature.
        above_cut: (N, 3), how many boxes are more probable than ``confidence.cut``, as the rules that count ask.
        chosen: (N,), exit of each image.
    """

    coco: COCO
    records: ExitRecords
    confidences: Tensor
    probabilities: Tensor
    above_cut: Tensor
    chosen: Tensor


@torch.no_grad()
def route_split(detector: RecordedDetector, config: PhaseConfig, split: str) -> Routed:
    """Run every exit on a split, then route with the thresholds in force at the end."""
    source = open_source(config.data)
    dataset = DetectionDataset(split, source, SIZE, keep_crowd=True, limit=config.data.eval_limit)
    detections: dict[str, list[Detections]] = {name: [] for name in EXIT_NAMES}
    c, means, above = ({name: [] for name in EXIT_NAMES} for _ in range(3))
    for output, _, batch, _ in detections_of_exits(detector, dataset, 4):
        p = detector.probability(output)
        detections[output.name] += batch
        c[output.name].append(confidence(p, config.confidence))
        means[output.name].append(p.mean(1))
        above[output.name].append((p > config.confidence.cut).sum(1))
    columns = ([torch.cat(rows[name]) for name in EXIT_NAMES] for rows in (c, means, above))
    c, means, above = (torch.stack(by_exit, 1) for by_exit in columns)
    records = ExitRecords.of((split, split_sha256(split, source), ""), dataset.image_ids, detections)
    chosen = first_exit_of_groups(c, final_thresholds(detector, config), routing_group(config))
    return Routed(dataset.coco, records, c, means, above, chosen)
