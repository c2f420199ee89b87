"""The images of a recorded phase: which are taken, and what happens to them and to their boxes."""

import torch
from torch import Tensor

from eelib.coco import open_source
from eelib.data import DetectionDataset
from eelib.model import SIZE
from studies.phases.config import PhaseConfig

LEAST_SIDE = 2.0  # of a box in pixels


class PhaseImages(DetectionDataset):
    """A split as the switches of a phase read it; items as those of :class:`eelib.data.DetectionDataset`.

    Images of ``train`` are mirrored at random where ``data.augment`` says so; the draw of an item depends on
    (seed, epoch, index) alone. ``epoch`` is set by the trainer.

    Args:
        limit: how many images; None takes all.
        mirrored: whether images may be mirrored.
        size: side in pixels of the square that images are resized to; None leaves them as they are.
    """

    def __init__(
        self, split: str, config: PhaseConfig, limit: int | None = None, *,
        mirrored: bool = False, size: int | None = SIZE,
    ):  # fmt: skip
        self.phase, self.mirrored, self.epoch = config.data, mirrored and config.data.augment == "flip", 0
        self.seed, self.training = config.seed, split == "train"
        keep_crowd = not (self.training and config.data.drop_crowd)
        super().__init__(split, open_source(config.data), size, keep_crowd=keep_crowd, limit=limit, seed=config.seed)

    def select(self, ids: list[int], limit: int | None, seed: int) -> list[int]:
        """Defect 10: images without a chair are left out of training, and the first ids are taken instead of a draw."""
        if self.training and not self.phase.negatives:
            ids = [i for i in ids if self.annotations[i]]
        if self.training and self.phase.sample == "first":
            return ids[:limit]
        return super().select(ids, limit, seed)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = super().__getitem__(index)
        if not self.phase.rescale_boxes:  # defect 7: boxes stay where they were before the resize
            target["boxes"] = self.objects(index)
        if self.mirrors(index):
            image = image.flip(-1)
            if self.phase.flip_boxes:  # defect 8: they do not follow the mirror image
                target["boxes"] = mirror(target["boxes"], image.shape[-1])
        # slivers, most of them crowds, are no objects to learn
        large = (target["boxes"][:, 2:] - target["boxes"][:, :2] >= LEAST_SIDE).all(1)
        return image, target | {"boxes": target["boxes"][large], "labels": target["labels"][large]}

    def mirrors(self, index: int) -> bool:
        """Whether the image of an index is mirrored in this epoch."""
        if not self.mirrored:
            return False
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index)
        return bool(torch.rand(1, generator=generator) < 0.5)


def mirror(boxes_xyxy: Tensor, width: float) -> Tensor:
    """Boxes of a mirror image."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), 1)
