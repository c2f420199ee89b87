"""Images and boxes: splits of COCO-format data as pycocotools and as tensors."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from eelib import preprocess
from eelib.coco import SHOWROOM, DataError, Source, open_root, read_picture, read_split
from eelib.layouts import find_images

IN_MEMORY_BYTES = 2 * 2**30  # decoded images of a split; a larger split is decoded image by image


def split_sha256(split: str, root: Path | str | Source = SHOWROOM) -> str:
    """The identity of a split in every metrics file: the SHA-256 of its annotation file, if it is the whole file."""
    return read_split(split, open_root(root)).sha256


def load_split(split: str, root: Path | str | Source = SHOWROOM, segmentations: bool = False) -> COCO:
    """A split's images and its annotations of the wanted categories; errors as :func:`eelib.coco.read_split`."""
    return as_coco(read_split(split, open_root(root), segmentations).content)


def as_coco(content: dict) -> COCO:
    """What a COCO file holds, checked, as pycocotools has it."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


class OnAccess(Sequence):
    """A sequence of ``count`` items that are made each time they are asked for."""

    def __init__(self, count: int, make: Callable[[int], Tensor]):
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        rows = range(self.count)[index]
        return self.make(rows) if isinstance(rows, int) else [self.make(i) for i in rows]


class DetectionDataset(Dataset):
    """One split; decoded once and kept as uint8 up to 2 GiB (showroom's train is 675 MB), decoded on access beyond.

    Items are ``(image, target)``: image uint8 (3, H, W); target a dict of ``boxes`` (G, 4)
    xyxy float32 in pixels of the image returned, ``labels`` (G,) int64 and ``image_id``. Label k + 1 is category k of
    the source, whose id in the annotations is ``category_ids[k]``; 0 is background.

    Args:
        split: its name.
        root: data set.
        size: side in pixels of the square that images are resized to; None leaves them as they are.
        keep_crowd: annotations of crowds are objects too, as evaluation has it.
        limit: how many images, drawn with ``seed``; None takes all.
        seed: of that draw.

    Raises:
        DataError: bad annotations, or an image file that is missing or of another size than its annotations say.
        ImageError: an image file is broken. What is decoded on access is found broken on access.

    Examples:
        >>> image, target = eelib.DetectionDataset("val", "data/showroom", size=320)[0]
        >>> image.shape
        torch.Size([3, 320, 320])
    """

    segmentations = False  # whether annotations keep theirs, checked

    def __init__(
        self,
        split: str,
        root: Path | str | Source = SHOWROOM,
        size: int | None = None,
        *,
        keep_crowd: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ):
        source = open_root(root)
        self.file, self.folder = source.file_of(split)
        self.coco = load_split(split, source, self.segmentations)
        self.size, self.category_ids = size, self.coco.getCatIds()
        ids = sorted(self.coco.imgs)
        self.annotations = {i: [a for a in self.coco.imgToAnns[i] if keep_crowd or not a["iscrowd"]] for i in ids}
        self.image_ids = ids = self.select(ids, limit, seed)
        names = [self.coco.imgs[i]["file_name"] for i in ids]
        files = find_images(self.folder, names)
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(f"{self.folder / missing[0]}: image file is missing ({len(missing)} of {len(ids)} in all)")
        originals = (self.coco.imgs[i] for i in ids)
        pixels = sum(image["width"] * image["height"] if size is None else size**2 for image in originals)
        on_access = OnAccess(len(ids), self._image)
        self.images = list(on_access) if pixels * 3 <= IN_MEMORY_BYTES else on_access

    def select(self, ids: list[int], limit: int | None, seed: int) -> list[int]:
        """The images of the split that are taken, of all ids in rising order."""
        if limit is None or limit >= len(ids):
            return ids
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
        return sorted(ids[i] for i in order[:limit])

    def _image(self, index: int) -> Tensor:
        """Upright image of an index: uint8 (3, H, W)."""
        entry = self.coco.imgs[self.image_ids[index]]
        image = read_picture(entry, self.folder, self.file)
        pixels = np.array(image) if self.size is None else preprocess.resize(image, self.size)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, index: int) -> Tensor:
        """Boxes of an image as annotated: xyxy float32 (G, 4), pixels of the original image."""
        boxes = torch.tensor([a["bbox"] for a in self.annotations[self.image_ids[index]]]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def labels(self, index: int) -> Tensor:
        """Labels of an image's objects, int64 (G,)."""
        rows = self.annotations[self.image_ids[index]]
        return torch.tensor([self.category_ids.index(row["category_id"]) + 1 for row in rows], dtype=torch.int64)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, image_id = self.images[index], self.image_ids[index]
        entry, (height, width) = self.coco.imgs[image_id], image.shape[-2:]
        scale = torch.tensor([width / entry["width"], height / entry["height"]] * 2)
        edge = torch.tensor([width, height] * 2, dtype=torch.float32)
        boxes = torch.minimum((self.objects(index) * scale).clamp(min=0), edge)
        return image, {"boxes": boxes, "labels": self.labels(index), "image_id": image_id}


def as_input(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) as float in [0, 1], channels last."""
    return images.to(memory_format=torch.channels_last).float().div_(255)


def batches(dataset: DetectionDataset, batch_size: int) -> Iterator[tuple[Tensor, list[dict]]]:
    """All images once, in order, as model input, and their targets: for evaluation."""
    for first in range(0, len(dataset), batch_size):
        items = [dataset[index] for index in range(first, min(first + batch_size, len(dataset)))]
        yield as_input(torch.stack([image for image, _ in items])), [target for _, target in items]
