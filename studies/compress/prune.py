"""Structured pruning with torch-pruning: every layer loses the same share of its channels, the least important first.

A pruned detector is the narrower one of the same design. torch-pruning finds which layers must lose a channel
together; predictors keep their outputs.
"""

import torch
from torch import Tensor, nn

from eelib.checkpoints import TrainingError
from eelib.data import DetectionDataset, batches
from eelib.losses import detection_loss
from eelib.model import EarlyExitSSDLite, rebuild

ROUND_TO = 8  # channels come in groups that the runtime's kernels are written for


class _Maps(nn.Module):
    """A detector that stops at its predictors' maps: what comes after is reshaping, not layers."""

    def __init__(self, model: EarlyExitSSDLite):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images to the outputs of all predictors."""
        model, features, done, outputs = self.model, images, 0, []
        for name, exit_ in model.early.items():
            features, done = model.segment(features, done, model.cuts[name]), model.cuts[name]
            maps = [exit_.context(features)]
            for down in exit_.down:
                maps.append(down(maps[-1]))
            outputs += [predictor(m) for predictor, m in zip(exit_.predictors, maps, strict=True)]
        maps = model.pyramid(model.segment(features, done, None))
        for predictors in _full_predictors(model):
            outputs += [predictor(m) for predictor, m in zip(predictors, maps, strict=True)]
        return outputs


def _full_predictors(model: EarlyExitSSDLite) -> list[nn.ModuleList]:
    return [head.module_list for head in (model.head.classification_head, model.head.regression_head)]


def prune(model: EarlyExitSSDLite, ratio: float, dataset: DetectionDataset, iou_threshold: float) -> EarlyExitSSDLite:
    """Take a share of the channels out of every layer, in place, by Taylor importance (weight times gradient).

    Args:
        model: its statistics stay as they are.
        ratio: share of the channels that goes, in (0, 1); what stays is a multiple of 8.
        dataset: training images of the model's size, never ``test``; the gradients of the detection loss of all
            exits are summed over them.
        iou_threshold: of the matching.

    Returns:
        The model, in evaluation mode.

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
    for images, targets in batches(dataset, 8):
        losses = [detection_loss(output, targets, iou_threshold=iou_threshold) for output in model(images)]
        sum(value for parts in losses for value in parts.values()).backward()
    predictors = [*(exit_.predictors for exit_ in model.early.values()), *_full_predictors(model)]
    pruner = torch_pruning.pruner.BasePruner(
        _Maps(model),
        torch.zeros(1, 3, model.size, model.size),
        importance=torch_pruning.importance.GroupTaylorImportance(),
        pruning_ratio=ratio,
        ignored_layers=[predictor[-1] for group in predictors for predictor in group],
        round_to=ROUND_TO,
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    return model


def without_exits(model: EarlyExitSSDLite) -> EarlyExitSSDLite:
    """A copy of the full path alone: the static detector."""
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("early.")}
    static = rebuild(model.plan, state)
    static.load_state_dict(state)
    return static
