"""What looks at a map of the trunk: an early exit's pyramid with its predictors, and a blank gate."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

EXIT_WIDTH = 96  # channels of an exit's own maps
_layer = partial(
    Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, eps=0.001, momentum=0.03), activation_layer=nn.ReLU6
)


def _separable(channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _layer(channels_in, channels_in, 3, stride, dilation=dilation, groups=channels_in),
        _layer(channels_in, channels_out, 1),
    )


def flatten_predictions(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Join head outputs (B, K * columns, H, W) to (B, sum of H * W * K, columns).

    The permute comes before the view. Viewing without it pairs two neighbouring columns of
    one channel: the first defect of the record.
    """
    flat = []
    for values in maps:
        batch, _, height, width = values.shape
        values = values.reshape(batch, -1, columns, height, width).permute(0, 3, 4, 1, 2)  # (B, H, W, K, columns)
        flat.append(values.reshape(batch, -1, columns))
    return torch.cat(flat, 1)


class EarlyExit(nn.Module):
    """A light SSDLite exit: a context block, four maps (20, 10, 5 and 3 cells a side of 320 px) and their predictors.

    Classes and boxes share a predictor: an image that goes on has paid for the exits before, and
    at batch 1 on a CPU the number of small layers is what an exit costs.

    Args:
        channels_in: channels of the trunk at the cut.
        stride: 2 where the trunk's map is still an eighth of the input, so that the exit's own begin at a sixteenth.
        channels: width of the exit's own pyramid.
        boxes_per_cell: default boxes at each cell.
        classes: K, without the background.
    """

    MAPS = 4

    def __init__(self, channels_in: int, stride: int, channels: int, boxes_per_cell: int, classes: int):
        super().__init__()
        # Dilation widens the receptive field at no cost: exit1 sees 179 px of 320 without it.
        self.context = nn.Sequential(
            _separable(channels_in, channels, stride), _separable(channels, channels, dilation=2)
        )
        self.down = nn.ModuleList(_separable(channels, channels, stride=2) for _ in range(self.MAPS - 1))
        self.columns = classes + 1
        self.class_channels = boxes_per_cell * self.columns  # of a predictor's output; the rest are box offsets
        width = self.class_channels + boxes_per_cell * 4
        self.predictors = nn.ModuleList(
            nn.Sequential(_layer(channels, channels, 3, groups=channels), nn.Conv2d(channels, width, 1))
            for _ in range(self.MAPS)
        )
        initialise(self)
        for _, last in self.predictors:
            _start_at_background(last.weight[: self.class_channels], last.bias[: self.class_channels], self.columns)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Features (B, C, H, W) to cls_logits (B, A, K + 1), bbox_regression (B, A, 4), grid sizes."""
        maps = [self.context(features)]
        for down in self.down:
            maps.append(down(maps[-1]))
        outputs = [predictor(m) for predictor, m in zip(self.predictors, maps, strict=True)]
        logits = flatten_predictions([o[:, : self.class_channels] for o in outputs], self.columns)
        boxes = flatten_predictions([o[:, self.class_channels :] for o in outputs], 4)
        return logits, boxes, [tuple(m.shape[-2:]) for m in maps]


class BlankGate(nn.Module):
    """One logit from a map of the trunk, pooled: does the image hold an object?

    The strongest and the mean response of each channel are kept: one chair anywhere must be enough.

    Args:
        channels_in: channels of the trunk at the cut.
        channels: that are pooled.
    """

    def __init__(self, channels_in: int, channels: int = 48):
        super().__init__()
        self.features = _separable(channels_in, channels)
        self.logit = nn.Linear(2 * channels, 1)
        initialise(self)
        nn.init.normal_(self.logit.weight, std=0.01)
        nn.init.constant_(self.logit.bias, 2.0)  # most images hold an object

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, H, W) to logits (B,); above 0 an object is likelier than none."""
        return self.decide(self.features(features))

    def decide(self, maps: Tensor) -> Tensor:
        """Maps (B, channels, H, W) of :attr:`features` to logits (B,)."""
        return self.logit(torch.cat((maps.amax((2, 3)), maps.mean((2, 3))), 1)).squeeze(1)


@torch.no_grad()
def _start_at_background(weight: Tensor, bias: Tensor, columns: int) -> None:
    nn.init.normal_(weight, std=0.01)
    bias.view(-1, columns).copy_(torch.tensor([2.3] + [-2.3] * (columns - 1)))


def initialise(module: nn.Module, columns: int = 2) -> None:
    """Kaiming weights, and a class bias that starts at 1 % of each class (RetinaNet's prior).

    torchvision draws every weight with standard deviation 0.03, which suits SGD; under AdamW
    a step of 2e-3 is then a fifteenth of a weight and the first epochs are lost.

    Args:
        module: whose convolutions are drawn anew.
        columns: K + 1 of its classification head, where it has one.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for name, layer in module.named_modules():
        if "classification_head" in name and isinstance(layer, nn.Conv2d) and layer.bias is not None:
            _start_at_background(layer.weight, layer.bias, columns)
