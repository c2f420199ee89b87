"""Drawn shapes of two kinds, as a user's own small set."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("disc", "triangle")


def draw(number: int, size_wh: tuple[int, int] = (320, 240)) -> tuple[Image.Image, list]:
    """A picture of one to three coloured shapes on a noisy ground, and its objects [kind, x, y, w, h]."""
    rng = np.random.default_rng(number)
    width, height = size_wh
    ground = rng.integers(60, 190, 3) + rng.integers(-20, 20, (height, width, 3))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    pen, objects = ImageDraw.Draw(image), []
    for _ in range(int(rng.integers(1, 4))):
        kind, side = int(rng.integers(2)), int(rng.integers(height // 6, height // 3))
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        if any(abs(x - left) < max(side, w) and abs(y - top) < max(side, h) for _, left, top, w, h in objects):
            continue
        colour = tuple(rng.integers(0, 256, 3).tolist())
        if KINDS[kind] == "disc":
            pen.ellipse((x, y, x + side, y + side), colour, "black")
        else:
            pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], colour, "black")
        objects.append([kind, x, y, side, side])
    return image, objects


def write_shapes(folder: Path, images: dict[str, int]) -> Path:
    """A data set in eelib's layout: ``train.json`` beside ``train/``, and so on, of so many images a split."""
    for first, (split, count) in enumerate(images.items()):
        (folder / split).mkdir(parents=True)
        rows, annotations = [], []
        for number in range(1, count + 1):
            image, objects = draw(1000 * first + number)
            image.save(folder / split / f"{number}.jpg", quality=92)
            rows.append({"id": number, "file_name": f"{number}.jpg", "width": image.width, "height": image.height})
            for kind, *box in objects:
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "bbox": box}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(KINDS)]
        content = {"images": rows, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder
