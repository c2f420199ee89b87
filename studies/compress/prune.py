"""Structured pruning with torch-pruning, and what a detector holds: parameters and operations.

Every layer loses the same share of its channels, the least important first, so a pruned detector
is the narrower one of the same design. torch-pruning finds which layers must lose a channel
together; predictors keep their outputs.
"""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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


def _last_convolutions(model: EarlyExitSSDLite) -> list[nn.Module]:
    predictors = [*(exit_.predictors for exit_ in model.early.values()), *_full_predictors(model)]
    return [predictor[-1] for group in predictors for predictor in group]


def accumulate_gradients(model: EarlyExitSSDLite, dataset: DetectionDataset, iou_threshold: float) -> None:
    """Gradients of the detection loss of all exits, summed over a data set: what Taylor importance reads.

    Args:
        model: statistics stay as they are.
        dataset: training images of the model's size, never ``test``.
        iou_threshold: of the matching.
    """
    model.eval().requires_grad_(True).zero_grad()
    for images, targets in batches(dataset, 8):
        losses = [detection_loss(output, targets, iou_threshold=iou_threshold) for output in model(images)]
        sum(value for parts in losses for value in parts.values()).backward()


def prune(model: EarlyExitSSDLite, ratio: float, importance: str = "taylor") -> EarlyExitSSDLite:
    """Take a share of the channels out of every layer, in place.

    Args:
        model: for ``"taylor"`` with gradients, see :func:`accumulate_gradients`.
        ratio: share of the channels that goes, in (0, 1); what stays is a multiple of 8.
        importance: ``"taylor"`` (weight times gradient) or ``"bn_scale"`` (the batch norm's factor).

    Returns:
        The model, in evaluation mode.

    Raises:
        TrainingError: the ratio, the importance, missing gradients, or torch-pruning is not installed.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023; Taylor importance: Molchanov et
    al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8; batch norm's factor: Liu
    et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """
    if not 0 < ratio < 1:
        raise TrainingError(f"ratio: {ratio}; expected a share of the channels in (0, 1)")
    try:
        import torch_pruning
    except ModuleNotFoundError:
        raise TrainingError("torch-pruning is not installed; expected `pip install 'eelib[compress]'`") from None
    kinds = {
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "bn_scale": torch_pruning.importance.BNScaleImportance,
    }
    if importance not in kinds:
        raise TrainingError(f"importance: {importance!r} is unknown; expected one of {', '.join(kinds)}")
    if importance == "taylor" and all(p.grad is None for p in model.parameters()):
        raise TrainingError("importance: 'taylor' needs gradients; call accumulate_gradients first")
    model.eval().requires_grad_(True)
    pruner = torch_pruning.pruner.BasePruner(
        _Maps(model), torch.zeros(1, 3, model.size, model.size), importance=kinds[importance](), pruning_ratio=ratio,
        ignored_layers=_last_convolutions(model), round_to=ROUND_TO,
    )  # fmt: skip
    pruner.step()
    model.zero_grad(set_to_none=True)
    return model


def without_exits(model: EarlyExitSSDLite) -> EarlyExitSSDLite:
    """A copy of the full path alone: the static detector."""
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("early.")}
    static = rebuild(model.plan, state)
    static.load_state_dict(state)
    return static


def parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def macs(model: EarlyExitSSDLite, last: str = "full") -> int:
    """Multiply-accumulates of convolutions for one image, up to and with an exit."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, model.size, model.size), last)
    return counter.get_total_flops() // 2
