"""Batches of a training: where the images wait, and which of them an epoch draws.

A set that fits lives on the device as uint8 and is augmented there (:mod:`eelib.augment`), so that no step
waits for the host. A larger one is decoded by worker processes, batch by batch, and augmented on arrival.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from eelib.augment import Draw, Pool, draw
from eelib.data import DetectionDataset
from eelib.files import InputError

RESIDENT_BYTES = 2 * 2**30  # of decoded images in memory; on a GPU half of what is free


class Batch(NamedTuple):
    """Images to draw from, what to draw, and whether it is the part of the training without mosaics."""

    pool: Pool
    draw: Draw
    calm: bool


class Share(NamedTuple):
    """Which of several processes this is."""

    rank: int = 0
    world: int = 1


def seed_of(*numbers: int) -> int:
    """One seed from several numbers of any size, well mixed: 63 bits."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*numbers))


def pool_of(dataset: DetectionDataset, device: torch.device | str = "cpu") -> Pool:
    """All images of a set whose images have one size, and their objects, on a device."""
    return _pool([dataset[index] for index in range(len(dataset))], device)


def _pool(items: list[tuple[Tensor, dict]], device: torch.device | str) -> Pool:
    images, targets = zip(*items, strict=True)
    height, width = images[0].shape[-2:]
    most = max(1, *(len(target["boxes"]) for target in targets))
    boxes, labels = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, dtype=torch.int64)
    for row, target in enumerate(targets):
        count = len(target["boxes"])
        boxes[row, :count] = target["boxes"].reshape(-1, 4) / torch.tensor([width, height, width, height])
        labels[row, :count] = target["labels"]
    return Pool(*(part.to(device, non_blocking=True) for part in (torch.stack(images), boxes, labels)))


def fits(dataset: DetectionDataset, size: int, device: torch.device) -> bool:
    """Whether the decoded images of a set fit where they would be augmented."""
    room = RESIDENT_BYTES if device.type != "cuda" else torch.cuda.mem_get_info(device)[0] // 2
    return 3 * size**2 * len(dataset) <= room


def epoch_order(count: int, batch_size: int, share: Share, generator: torch.Generator) -> Tensor:
    """Rows of one process in an epoch, (steps, batch_size): no row twice, in no two processes the same.

    A set smaller than a batch of all processes is one step of what there is; otherwise the last rows that
    fill no batch are left out, other ones in each epoch.
    """
    order = torch.randperm(count, generator=generator)
    batch_size = min(batch_size, count // share.world)
    steps = count // (batch_size * share.world)
    return order[: steps * batch_size * share.world].view(steps, share.world, batch_size)[:, share.rank]


@dataclass
class ResidentBatches:
    """Epochs of a set that lives on the device.

    Args:
        pool: the set, on the device.
        batch_size: images of this process in a step.
        seed: of the training; an epoch's draw depends on it and on the epoch's number alone.
        calm_from: first epoch without mosaics.
        share: of this process.
    """

    pool: Pool
    batch_size: int
    seed: int
    calm_from: int
    share: Share = Share()

    def __call__(self, epoch: int) -> list[Batch]:
        """The batches of an epoch, from 0."""
        count = len(self.pool.images)
        order = epoch_order(count, self.batch_size, self.share, _generator(self.seed, epoch))
        whole = draw(order.flatten(), count, _generator(self.seed, epoch, self.share.rank))
        parts = (part.to(self.pool.images.device).split(order.shape[1]) for part in whole)
        return [Batch(self.pool, Draw(*part), epoch >= self.calm_from) for part in zip(*parts, strict=True)]


@dataclass
class StreamedBatches:
    """Epochs of a set that is decoded while it is trained on; mosaics are made of images of one batch.

    Args:
        dataset: whose images have one size.
        batch_size, seed, calm_from, share: as for :class:`ResidentBatches`.
        workers: processes that decode.
        device: where the batches go.
    """

    dataset: DetectionDataset
    batch_size: int
    seed: int
    calm_from: int
    share: Share
    workers: int
    device: torch.device

    def __call__(self, epoch: int) -> "_Streamed":
        """The batches of an epoch, from 0."""
        return _Streamed(self, epoch)

    def read(self, rows: list[int]) -> list[tuple[Tensor, dict]] | InputError:
        """The items of a batch; a broken image is given, not raised: a worker would wrap its traceback around it."""
        try:
            return [self.dataset[row] for row in rows]
        except InputError as error:
            return error


class _Streamed:
    """One epoch of :class:`StreamedBatches`."""

    def __init__(self, source: StreamedBatches, epoch: int):
        self.source, self.epoch = source, epoch
        generator = _generator(source.seed, epoch)
        order = epoch_order(len(source.dataset), source.batch_size, source.share, generator).tolist()
        pinned = source.device.type == "cuda"
        self.loader = DataLoader(
            order, batch_size=None, num_workers=source.workers, collate_fn=source.read, pin_memory=pinned
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        source, generator = self.source, _generator(self.source.seed, self.epoch, self.source.share.rank)
        for items in self.loader:
            if isinstance(items, InputError):
                raise items
            random = draw(torch.arange(len(items)), len(items), generator)
            random = Draw(*(part.to(source.device) for part in random))
            yield Batch(_pool(items, source.device), random, self.epoch >= source.calm_from)


EpochBatches = Callable[[int], list[Batch] | _Streamed]
