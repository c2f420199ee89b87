"""Images, boxes and the augmentation of SSD: COCO-format data on pycocotools and torchvision v2."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from eelib import preprocess, segmentation
from eelib.coco import SHOWROOM, DataError, Source, open_root, read_coco, read_picture, read_split
from eelib.layouts import find_images

IN_MEMORY_BYTES = 2 * 2**30  # decoded images of a split; a larger split is decoded image by image


def split_sha256(split: str, root: Path | str | Source = SHOWROOM) -> str:
    """The identity of a split in every metrics file: the SHA-256 of its annotation file, if it is the whole file."""
    return read_split(split, open_root(root)).sha256


def load_coco(path: Path | str) -> COCO:
    """Read and check a COCO annotation file; :class:`DataError` as :func:`eelib.coco.read_coco`."""
    return _pycocotools(read_coco(path).content)


def load_split(split: str, root: Path | str | Source = SHOWROOM, segmentations: bool = False) -> COCO:
    """A split's images and its annotations of the wanted categories; errors as :func:`eelib.coco.read_split`."""
    return _pycocotools(read_split(split, open_root(root), segmentations).content)


def _pycocotools(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


def read_image(path: Path | str) -> Tensor:
    """Decode an image as :func:`eelib.preprocess.read_image` does, errors included: uint8 (3, H, W)."""
    return F.pil_to_tensor(preprocess.read_image(path))


class ColourDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue as one linear map of the colours.

    SSD's photometric distortion (section 2.2, "Data augmentation") composes four steps that
    are each linear in RGB (hue as a rotation in YIQ). Multiplying the 3 x 3 matrices first
    costs one pass over the pixels instead of four and needs no HSV round trip, which keeps
    augmentation off the critical path on a CPU.

    Args:
        brightness: largest shift as a share of full scale, in [0, 1].
        contrast, saturation: factors are drawn from [1 - x, 1 + x].
        hue: largest rotation in radians.
    """

    _transformed_types = (tv_tensors.Image,)
    _TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

    def __init__(self, brightness: float = 0.12, contrast: float = 0.4, saturation: float = 0.5, hue: float = 0.3):
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def make_params(self, flat_inputs: list) -> dict:
        """Draw one colour matrix (3, 3) and shift (scalar, 0..255 scale)."""
        uniform = (torch.rand(4) * 2 - 1).tolist()
        contrast = 1 + self.contrast * uniform[1]
        saturation = 1 + self.saturation * uniform[2]
        angle = self.hue * uniform[3]
        cos, sin = math.cos(angle) * saturation, math.sin(angle) * saturation
        rotation = torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = contrast * torch.linalg.inv(self._TO_YIQ) @ rotation @ self._TO_YIQ
        return {"matrix": matrix, "shift": 255 * self.brightness * uniform[0] + 127.5 * (1 - contrast)}

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Apply to a uint8 image (3, H, W)."""
        flat = inpt.reshape(3, -1).float()
        flat = torch.addmm(torch.full((3, 1), params["shift"]), params["matrix"], flat)
        return tv_tensors.wrap(flat.clamp_(0, 255).to(torch.uint8).reshape(inpt.shape), like=inpt)


def build_transform(
    image_size: int, augment: str = "none", rescale_boxes: bool = True, flip_boxes: bool = True
) -> v2.Transform:
    """The transform of a split.

    Args:
        image_size: side of the square network input in pixels.
        augment: ``"none"``, ``"flip"`` or ``"ssd"`` (zoom-out, IoU crop, flip, colour).
        rescale_boxes, flip_boxes: boxes follow the image. False repeats defects 7 and 8 of
            the record: the transform then sees the image alone.
    """
    resize = (_Resize if augment == "none" else v2.Resize)((image_size, image_size), antialias=True)
    if not rescale_boxes:
        resize = ImageOnly(resize)
    flip = v2.RandomHorizontalFlip(0.5)
    if not flip_boxes:
        flip = ImageOnly(flip)
    steps = {
        "none": [resize],
        "flip": [resize, flip],
        "ssd": [
            v2.RandomZoomOut(fill={tv_tensors.Image: 127, tv_tensors.Mask: 0}, side_range=(1.0, 2.0), p=0.25),
            v2.RandomIoUCrop(min_scale=0.4, max_scale=1.0, sampler_options=[0.0, 0.3, 0.5, 0.7, 1.0], trials=6),
            resize,
            flip,
            ColourDistortion(),
        ],
    }
    if augment not in steps:
        raise DataError(f"augment: {augment!r} is unknown; expected one of {', '.join(steps)}")
    return v2.Compose([*steps[augment], v2.ClampBoundingBoxes(), _SanitizeBoxes(min_size=2)])


class _Resize(v2.Resize):
    """Resizes images as deployment does, by Pillow."""

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        if not isinstance(inpt, tv_tensors.Image) or list(inpt.shape[-2:]) == self.size:
            return super().transform(inpt, params)
        image = preprocess.resize(Image.fromarray(inpt.permute(1, 2, 0).numpy()), self.size[0])
        return tv_tensors.wrap(torch.from_numpy(image).permute(2, 0, 1), like=inpt)


class _SanitizeBoxes(v2.SanitizeBoundingBoxes):
    """Drop boxes without area; the mask is one a image, not one a box, and stays."""

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        return inpt if isinstance(inpt, tv_tensors.Mask) else super().transform(inpt, params)


class ImageOnly(v2.Transform):
    """Apply a transform to the image, and to the mask that belongs to it, and leave the boxes where they were.

    A defect of the record.
    """

    def __init__(self, inner: v2.Transform):
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor, target: dict) -> tuple[Tensor, dict]:
        """Transform all of a sample but its boxes."""
        image, rest = self.inner(image, {key: value for key, value in target.items() if key != "boxes"})
        return image, rest | {"boxes": target["boxes"]}


class OnAccess(Sequence):
    """A sequence whose items are made each time they are asked for.

    Args:
        count: number of items.
        make: the item of an index.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor]):
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        rows = range(self.count)[index]
        return self.make(rows) if isinstance(rows, int) else [self.make(i) for i in rows]


class DetectionDataset(Dataset):
    """One split; decoded once and kept as uint8 up to 2 GiB (showroom's train is 675 MB), decoded on access beyond.

    Items are ``(image, target)``: image uint8 (3, S, S); target a dict of ``boxes`` (G, 4)
    xyxy float32 in pixels of the image returned, ``labels`` (G,) int64 and ``image_id``; with
    ``masks`` also ``mask`` (1, S, S) uint8, 1 where an object is visible. Label k + 1 is category k of the
    source, whose id in the annotations is ``category_ids[k]``; 0 is background.
    The draw of an item depends on (seed, epoch, index) alone, so any number of workers and
    any resumed run sees the same images, kept in memory or not.

    Raises:
        DataError: bad annotations, or an image file that is missing or of another size than its annotations say.
        ImageError: an image file is broken. What is decoded on access is found broken on access.
    """

    def __init__(
        self,
        split: str,
        root: Path | str | Source = SHOWROOM,
        transform: v2.Transform | None = None,
        *,
        keep_crowd: bool = False,
        negatives: bool = True,
        limit: int | None = None,
        sample: str = "seeded",
        seed: int = 0,
        masks: bool = False,
    ):
        source = open_root(root)
        self.file, self.folder = source.file_of(split)
        self.coco = load_split(split, source, segmentations=masks)
        self.transform, self.seed, self.epoch = transform, seed, 0
        self.category_ids = self.coco.getCatIds()
        ids = sorted(self.coco.imgs)
        self.annotations = {i: [a for a in self.coco.imgToAnns[i] if keep_crowd or not a["iscrowd"]] for i in ids}
        if not negatives:
            ids = [i for i in ids if self.annotations[i]]
        if limit is not None and limit < len(ids):
            order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
            # "first" is the record's way: the first ids in ascending order
            chosen = ids if sample == "first" else [ids[i] for i in order]
            ids = sorted(chosen[:limit])
        self.image_ids = ids
        names = [self.coco.imgs[i]["file_name"] for i in ids]
        files = find_images(self.folder, names)
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(f"{self.folder / missing[0]}: image file is missing ({len(missing)} of {len(ids)} in all)")
        for annotation in (a for i in ids for a in self.coco.imgToAnns[i]) if masks else ():
            if "segmentation" not in annotation:
                raise DataError(f"{self.file}: annotation {annotation['id']} has no 'segmentation'")
        self.images = OnAccess(len(ids), self._image)
        self.masks = OnAccess(len(ids), self._mask) if masks else None
        pixels = sum(self.coco.imgs[i]["width"] * self.coco.imgs[i]["height"] for i in ids)
        if pixels * (4 if masks else 3) <= IN_MEMORY_BYTES:
            self.images, self.masks = list(self.images), list(self.masks) if masks else None

    def _image(self, index: int) -> Tensor:
        """Upright image of an index: uint8 (3, H, W)."""
        entry = self.coco.imgs[self.image_ids[index]]
        return F.pil_to_tensor(read_picture(entry, self.folder, self.file))

    def _mask(self, index: int) -> Tensor:
        """Union of all objects of an image, the tiny ones that are annotated as crowd too: uint8 (1, H, W)."""
        image = self.coco.imgs[self.image_ids[index]]
        size_hw = (image["height"], image["width"])
        mask = torch.zeros(1, *size_hw, dtype=torch.uint8)
        for annotation in self.coco.imgToAnns[image["id"]]:
            try:
                mask |= torch.from_numpy(segmentation.mask(annotation["segmentation"], size_hw))
            except ValueError as error:
                raise DataError(f"{self.file}: annotation {annotation['id']}: {error}") from None
        return mask

    def __len__(self) -> int:
        return len(self.image_ids)

    def objects(self, index: int) -> Tensor:
        """Boxes of an image as annotated: xyxy float32 (G, 4), pixels of the original image."""
        boxes = torch.tensor([a["bbox"] for a in self.annotations[self.image_ids[index]]]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image = tv_tensors.Image(self.images[index])
        boxes = self.objects(index)
        objects = self.annotations[self.image_ids[index]]
        labels = [self.category_ids.index(annotation["category_id"]) + 1 for annotation in objects]
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if self.masks is not None:
            target["mask"] = tv_tensors.Mask(self.masks[index])
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index)
                image, target = self.transform(image, target)
        target["boxes"] = target["boxes"].as_subclass(Tensor).float()
        target["image_id"] = self.image_ids[index]
        return image.as_subclass(Tensor), target


def collate(batch: Sequence[tuple[Tensor, dict]]) -> tuple[Tensor, list[dict]]:
    """Stack images to float (B, 3, S, S) in [0, 1]; targets stay a list."""
    images, targets = zip(*batch, strict=True)
    return torch.stack(images), list(targets)


def as_input(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) as float in [0, 1], channels last."""
    return images.to(memory_format=torch.channels_last).float().div_(255)


def loader(
    dataset: DetectionDataset, batch_size: int, *, shuffle: bool, epoch: int = 0, workers: int = 0
) -> DataLoader:
    """A loader whose order depends on (seed, epoch) alone."""
    dataset.epoch = epoch
    generator = torch.Generator().manual_seed(dataset.seed * 1_000_003 + epoch)
    return DataLoader(
        dataset,
        batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(dataset) > batch_size,
        num_workers=workers,
        collate_fn=collate,
        generator=generator,
    )


def batches(dataset: DetectionDataset, batch_size: int) -> Iterator[tuple[Tensor, list[dict]]]:
    """All images once, in order, as model input: for evaluation."""
    for images, targets in loader(dataset, batch_size, shuffle=False):
        yield as_input(images), targets
