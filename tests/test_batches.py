import pytest
import torch

from eelib.augment import Pool
from eelib.batches import ResidentBatches, Share, StreamedBatches, seed_of
from eelib.preprocess import ImageError


def pool(count):
    return Pool(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count, 1, 4), torch.zeros(count, 1).long())


def rows(batches, epoch):
    return [batch.draw.rows[:, 0].tolist() for batch in batches(epoch)]


def test_an_epoch_visits_every_image_once_in_its_own_order():
    batches = ResidentBatches(pool(12), 4, seed=1, calm_from=9)
    assert sorted(sum(rows(batches, 0), [])) == list(range(12))
    assert rows(batches, 0) == rows(batches, 0) != rows(batches, 1)
    assert rows(batches, 0) != rows(ResidentBatches(pool(12), 4, seed=2, calm_from=9), 0)


def test_two_processes_see_different_halves_and_other_ones_the_next_epoch():
    each = [ResidentBatches(pool(16), 4, 0, 9, Share(rank, 2)) for rank in (0, 1)]
    for epoch in (0, 1):
        halves = [set(sum(rows(batches, epoch), [])) for batches in each]
        assert len(halves[0]) == len(halves[1]) == 8 and not halves[0] & halves[1]
    assert set(sum(rows(each[0], 0), [])) != set(sum(rows(each[0], 1), []))
    numbers = [next(iter(batches(0))).draw.numbers for batches in each]
    assert not torch.equal(*numbers)


def test_the_last_epochs_are_calm():
    batches = ResidentBatches(pool(4), 2, 0, calm_from=3)
    assert [next(iter(batches(epoch))).calm for epoch in range(5)] == [False] * 3 + [True] * 2


def test_a_set_smaller_than_a_batch_is_one_step():
    batches = ResidentBatches(pool(3), 8, 0, 9)
    assert len(batches(0)) == 1 and sorted(rows(batches, 0)[0]) == [0, 1, 2]


def test_any_64_bit_seed_works():
    batches = ResidentBatches(pool(4), 2, 2**63 - 1, 9)
    assert len(rows(batches, 10**6)) == 2
    assert seed_of(0, 1) != seed_of(1, 0) and 0 <= seed_of(2**63 - 1, 3) < 2**63


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        boxes = torch.tensor([[2.0, 2, 6, 4]] * (index % 3))
        return torch.full((3, 8, 8), index, dtype=torch.uint8), {
            "boxes": boxes,
            "labels": torch.ones(len(boxes)).long(),
        }


class Truncated(Items):
    def __getitem__(self, index):
        if index == 4:
            raise ImageError("photos/4.jpg: image cannot be decoded (truncated)")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_that_a_worker_meets_is_one_line(workers):
    streamed = StreamedBatches(Truncated(), 2, 0, 9, Share(), workers=workers, device=torch.device("cpu"))
    with pytest.raises(ImageError) as caught:
        list(streamed(0))
    assert str(caught.value) == "photos/4.jpg: image cannot be decoded (truncated)"


def test_streamed_images_are_those_of_the_resident_order():
    streamed = StreamedBatches(Items(), 2, 0, 9, Share(), workers=0, device=torch.device("cpu"))
    resident = ResidentBatches(pool(6), 2, 0, 9)
    seen = [batch.pool.images[:, 0, 0, 0].tolist() for batch in streamed(0)]
    assert seen == rows(resident, 0)
    for batch in streamed(0):
        first = batch.pool.images[0, 0, 0, 0].item()
        assert (batch.pool.labels[0] > 0).sum() == first % 3
        if first % 3:
            assert batch.pool.boxes[0, 0].tolist() == [0.25, 0.25, 0.75, 0.5]
