"""Checkpoints: dicts of tensors and plain values, written whole or not at all, loaded without running code."""

from pathlib import Path

import torch
from torch import nn

from eelib.files import InputError, write_atomic
from eelib.model import EarlyExitSSDLite, rebuild


class TrainingError(InputError):
    """Training cannot go on or a checkpoint does not fit; the message says where and why."""


def save_checkpoint(path: Path | str, state: dict) -> Path:
    """Save a dict of tensors and plain values atomically, loadable with ``weights_only=True``."""
    return write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path | str) -> dict:
    """Load a checkpoint with ``weights_only=True``.

    Raises:
        TrainingError: the file is missing or is not a dict written by :func:`save_checkpoint`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch raises a different type for each way of being no checkpoint
        reason = (str(error) or type(error).__name__).splitlines()[0]  # an empty file raises without a message
        raise TrainingError(f"{path}: not a checkpoint ({reason})") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise TrainingError(f"{path}: not a checkpoint; expected a dict with key 'model'")
    return state


def load_weights(model: nn.Module, path: Path | str) -> dict:
    """Load a checkpoint's weights into a model of the same architecture; returns the checkpoint.

    Raises:
        TrainingError: keys or shapes differ; the message names the first of them.
    """
    state = load_checkpoint(path)
    own = model.state_dict()
    missing, unknown = own.keys() - state["model"].keys(), state["model"].keys() - own.keys()
    wrong = [k for k in own.keys() & state["model"].keys() if own[k].shape != state["model"][k].shape]
    for what, keys in (("lacks", missing), ("has the unknown", unknown), ("has another shape for", wrong)):
        if keys:
            raise TrainingError(
                f"{path}: checkpoint of another architecture; it {what} key '{sorted(keys)[0]}' ({len(keys)} in all)"
            )
    model.load_state_dict(state["model"])
    return state


def load_released(path: Path | str) -> EarlyExitSSDLite:
    """A released detector; it has exits when its checkpoint holds them, and is pruned when it has a plan.

    Raises:
        TrainingError: no checkpoint, or one of another architecture.
    """
    state = load_checkpoint(path)
    try:
        model = rebuild(state.get("plan"), state["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: key 'plan' is {state['plan']!r}; expected size, maps and cuts") from error
    load_weights(model, path)
    return model
