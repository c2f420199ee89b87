"""An auxiliary loss on the trunk: where is a chair, cell by cell?

Ten of an image's 3,234 default boxes are positive, so a detector learns its features
slowly, from random weights above all. A 1 x 1 mask head on maps of the trunk gives every cell a target.
The heads live in training alone: what is released is the detector.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eelib.model import EarlyExitSSDLite, ExitOutput

# Position of a map in the order in which the trunk computes them, and its channels:
# 40 x 40 cells (children end at 6), 20 x 20 (the exits' and the first SSDLite map), 10 x 10.
TAPS = {6: 40, 11: 112, 13: 672, 14: 480}


class MaskSupervised(nn.Module):
    """A detector with mask heads on its trunk.

    Args:
        detector: trained through this module and released without it.
    """

    def __init__(self, detector: EarlyExitSSDLite):
        super().__init__()
        self.detector = detector
        self.mask_logits = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in TAPS.values())
        for head in self.mask_logits:
            nn.init.constant_(head.bias, -2.0)  # one cell in eight is chair

    def forward(self, images: Tensor) -> tuple[list[ExitOutput], list[Tensor]]:
        """All exits, and mask logits (B, 1, H, W) of each tapped map."""
        maps: list[Tensor] = []
        outputs = list(self.detector.exits(images, maps))
        return outputs, [head(maps[tap]) for head, tap in zip(self.mask_logits, TAPS, strict=True)]


def mask_loss(mask_logits: list[Tensor], masks: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice loss of each map against the share of chair in a cell.

    Args:
        mask_logits: (B, 1, H, W) for each tapped map.
        masks: uint8 (B, 1, S, S), 1 where a chair is visible.

    Returns:
        Scalar, summed over maps. Source of the Dice term: Milletari et al., "V-Net", 3DV 2016, section 3.
    """
    total = torch.zeros((), device=masks.device)
    for logits in mask_logits:
        share = F.adaptive_avg_pool2d(masks.float(), logits.shape[-2:])
        p = logits.sigmoid()
        both = (p.square() + share.square()).sum((1, 2, 3))
        dice = 1 - (2 * (p * share).sum((1, 2, 3)) + 1) / (both + 1)
        total = total + F.binary_cross_entropy_with_logits(logits, share) + dice.mean()
    return total
