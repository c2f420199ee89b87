import errno

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch.utils.data import DataLoader

from eelib.checkpoints import TrainingError, check_identity, load_checkpoint, load_fitting, save_checkpoint
from eelib.config import OptimConfig
from eelib.files import locked, write_atomic
from eelib.fit import Trainer, fit, parameter_groups
from eelib.model import EarlyExitSSDLite
from eelib.progress import duration
from eelib.train import WithGates

OPTIM = OptimConfig(epochs=4, batch_size=2, accelerator="cpu", warmup_steps=2, eval_every=1)
QUIET = {"log": lambda _: None}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


def batches(epoch):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(list(x), 2, shuffle=True, generator=torch.Generator().manual_seed(epoch))


def step(model, x, epoch):
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    return loss, {"loss": loss.detach()}


def run(out, model=None, step=step, optim=OPTIM, identity=None, loggers=(), **options):
    model = model or network()
    trainer = Trainer(model, step, optim, loggers=loggers)
    history = fit(trainer, batches, out, identity=identity or {}, **(QUIET | options))
    return model, history


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(TrainingError, match="'optim.accelerator' is 'cuda', 'optim.devices' 1: not on this machine"):
        Trainer(network(), step, OPTIM.model_copy(update={"accelerator": "cuda"}))


class Killed(Exception):
    pass


def killed(model, x, epoch):
    if epoch > 2.4:
        raise Killed
    return step(model, x, epoch)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resume_equals_uninterrupted(tmp_path, precision):
    optim = OPTIM.model_copy(update={"precision": precision})
    whole, history = run(tmp_path / "whole", optim=optim)
    with pytest.raises(Killed):
        run(tmp_path / "cut", step=killed, optim=optim)
    resumed, again = run(tmp_path / "cut", resume=True, optim=optim)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert len((tmp_path / "cut" / "losses.csv").read_text().splitlines()) == 5


def test_half_precision_survives_an_overflow_and_resumes(tmp_path, monkeypatch):
    """A gradient scaler overflows by design in its first steps: the step is left out, and the scale is halved."""

    def on_cpu(accelerator, devices, precision, loggers):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
        return Fabric(accelerator=accelerator, devices=devices, plugins=MixedPrecision(precision, "cpu", scaler))

    monkeypatch.setattr("eelib.fit.Fabric", on_cpu)
    optim = OPTIM.model_copy(update={"precision": "16-mixed"})
    whole, history = run(tmp_path / "whole", optim=optim)
    assert all(value.isfinite().all() for value in whole.state_dict().values())
    scaler = load_checkpoint(tmp_path / "whole" / "last.pth")["scaler"]
    assert 0 < scaler["scale"] < 2.0**126 and history[-1]["loss"] != history[0]["loss"]
    with pytest.raises(Killed):
        run(tmp_path / "cut", step=killed, optim=optim)
    resumed, _ = run(tmp_path / "cut", resume=True, optim=optim)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    def nan(model, x, epoch):
        return model(x).sum() * float("nan"), {"box": torch.tensor(float("nan"))}

    with pytest.raises(TrainingError, match=r"not finite at epoch 1, batch 1: \{'box': nan\}"):
        run(tmp_path, step=nan)


def test_weights_that_are_not_finite_are_never_kept(tmp_path):
    """The loss of a step looks at the weights before it: the last step of an epoch could break them unseen."""
    model = network()

    def breaks(network, x, epoch):
        loss, parts = step(network, x, epoch)
        return loss * (float("inf") if epoch >= 0.75 else 1.0), {"loss": parts["loss"]}

    with pytest.raises(TrainingError, match="weights are not finite after epoch 1"):
        run(tmp_path, model, breaks)
    assert not (tmp_path / "last.pth").exists()


def test_resume_of_another_training_is_refused(tmp_path):
    run(tmp_path, identity={"config": {"seed": 0, "sizes": (1, 2)}, "train_sha256": "a"})
    run(tmp_path, identity={"config": {"seed": 0, "sizes": [1, 2]}, "train_sha256": "a"}, resume=True)
    for identity, key in (
        ({"config": {"seed": 1, "sizes": [1, 2]}, "train_sha256": "a"}, "config.seed' was 0 and is 1"),
        ({"config": {"seed": 0, "sizes": [1, 2]}, "train_sha256": "b"}, "train_sha256' was 'a' and is 'b'"),
    ):
        with pytest.raises(TrainingError, match=key):
            run(tmp_path, identity=identity, resume=True)


def test_the_best_weights_of_another_run_are_refused(tmp_path):
    """Two trainings that meet in one folder must not release each other's weights."""
    means = iter([0.3, 0.2, 0.1, 0.1])

    def evaluate(model, epoch):
        if epoch == 2:  # another training's weights land in the folder
            state = {"model": model.state_dict(), "epoch": 1, "identity": {"seed": 7}}
            save_checkpoint(tmp_path / "best.pth", state)
        return {"full_AP": next(means)}

    with pytest.raises(TrainingError, match="best.pth: of another training; 'seed' was 7"):
        run(tmp_path, identity={"seed": 0}, evaluate=evaluate)


def test_a_folder_is_locked_for_one_training(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match="another process writes"), locked(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="not a folder"), locked(tmp_path / "file"):
        pass


def test_bad_checkpoints(tmp_path):
    with pytest.raises(TrainingError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.pth")
    save_checkpoint(tmp_path / "list.pth", [1])
    with pytest.raises(TrainingError, match="expected a dict with key 'model'"):
        load_checkpoint(tmp_path / "list.pth")
    with pytest.raises(TrainingError, match="other.pth: checkpoint of another architecture; it lacks key"):
        load_fitting(EarlyExitSSDLite(()), network().state_dict(), "other.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "a.txt", lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full: .*a.txt"):
        write_atomic(path, fails)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_kept_epoch_has_the_best_mean_ap_of_the_exits(tmp_path):
    """With a frozen full path its AP alone would keep the first epoch."""
    means = iter([0.1, 0.3, 0.2, 0.3] * 2)
    seen = []

    def evaluate(model, epoch):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"exit1_AP": next(means), "full_AP": 0.4}

    model, _ = run(tmp_path, evaluate=evaluate)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), seen[1].values(), strict=True))
    last = OPTIM.model_copy(update={"keep": "last"})
    model, _ = run(tmp_path / "last", optim=last, evaluate=evaluate)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), seen[-1].values(), strict=True))


def test_the_average_moves_where_the_model_is(tmp_path):
    trainer = Trainer(network(), step, OPTIM)
    assert {value.device for value in trainer.average.state.values()} == {trainer.device}
    before = {key: value.clone() for key, value in trainer.average.state.items()}
    trainer.run_epoch(0, batches, lambda done, steps: None)
    assert not torch.equal(before["0.weight"], trainer.average.state["0.weight"])
    with trainer.average.applied(trainer.raw) as averaged:
        assert torch.equal(averaged.state_dict()["0.weight"], trainer.average.state["0.weight"])
    assert not torch.equal(trainer.raw.state_dict()["0.weight"], trainer.average.state["0.weight"])


@pytest.mark.parametrize("whole", [lambda model: model, WithGates])
def test_the_trunk_learns_at_its_own_rate(whole):
    model = EarlyExitSSDLite()
    groups = parameter_groups(whole(model), OptimConfig(lr=1.0, trunk_lr_factor=0.1))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rate[id(p)] for p in model.backbone.parameters()} == {0.1}
    assert {rate[id(p)] for p in (*model.head.parameters(), *model.early.parameters())} == {1.0}


def test_an_identity_names_the_first_key_that_differs(tmp_path):
    with pytest.raises(TrainingError, match=r"'a\.b' was 1 and is 2 \(2 such keys\)"):
        check_identity({"a": {"b": 1}, "c": 3}, {"a": {"b": 2}, "c": 4}, tmp_path)
    with pytest.raises(TrainingError, match="'a' was None and is 1"):
        check_identity(None, {"a": 1}, tmp_path)


def test_durations_are_words():
    assert duration(59.6) == "1 min 00 s" and duration(3 * 3600 + 5 * 60) == "3 h 05 min"
