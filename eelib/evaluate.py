"""AP by pycocotools, detections per exit, and where a number came from."""

import contextlib
import importlib.metadata
import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from eelib.coco import DataError, Source, open_root, open_source
from eelib.config import Config
from eelib.data import DetectionDataset, split_sha256
from eelib.files import file_sha256, look_up
from eelib.hub import load
from eelib.model import EarlyExitSSDLite
from eelib.records import detections_of_exits

# Names of pycocotools' summary, in its order.
AP_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
# Packages whose versions every result states.
PACKAGES = ("torch", "torchvision", "pycocotools", "numpy", "lightning-fabric", "onnx", "onnxruntime")


def coco_ap(coco: COCO, results: Sequence[dict], image_ids: Sequence[int] | None = None) -> dict[str, float]:
    """AP[.50:.95], AP50, AP75 and AP by size, by pycocotools.

    Args:
        coco: the annotations of one category.
        results: COCO results; an empty list gives 0 (pycocotools itself fails on it).
        image_ids: images to evaluate; None takes all.

    Raises:
        ValueError: a score is not finite (pycocotools would accept it silently).
    """
    for result in results:
        if not math.isfinite(result["score"]):
            raise ValueError(f"score of a detection in image {result['image_id']} is {result['score']}")
    if not results:
        return dict.fromkeys(AP_NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(list(results)), "bbox")
        evaluation.params.imgIds = sorted(image_ids if image_ids is not None else coco.imgs)
        evaluation.params.catIds = coco.getCatIds()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools writes -1 where no object has that size
    return dict(zip(AP_NAMES, (float(v) for v in evaluation.stats[:6]), strict=True))


def detect_exits(model: nn.Module, dataset: DetectionDataset, batch_size: int = 16) -> dict[str, list[dict]]:
    """COCO results of every exit on a data set whose images have the network's size, in its order."""
    results: dict[str, list[dict]] = {name: [] for name in model.exit_names}
    for output, ids, found, _ in detections_of_exits(model, dataset, batch_size):
        for image_id, detections in zip(ids, found, strict=True):
            results[output.name] += detections.to_coco(image_id, dataset.category_ids)
    return results


def evaluate(
    detector: EarlyExitSSDLite | Path | str,
    source: DetectionDataset | Source | Path | str = "data/showroom",
    split: str = "test",
    limit: int | None = None,
) -> dict[str, dict[str, float]]:
    """AP of every exit of a detector, as :func:`coco_ap` gives it.

    Args:
        detector: what :func:`eelib.load` gave, any model that is trained, a checkpoint, or a released name.
        source: data set, or its folder; its images are resized to the detector's input. Or one split as a
            :class:`eelib.data.DetectionDataset` of that size with crowds kept; ``split`` and ``limit`` are its own.
        split: name of the split to evaluate.
        limit: how many images, drawn with seed 0; None takes all.

    Returns:
        Exit name to ``AP``, ``AP50``, ``AP75``, ``AP_small``, ``AP_medium`` and ``AP_large``, in [0, 1].

    Raises:
        TrainingError: no such checkpoint, or one of another architecture.
        DataError: no such split, or images without objects, so that AP is not defined.

    Examples:
        >>> measured = eelib.evaluate(model, "my", limit=8)
        >>> 0 <= measured["exit1"]["AP50"] <= 1
        True
    """
    model = detector if isinstance(detector, nn.Module) else load(detector)
    if not isinstance(source, DetectionDataset):
        source = DetectionDataset(split, source_for(model, source), model.size, keep_crowd=True, limit=limit)
    if not any(not a["iscrowd"] for i in source.image_ids for a in source.annotations[i]):
        raise DataError(f"{source.file}: no object on the {len(source)} images: AP is not defined")
    results = detect_exits(model, source)
    return {name: coco_ap(source.coco, rows, source.image_ids) for name, rows in results.items()}


def source_for(model: EarlyExitSSDLite, source: Source | Path | str) -> Source:
    """A data set with the categories of a detector, by its folder."""
    return source if isinstance(source, Source) else open_root(look_up(source), model.classes)


def provenance(split: str, config: Config, checkpoint: Path | str, root: Path | str | None = None) -> dict:
    """What every metrics file records beside its numbers.

    Args:
        split, checkpoint: that were evaluated.
        config: of the checkpoint's training.
        root: data set that was evaluated; None is that of ``config``.
    """
    return {
        "split": split,
        "split_sha256": split_sha256(split, open_source(config.data) if root is None else root),
        "checkpoint_sha256": file_sha256(checkpoint),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of :data:`PACKAGES`, as far as they are installed."""
    installed = [name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_"))]
    return {name: importlib.metadata.version(name) for name in installed}
