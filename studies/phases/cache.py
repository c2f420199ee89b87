"""Maps of a frozen trunk, computed once: an epoch of a recorded phase then costs its branches alone."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from eelib.config import PhaseConfig
from eelib.data import DetectionDataset, as_input, batches, build_transform
from studies.phases.detector import RecordedDetector
from studies.phases.loss import SIZE_HW


class FeatureDataset(Dataset):
    """A frozen trunk's maps of every image and its mirror image, as float16 (0.7 MB an image and side).

    Items are ``(maps, boxes)``, full's maps last; which side is drawn depends on (seed, epoch, index) alone.
    Caching changes nothing: the contexts of the exits are added to these maps and never pass
    through the trunk (the record, section A.3).

    Args:
        detector: its trunk is run in evaluation mode.
        dataset: its transform is replaced.
        config: ``data`` is used.
        mirror: cache the mirror images too; False for evaluation.
    """

    def __init__(self, detector: RecordedDetector, dataset: DetectionDataset, config: PhaseConfig, mirror: bool = True):
        self.sides, self.flips = [], torch.zeros(len(dataset), dtype=torch.bool)
        self.boxes = [[], []]
        self.augment = mirror and config.data.augment != "none"
        dataset.transform = build_transform(SIZE_HW[0], "none", config.data.rescale_boxes)
        detector.eval()
        for mirrored in (False, True)[: 1 + self.augment]:
            maps = []
            for images, targets in batches(dataset, 8):
                with torch.no_grad():
                    features = sum(detector.trunk_maps(images.flip(-1) if mirrored else images), [])
                maps.append([f.half() for f in features])
                for target in targets:
                    boxes = target["boxes"]
                    self.boxes[mirrored].append(_mirror(boxes) if mirrored and config.data.flip_boxes else boxes)
            self.sides.append([torch.cat(level) for level in zip(*maps, strict=True)])

    def draw(self, seed: int, epoch: int) -> None:
        """Choose the side of every image for an epoch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        self.flips = (torch.rand(len(self.flips), generator=generator) < 0.5) & self.augment

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        side = int(self.flips[index])
        return [level[index].float() for level in self.sides[side]], self.boxes[side][index]


def _mirror(boxes_xyxy: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes_xyxy.unbind(1)
    return torch.stack((SIZE_HW[1] - x2, y1, SIZE_HW[1] - x1, y2), 1)


def collate_maps(items: list) -> tuple[list[list[Tensor]], list[dict]]:
    """Items of a :class:`FeatureDataset` to the maps (B, C, H, W) of each exit, and targets.

    Channels last is a fifth faster in the 1 x 1 convolutions of the branches on a CPU.
    """
    levels = zip(*(maps for maps, _ in items), strict=True)
    maps = [torch.stack(level).contiguous(memory_format=torch.channels_last) for level in levels]
    return [maps[:1], maps[1:2], maps[2:]], [{"boxes": boxes} for _, boxes in items]


def collate_images(items: list) -> tuple[Tensor, list[dict]]:
    """Images (B, 3, H, W) in [0, 1] and targets, for a trunk that is trained."""
    return as_input(torch.stack([image for image, _ in items])), [target for _, target in items]
