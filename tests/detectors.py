"""Small random detectors that were never trained, rooms for them to look at, and their exports."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eelib.checkpoints import save_checkpoint
from eelib.model import EarlyExitSSDLite

SIZE = 96
CLASSES = ("chair", "stool")
# Detectors of every kind, without training.
DETECTORS = {
    "two exits": {},
    "gates": {"blank_gate": True},
    "three exits, two classes": {"cuts": (6, 10, 13), "classes": CLASSES, "blank_gate": True},
    "truncated": {"full": False},
    "plain": {"cuts": ()},
}


@torch.no_grad()
def random_detector(cuts=(8, 12), classes=("chair",), seed=0, **options) -> EarlyExitSSDLite:
    """A detector of 96 px whose scores spread over (0, 1) and whose statistics have seen images."""
    torch.manual_seed(seed)
    model = EarlyExitSSDLite(cuts, classes=classes, **options)
    model.size = SIZE
    for name, layer in model.named_modules():
        predicts = "predictors" in name or "classification_head" in name
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None and predicts:
            layer.weight.normal_(std=0.08)
            layer.bias.add_(0.3 * torch.randn_like(layer.bias))
    for gate in model.blank.values():
        gate.logit.weight.normal_(std=0.3)
        gate.logit.bias.zero_()
    images = torch.stack([torch.from_numpy(room(k)[0]).permute(2, 0, 1) for k in range(8)]).float() / 255
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches
    model.train()
    maps: list = []
    list(model.exits(images, maps))
    if model.blank:
        model.blank_logits(maps)
    return model.eval()


def saved(model: EarlyExitSSDLite, path: Path) -> Path:
    """A checkpoint of it, as a training run leaves one."""
    return save_checkpoint(path, {"model": model.state_dict(), "plan": model.plan})


def room(number: int, side: int = SIZE, kinds: int = 1) -> tuple[np.ndarray, list]:
    """Pixels (side, side, 3) and objects [kind, x, y, w, h] of a wall with bright rectangles; every fourth is empty."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(20, 120, 3) + rng.integers(-15, 15, (side, side, 3))
    objects = []
    for _ in range(0 if number % 4 == 3 else int(rng.integers(1, 4))):
        kind, (w, h) = int(rng.integers(kinds)), rng.integers(side // 6, side // 2, 2).tolist()
        x, y = int(rng.integers(0, side - w)), int(rng.integers(0, side - h))
        pixels[y : y + h, x : x + w] = rng.integers(150, 255, 3)
        objects.append([kind, x, y, w, h])
    return pixels.clip(0, 255).astype(np.uint8), objects


def write_rooms(folder: Path, images: int = 16, classes=("chair",)) -> Path:
    """A data set in eelib's layout whose splits hold different rooms."""
    for first, split in enumerate(("train", "val", "calibrate", "test")):
        (folder / split).mkdir(parents=True)
        rows, annotations = [], []
        for number in range(1, images + 1):
            pixels, objects = room(1000 * first + number, kinds=len(classes))
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            rows.append({"id": number, "file_name": f"{number}.png", "width": SIZE, "height": SIZE})
            for kind, *box in objects:
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 62 + kind, "bbox": box}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": 62 + k, "name": name} for k, name in enumerate(classes)]
        content = {"images": rows, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder
