"""Detect in images with a detector in torch: what :meth:`eelib.model.EarlyExitSSDLite.predict` does."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from eelib.detections import Detections
from eelib.model import EarlyExitSSDLite, class_scores, postprocess
from eelib.preprocess import ImageSource, as_image, resize


def predict(
    model: EarlyExitSSDLite,
    images: ImageSource | list[ImageSource],
    *,
    thresholds: Mapping[str, float] | None = None,
    min_score: float = 0.05,
) -> Detections | list[Detections]:
    """Detect in one image or in a list of them.

    Args:
        model: a trained detector.
        images: each a path, a PIL image, or an array (H, W, 3) or (H, W), uint8 in 0..255 or float in [0, 1].
        thresholds: exit name to the best score in [0, 1] from which an image leaves there; None runs the full path.
        min_score: least score of a detection that is returned, in [0, 1].

    Returns:
        Detections in pixels of the upright image, for a list one each.

    Raises:
        ValueError: an exit that the detector does not have, a threshold or score outside [0, 1], or an array that is
            no image.
        ImageError: a file that cannot be read.
    """
    thresholds = dict(thresholds or {})
    for name in thresholds:
        if name not in model.exit_names[:-1]:
            early = ", ".join(model.exit_names[:-1]) or "none"
            raise ValueError(f"thresholds: no early exit '{name}'; this detector has {early}")
    shares = {f"threshold of {name}": value for name, value in thresholds.items()} | {"min_score": min_score}
    for what, value in shares.items():
        if not 0 <= value <= 1:  # NaN as well
            raise ValueError(f"{what} is {value}; expected a number from 0 to 1")
    if isinstance(images, list | tuple):
        return [_detect(model, image, thresholds, min_score) for image in images]
    return _detect(model, images, thresholds, min_score)


@torch.inference_mode()
def _detect(
    model: EarlyExitSSDLite, source: ImageSource, thresholds: Mapping[str, float], min_score: float
) -> Detections:
    image, size = as_image(source), model.size
    pixels = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None]  # (1, 3, S, S)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for output in model.exits(pixels.to(device).float().div_(255)):
            best = float(class_scores(output.cls_logits).max())
            if best >= thresholds.get(output.name, float("inf")):
                break
    finally:
        model.train(training)
    (found,) = postprocess(output, (size, size), score_threshold=min_score)
    return replace(found.scaled(image.width / size, image.height / size), classes=tuple(model.classes), image=image)
