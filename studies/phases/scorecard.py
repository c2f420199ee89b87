"""The scorecard: what a phase measured, the record beside it, and whether its mechanism holds.

``reports/metrics/phases/phase_1_4_seed0.json`` is one run (:func:`summarise`);
``reports/metrics/phases.json`` joins all of them (:func:`join_runs`).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_iou

from eelib.checkpoints import TrainingError
from eelib.coco import open_source
from eelib.data import DetectionDataset, as_input, batches
from eelib.evaluate import decision, precision_recall, provenance
from eelib.files import read_json, shorten, write_json
from eelib.model import SIZE, class_scores, keep_best
from eelib.routed_ap import RoutedAP
from eelib.routing import exit_shares
from eelib.timing import machine, measure
from studies.phases.analysis import recorded_values
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.detector import NMS_THRESHOLD, SIZE_HW, RecordedDetector, decoded_boxes
from studies.phases.mechanisms import check_mechanisms, explain_difference, explain_unmet
from studies.phases.trainer import (
    Routed,
    final_thresholds,
    identity,
    load_phase,
    optimiser_steps,
    route_split,
    tag,
    weights_path,
)

SCORES = (0.5, 0.4, 0.35)  # least scores that the record's script tried
# Keys of phases.json, for its readers.
ABOUT = {
    "phases": "one entry a phase: recorded, runs (one a seed), and how many runs agree",
    "recorded": "final row of the record: val shares, train confidences, temperatures, losses, ms a batch of four",
    "runs.exit_shares": "share of the test images at each exit, decided as the phase decides",
    "runs.confidence_mean, confidence_std, probability_mean": "over all test images at every exit, routed there or not",
    "runs.temperature, loss, train_rates": "last training epoch",
    "runs.thresholds": "in force at the end",
    "runs.time": "routed_call_ms as the phase times it; four_images_ms, one_image_ms warmed up; runs side by side",
    "runs.mechanisms": "predictions from the switches: prediction, predicted, measured, holds",
    "runs.start_sha256": "of the trunk's checkpoint; seeds with another one than seed 0 were run before it changed",
    "runs.difference": "null, or why the exit shares are not the recorded ones",
    "runs.unmet": "null, or why a prediction does not hold",
}


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
    """Time of the routed call as the phase takes it, and warmed up for four images and for one.

    Args:
        images: at least ``timing.batch_size`` of them, (N, 3, 320, 320).
    """
    n = config.timing.batch_size
    configured = measure(
        {"call": lambda: routed_call(detector, config, images[:n])}, repeats=15, warmup=config.timing.warmup
    )
    warm = measure({str(k): lambda k=k: routed_call(detector, config, images[:k]) for k in (1, 4)}, repeats=15)
    return {
        "routed_call_ms": configured["call"]["median_ms"],
        "images_per_call": n,
        "one_image_ms": warm["1"]["median_ms"],
        "four_images_ms": warm["4"]["median_ms"],
        "machine": machine(),
    }


def routed_results(run: Routed) -> list[dict]:
    """COCO results of the exits that the images of a split took."""
    category_ids = run.coco.getCatIds()
    return [
        result
        for row, (image_id, k) in enumerate(zip(run.records.image_ids, run.chosen.tolist(), strict=True))
        for result in run.records.detections(k, row).to_coco(image_id, category_ids)
    ]


def measure_phase(config: PhaseConfig, detector: RecordedDetector, history: list[dict]) -> dict:
    """Everything measured of a trained phase on ``test``."""
    run, last = route_split(detector, config, "test"), history[-1]
    evaluator, count = RoutedAP(run.records, run.coco), len(run.records)
    routed, scores = routed_results(run), evaluator.scores(run.chosen.numpy())
    dataset = DetectionDataset("test", open_source(config.data), SIZE, keep_crowd=True, limit=4)
    images = as_input(torch.stack([dataset[i][0] for i in range(len(dataset))]))

    def by_exit(values: Tensor) -> dict[str, float]:
        return dict(zip(EXIT_NAMES, values.tolist(), strict=True))

    return {
        "phase": config.phase,
        "seed": config.seed,
        "images": count,
        "train_images": config.data.limit,
        "epochs": config.optim.epochs,
        "steps": optimiser_steps(config),
        "exit_shares": dict(zip(EXIT_NAMES, exit_shares(run.chosen), strict=True)),
        "confidence_mean": by_exit(run.confidences.mean(0)),
        "confidence_std": by_exit(run.confidences.std(0)),
        "probability_mean": by_exit(run.probabilities.mean(0)),
        "temperature": {name: last[f"temperature_{name}"] for name in EXIT_NAMES},
        "thresholds": dict(zip(EXIT_NAMES[:2], final_thresholds(detector, config), strict=True)),
        "loss": {key.removeprefix("loss_"): last[key] for key in last if key.startswith("loss")},
        "train_rates": {key.removeprefix("rate_"): last[key] for key in last if key.startswith("rate_")},
        "time": phase_times(detector, config, images),
        "AP_exits": {name: evaluator.of_exit(k) for k, name in enumerate(EXIT_NAMES)},
        **scores,
        "detections_per_image": len(routed) / count,
        "at_score": precision_recall(run.coco, routed, run.records.image_ids),
        "decision": decision(scores["AP"]),
    }


def validate(config: PhaseConfig, folder: Path | str, *, compute: bool, score: float = 0.5) -> dict:
    """The record's open question about a trained phase: AP on ``test``, and the decision.

    Args:
        config: the phase.
        folder: of its run.
        compute: run the detector now; otherwise read the run's summary.
        score: least score of a detection for precision and recall; acts when computing.

    Raises:
        TrainingError: the phase is not trained, or nothing was measured yet.
    """
    summary = Path(folder) / f"final_summary_phase{tag(config.phase)}.json"
    if compute:
        run = route_split(load_phase(config, folder), config, "test")
        ap = RoutedAP(run.records, run.coco).scores(run.chosen.numpy())
        ap |= precision_recall(run.coco, routed_results(run), run.records.image_ids, score)
    elif summary.exists():
        content = read_json(summary, TrainingError)
        ap = content | content["at_score"] if isinstance(content.get("at_score"), dict) else content
    else:
        raise TrainingError(f"{summary}: nothing measured yet; add --compute-map or run `make reproduce`")
    keys = ("AP", "AP50", "precision", "recall", "score", "detections_per_image")
    for key in keys:
        if type(ap.get(key)) not in (int, float) or not -1 <= ap[key] < 1e6:
            value = shorten(ap.get(key))
            raise TrainingError(f"{summary}: '{key}' is {value}; expected a number: run the phase again")
    return {"phase": config.phase, "split": "test", **{k: ap[k] for k in keys}, "decision": decision(ap["AP"])}


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


def recorded_card(phase: str) -> dict:
    """The recorded final values of a phase as numbers, grouped as ours; empty for a phase not on record."""
    row = recorded_values(phase)
    if not row:
        return {}
    names = {
        "exit_shares": "val_fraction_{}",
        "confidence": "train_confidence_{}",
        "confidence_std": "train_confidence_std_{}",
        "temperature": "temperature_{}",
        "thresholds": "{}_threshold_epoch20",
        "loss": "loss_{}",
        "soft_rates": "train_soft_exit_fraction_{}",
        "hard_rates": "train_hard_exit_fraction_{}",
    }
    card = {key: {n: row[k.format(n)] for n in EXIT_NAMES if k.format(n) in row} for key, k in names.items()}
    losses = {"total": "total", "cascade": "cascade", "order": "confidence_order", "distribution": "exit_distribution"}
    card["loss"] |= {key: row[f"loss_{name}"] for key, name in losses.items() if f"loss_{name}" in row}
    card["ms_per_batch_of_four"] = row["latency_ms_per_batch_of_4"]
    card["ms_per_image"] = row["latency_ms_per_batch_of_4"] / 4
    return card


def summarise(config: PhaseConfig, detector: RecordedDetector, history: list[dict], out: Path | str) -> dict:
    """A phase on ``test`` beside the record; writes ``final_summary_phaseN.json`` to ``out``."""
    run, card = measure_phase(config, detector, history), recorded_card(config.phase)
    checks = check_mechanisms(config, run, history)
    summary = run | {
        "recorded": card,
        "mechanisms": checks,
        "mechanism_holds": all(check["holds"] for check in checks) if checks else None,
        "difference": explain_difference(config, run, card),
        "unmet": explain_unmet(config, run, checks),
        "start_sha256": identity(config)["start_sha256"],
        **provenance("test", config, weights_path(out, config.phase)),
    }
    write_json(Path(out) / f"final_summary_phase{tag(config.phase)}.json", summary)
    return summary


def join_runs(paths: Sequence[Path]) -> dict:
    """``phases.json`` from the files of single runs.

    Raises:
        ValueError: no file, or runs that were measured on different test data.
    """
    rows = [read_json(path) for path in sorted(paths)]
    if not rows:
        raise ValueError("no run of a recorded phase found; expected phase_1_N_seedS.json files")
    for path, row in zip(sorted(paths), rows, strict=True):
        if row["split_sha256"] != rows[0]["split_sha256"]:
            raise ValueError(f"{path}: measured on another 'test' than {sorted(paths)[0]}; run it again")
    phases, shared = [], {"phase", "recorded", "split", "split_sha256"}
    for phase in dict.fromkeys(row["phase"] for row in rows):
        runs = [row for row in rows if row["phase"] == phase]
        phases.append({
            "phase": phase,
            "recorded": runs[0]["recorded"],
            "agree": sum(run["difference"] is None for run in runs) if runs[0]["recorded"] else None,
            "mechanism_holds": sum(bool(run["mechanism_holds"]) for run in runs),
            "seeds": len(runs),
            "runs": [{k: v for k, v in run.items() if k not in shared} for run in runs],
        })  # fmt: skip
        for run in phases[-1]["runs"][1:]:
            del run["config"]  # the seed aside, it is the first run's
    return {"about": ABOUT, **{key: rows[0][key] for key in ("split", "split_sha256")}, "phases": phases}


def card_table(summary: dict) -> pd.DataFrame:
    """One run: recorded value beside ours, a line a quantity.

    Args:
        summary: of :func:`summarise`.
    """
    old, lines = summary["recorded"], []
    pairs = {key: key for key in ("exit_shares", "confidence_std", "temperature", "thresholds", "loss")}
    for key, ours in ({"exit_shares": "exit_shares", "confidence": "confidence_mean"} | pairs).items():
        for name, value in summary[ours].items():
            lines.append((f"{key} {name}", old.get(key, {}).get("total" if name == "loss" else name), value))
    for kind in ("soft", "hard"):
        for name, value in old.get(f"{kind}_rates", {}).items():
            lines.append((f"{kind} rate {name}", value, summary["train_rates"].get(f"{kind}_{name}")))
    lines.append(("ms a call of four", old.get("ms_per_batch_of_four"), summary["time"]["four_images_ms"]))
    lines.append(("ms an image", old.get("ms_per_image"), summary["time"]["one_image_ms"]))
    lines.append(("AP", None, summary["AP"]))
    return pd.DataFrame(lines, columns=["quantity", "recorded", "ours"]).astype({"recorded": object, "ours": object})
