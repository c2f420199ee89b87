"""Checkpoints: dicts of tensors and plain values, written whole or not at all, loaded without running code."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from eelib.files import InputError, refuse_bomb, shorten, write_atomic
from eelib.model import CHANNELS, FIRST_PLAN, EarlyExitSSDLite, rebuild

MAX_SIZE, MAX_CLASSES = 4096, 5000  # of a plan: pixels of the input's side; the largest public set has 1,203 classes


class TrainingError(InputError):
    """Training cannot go on or a checkpoint does not fit; the message says where and why."""


def save_checkpoint(path: Path | str, state: dict) -> Path:
    """Save a dict of tensors and plain values atomically, loadable with ``weights_only=True``."""
    return write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path | str) -> dict:
    """Load a checkpoint with ``weights_only=True``.

    Raises:
        TrainingError: the file is missing, is not a dict written by :func:`save_checkpoint`, or holds weights that are
            no plain tensors of finite numbers.
    """
    try:
        refuse_bomb(path, 2, TrainingError)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except TrainingError:
        raise
    except Exception as error:  # torch raises a different type for each way of being no checkpoint
        reason = str(error).strip() or type(error).__name__  # an empty file raises without a message
        if isinstance(error, pickle.UnpicklingError):  # whose message advises to load it unsafely
            reason = "damaged, or more than tensors and plain values"
        raise TrainingError(f"{path}: not a checkpoint ({reason.splitlines()[0][:200]})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise TrainingError(f"{path}: not a checkpoint; expected a dict with key 'model'")
    for key, value in state["model"].items():
        if not isinstance(key, str) or not _is_plain(value):
            raise TrainingError(f"{path}: weight {shorten(key)} is no plain tensor; expected weights by name")
        if not value.isfinite().all():
            raise TrainingError(f"{path}: '{key[:200]}' holds values that are not finite")
    if state.get("plan") is not None and not _is_plan(state["plan"]):
        plan = shorten(state["plan"])
        raise TrainingError(f"{path}: key 'plan' is {plan}; expected size, maps, cuts and classes of a detector")
    return state


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that holds, number by number, what its shape says."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    whole = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    return whole and value.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


def _is_plan(plan: object) -> bool:
    """Whether a plan states, of what it states, an architecture that can be."""
    if not isinstance(plan, dict):
        return False
    size, maps, cuts, classes = (plan.get(key, usual) for key, usual in FIRST_PLAN.items())
    numbers = type(size) is int and 32 <= size <= MAX_SIZE and type(maps) is int and 2 <= maps <= 6
    of_trunk = isinstance(cuts, dict) and all(type(cut) is int and cut in CHANNELS for cut in cuts.values())
    if not (numbers and of_trunk and isinstance(classes, list | tuple)):
        return False
    texts = [*cuts, *classes]
    return 0 < len(classes) <= MAX_CLASSES and all(isinstance(text, str) for text in texts)


def check_identity(saved: object, identity: Mapping, path: Path) -> None:
    """Refuse a checkpoint of another training.

    Raises:
        TrainingError: names the first key that differs.
    """
    before, now = (dict(_flat(values)) for values in (saved if isinstance(saved, Mapping) else {}, identity))
    different = [key for key in sorted(before.keys() | now.keys()) if not _same(before.get(key), now.get(key))]
    if different:
        key = different[0]
        raise TrainingError(
            f"{path}: of another training; '{key}' was {shorten(before.get(key))} and is {shorten(now.get(key))} "
            f"({len(different)} such keys); expected the same settings, or a new folder"
        )


def _same(before: object, now: object) -> bool:
    return type(before) in (type(now), int, float) and before == now  # a tensor does not say whether it is equal


def _flat(values: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def history_of(state: Mapping) -> list[dict]:
    """The history of a checkpoint to resume from: numbers by name, a dict an epoch.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    history = [dict(row) for row in state["history"]]
    if [row["epoch"] for row in history] != [*range(1, len(history) + 1)]:
        raise ValueError("'history' has not every epoch once")
    if not all(isinstance(key, str) and isinstance(v, int | float) for row in history for key, v in row.items()):
        raise TypeError("'history' holds more than numbers by name")
    return history


def check_optimizer(optimizer: Optimizer, saved: Mapping) -> None:
    """Refuse a state that an optimiser would take over now and stumble over in its first step.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is of other parameters, or none.
    """

    def kinds(groups: Sequence[Mapping]) -> list[dict]:
        return [{key: type(value) for key, value in group.items() if key != "lr"} for group in groups]

    own = optimizer.state_dict()["param_groups"]
    if kinds(own) != kinds(saved["param_groups"]):
        raise ValueError("'optimizer.param_groups' are those of another optimiser")
    numbers = [number for group in own for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = {number: parameter.shape for number, parameter in zip(numbers, parameters, strict=True)}
    for number, values in saved["state"].items():
        moments = {values[key].shape for key in ("exp_avg", "exp_avg_sq")}
        if moments != {shapes[number]} or values["step"].numel() != 1:
            raise ValueError(f"'optimizer.state' of parameter {number} has another shape")


def load_fitting(model: nn.Module, weights: Mapping, path: Path | str) -> None:
    """Load weights into a model of the same architecture; ``path`` is where they come from, for the message.

    Raises:
        TrainingError: keys or shapes differ; the message names the first of them.
    """
    own = model.state_dict()
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    both = ((key, own[key], weights[key]) for key in own.keys() & weights.keys())
    wrong = [k for k, a, b in both if a.shape != b.shape or a.is_floating_point() > b.is_floating_point()]
    for what, keys in (("lacks", missing), ("has the unknown", unknown), ("has another shape or type for", wrong)):
        if keys:
            raise TrainingError(
                f"{path}: checkpoint of another architecture; it {what} key '{sorted(keys)[0]}' ({len(keys)} in all)"
            )
    model.load_state_dict(weights)


def load_released(path: Path | str) -> EarlyExitSSDLite:
    """A released detector; it has exits when its checkpoint holds them, and is pruned when it has a plan.

    Raises:
        TrainingError: no checkpoint, or one of another architecture.
    """
    state = load_checkpoint(path)
    try:
        model = rebuild(state.get("plan"), state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise TrainingError(f"{path}: no architecture of a detector ({shorten(str(error))})") from None
    load_fitting(model, state["model"], path)
    model.eval()
    try:
        with torch.no_grad():
            for output in model(torch.zeros(1, 3, 96, 96)):
                model.postprocess(output, (96, 96))
    except (RuntimeError, ValueError, IndexError) as error:  # every layer is one, and they do not make a detector
        raise TrainingError(f"{path}: layers that do not fit one another ({shorten(str(error))})") from None
    return model.train()
