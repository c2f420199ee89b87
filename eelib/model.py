"""SSDLite320 MobileNetV3-Large, and its early exits computed one at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large
from torchvision.ops import Conv2dNormActivation, clip_boxes_to_image, nms

from eelib.anchors import decode, default_boxes

EXIT_NAMES = ("exit1", "exit2", "full")
SIZE = 320  # side of the network input in pixels
# Children of torchvision's features[0] after which a segment ends, and the channels there.
CUTS = {"exit1": (8, 80), "exit2": (12, 112)}
# Chairs of showroom are small (median 62 px of 320, 44 % under 32 x 32 px), and torchvision's
# default scales start at 64 px: only 70 % of the objects reach IoU 0.5 with some box, 89 % with these.
SCALES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
ASPECT_RATIOS = ((1.5, 2.2),) * 6


class ExitOutput(NamedTuple):
    """Raw output of one exit for a batch.

    ``cls_logits`` (B, A, 2), background first; ``bbox_regression`` (B, A, 4) encoded offsets;
    ``default_boxes`` (A, 4) xyxy in pixels of the network input.
    """

    name: str
    cls_logits: Tensor
    bbox_regression: Tensor
    default_boxes: Tensor


class Detections(NamedTuple):
    """Detections of one image, best first: ``boxes`` (N, 4) xyxy pixels, ``scores`` (N,)."""

    boxes: Tensor
    scores: Tensor


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.001, momentum=0.03)


def _separable(channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        Conv2dNormActivation(
            channels_in, channels_in, 3, stride, dilation=dilation, groups=channels_in,
            norm_layer=_batch_norm, activation_layer=nn.ReLU6,
        ),
        Conv2dNormActivation(channels_in, channels_out, 1, norm_layer=_batch_norm, activation_layer=nn.ReLU6),
    )  # fmt: skip


def _predictor(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        Conv2dNormActivation(
            channels_in, channels_in, 3, groups=channels_in, norm_layer=_batch_norm, activation_layer=nn.ReLU6
        ),
        nn.Conv2d(channels_in, channels_out, 1),
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
    """A light SSDLite exit: a context block, four maps (20, 10, 5 and 3 cells a side) and their predictors.

    Classes and boxes share a predictor: an image that goes on has paid for the exits before, and
    at batch 1 on a CPU the number of small layers is what an exit costs.

    Args:
        channels_in: channels of the trunk at the cut.
        channels: width of the exit's own pyramid.
        boxes_per_cell: default boxes at each cell.
    """

    MAPS = 4

    def __init__(self, channels_in: int, channels: int = 96, boxes_per_cell: int = 6):
        super().__init__()
        # Dilation widens the receptive field at no cost: exit1 sees 179 px of 320 without it.
        self.context = nn.Sequential(_separable(channels_in, channels), _separable(channels, channels, dilation=2))
        self.down = nn.ModuleList(_separable(channels, channels, stride=2) for _ in range(self.MAPS - 1))
        self.predictors = nn.ModuleList(_predictor(channels, boxes_per_cell * 6) for _ in range(self.MAPS))
        self.class_channels = boxes_per_cell * 2  # of a predictor's output; the rest are box offsets
        initialise(self)
        for predictor in self.predictors:
            _start_at_background(predictor[-1].weight[: self.class_channels], predictor[-1].bias[: self.class_channels])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Features (B, C, 20, 20) to cls_logits (B, A, 2), bbox_regression (B, A, 4), grid sizes."""
        maps = [self.context(features)]
        for down in self.down:
            maps.append(down(maps[-1]))
        outputs = [predictor(m) for predictor, m in zip(self.predictors, maps, strict=True)]
        logits = flatten_predictions([o[:, : self.class_channels] for o in outputs], 2)
        boxes = flatten_predictions([o[:, self.class_channels :] for o in outputs], 4)
        return logits, boxes, [tuple(m.shape[-2:]) for m in maps]


@torch.no_grad()
def _start_at_background(weight: Tensor, bias: Tensor) -> None:
    nn.init.normal_(weight, std=0.01)
    bias.view(-1, 2).copy_(torch.tensor([2.3, -2.3]))


def initialise(module: nn.Module) -> None:
    """Kaiming weights, and a class bias that starts at 1 % chair (RetinaNet's prior).

    torchvision draws every weight with standard deviation 0.03, which suits SGD; under AdamW
    a step of 2e-3 is then a fifteenth of a weight and the first epochs are lost.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for name, layer in module.named_modules():
        if "classification_head" in name and isinstance(layer, nn.Conv2d) and layer.bias is not None:
            _start_at_background(layer.weight, layer.bias)


def rescale_gradient(features: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by ``factor`` on its way back."""
    kept = features.detach()
    return kept + factor * (features - kept)  # features - kept is 0, so the values stay bit for bit


class EarlyExitSSDLite(nn.Module):
    """SSDLite320 MobileNetV3-Large with two early exits before the full detector.

    Parameter names of the full path are torchvision's (``backbone.*``, ``head.*``), so its
    weights load here and ours load there.

    Args:
        early: whether exit1 and exit2 exist; False is the baseline.
        weights: None, ``"imagenet"`` (trunk) or ``"coco"`` (trunk and head but for the class
            layers); both are downloaded by torchvision.
        scales, aspect_ratios: default boxes of the six maps; the exits use the first ones.
        gradient_rescaling: in training, a part of the trunk gets the mean of the gradients of
            the exits behind it instead of their sum. Adam takes no notice of a factor that all
            of a weight's gradients share, so under AdamW this acts through the clip of the norm
            and through the balance with losses on the trunk itself, such as the masks'.

    Attributes:
        size: side in pixels of the square input that the weights are for.
        cuts: for each early exit the children of ``features[0]`` that run before it.

    Sources: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.3; Li et al.,
    "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019, section 3.1.
    """

    def __init__(
        self,
        early: bool = True,
        weights: str | None = None,
        scales: Sequence[float] = SCALES,
        aspect_ratios: Sequence[Sequence[float]] = ASPECT_RATIOS,
        gradient_rescaling: bool = False,
    ):
        super().__init__()
        self.gradient_rescaling = gradient_rescaling
        self.scales, self.aspect_ratios = tuple(scales), tuple(tuple(r) for r in aspect_ratios)
        self.size, self.cuts = SIZE, {name: stop for name, (stop, _) in CUTS.items()}
        backbone_weights = MobileNet_V3_Large_Weights.IMAGENET1K_V2 if weights == "imagenet" else None
        built = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=backbone_weights, num_classes=2)
        self.backbone, self.head = built.backbone, built.head
        if weights != "imagenet":
            initialise(self.backbone)
        initialise(self.head)
        if weights == "coco":
            self._load_coco()
        self.early = nn.ModuleDict()
        if early:
            for name, (_, channels) in CUTS.items():
                self.early[name] = EarlyExit(channels, boxes_per_cell=2 + 2 * len(self.aspect_ratios[0]))

    def _load_coco(self) -> None:
        state = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.get_state_dict(check_hash=True)
        own = self.state_dict()
        fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
        self.load_state_dict(fitting, strict=False)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of the exits in the order in which they are computed."""
        return (*self.early, "full")

    def segment(self, features: Tensor, start: int, stop: int | None, maps: list[Tensor] | None = None) -> Tensor:
        """Run children ``start:stop`` of the trunk's first part; their outputs are added to ``maps``, if given."""
        for child in list(self.backbone.features[0].children())[start:stop]:
            features = child(features)
            if maps is not None:
                maps.append(features)
        return features

    def exits(self, images: Tensor, maps: list[Tensor] | None = None) -> Iterator[ExitOutput]:
        """Compute one exit at a time; what is not asked for is never run.

        Args:
            images: float (B, 3, H, W) in [0, 1].
            maps: receives every map of the trunk as it is computed, for auxiliary training losses.

        Yields:
            :class:`ExitOutput` of exit1, exit2 and full.
        """
        size_hw = tuple(images.shape[-2:])
        features, done = (images - 0.5) / 0.5, 0
        for deeper, (name, exit_) in zip(range(len(self.early), 0, -1), self.early.items(), strict=True):
            own = features = self.segment(features, done, self.cuts[name], maps)
            done = self.cuts[name]
            if self.gradient_rescaling and torch.is_grad_enabled():
                own = rescale_gradient(features, 1 / (deeper + 1))
                features = rescale_gradient(features, deeper / (deeper + 1))
            logits, boxes, grids = exit_(own)
            yield self._output(name, logits, boxes, grids, size_hw)
        pyramid = self.pyramid(self.segment(features, done, None, maps))
        if maps is not None:
            maps.extend(pyramid[1:])
        yield self._full(pyramid, size_hw)

    def pyramid(self, features: Tensor) -> list[Tensor]:
        """The six SSDLite maps from the last map of the trunk's first part."""
        maps = [features, self.backbone.features[1](features)]
        for block in self.backbone.extra:
            maps.append(block(maps[-1]))
        return maps

    def _full(self, maps: list[Tensor], size_hw: tuple[int, int]) -> ExitOutput:
        outputs = self.head(maps)
        grids = [tuple(m.shape[-2:]) for m in maps]
        return self._output("full", outputs["cls_logits"], outputs["bbox_regression"], grids, size_hw)

    def _output(self, name, logits, boxes, grids, size_hw) -> ExitOutput:
        n = len(grids)
        defaults = default_boxes(grids, self.scales[: n + 1], self.aspect_ratios[:n], size_hw)
        return ExitOutput(name, logits, boxes, defaults.to(logits.device))

    def postprocess(self, output: ExitOutput, size_hw: tuple[int, int]) -> list[Detections]:
        """Detections of each image, by :func:`postprocess`."""
        return postprocess(output, size_hw)

    def keep_maps(self, count: int) -> None:
        """Drop the coarsest SSDLite maps with their predictors, in place; 2 to 6 stay."""
        self.backbone.extra = self.backbone.extra[: count - 2]
        for head in (self.head.classification_head, self.head.regression_head):
            head.module_list = head.module_list[:count]

    @property
    def plan(self) -> dict:
        """What a checkpoint of a changed architecture says beside its weights."""
        return {"size": self.size, "maps": len(self.backbone.extra) + 2, "cuts": dict(self.cuts)}

    def forward(self, images: Tensor, last: str = "full") -> list[ExitOutput]:
        """The exits in order, up to and with ``last``."""
        outputs = []
        for output in self.exits(images):
            outputs.append(output)
            if output.name == last:
                break
        return outputs


def rebuild(plan: Mapping, state: Mapping[str, Tensor]) -> EarlyExitSSDLite:
    """The architecture of pruned weights, without the weights.

    Pruning leaves layers and names as they are, so the shapes in ``state`` tell every width.

    Args:
        plan: of :attr:`EarlyExitSSDLite.plan`.
        state: the checkpoint's weights.

    Raises:
        KeyError, TypeError, ValueError: the plan is not one.
    """
    model = EarlyExitSSDLite(early=any(key.startswith("early.") for key in state))
    model.size, model.cuts = int(plan["size"]), {name: int(plan["cuts"][name]) for name in CUTS}
    model.keep_maps(int(plan["maps"]))
    for name, layer in model.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(layer, nn.Conv2d) and weight.shape[2:] == layer.weight.shape[2:]:
            layer.groups = len(weight) if layer.groups > 1 else 1  # all grouped ones are depthwise
            layer.out_channels, layer.in_channels = len(weight), weight.shape[1] * layer.groups
            layer.weight = nn.Parameter(torch.empty_like(weight))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.empty(len(weight)))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(weight)
            layer.weight, layer.bias = (nn.Parameter(torch.empty_like(weight)) for _ in range(2))
            layer.running_mean, layer.running_var = torch.zeros_like(weight), torch.ones_like(weight)
    return model


def postprocess(
    output: ExitOutput,
    size_hw: tuple[int, int],
    score_threshold: float = 0.001,
    nms_threshold: float = 0.55,
    topk: int = 300,
) -> list[Detections]:
    """Decode, clip, keep the best and suppress the overlapping: torchvision's post-processing.

    Args:
        output: raw output of an exit.
        size_hw: size of the network input in pixels.
        score_threshold: scores at or below it are dropped, in [0, 1].
        nms_threshold: IoU above which the weaker of two boxes goes, in [0, 1].
        topk: boxes that enter the suppression, and at most leave it.
    """
    boxes = decode(output.bbox_regression, output.default_boxes)
    scores = output.cls_logits.softmax(-1)[..., 1]
    return keep_best(boxes, scores, size_hw, score_threshold, nms_threshold, topk)


def keep_best(
    boxes_xyxy: Tensor,
    scores: Tensor,
    size_hw: tuple[int, int],
    score_threshold: float = 0.001,
    nms_threshold: float = 0.55,
    topk: int = 300,
) -> list[Detections]:
    """Clip boxes (B, A, 4), keep the best by score (B, A) and suppress; arguments as in :func:`postprocess`."""
    detections = []
    for image_boxes, image_scores in zip(clip_boxes_to_image(boxes_xyxy, size_hw), scores, strict=True):
        kept = torch.where(image_scores > score_threshold)[0]
        best, order = image_scores[kept].topk(min(topk, len(kept)))
        candidates = image_boxes[kept][order]
        keep = nms(candidates, best, nms_threshold)
        detections.append(Detections(candidates[keep], best[keep]))
    return detections


def chair_probability(cls_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Chair probability of each box from logits (B, A, 2), background first: (B, A)."""
    return (cls_logits / temperature).softmax(-1)[..., 1]
