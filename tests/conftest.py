"""Small data sets, and detectors of every kind with their exports, which are made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import DETECTORS, random_detector, room, saved, write_rooms
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


@pytest.fixture(scope="session")
def looks() -> np.ndarray:
    """Twelve rooms as network input, (12, 3, 96, 96) in [0, 1]."""
    return np.stack([room(number)[0].transpose(2, 0, 1).astype(np.float32) / 255 for number in range(12)])


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Sixteen rooms a split, with chairs."""
    return write_rooms(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The checkpoint of a kind of :data:`DETECTORS`; it is made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = saved(random_detector(**DETECTORS[kind]), folder / f"{kind}.pth")
        return made[kind]

    return of


@pytest.fixture(scope="session")
def exported(tmp_path_factory, checkpoint):
    """The folder of an export of a kind of :data:`DETECTORS`, without a router; tests must not change it."""
    from eelib.deploy.export import export

    folder, made = tmp_path_factory.mktemp("exports"), {}

    def of(kind: str) -> Path:
        if kind not in made:
            export(checkpoint(kind), folder / kind)
            made[kind] = folder / kind
        return made[kind]

    return of
