"""A training step of a GPU, checked without one: nothing is made on the host, nothing waits for it.

Tensors on the device ``meta`` have shapes and no data. What would be copied from the host, or read by it,
shows as an operator: those a CUDA graph cannot hold either.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from eelib.augment import NUMBERS, Draw, Pool
from eelib.batches import Batch
from eelib.config import parse
from eelib.model import EarlyExitSSDLite
from eelib.train import WithGates, detection_step

HOST = ("lift_fresh", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


class Watch(TorchDispatchMode):
    """Remembers operators that read on the host, or join tensors of two devices."""

    def __init__(self):
        super().__init__()
        self.wrong = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        devices = {t.device.type for t in tree_iter((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        if name in HOST or len(devices) > 1 or devices == {"cpu"}:
            self.wrong.append((str(func), devices))
        return result


SETTINGS = {
    "exits": {"model": {"exits": [8, 12], "blank_gate": True}, "loss": {"distillation": 1.0}},
    "static": {"model": {"exits": []}},
    "truncated": {"model": {"exits": [12], "full": False}, "loss": {"gradient_rescaling": False}},
    "frozen": {"model": {"train_trunk": False}, "loss": {"distillation": 1.0, "classification": "hard_negative"}},
    "smooth": {"model": {"exits": []}, "loss": {"box": "smooth_l1"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_makes_and_reads_nothing_on_the_host(name):
    config = parse({"name": name, "data": {"size": 96}} | SETTINGS[name])
    model = config.model
    with torch.device("meta"):
        detector = EarlyExitSSDLite(model.exits, full=model.full, blank_gate=model.blank_gate)
        detector.size = 96
        network = WithGates(detector)
        pool = Pool(
            torch.empty(5, 3, 128, 128, dtype=torch.uint8), torch.rand(5, 4, 4), torch.empty(5, 4, dtype=torch.int64)
        )
        batch = Batch(pool, Draw(torch.empty(4, 4, dtype=torch.int64), torch.rand(4, NUMBERS)), calm=False)
        step = detection_step(config, detector)
        step(network, batch, 0.0)  # default boxes are made in the first step, and kept
        watch = Watch()
        with watch:
            loss, parts = step(network, batch, 0.0)
            loss.backward()
        assert not watch.wrong
        assert {value.device.type for value in parts.values()} == {"meta"}


@pytest.mark.parametrize("make", [lambda x: torch.tensor([1.0], device=x.device), lambda x: x.new_tensor([1.0])])
def test_the_watch_sees_what_the_host_makes(make):
    x, watch = torch.empty(3, device="meta"), Watch()
    with watch:
        x * make(x)
    assert watch.wrong


def test_what_the_host_must_read_fails_without_data():
    x = torch.empty(3, device="meta")
    with pytest.raises(NotImplementedError):
        x[x > 0]
