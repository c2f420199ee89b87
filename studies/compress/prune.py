"""Structured pruning with torch-pruning: every layer loses the same share of its channels, the least important first.

A pruned detector is the narrower one of the same design. torch-pruning finds which layers must lose a channel
together; predictors keep their outputs.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from eelib.augment import PRESETS, augment, draw
from eelib.batches import pool_of
from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.config import Config, saved_config
from eelib.losses import Criterion
from eelib.model import EarlyExitSSDLite, ExitOutput
from eelib.train import WithGates, training_set

ROUND_TO = 8  # channels come in groups that the runtime's kernels are written for
BATCH = 8


class _Maps(nn.Module):
    """A detector that stops at its predictors' maps: what comes after is reshaping, not layers."""

    def __init__(self, model: EarlyExitSSDLite):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images to the outputs of all predictors and blank gates."""
        model, features, done, outputs, trunk = self.model, images, 0, [], []
        for name, exit_ in model.early.items():
            features, done = model.segment(features, done, model.cuts[name], trunk), model.cuts[name]
            maps = [exit_.context(features)]
            for down in exit_.down:
                maps.append(down(maps[-1]))
            outputs += [predictor(m) for predictor, m in zip(exit_.predictors, maps, strict=True)]
        if model.head is not None:
            maps = model.pyramid(model.segment(features, done, None, trunk))
            for predictors in _full_predictors(model):
                outputs += [predictor(m) for predictor, m in zip(predictors, maps, strict=True)]
        return outputs + model.blank_logits(trunk)


def _full_predictors(model: EarlyExitSSDLite) -> list[nn.ModuleList]:
    if model.head is None:
        return []
    return [head.module_list for head in (model.head.classification_head, model.head.regression_head)]


def accumulate_gradients(model: EarlyExitSSDLite, config: Config) -> None:
    """Gradients of the detection loss of all exits, summed over ``data.limit`` training images, shown as they are.

    The model is in evaluation mode, so that its statistics stay as they are.
    """
    pool, criterion = pool_of(training_set(config)), Criterion(config.loss, model.exit_names)
    network, generator = WithGates(model), torch.Generator().manual_seed(0)
    for rows in torch.arange(len(pool.images)).split(BATCH):
        images, targets = augment(pool, draw(rows, len(pool.images), generator), model.size, PRESETS["none"])
        exits, blank_logits = network(images, model.exit_names[-1])
        criterion([ExitOutput(*output) for output in exits], targets, blank_logits)[0].backward()


def prune(model: EarlyExitSSDLite, ratio: float, config: Config) -> EarlyExitSSDLite:
    """Take a share of the channels out of every layer, in place, by Taylor importance (weight times gradient).

    Args:
        model: left in evaluation mode; its statistics stay as they are.
        ratio: share of the channels that goes, in (0, 1); what stays is a multiple of 8.
        config: of its training; the importance is measured on ``data.limit`` images of ``train``.

    Raises:
        TrainingError: the ratio, or torch-pruning is not installed.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023; the importance: Molchanov et al.,
    "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8.
    """
    if not 0 < ratio < 1:
        raise TrainingError(f"ratio: {ratio}; expected a share of the channels in (0, 1)")
    try:
        import torch_pruning
    except ModuleNotFoundError:
        raise TrainingError("torch-pruning is not installed; expected `pip install 'eelib[compress]'`") from None
    model.eval().requires_grad_(True).zero_grad()
    accumulate_gradients(model, config)
    predictors = [*(exit_.predictors for exit_ in model.early.values()), *_full_predictors(model)]
    kept = [predictor[-1] for group in predictors for predictor in group]
    kept += [layer for gate in model.blank.values() for layer in (gate.features[1][0], gate.logit)]
    pruner = torch_pruning.pruner.BasePruner(
        _Maps(model),
        torch.zeros(1, 3, model.size, model.size),
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=kept,
        round_to=ROUND_TO,
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    return model


def prune_checkpoint(checkpoint: Path | str, width: float, out: Path | str, images: int = 64) -> Path:
    """Write the start of a narrower detector; ``model.start`` of a parameter file names it.

    Args:
        checkpoint: a released detector, with or without exits.
        width: share of the channels of every layer that stays, in (0, 1).
        out: checkpoint to write.
        images: of ``train``, drawn with the seed of the checkpoint's training, that the importance is measured on.

    Raises:
        TrainingError: the width, no checkpoint, or torch-pruning is not installed.
        ConfigError: the checkpoint has no configuration.
    """
    config = saved_config(load_checkpoint(checkpoint), checkpoint)
    config = config.model_copy(update={"data": config.data.model_copy(update={"limit": images})})
    model = prune(load_released(checkpoint), 1 - width, config)
    origin = f"{Path(checkpoint).name}, pruned to {width:g} of its channels"
    state = {"model": model.state_dict(), "plan": model.plan, "origin": origin}
    return save_checkpoint(out, state | {"config": config.model_dump(mode="json")})
