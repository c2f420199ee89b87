import pytest
import torch
from torch.utils.data import DataLoader

from eelib.config import parse
from eelib.model import EarlyExitSSDLite
from eelib.train import TrainingError, fit, image_size_at, load_weights, save_checkpoint, write_atomic

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


def test_image_size_schedule():
    assert [image_size_at(e, [(0, 192), (3, 320)]) for e in (0, 2, 3, 9)] == [192, 192, 320, 320]
