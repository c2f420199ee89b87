"""Routers of other papers on our exits, and what they are called there.

Three of them are policies of :mod:`eelib.policies` under another name, two are here. Each keeps the rule and, where
there is one, the loss of its paper; what a paper says of classes is said of boxes. Thresholds come from ``calibrate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from eelib.anchors import pairwise_iou
from eelib.config import LossConfig
from eelib.data import DetectionDataset, batches
from eelib.deploy.evidence import Confidence
from eelib.losses import Targets, assign, detection_loss
from eelib.model import EarlyExitSSDLite
from eelib.policies import sweep_of, swept
from eelib.routing import Setting, Split

# Policy to the paper that it is from. All others are this project's own.
SOURCES = {
    "branchynet": "BranchyNet (Teerapittayanon et al., ICPR 2016)",
    "count_entropy": "BranchyNet, entropy of all boxes",
    "percentile": "MSDNet (Huang et al., ICLR 2018)",
    "patience": "PABEE (Zhou et al., NeurIPS 2020)",
    "dynamic_det": "DynamicDet (Lin et al., CVPR 2023)",
}


@dataclass(frozen=True)
class Certainty(Confidence):
    """One less the entropy, in bits, of the best box being an object: high for a sure box and for none.

    Source: Teerapittayanon, McDanel and Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural
    Networks", ICPR 2016, who leave where the entropy of the class is below a threshold.
    """

    evidence = ("top_score",)

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """As in :class:`eelib.deploy.evidence.Confidence`."""
        q = np.clip(evidence[:, index, 0].astype(float), 1e-7, 1 - 1e-7)
        return np.clip(1 + q * np.log2(q) + (1 - q) * np.log2(1 - q), 0, 1)


branchynet = sweep_of(Certainty())


@torch.no_grad()
def exit_losses(
    model: EarlyExitSSDLite, dataset: DetectionDataset, loss: LossConfig, batch_size: int = 16
) -> np.ndarray:
    """Detection loss of every exit on every image, as training has it: (N, E).

    Each image is normalised by its own positives, as in a batch of one.
    """
    model.eval()
    rows = []
    for images, targets in batches(dataset, batch_size):
        columns = []
        for output in model.exits(images):
            values = []
            for k, target in enumerate(targets):
                objects = Targets(target["boxes"][None], target["labels"][None])
                if not len(target["labels"]):
                    objects = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64))
                one = output._replace(
                    cls_logits=output.cls_logits[k : k + 1], bbox_regression=output.bbox_regression[k : k + 1]
                )
                iou = pairwise_iou(objects.boxes_xyxy, output.default_boxes)
                matched = assign(iou, objects, one, loss.iou_threshold)
                values.append(float(sum(detection_loss(one, matched, loss.classification, loss.box).values())))
            columns.append(values)
        rows.append(np.array(columns).T)
    return np.concatenate(rows)


def train_router(
    features: np.ndarray, easy: np.ndarray, hard: np.ndarray, epochs: int, lr: float, batch_size: int, seed: int = 0
) -> nn.Module:
    """A router that gives 1 to images that may stay at the lesser detector.

    Its loss is s (L1 - d / 2) + (1 - s) (L2 + d / 2), s being its answer and L1, L2 the losses of the two detectors on
    an image. The offset d is the median of L1 - L2 over the images, so that as many images are pushed to either side.
    The losses are fixed, so that their median is taken at once and not tracked.

    Args:
        features: pooled maps of the trunk, (N, F).
        easy, hard: losses of the lesser and the better detector, (N,).
        epochs, lr, batch_size: of AdamW.
        seed: of the weights and of the order of the images.

    Returns:
        Features (N, F) to answers (N,).

    Source: Lin et al., "DynamicDet: A Unified Dynamic Architecture for Object Detection", CVPR 2023, section 3.3.
    """
    torch.manual_seed(seed)
    x = torch.tensor(features, dtype=torch.float32)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, momentum=None)
    norm(x)  # the mean and the spread of all images
    hidden = max(1, x.shape[1] // 4)
    router = nn.Sequential(norm.eval(), nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
    router.append(nn.Sigmoid()).append(nn.Flatten(0))
    first, second = (torch.tensor(values, dtype=torch.float32) for values in (easy, hard))
    offset = (first - second).median()
    optimizer = torch.optim.AdamW(router.parameters(), lr)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch_size):
                answer = router(x[rows])
                adaptive = answer * (first[rows] - offset / 2) + (1 - answer) * (second[rows] + offset / 2)
                optimizer.zero_grad()
                adaptive.mean().backward()
                optimizer.step()
    return router


def dynamic_det(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """DynamicDet's router at every early exit: leave there, or go on to full.

    ``options["dynamic_det"]`` holds ``epochs``, ``lr`` and ``batch_size``; ``options["trunk"]`` of each split the mean
    and maximum of the trunk's channels at each early exit (:func:`studies.routing.predictability.pooled_features`), of
    which the paper reads the mean, of an exit and of all before it; ``options["losses"]`` the losses of ``train``,
    (N, E), where the routers learn, as in the paper; ``options["splits"]`` where they answer. Their answers are read
    from there and not computed from evidence, so this policy cannot be deployed.
    """
    trunk, losses = options["trunk"], options["losses"]

    def seen(name: str, index: int) -> np.ndarray:
        return np.hstack([pooled[:, : pooled.shape[1] // 2] for pooled in trunk[name][: index + 1]])

    answers: dict[str, list] = {name: [] for name in options["splits"]}
    for index in range(losses.shape[1] - 1):
        router = train_router(seen("train", index), losses[:, index], losses[:, -1], **options["dynamic_det"])
        for name, columns in answers.items():
            with torch.no_grad():
                columns.append(router(torch.tensor(seen(name, index), dtype=torch.float32)).double().numpy())
    known = {options["splits"][name].images: np.stack(columns, 1) for name, columns in answers.items()}
    return swept(Answers(), calibrate, options["grid"], known)


class Answers(Confidence):
    """Stands for a router whose answers are known and need no evidence."""

    evidence: Sequence[str] = ()

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """There is nothing to answer from."""
        raise NotImplementedError("the answers of this router are known for some splits alone")
