"""Batches of a training: where the images wait, and which of them an epoch draws.

A set that fits lives on the device as uint8 and is augmented there (:mod:`eelib.augment`), so that no step
waits for the host. A larger one is decoded by worker processes, batch by batch, and augmented on arrival.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
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


ALONE = Share()


def seed_of(*numbers: int) -> int:
    """One seed from several numbers of any size, well mixed: 63 bits."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def pool_of(dataset: DetectionDataset, device: torch.device | str = "cpu") -> Pool:
    """All images of a set whose images have one size, and their objects, on a device."""
    items = [dataset[index] for index in range(len(dataset))]
    return _pool([image for image, _ in items], [target for _, target in items], device)


def _pool(images: list[Tensor], targets: list[dict], device: torch.device | str) -> Pool:
    height, width = images[0].shape[-2:]
    most = max(1, max(len(target["boxes"]) for target in targets))
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


class ResidentBatches:
    """Epochs of a set that lives on the device.

    Args:
        pool: the set, on the device.
        batch_size: images of this process in a step.
        seed: of the training; an epoch's draw depends on it and on the epoch's number alone.
        calm_from: first epoch without mosaics.
        share: of this process.
    """

    def __init__(self, pool: Pool, batch_size: int, seed: int, calm_from: int, share: Share = ALONE):
        self.pool, self.batch_size, self.seed, self.calm_from, self.share = pool, batch_size, seed, calm_from, share

    def __call__(self, epoch: int) -> "Epoch":
        """The batches of an epoch, from 0."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        count = len(self.pool.images)
        order = epoch_order(count, self.batch_size, self.share, generator)
        generator.manual_seed(seed_of(self.seed, epoch, self.share.rank))
        whole = draw(order.flatten(), count, generator)
        rows, numbers = (part.to(self.pool.images.device) for part in whole)
        draws = zip(rows.split(order.shape[1]), numbers.split(order.shape[1]), strict=True)
        batches = (Batch(self.pool, Draw(*part), epoch >= self.calm_from) for part in draws)
        return Epoch(batches, len(order))


class StreamedBatches:
    """Epochs of a set that is decoded while it is trained on; mosaics are made of images of one batch.

    Args:
        dataset: whose images have one size.
        workers: processes that decode.
        device: where the batches go.
        batch_size, seed, calm_from, share: as for :class:`ResidentBatches`.
    """

    def __init__(self, dataset, batch_size, seed, calm_from, share, *, workers: int, device: torch.device):
        self.dataset, self.workers, self.device = dataset, workers, device
        self.batch_size, self.seed, self.calm_from, self.share = batch_size, seed, calm_from, share

    def __call__(self, epoch: int) -> "Epoch":
        """The batches of an epoch, from 0."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = epoch_order(len(self.dataset), self.batch_size, self.share, generator)
        loader = DataLoader(
            _Caught(self.dataset), batch_sampler=order.tolist(), num_workers=self.workers,
            collate_fn=lambda items: items, pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        return Epoch(self._batches(loader, epoch), len(order))

    def _batches(self, loader: Iterable, epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, self.share.rank))
        for items in loader:
            for item in items:
                if isinstance(item, InputError):
                    raise item
            pool = _pool([image for image, _ in items], [target for _, target in items], self.device)
            random = draw(torch.arange(len(items)), len(items), generator)
            yield Batch(pool, Draw(*(part.to(self.device) for part in random)), epoch >= self.calm_from)


class _Caught:
    """A data set whose broken images are items, not raised: a worker would wrap its traceback around the one line."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple | InputError:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


class Epoch:
    """Batches, and how many there are."""

    def __init__(self, batches: Iterable[Batch], steps: int):
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


EpochBatches = Callable[[int], Epoch]
