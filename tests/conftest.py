"""A small COCO-format data set that is written for each test."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two images in every split: one with two objects and a crowd box, one empty."""
    for split in ("train", "val", "calibrate", "test"):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for i in (1, 2):
            Image.new("RGB" if i == 1 else "L", (64, 48), 90 * i).save(tmp_path / split / f"{i}.jpg")
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48})
        for k, (box, crowd) in enumerate((([4, 6, 20, 30], 0), ([30, 10, 20, 20], 0), ([0, 0, 3, 3], 1))):
            annotations.append(
                {"id": k + 1, "image_id": 1, "category_id": 62, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            )
        content = {"images": images, "annotations": annotations, "categories": [{"id": 62, "name": "chair"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    return tmp_path
