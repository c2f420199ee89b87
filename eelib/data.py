"""Images, boxes and the augmentation of SSD: COCO-format data on pycocotools and torchvision v2."""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

ROOT = Path(__file__).resolve().parent.parent
SHOWROOM = ROOT / "data" / "showroom"
SPLITS = ("train", "val", "calibrate", "test")
CATEGORY = "chair"
LABEL = 1  # the one foreground label inside eelib; 0 is background


class DataError(ValueError):
    """The data set is not what it should be; the message names the file and the key."""


def annotation_path(split: str, root: Path | str = SHOWROOM) -> Path:
    """Path of a split's COCO JSON; :class:`DataError` when the split is unknown."""
    if split not in SPLITS:
        raise DataError(f"split: {split!r} is unknown; expected one of {', '.join(SPLITS)}")
    return Path(root) / f"{split}.json"


def split_sha256(split: str, root: Path | str = SHOWROOM) -> str:
    """SHA-256 of a split's annotation file: the identity of the data in every metrics file."""
    return file_sha256(annotation_path(split, root))


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_coco(path: Path | str) -> COCO:
    """Read and check a COCO annotation file.

    Raises:
        DataError: the file is missing, is not JSON, lacks a key, holds no image, names no
            category ``chair``, or holds a box without area or with an unknown image or category.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file; expected COCO JSON") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    _check(path, content)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


def _check(path: Path, content: dict) -> None:
    keys = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for section, required in keys.items():
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise DataError(f"{path}: key '{section}' is missing or not a list; expected COCO JSON")
        for position, entry in enumerate(content[section]):
            for key in required:
                if key not in entry:
                    raise DataError(f"{path}: {section}[{position}] has no key '{key}'")
    if not content["images"]:
        raise DataError(f"{path}: 'images' is empty; a split needs at least one image")
    if CATEGORY not in {category["name"] for category in content["categories"]}:
        raise DataError(f"{path}: 'categories' has no '{CATEGORY}'")
    images = {image["id"]: image for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    for position, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{position}] (id {annotation['id']})"
        if annotation["image_id"] not in images:
            raise DataError(f"{where}: unknown image_id {annotation['image_id']}")
        if annotation["category_id"] not in category_ids:
            raise DataError(f"{where}: unknown category_id {annotation['category_id']}")
        _check_box(where, annotation["bbox"], images[annotation["image_id"]])


def _check_box(where: str, bbox: object, image: dict) -> None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        raise DataError(f"{where}: 'bbox' is {bbox!r}; expected [x, y, width, height]")
    x, y, width, height = bbox
    if not all(math.isfinite(v) for v in bbox) or width <= 0 or height <= 0:
        raise DataError(f"{where}: 'bbox' {bbox} has no area; width and height must be positive")
    # COCO rounds its boxes to a hundredth of a pixel, so one pixel over the edge is tolerated.
    if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        raise DataError(f"{where}: 'bbox' {bbox} leaves the image of {image['width']} x {image['height']} px")


def read_image(path: Path | str) -> Tensor:
    """Decode an image of any mode to RGB.

    Returns:
        uint8, shape (3, H, W).

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return F.pil_to_tensor(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: image file is missing") from None
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: image cannot be decoded ({error})") from None


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
    resize = v2.Resize((image_size, image_size), antialias=True)
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


class DetectionDataset(Dataset):
    """One split, decoded once and kept in memory as uint8 (675 MB for showroom's train).

    Items are ``(image, target)``: image uint8 (3, S, S); target a dict of ``boxes`` (G, 4)
    xyxy float32 in pixels of the image returned, ``labels`` (G,) int64 and ``image_id``; with
    ``masks`` also ``mask`` (1, S, S) uint8, 1 where a chair is visible.
    The draw of an item depends on (seed, epoch, index) alone, so any number of workers and
    any resumed run sees the same images.
    """

    def __init__(
        self,
        split: str,
        root: Path | str = SHOWROOM,
        transform: v2.Transform | None = None,
        *,
        keep_crowd: bool = False,
        negatives: bool = True,
        limit: int | None = None,
        sample: str = "seeded",
        seed: int = 0,
        masks: bool = False,
    ):
        path = annotation_path(split, root)
        self.coco = load_coco(path)
        self.folder = path.with_suffix("")
        self.transform, self.seed, self.epoch = transform, seed, 0
        self.category_ids = self.coco.getCatIds(catNms=[CATEGORY])
        crowd = None if keep_crowd else False
        ids = sorted(self.coco.imgs)
        self.annotations = {
            i: self.coco.loadAnns(self.coco.getAnnIds(imgIds=i, catIds=self.category_ids, iscrowd=crowd)) for i in ids
        }
        if not negatives:
            ids = [i for i in ids if self.annotations[i]]
        if limit is not None and limit < len(ids):
            order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
            # "first" is the record's way: the first ids in ascending order
            chosen = ids if sample == "first" else [ids[i] for i in order]
            ids = sorted(chosen[:limit])
        self.image_ids = ids
        self.images = [read_image(self.folder / self.coco.imgs[i]["file_name"]) for i in ids]
        self.masks = [self._mask(i) for i in ids] if masks else None

    def _mask(self, image_id: int) -> Tensor:
        """Union of all chairs of an image, the tiny ones that are annotated as crowd too: uint8 (1, H, W)."""
        image = self.coco.imgs[image_id]
        mask = torch.zeros(1, image["height"], image["width"], dtype=torch.uint8)
        for annotation in self.coco.loadAnns(self.coco.getAnnIds(imgIds=image_id, catIds=self.category_ids)):
            if not annotation.get("segmentation"):
                raise DataError(f"{self.folder}.json: annotation {annotation['id']} has no 'segmentation'")
            mask |= torch.from_numpy(self.coco.annToMask(annotation))
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
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.shape[-2:]),
            "labels": torch.full((len(boxes),), LABEL),
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
