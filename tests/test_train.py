import pytest
import torch
from torch.utils.data import DataLoader

from eelib.checkpoints import TrainingError, load_weights, save_checkpoint
from eelib.config import parse
from eelib.files import write_atomic
from eelib.model import EarlyExitSSDLite
from eelib.supervision import MaskSupervised
from eelib.train import detection_step, fit, image_size_at, parameter_groups

OPTIM = {"epochs": 4, "batch_size": 2, "accelerator": "cpu", "workers": 0, "warmup_steps": 2}
CONFIG = parse({"phase": "t", "optim": OPTIM})


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1)
    )


def batches(epoch):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(x), 2, shuffle=True, generator=torch.Generator().manual_seed(epoch))


def step(model, x, epoch):
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    return loss, {"loss": float(loss.detach())}


class Killed(Exception):
    pass


def test_resume_equals_uninterrupted(tmp_path):
    whole = network()
    history = fit(whole, step, batches, CONFIG, tmp_path / "whole", log=lambda _: None)

    def killed(model, x, epoch):
        if epoch > 2.4:
            raise Killed
        return step(model, x, epoch)

    with pytest.raises(Killed):
        fit(network(), killed, batches, CONFIG, tmp_path / "cut", log=lambda _: None)
    resumed = network()
    again = fit(resumed, step, batches, CONFIG, tmp_path / "cut", resume=True, log=lambda _: None)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert len((tmp_path / "cut" / "losses.csv").read_text().splitlines()) == 5


def test_a_loss_that_is_not_finite_stops(tmp_path):
    def nan(model, x, epoch):
        return model(x).sum() * float("nan"), {"box": float("nan")}

    with pytest.raises(TrainingError, match=r"not finite at epoch 1, batch 1: \{'box': nan\}"):
        fit(network(), nan, batches, CONFIG, tmp_path, log=lambda _: None)


def test_resume_with_another_configuration_is_refused(tmp_path):
    fit(network(), step, batches, CONFIG, tmp_path, log=lambda _: None)
    other = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(TrainingError, match="another configuration"):
        fit(network(), step, batches, other, tmp_path, resume=True, log=lambda _: None)


def test_bad_checkpoints(tmp_path):
    model = EarlyExitSSDLite(early=False)
    with pytest.raises(TrainingError, match="no such checkpoint"):
        load_weights(model, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_weights(model, tmp_path / "text.pth")
    save_checkpoint(tmp_path / "list.pth", [1])
    with pytest.raises(TrainingError, match="expected a dict with key 'model'"):
        load_weights(model, tmp_path / "list.pth")
    save_checkpoint(tmp_path / "other.pth", {"model": network().state_dict()})
    with pytest.raises(TrainingError, match="another architecture; it lacks key"):
        load_weights(model, tmp_path / "other.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "a.txt", lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_kept_epoch_has_the_best_mean_ap_of_the_exits(tmp_path):
    """With a frozen full path its AP alone would keep the first epoch."""
    means = iter([0.1, 0.3, 0.2, 0.3])
    config = parse({"phase": "t", "optim": {**OPTIM, "eval_every": 1}})
    seen = []

    def evaluate(model, epoch):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"exit1_AP": next(means), "full_AP": 0.4}

    model = network()
    fit(model, step, batches, config, tmp_path, evaluate=evaluate, log=lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), seen[1].values(), strict=True))
    last = config.model_copy(update={"optim": config.optim.model_copy(update={"keep": "last"})})
    means = iter([0.1, 0.3, 0.2, 0.3])
    fit(model, step, batches, last, tmp_path / "last", evaluate=evaluate, log=lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), seen[-1].values(), strict=True))


@pytest.mark.parametrize("mask", [0.0, 0.5])
def test_the_trunk_learns_at_its_own_rate(mask):
    """Under the mask heads the trunk's names begin with another word: it must keep its rate."""
    config = parse({"phase": "t", "loss": {"mask": mask}, "optim": {"lr": 1.0, "trunk_lr_factor": 0.1}})
    model = EarlyExitSSDLite()
    groups = parameter_groups(MaskSupervised(model) if mask else model, config)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rate[id(p)] for p in model.backbone.parameters()} == {0.1}
    assert {rate[id(p)] for p in (*model.head.parameters(), *model.early.parameters())} == {1.0}


def targets_of_two(images):
    boxes = torch.tensor([[20.0, 30, 120, 200], [200, 100, 260, 180]])
    return [{"boxes": boxes}] * len(images)


def test_a_frozen_full_path_teaches_and_does_not_learn():
    torch.manual_seed(0)
    values = {"phase": "t", "model": {"train_trunk": False}, "loss": {"distillation": 1.0}}
    model = EarlyExitSSDLite()
    model.requires_grad_(False)
    model.early.requires_grad_(True)
    wrapped = torch.nn.Module()
    wrapped.module, wrapped.forward = model, model.forward
    images = torch.zeros(2, 3, 320, 320, dtype=torch.uint8)
    loss, parts = detection_step(parse(values))(wrapped, (images, targets_of_two(images)), 0.0)
    assert {"exit1_distilled_boxes", "exit2_distilled_classes"} <= parts.keys()
    assert not any(name.startswith("full") for name in parts)
    loss.backward()
    assert all(p.grad is None for p in (*model.backbone.parameters(), *model.head.parameters()))
    assert all(p.grad is not None for p in model.early.parameters())


def test_image_size_schedule():
    assert [image_size_at(e, [(0, 192), (3, 320)]) for e in (0, 2, 3, 9)] == [192, 192, 320, 320]
