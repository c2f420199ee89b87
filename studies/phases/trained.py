"""A recorded phase as it stands: its detector, the files that a training leaves, and where it sends a split."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from pycocotools.coco import COCO
from torch import Tensor

from eelib.checkpoints import TrainingError, load_checkpoint, load_fitting, save_checkpoint
from eelib.coco import open_source
from eelib.config import resolve
from eelib.data import DetectionDataset, split_sha256
from eelib.detections import Detections
from eelib.files import file_sha256, write_atomic
from eelib.model import SIZE
from eelib.records import ExitRecords, detections_of_exits
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig, parse
from studies.phases.detector import RecordedDetector
from studies.phases.images import PhaseImages
from studies.phases.loss import first_exit_of_groups, scheduled_thresholds


def tag(phase: str) -> str:
    """``"1.4"`` as the record writes it in file names: ``"1_4"``."""
    return phase.replace(".", "_")


def run_folder(config: PhaseConfig, runs: Path | str | None = None) -> Path:
    """Folder of a run: ``runs/phase_1_4/seed0``."""
    return Path(runs or resolve("runs")) / f"phase_{tag(config.phase)}" / f"seed{config.seed}"


def build_detector(config: PhaseConfig) -> RecordedDetector:
    """The recorded detector of a configuration, its trunk from the start checkpoint.

    Raises:
        TrainingError: the start checkpoint has no fitting trunk.
    """
    torch.manual_seed(config.seed)
    detector = RecordedDetector(config)
    if config.model.start:
        state = load_checkpoint(resolve(config.model.start))["model"]
        parts = [detector.backbone, *detector.backbone_tail]
        names = ["features.0", "features.1", *(f"extra.{k}" for k in range(len(parts)))]
        try:
            for part, name in zip(parts, names, strict=False):  # a phase may use fewer parts
                prefix = f"backbone.{name}."
                weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                part.load_state_dict(weights)
        except RuntimeError as error:
            detail = str(error).splitlines()[1].strip()
            raise TrainingError(f"{config.model.start}: checkpoint of another architecture; {detail}") from None
    return detector.to(memory_format=torch.channels_last)


def optimiser_steps(config: PhaseConfig) -> int:
    """Steps of a whole training."""
    images = len(PhaseImages("train", config, config.data.limit))
    return -(-images // config.optim.batch_size) * config.optim.epochs


def thresholds(detector: RecordedDetector, config: PhaseConfig, epoch: int) -> tuple:
    """Thresholds of exit1 and exit2 in force during an epoch (from 0): parameters or numbers."""
    if config.thresholds.kind == "parameter":
        return tuple(detector.heads.thresholds.values())
    return scheduled_thresholds(config.thresholds, epoch, config.optim.epochs)


@torch.no_grad()
def final_thresholds(detector: RecordedDetector, config: PhaseConfig) -> tuple[float, float]:
    """Thresholds in force in the last epoch, and from then on."""
    return tuple(float(t) for t in thresholds(detector, config, max(0, config.optim.epochs - 1)))


def routing_group(config: PhaseConfig) -> int:
    """Images that share one decision."""
    return 4 if config.routing.unit == "batch_mean" else 1


def write_metrics(history: list[dict], phase: str, out: Path | str) -> None:
    """``train_metrics_phaseN.csv`` and ``val_metrics_phaseN.csv``, a line an epoch."""
    frame = pd.DataFrame(history).set_index("epoch").drop(columns="seconds")
    val = frame.columns.str.startswith("val_")
    for file_name, columns in zip(metrics_files(phase), (~val, val), strict=True):
        write_atomic(Path(out) / file_name, frame.loc[:, columns].to_csv)


def metrics_files(phase: str) -> list[str]:
    """Names of a run's curves by epoch, training and validation."""
    return [f"{split}_metrics_phase{tag(phase)}.csv" for split in ("train", "val")]


def read_history(folder: Path | str, phase: str) -> pd.DataFrame:
    """A training by epoch, from its published curves."""
    train, val = (pd.read_csv(Path(folder) / name, index_col="epoch") for name in metrics_files(phase))
    return train.join(val)


def weights_path(out: Path | str, phase: str) -> Path:
    """The trained weights of a phase, under the record's file name."""
    return Path(out) / f"early_exit_ssdlite_phase{tag(phase)}_final.pth"


def ship(detector: RecordedDetector, config: PhaseConfig, path: Path | str) -> None:
    """Save the branches of a phase in half precision; the frozen trunk is that of the start checkpoint."""
    heads = {k: v.half() if v.is_floating_point() else v for k, v in detector.heads.state_dict().items()}
    origin = {"steps": optimiser_steps(config), "start_sha256": file_sha256(resolve(config.model.start))}
    save_checkpoint(Path(path), {"model": heads, "config": config.model_dump(mode="json"), **origin})


def load_shipped(path: Path | str) -> tuple[RecordedDetector, PhaseConfig]:
    """A phase from its :func:`ship`-ed branches, and its configuration.

    Raises:
        TrainingError: no such file, or the trunk is not the one that the branches were trained on.
    """
    state = load_checkpoint(path)
    config = parse(state["config"], str(path))
    if file_sha256(resolve(config.model.start)) != state["start_sha256"]:
        raise TrainingError(f"{path}: trained on another {config.model.start}; ship the branches again")
    detector = build_detector(config)
    detector.heads.load_state_dict(state["model"])
    return detector.eval(), config


def load_phase(config: PhaseConfig, out: Path | str) -> tuple[RecordedDetector, Path]:
    """A trained phase from its folder, or else from the repository, and the file of its weights.

    Raises:
        TrainingError: it is in neither.
    """
    path, shipped = weights_path(out, config.phase), resolve("checkpoints") / f"phase_{tag(config.phase)}.pth"
    if path.exists():
        detector = RecordedDetector(config)
        load_fitting(detector, load_checkpoint(path)["model"], path)
        return detector.eval(), path
    if shipped.exists():
        return load_shipped(shipped)[0], shipped
    raise TrainingError(
        f"{path}: phase {config.phase} is not trained yet; run `make reproduce` or "
        f"`eelib study run notebooks/05_routing.ipynb --params params/phase_{tag(config.phase)}.yaml`"
    )


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
