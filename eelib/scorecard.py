"""Scorecard"""
import torch
from pathlib import Path
from torch import Tensor
from eelib.confidence import confidence
from eelib.config import PhaseConfig
from eelib.data import as_input
from eelib.evaluate import coco_ap, decision, provenance
from eelib.latency import machine, measure
from eelib.model import EXIT_NAMES
from eelib.phases import exit_probability, final_thresholds, route_split, weights_path
from eelib.recorded import RecordedDetector
from eelib.routing import exit_shares
from eelib.train import training_set


@torch.no_grad()
def routed_call(detector: RecordedDetector, config: PhaseConfig, images: Tensor) -> int:
    """One timed call: exits until the batch's mean confidence reaches its threshold."""
    in_force = final_thresholds(detector, config)
    for index, maps in enumerate(detector.exits(images)):
        value = float(confidence(exit_probability(detector, index, maps), config.confidence).mean())
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


def measure_phase(config: PhaseConfig, detector: RecordedDetector, history: list[dict], out: Path | str) -> dict:
    """Everything measured of a trained phase on ``test``, with its provenance; see ``eelib.scorecard`` for the rest."""
    run = route_split(detector, config, "test")
    dataset, last = run["dataset"], history[-1]
    ap = {name: coco_ap(dataset.coco, rows, dataset.image_ids) for name, rows in run["results"].items()}
    routed = coco_ap(dataset.coco, run["routed"], dataset.image_ids)
    images = as_input(torch.stack([dataset[i][0] for i in range(min(4, len(dataset)))]))

    def by_exit(values: Tensor) -> dict[str, float]:
        return dict(zip(EXIT_NAMES, values.tolist(), strict=True))

    exits = dict(zip(EXIT_NAMES, exit_shares(run["chosen"]), strict=True))
    steps = -(-len(training_set(config)) // config.optim.batch_size) * config.optim.epochs
    return {
        "phase": config.phase,
        "seed": config.seed,
        "images": len(dataset),
        "train_images": config.data.limit,
        "epochs": config.optim.epochs,
        "steps": steps,
        "exit_shares": exits,
        "confidence_mean": by_exit(run["confidences"].mean(0)),
        "confidence_std": by_exit(run["confidences"].std(0)),
        "probability_mean": by_exit(run["probabilities"].mean(0)),
        "temperature": {name: last[f"temperature_{name}"] for name in EXIT_NAMES},
        "thresholds": dict(zip(EXIT_NAMES[:2], final_thresholds(detector, config), strict=True)),
        "loss": {key.removeprefix("loss_"): last[key] for key in last if key.startswith("loss")},
        "train_rates": {key.removeprefix("rate_"): last[key] for key in last if key.startswith("rate_")},
        "time": phase_times(detector, config, images),
        "AP_exits": {exit_: values["AP"] for exit_, values in ap.items()},
        "AP": routed["AP"],
        "AP50": routed["AP50"],
        "detections_per_image": len(run["routed"]) / len(dataset),
        "decision": decision(routed["AP"]),
        **provenance("test", config, weights_path(out, config.phase)),
    }


