"""What a recorded detector outputs: scores, boxes, and how many survive a score and NMS."""

import torch
from torchvision.ops import box_iou

from eelib.coco import open_source
from eelib.config import PhaseConfig
from eelib.data import DetectionDataset, batches, build_transform
from eelib.model import EXIT_NAMES, Detections, keep_best
from studies.phases.confidence import probability_of_maps
from studies.phases.detector import RecordedDetector, decoded_boxes
from studies.phases.trainer import NMS_THRESHOLD, SIZE_HW, confidences

SCORES = (0.5, 0.4, 0.35)  # least scores that the record tried
COORDINATES = ("x1", "y1", "x2", "y2")


@torch.no_grad()
def describe(detector: RecordedDetector, config: PhaseConfig, exit_name: str, limit: int | None = None) -> dict:
    """Scores and boxes of one exit on ``test``; scores are without temperature, as the record's script takes them.

    Args:
        exit_name: ``"exit1"``, ``"exit2"`` or ``"full"``.
        limit: images; None takes all.

    Returns:
        ``chair_probability`` and ``background_probability`` (least, greatest), ``boxes_px`` (range of
        each corner), ``kept`` by least score (before and after NMS, a mean an image), ``confidence``
        (mean, spread over images), ``iou`` of the best box with each object (mean), and ``images``.
    """
    detector.eval()
    index = EXIT_NAMES.index(exit_name)
    dataset = DetectionDataset("test", open_source(config.data), build_transform(SIZE_HW[0]), limit=limit)
    probability, corners, confidence, iou = [], [], [], []
    kept = {score: {"before_nms": 0, "after_nms": 0} for score in SCORES}
    for images, targets in batches(dataset, 4):
        outputs = detector(images)
        p = probability_of_maps(outputs[index].cls)
        boxes = decoded_boxes(outputs[index], config.targets.boxes, SIZE_HW)
        confidence.append(confidences(detector, config, outputs)[:, index])
        probability.append(torch.stack((p.amin(1), p.amax(1)), 1))
        corners.append(torch.stack((boxes.amin(1), boxes.amax(1)), 1))  # (B, 2, 4)
        for score in SCORES:
            survivors = keep_best(boxes, p, SIZE_HW, score, NMS_THRESHOLD, topk=p.shape[1])
            kept[score]["before_nms"] += int((p > score).sum())
            kept[score]["after_nms"] += sum(len(d.scores) for d in survivors)
        iou += [box_iou(t["boxes"], b).amax(1) for t, b in zip(targets, boxes, strict=True) if len(t["boxes"])]
    probability, corners, confidence = torch.cat(probability), torch.cat(corners), torch.cat(confidence)
    low, high = float(probability[:, 0].min()), float(probability[:, 1].max())
    ranges = zip(COORDINATES, corners[:, 0].amin(0).tolist(), corners[:, 1].amax(0).tolist(), strict=True)
    return {
        "exit": exit_name,
        "images": len(dataset),
        "boxes_per_image": p.shape[1],
        "chair_probability": {"least": low, "greatest": high},
        "background_probability": {"least": 1 - high, "greatest": 1 - low},
        "confidence": {"mean": float(confidence.mean()), "spread": float(confidence.std())},
        "boxes_px": {name: {"least": a, "greatest": b} for name, a, b in ranges},
        "kept": {f"{s:.2f}": {k: v / len(dataset) for k, v in counts.items()} for s, counts in kept.items()},
        "best_iou_mean": float(torch.cat(iou).mean()) if iou else None,
    }


@torch.no_grad()
def best_detections(
    detector: RecordedDetector, config: PhaseConfig, exit_name: str, images: torch.Tensor, topk: int = 10
) -> list[Detections]:
    """The ``topk`` best boxes of each image after NMS, for a picture; images (B, 3, 320, 320) in [0, 1]."""
    detector.eval()
    maps = detector(images)[EXIT_NAMES.index(exit_name)]
    boxes = decoded_boxes(maps, config.targets.boxes, SIZE_HW)
    kept = keep_best(boxes, probability_of_maps(maps.cls), SIZE_HW, nms_threshold=NMS_THRESHOLD)
    return [Detections(d.boxes[:topk], d.scores[:topk]) for d in kept]
