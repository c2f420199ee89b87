"""What an exit knows of an image when it decides: the evidence that routers read. numpy alone."""

import numpy as np

from eelib.deploy.evidence import SCORE_CUTS
from eelib.detections import Detections

MAX_DETECTIONS = 100  # an image and exit; COCO's AP looks at no more


def evidence_of(detections: Detections, before: Detections | None, size_hw: tuple[int, int]) -> list[float]:
    """Evidence of an exit on one image, in the order of :data:`eelib.deploy.evidence.OF_BOXES`.

    ``undecided`` is the summed binary entropy of the scores in bits: it counts the boxes that
    are neither clearly an object nor clearly none. ``log_size`` is the score-weighted mean of
    log2 of the boxes' side as a share of the image's (0 is the whole image, -10 stands for no box).

    Args:
        detections: of this exit, best first.
        before: of the exit before; None at the first.
        size_hw: of the image that the boxes lie on, in pixels.
    """
    scores = detections.scores.astype(np.float32)
    top = np.concatenate((scores[:5], np.zeros(5, np.float32)))[:5]
    q = scores.clip(1e-7, 1 - 1e-7)
    undecided = -(q * np.log2(q) + (1 - q) * np.log2(1 - q)).sum()
    width, height = (detections.boxes_xyxy[:, 2:] - detections.boxes_xyxy[:, :2]).clip(1e-3).T
    log_size = (0.5 * np.log2(width * height / (size_hw[0] * size_hw[1]))).clip(-10)
    size = (log_size * scores).sum() / scores.sum() if len(scores) else -10.0
    values = [top[1], top.mean(), scores.sum(), undecided, *((scores > cut).sum() for cut in SCORE_CUTS), size]
    return [float(v) for v in values] + [0.0 if before is None else agreement(before, detections)]


def agreement(first: Detections, second: Detections) -> float:
    """How far two exits say the same of one image, in [0, 1].

    Twice the summed agreement over the summed scores, where a box of ``second`` agrees with
    the free box of ``first`` of its class that overlaps it most, from IoU 0.5 on, by the smaller of the two
    scores: a Dice coefficient of soft sets. Two exits that find nothing agree fully.
    """
    total = float(first.scores.sum() + second.scores.sum())
    if total < 0.1:  # less than a tenth of an object between them
        return 1.0
    if not len(first) or not len(second):
        return 0.0
    overlaps = np.where(second.labels[:, None] == first.labels, iou(second.boxes_xyxy, first.boxes_xyxy), 0)
    shared = 0.0
    # Boxes below 5 % of an object cannot matter to the sum; most of the recorded ones are.
    for row in range(int((second.scores > 0.05).sum())):
        column = int(overlaps[row].argmax())
        if overlaps[row, column] >= 0.5:
            shared += float(min(second.scores[row], first.scores[column]))
            overlaps[:, column] = 0
    return min(1.0, 2 * shared / total)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (N, 4) with boxes (M, 4), xyxy: (N, M)."""
    lt, rb = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    overlap = (rb - lt).clip(0).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b))
    return overlap / (area_a[:, None] + area_b - overlap)
