"""SSDLite MobileNetV3-Large, and its early exits computed one at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large
from torchvision.ops import clip_boxes_to_image, nms

from eelib.anchors import decode, default_boxes
from eelib.deploy.evidence import SCORE_CUTS
from eelib.detections import Detections
from eelib.heads import EXIT_WIDTH, BlankGate, EarlyExit, initialise
from eelib.preprocess import ImageSource, as_image, resize

SIZE = 320  # side of the network input in pixels
CUTS = (8, 12)  # children of torchvision's features[0] before exit1 and exit2
# Channels after a number of children: of the maps of an eighth of the input's side up to 7, of a sixteenth from there.
CHANNELS = {5: 40, 6: 40, 7: 40, 8: 80, 9: 80, 10: 80, 11: 80, 12: 112, 13: 112}
GATE_CUTS = (7, 8)  # where the blank gates look: the last map of an eighth, and the first of a sixteenth
# Chairs of showroom are small (median 62 px of 320, 44 % under 32 x 32 px), and torchvision's
# default scales start at 64 px: only 70 % of the objects reach IoU 0.5 with some box, 89 % with these.
SCALES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
ASPECT_RATIOS = ((1.5, 2.2),) * 6
SCORE_THRESHOLD = 0.001  # scores at or below it are no detections


class ExitOutput(NamedTuple):
    """Raw output of one exit for a batch.

    ``cls_logits`` (B, A, K + 1), background first; ``bbox_regression`` (B, A, 4) encoded offsets;
    ``default_boxes`` (A, 4) xyxy in pixels of the network input.

    Examples:
        >>> import torch
        >>> image = torch.zeros(1, 3, model.size, model.size)
        >>> outputs: list[eelib.ExitOutput] = list(model.exits(image))
        >>> [output.name for output in outputs]
        ['exit1', 'exit2', 'full']
    """

    name: str
    cls_logits: Tensor
    bbox_regression: Tensor
    default_boxes: Tensor


def rescale_gradient(features: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by ``factor`` on its way back."""
    kept = features.detach()
    return kept + factor * (features - kept)  # features - kept is 0, so the values stay bit for bit


class EarlyExitSSDLite(nn.Module):
    """SSDLite MobileNetV3-Large with early exits before the full detector.

    Parameter names of the full path are torchvision's (``backbone.*``, ``head.*``), so its
    weights load here and ours load there.

    Args:
        cuts: children of the trunk's first part before exit1, exit2, ...: rising, each in :data:`CHANNELS`;
            none is the detector without exits.
        full: False ends the network at its last exit: a truncated detector.
        blank_gate: whether to add gates at :data:`GATE_CUTS`, which predict that an image shows no object.
        classes: names of the K classes, in the order of the labels from 1.
        exit_width: channels of each early exit's own maps.
        weights: None, ``"imagenet"`` (trunk) or ``"coco"`` (trunk and head but for the class
            layers); both are downloaded by torchvision.
        scales, aspect_ratios: default boxes of the six maps; the exits use the first ones.
        gradient_rescaling: in training, a part of the trunk gets the mean of the gradients of
            the exits behind it instead of their sum. Adam takes no notice of a factor that all
            of a weight's gradients share, so under AdamW this acts through the clip of the norm
            and through the balance with other losses on the trunk.

    Attributes:
        size: side in pixels of the square input that the weights are for.
        cuts: for each early exit the children of ``features[0]`` that run before it.

    Examples:
        >>> model = eelib.EarlyExitSSDLite(cuts=(8, 12), classes=("chair", "stool"))
        >>> list(model.exit_names)
        ['exit1', 'exit2', 'full']

    Sources: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.3; Li et al.,
    "Improved Techniques for Training Adaptive Deep Networks", ICCV 2019, section 3.1.
    """

    def __init__(
        self,
        cuts: Sequence[int] = CUTS,
        *,
        full: bool = True,
        blank_gate: bool = False,
        classes: Sequence[str] = ("chair",),
        exit_width: int = EXIT_WIDTH,
        weights: str | None = None,
        scales: Sequence[float] = SCALES,
        aspect_ratios: Sequence[Sequence[float]] = ASPECT_RATIOS,
        gradient_rescaling: bool = False,
    ):
        super().__init__()
        self.gradient_rescaling, self.size, self.classes = gradient_rescaling, SIZE, tuple(classes)
        self.scales, self.aspect_ratios = tuple(scales), tuple(tuple(r) for r in aspect_ratios)
        self.cuts = {f"exit{k}": cut for k, cut in enumerate(cuts, 1)}
        columns = len(self.classes) + 1
        backbone_weights = MobileNet_V3_Large_Weights.IMAGENET1K_V2 if weights == "imagenet" else None
        built = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=backbone_weights, num_classes=columns)
        self.backbone, self.head = built.backbone, built.head
        if weights != "imagenet":
            initialise(self.backbone)
        initialise(self.head, columns)
        if weights == "coco":
            state = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.get_state_dict(check_hash=True)
            own = self.state_dict()
            self.load_state_dict({k: v for k, v in state.items() if k in own and v.shape == own[k].shape}, strict=False)
        self.early, boxes = nn.ModuleDict(), 2 + 2 * len(self.aspect_ratios[0])
        for name, cut in self.cuts.items():
            stride = 2 if CHANNELS[cut] == CHANNELS[5] else 1
            self.early[name] = EarlyExit(CHANNELS[cut], stride, exit_width, boxes, len(self.classes))
        self.blank = nn.ModuleDict({str(cut): BlankGate(CHANNELS[cut]) for cut in GATE_CUTS if blank_gate})
        if not full:
            trunk = list(self.backbone.features[0].children())[: max(self.cuts.values())]
            self.backbone.features = nn.Sequential(nn.Sequential(*trunk))
            self.backbone.extra, self.head = nn.ModuleList(), None
        self._defaults: dict[tuple, Tensor] = {}

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of the exits in the order in which they are computed; the last one takes what none took before."""
        return (*self.early, "full") if self.head is not None else tuple(self.early)

    @property
    def stages(self) -> dict[str, int | None]:
        """Blank gates and exits in the order in which they run, each with the children of the trunk before it.

        A gate comes before an exit at the same cut: it may spare the exit's head. None is the whole trunk.
        """
        gates = [(cut, 0, f"blank{k}") for k, cut in enumerate(map(int, self.blank), 1)]
        exits = [(cut, 1, name) for name, cut in self.cuts.items()]
        order = {name: cut for cut, _, name in sorted(gates + exits)}
        return order | ({"full": None} if self.head is not None else {})

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
            maps: receives every map of the trunk as it is computed, for the blank gates.

        Yields:
            :class:`ExitOutput` of each exit in turn.
        """
        size_hw = tuple(images.shape[-2:])
        features, done, last = (images - 0.5) / 0.5, 0, len(self.exit_names) - 1
        for deeper, (name, exit_) in zip(range(last, -1, -1), self.early.items(), strict=False):
            own = features = self.segment(features, done, self.cuts[name], maps)
            done = self.cuts[name]
            if self.gradient_rescaling and torch.is_grad_enabled():
                own = rescale_gradient(features, 1 / (deeper + 1))
                features = rescale_gradient(features, deeper / (deeper + 1))
            logits, boxes, grids = exit_(own)
            yield self._output(name, logits, boxes, grids, size_hw)
        if self.head is not None:
            pyramid = self.pyramid(self.segment(features, done, None, maps))
            outputs, grids = self.head(pyramid), [tuple(m.shape[-2:]) for m in pyramid]
            yield self._output("full", outputs["cls_logits"], outputs["bbox_regression"], grids, size_hw)

    def blank_logits(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B,) of each blank gate from the maps that :meth:`exits` left: does the image hold an object?"""
        return [gate(maps[int(cut) - 1]) for cut, gate in self.blank.items()]

    def pyramid(self, features: Tensor) -> list[Tensor]:
        """The six SSDLite maps from the last map of the trunk's first part."""
        maps = [features, self.backbone.features[1](features)]
        for block in self.backbone.extra:
            maps.append(block(maps[-1]))
        return maps

    def _output(self, name, logits, boxes, grids, size_hw) -> ExitOutput:
        key, n = (tuple(grids), size_hw, logits.device), len(grids)
        if key not in self._defaults:  # a step on a GPU must not wait for boxes made on the CPU
            boxes_xyxy = default_boxes(grids, self.scales[: n + 1], self.aspect_ratios[:n], size_hw)
            self._defaults[key] = boxes_xyxy.to(logits.device)
        return ExitOutput(name, logits, boxes, self._defaults[key])

    @staticmethod
    def postprocess(
        output: ExitOutput,
        size_hw: tuple[int, int],
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = 0.55,
    ) -> list[Detections]:
        """Decode, clip, keep the best and suppress the overlapping: torchvision's post-processing.

        Args:
            output: raw output of an exit.
            size_hw: size of the network input in pixels, in which the detections are.
            score_threshold: scores at or below it are dropped, in [0, 1].
            nms_threshold: IoU above which the weaker of two boxes of a class goes, in [0, 1].
        """
        boxes = decode(output.bbox_regression, output.default_boxes)
        return keep_best(output.name, boxes, class_scores(output.cls_logits), size_hw, score_threshold, nms_threshold)

    def predict(
        self,
        images: ImageSource | list[ImageSource],
        *,
        thresholds: Mapping[str, float] | None = None,
        min_score: float = 0.05,
    ) -> Detections | list[Detections]:
        """Detect in one image or in a list of them.

        Args:
            images: each a path, a PIL image, or an array (H, W, 3) or (H, W), uint8 in 0..255 or float in [0, 1].
            thresholds: exit name to the best score in [0, 1] from which an image leaves there; None runs the full path.
            min_score: least score of a detection that is returned, in [0, 1].

        Returns:
            Detections in pixels of the upright image, for a list one each.

        Raises:
            ValueError: an exit that the detector does not have, a threshold or score outside [0, 1], or an array that
                is no image.
            ImageError: a file that cannot be read.
        """
        thresholds = dict(thresholds or {})
        for name in thresholds:
            if name not in self.exit_names[:-1]:
                early = ", ".join(self.exit_names[:-1]) or "none"
                raise ValueError(f"thresholds: no early exit '{name}'; this detector has {early}")
        shares = {f"threshold of {name}": value for name, value in thresholds.items()} | {"min_score": min_score}
        for what, value in shares.items():
            if not 0 <= value <= 1:  # NaN as well
                raise ValueError(f"{what} is {value}; expected a number from 0 to 1")
        if isinstance(images, list | tuple):
            return [self._detect(image, thresholds, min_score) for image in images]
        return self._detect(images, thresholds, min_score)

    @torch.inference_mode()
    def _detect(self, source: ImageSource, thresholds: Mapping[str, float], min_score: float) -> Detections:
        image, size = as_image(source), self.size
        pixels = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None]  # (1, 3, S, S)
        device = next(self.parameters()).device
        training = self.training
        self.eval()
        try:
            for output in self.exits(pixels.to(device).float().div_(255)):
                best = float(class_scores(output.cls_logits).max())
                if best >= thresholds.get(output.name, float("inf")):
                    break
        finally:
            self.train(training)
        (found,) = self.postprocess(output, (size, size), score_threshold=min_score)
        return replace(found.scaled(image.width / size, image.height / size), classes=tuple(self.classes), image=image)

    def keep_maps(self, count: int) -> None:
        """Drop the coarsest SSDLite maps with their predictors, in place; 2 to 6 stay."""
        self.backbone.extra = self.backbone.extra[: count - 2]
        for head in (self.head.classification_head, self.head.regression_head):
            head.module_list = head.module_list[:count]

    @property
    def plan(self) -> dict:
        """What a checkpoint says of the architecture beside its weights."""
        return {
            "size": self.size,
            "maps": len(self.backbone.extra) + 2,
            "cuts": dict(self.cuts),
            "classes": list(self.classes),
            **({} if self.scales == SCALES else {"scales": list(self.scales)}),
        }

    def forward(self, images: Tensor, last: str | None = None, maps: list[Tensor] | None = None) -> list[ExitOutput]:
        """The exits in order, up to and with ``last``; None is all. ``maps`` as for :meth:`exits`."""
        outputs = []
        for output in self.exits(images, maps):
            outputs.append(output)
            if output.name == last:
                break
        return outputs


# Of checkpoints from before there was a plan.
FIRST_PLAN = {"size": SIZE, "maps": 6, "cuts": dict(zip(("exit1", "exit2"), CUTS, strict=True)), "classes": ["chair"]}


def rebuild(plan: Mapping | None, state: Mapping[str, Tensor]) -> EarlyExitSSDLite:
    """The architecture of a checkpoint, without its weights; None of a plan is :data:`FIRST_PLAN`.

    Pruning leaves layers and names as they are, so the shapes in ``state``, the checkpoint's weights, tell every
    width, and the keys tell which parts there are.

    Raises:
        KeyError, TypeError, ValueError: the plan is not one.
    """
    plan = FIRST_PLAN | dict(plan or {})
    cuts = [int(cut) for name, cut in plan["cuts"].items() if any(key.startswith(f"early.{name}.") for key in state)]
    full, gates = (any(key.startswith(part) for key in state) for part in ("head.", "blank."))
    full = full or not cuts  # weights of anything else are then told what they lack
    classes, scales = [str(name) for name in plan["classes"]], [float(share) for share in plan.get("scales", SCALES)]
    model = EarlyExitSSDLite(cuts, full=full, blank_gate=gates, classes=classes, scales=scales)
    model.size = int(plan["size"])
    if full:
        model.keep_maps(int(plan["maps"]))
    for name, layer in model.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(layer, nn.Conv2d) and weight.shape[2:] == layer.weight.shape[2:]:
            layer.groups = len(weight) if layer.groups > 1 else 1  # all grouped ones are depthwise
            layer.out_channels, layer.in_channels = len(weight), weight.shape[1] * layer.groups
            layer.weight = nn.Parameter(torch.empty(weight.shape))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.empty(len(weight)))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = len(weight)
            layer.weight, layer.bias = (nn.Parameter(torch.empty(len(weight))) for _ in range(2))
            layer.running_mean, layer.running_var = torch.zeros(len(weight)), torch.ones(len(weight))
    return model


def class_scores(cls_logits: Tensor) -> Tensor:
    """Score of each class from logits (B, A, K + 1), background first: sigmoid(l_k - l_0), (B, A, K)."""
    objects = cls_logits[..., 1:]
    background = cls_logits[..., :1].expand_as(objects)
    # the softmax of the two is that sigmoid, and for one class torchvision's score bit for bit
    return torch.stack((background, objects), -1).softmax(-1)[..., 1]


def raw_evidence(scores: Tensor, classes: int) -> Tensor:
    """What an exit's scores say of an image before suppression; the exported graphs compute it, too.

    ``box_certainty`` is the mean of 1 - H2(p), the binary entropy in bits, over the best class score p of every
    default box. Few operations: at this size one costs more by being called than by what it computes.

    From scores (B, K, A) in [0, 1] to (B, F), columns :func:`eelib.deploy.evidence.raw_columns`.
    """
    best = scores if classes == 1 else scores.amax(1, keepdim=True)  # (B, 1, A)
    q = best.clamp(1e-7, 1 - 1e-7)
    certainty = 1 + (q * q.log() + (1 - q) * (1 - q).log()).mean(2) / math.log(2)
    counts = (best > best.new_tensor(SCORE_CUTS)[:, None]).to(best.dtype).sum(2)  # (B, 3)
    columns = [best.topk(2).values.flatten(1), certainty, best.sum(2), counts]
    if classes > 1:
        columns.append(scores.amax(2))
    return torch.cat(columns, 1)


def keep_best(
    exit_name: str,
    boxes_xyxy: Tensor,
    scores: Tensor,
    size_hw: tuple[int, int],
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float = 0.55,
    topk: int = 300,
) -> list[Detections]:
    """Clip boxes (B, A, 4), keep the best by score (B, A, K) and suppress.

    Arguments as in :meth:`EarlyExitSSDLite.postprocess`. ``topk`` boxes of an image enter the suppression, and at most
    leave it.
    """
    detections, classes = [], scores.shape[-1]
    for image_boxes, image_scores in zip(clip_boxes_to_image(boxes_xyxy, size_hw), scores.flatten(1), strict=True):
        passing = torch.where(image_scores > score_threshold)[0]
        best, order = image_scores[passing].topk(min(topk, len(passing)))
        chosen = passing[order]
        labels, candidates = chosen % classes, image_boxes[chosen // classes]
        # far apart, so that boxes of different classes never overlap
        kept = nms(candidates + (labels * 2 * max(size_hw))[:, None], best, nms_threshold)
        parts = (part.cpu().numpy() for part in (candidates[kept], best[kept], labels[kept] + 1))
        detections.append(Detections(*parts, exit_name))
    return detections
