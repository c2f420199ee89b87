"""What a trained phase does on ``test``, and the record beside it.

What a run measured (:func:`summarise`) is judged in :mod:`studies.phases.verdicts`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from eelib.checkpoints import TrainingError
from eelib.coco import open_source
from eelib.config import ROOT, resolve
from eelib.data import DetectionDataset, as_input, batches
from eelib.evaluate import provenance
from eelib.files import read_json, shorten, write_json
from eelib.model import SIZE, class_scores, keep_best
from eelib.routed_ap import RoutedAP
from eelib.routing import exit_shares
from eelib.timing import machine, measure
from studies.goals import decision
from studies.phases.analysis import recorded_values
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.detector import NMS_THRESHOLD, SIZE_HW, RecordedDetector, decoded_boxes
from studies.phases.trained import final_thresholds, load_phase, optimiser_steps, route_split, tag, weights_path
from studies.phases.trainer import identity

FEW_STEPS = 2500  # a tenth of the record's, below which boxes in pixels have not been learnt
SCORES = (0.5, 0.4, 0.35)  # least scores that the record's script tried


@torch.no_grad()
def routed_call(detector: RecordedDetector, config: PhaseConfig, images: Tensor) -> int:
    """One timed call: exits until the batch's mean confidence reaches its threshold."""
    in_force = final_thresholds(detector, config)
    for index, output in enumerate(detector.exits(images)):
        value = float(confidence(detector.probability(output), config.confidence).mean())
        if index == len(in_force) or value >= in_force[index]:
            return index
    raise AssertionError("the full exit takes what no other took")


@torch.no_grad()
def phase_times(detector: RecordedDetector, config: PhaseConfig, images: Tensor) -> dict:
    """Time of the routed call on images (N, 3, 320, 320) as the phase takes it, and warmed up for four and for one."""
    n = config.timing.batch_size
    calls = {k: lambda k=k: routed_call(detector, config, images[:k]) for k in (n, 1, 4)}
    configured = measure({n: calls[n]}, 15, config.timing.warmup)
    warm = measure({k: calls[k] for k in (1, 4)}, 15)
    return {
        "routed_call_ms": configured[n]["median_ms"],
        "images_per_call": n,
        "one_image_ms": warm[1]["median_ms"],
        "four_images_ms": warm[4]["median_ms"],
        "machine": machine(),
    }


def precision_recall(evaluator: RoutedAP, chosen: np.ndarray, score: float = 0.5) -> dict[str, float]:
    """Precision and recall of a routing's detections at or above a score, matched as pycocotools does at IoU 0.5.

    Crowds count neither way.

    Args:
        chosen: exit of each image, (N,).

    Returns:
        ``score``, ``precision`` (0 without a detection), ``recall`` and ``detections_per_image``.
    """
    taken = (evaluator.exit == chosen[evaluator.image]) & (evaluator.score >= score)
    right = int(evaluator.matched[0][taken].sum())  # leaves out what is ignored
    counted = int((~evaluator.ignored[0][taken]).sum())
    return {
        "score": score,
        "precision": right / max(1, counted),
        "recall": right / max(1, int(evaluator.positives.sum())),
        "detections_per_image": int(taken.sum()) / evaluator.images,
    }


def validate(config: PhaseConfig, folder: Path | str, *, compute: bool, score: float = 0.5) -> dict:
    """The record's open question about a trained phase: AP on ``test``, and the decision.

    Args:
        folder: of its run; where it was not trained, what the repository holds of its longest training is taken.
        compute: run the detector now; otherwise read what its training measured.
        score: least score of a detection for precision and recall; acts when computing.

    Raises:
        TrainingError: the phase is not trained, or nothing was measured yet.
    """
    if compute:
        detector, source = load_phase(config, folder)
        run = route_split(detector, config, "test")
        evaluator, chosen = RoutedAP(run.records, run.coco), run.chosen.numpy()
        ap = evaluator.scores(chosen) | precision_recall(evaluator, chosen, score)
    else:
        own = Path(folder) / f"final_summary_phase{tag(config.phase)}.json"
        committed, name = resolve("reports") / "metrics" / "phases", f"phase_{tag(config.phase)}_seed{config.seed}.json"
        source = next((path for path in (own, committed / "serious" / name, committed / name) if path.exists()), None)
        if source is None:
            raise TrainingError(f"{own}: nothing measured yet; add --compute-map or run `make reproduce`")
        content = read_json(source, TrainingError)
        ap = content | content["at_score"] if isinstance(content.get("at_score"), dict) else content
    keys = ("AP", "AP50", "precision", "recall", "score", "detections_per_image")
    for key in keys:
        if type(ap.get(key)) not in (int, float) or not -1 <= ap[key] < 1e6:
            raise TrainingError(f"{source}: '{key}' is {shorten(ap.get(key))}; expected a number: run the phase again")
    answer = {"phase": config.phase, "split": "test", **{k: ap[k] for k in keys}, "decision": decision(ap["AP"])}
    return answer | {"source": str(source.relative_to(ROOT) if source.is_relative_to(ROOT) else source)}


@torch.no_grad()
def describe(detector: RecordedDetector, config: PhaseConfig, exit_name: str, limit: int | None = None) -> dict:
    """Scores and boxes of one exit on ``test``; scores are without temperature, as the record's script takes them.

    Args:
        limit: images; None takes all.

    Returns:
        ``chair_probability`` and ``background_probability`` (least, greatest), ``boxes_px`` (range of each corner),
        ``kept`` by least score (before and after NMS, a mean an image), ``confidence`` (mean, spread over images),
        ``best_iou_mean`` (of the best box with each object), ``images`` and ``boxes_per_image``.
    """
    detector.eval()
    dataset = DetectionDataset("test", open_source(config.data), SIZE, limit=limit)
    probability, corners, confidences, iou = [], [], [], []
    counts = {score: {"before_nms": 0, "after_nms": 0} for score in SCORES}
    for images, targets in batches(dataset, 4):
        output = detector(images)[EXIT_NAMES.index(exit_name)].output()
        scores, boxes = class_scores(output.cls_logits), decoded_boxes(output, config.targets.boxes)
        p = scores[..., 0]
        confidences.append(confidence(detector.probability(output), config.confidence))
        probability.append(torch.stack(p.aminmax(dim=1), 1))
        corners.append(torch.stack(boxes.aminmax(dim=1), 1))  # (B, 2, 4)
        for score in SCORES:
            survivors = keep_best(exit_name, boxes, scores, SIZE_HW, score, NMS_THRESHOLD, topk=p.shape[1])
            counts[score]["before_nms"] += int((p > score).sum())
            counts[score]["after_nms"] += sum(len(d.scores) for d in survivors)
        iou += [box_iou(t["boxes"], b).amax(1) for t, b in zip(targets, boxes, strict=True) if len(t["boxes"])]
    probability, corners, confidences = torch.cat(probability), torch.cat(corners), torch.cat(confidences)
    low, high = float(probability[:, 0].min()), float(probability[:, 1].max())
    ranges = zip(("x1", "y1", "x2", "y2"), corners[:, 0].amin(0).tolist(), corners[:, 1].amax(0).tolist(), strict=True)
    return {
        "exit": exit_name,
        "images": len(dataset),
        "boxes_per_image": p.shape[1],
        "chair_probability": {"least": low, "greatest": high},
        "background_probability": {"least": 1 - high, "greatest": 1 - low},
        "confidence": {"mean": float(confidences.mean()), "spread": float(confidences.std())},
        "boxes_px": {name: {"least": a, "greatest": b} for name, a, b in ranges},
        "kept": {f"{s:.2f}": {k: v / len(dataset) for k, v in by_step.items()} for s, by_step in counts.items()},
        "best_iou_mean": float(torch.cat(iou).mean()) if iou else None,
    }


def boxes_reading(described: dict) -> str:
    """What :func:`describe` says of a detector, with ``steps`` of its training, in sentences."""
    low = min(span["least"] for span in described["boxes_px"].values())
    high = max(span["greatest"] for span in described["boxes_px"].values())
    p, iou, steps = described["chair_probability"], described["best_iou_mean"], described["steps"]
    text = (
        f"The corners of all boxes lie between {low:.0f} and {high:.0f} px of 320, on record between 176 and 379 of "
        f"photographs that are larger; the best of {described['boxes_per_image']:,} boxes overlaps its chair by an IoU "
        f"of {iou:.3f} on average. The chair's probability lies between {p['least']:.3f} and {p['greatest']:.3f} for "
        "all boxes of all images, on record between 0.41 and 0.4625."
    )
    if steps < FEW_STEPS:
        text += (
            f" After {steps:,} of the record's 25,000 steps the boxes have hardly left the corner where they start: "
            "where they lie, and the AP of 0 that follows, is of this budget and no evidence on the recorded detector."
        )
    return text


def recorded_card(phase: str) -> dict:
    """The recorded final values of a phase as numbers, grouped as ours; empty for a phase not on record."""
    row = recorded_values(phase)
    if not row:
        return {}
    names = {"exit_shares": "val_fraction_{}", "confidence": "train_confidence_{}"}
    names |= {"confidence_std": "train_confidence_std_{}", "temperature": "temperature_{}"}
    names |= {"thresholds": "{}_threshold_epoch20", "loss": "loss_{}"}
    names |= {f"{kind}_rates": f"train_{kind}_exit_fraction_{{}}" for kind in ("soft", "hard")}
    card = {key: {n: row[k.format(n)] for n in EXIT_NAMES if k.format(n) in row} for key, k in names.items()}
    losses = {"total": "total", "cascade": "cascade", "order": "confidence_order", "distribution": "exit_distribution"}
    card["loss"] |= {key: row[f"loss_{name}"] for key, name in losses.items() if f"loss_{name}" in row}
    card["ms_per_batch_of_four"] = row["latency_ms_per_batch_of_4"]
    card["ms_per_image"] = row["latency_ms_per_batch_of_4"] / 4
    return card


def summarise(config: PhaseConfig, detector: RecordedDetector, history: list[dict], out: Path | str) -> dict:
    """Everything measured of a trained phase on ``test``, beside the record.

    Writes ``final_summary_phaseN.json`` to ``out``.
    """
    run, last = route_split(detector, config, "test"), history[-1]
    evaluator, chosen = RoutedAP(run.records, run.coco), run.chosen.numpy()
    scores = evaluator.scores(chosen)
    dataset = DetectionDataset("test", open_source(config.data), SIZE, keep_crowd=True, limit=4)
    images = as_input(torch.stack([dataset[i][0] for i in range(len(dataset))]))

    def by_exit(values: Tensor) -> dict[str, float]:
        return dict(zip(EXIT_NAMES, values.tolist(), strict=True))

    summary = {
        "phase": config.phase,
        "seed": config.seed,
        "images": evaluator.images,
        "train_images": config.data.limit,
        "epochs": config.optim.epochs,
        "steps": optimiser_steps(config),
        "exit_shares": dict(zip(EXIT_NAMES, exit_shares(run.chosen), strict=True)),
        "confidence_mean": by_exit(run.confidences.mean(0)),
        "confidence_std": by_exit(run.confidences.std(0)),
        "probability_mean": by_exit(run.probabilities.mean(0)),
        "boxes_above_cut": by_exit(run.above_cut.double().mean(0)),
        "temperature": {name: last[f"temperature_{name}"] for name in EXIT_NAMES},
        "thresholds": dict(zip(EXIT_NAMES[:2], final_thresholds(detector, config), strict=True)),
        "loss": {key.removeprefix("loss_"): last[key] for key in last if key.startswith("loss")},
        "train_rates": {key.removeprefix("rate_"): last[key] for key in last if key.startswith("rate_")},
        "time": phase_times(detector, config, images),
        "AP_exits": {name: evaluator.of_exit(k) for k, name in enumerate(EXIT_NAMES)},
        **scores,
        "detections_per_image": precision_recall(evaluator, chosen, 0.0)["detections_per_image"],
        "at_score": precision_recall(evaluator, chosen),
        "decision": decision(scores["AP"]),
        "recorded": recorded_card(config.phase),
        "start_sha256": identity(config)["start_sha256"],
        **provenance("test", config, weights_path(out, config.phase)),
    }
    if config.optim.accelerator == "cuda":
        summary["trained_on"] = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    write_json(Path(out) / f"final_summary_phase{tag(config.phase)}.json", summary)
    return summary
