"""What the present code computes, so that a move of code can be shown to change nothing.

``python golden/golden.py write`` makes golden.json; ``python golden/golden.py check`` computes it again and
compares. The file goes when the moves are done; what is worth keeping of it is a test by then.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
torch.set_num_threads(1)

SHORT = {"data.limit": 24, "data.val_limit": 8, "data.eval_limit": 8, "optim.epochs": 2}


def records() -> tuple[dict, dict]:
    from eelib import routers

    with torch.inference_mode():
        return routers.load_study(
            ROOT / "checkpoints/exits.pth", ROOT / "data/showroom", ROOT / "runs/golden_records"
        )


def ap_of_exits() -> dict:
    from eelib.data import load_split
    from eelib.records import records_of
    from eelib.routed_ap import RoutedAP

    coco, found = load_split("test", ROOT / "data/showroom"), {}
    for name in ("baseline", "exits"):
        with torch.inference_mode():
            own = records_of(
                "test", ROOT / f"checkpoints/{name}.pth", ROOT / "data/showroom", ROOT / "runs/golden_records"
            )
        evaluator = RoutedAP(own, coco)
        found |= {f"{name}_{exit_}": evaluator.of_exit(k) for k, exit_ in enumerate(own.exit_names)}
    return found


def routings() -> list[float]:
    from eelib.routed_ap import RoutedAP

    found, cocos = records()
    evaluator, rng = RoutedAP(found["test"], cocos["test"]), np.random.default_rng(0)
    return [evaluator.ap(rng.integers(0, 3, len(found["test"]))) for _ in range(200)]


def certified() -> dict:
    from eelib import guarantee
    from eelib.deploy.evidence import OF_BOXES
    from eelib.routing import prepare

    found, cocos = records()
    splits = prepare(found, cocos, (0.5, 0.7, 1.0), "none", "calibrate", passing=(0.0, 0.05, 0.1))
    settings = guarantee.sequence(splits["val"], evidence=("top_score", "box_certainty", *OF_BOXES))
    stated = guarantee.certified(splits["calibrate"], settings, 0.05, 0.1)
    return {key: stated[key] for key in ("thresholds", "p_value", "risk", "time_ratio", "index")}


def phase() -> list[dict]:
    from studies.phases import config, trainer

    settings = config.load(ROOT / "params/phase_1_4.yaml", SHORT)
    with tempfile.TemporaryDirectory() as out:
        return strip(trainer.train_phase(settings, out, log=lambda _: None)["history"])


def ssdlite() -> list[dict]:
    """Two epochs on the images that version 0.1 drew, through today's losses, optimiser and average."""
    from eelib import config
    from eelib.data import DetectionDataset, as_input
    from eelib.fit import Trainer, fit
    from eelib.losses import Criterion, Targets
    from eelib.train import build_model

    own = {"model.start": "checkpoints/exits.pth", "optim.epochs": 2, "optim.batch_size": 4, "optim.lr": 1.6e-3}
    own |= {"optim.trunk_lr_factor": 0.5, "optim.warmup_steps": 100, "optim.ema_decay": 0.998}
    own |= {"loss.gradient_rescaling": True, "loss.distillation": 1.0, "optim.accelerator": "cpu"}
    settings = config.parse(config.override({"name": "golden"}, own))
    torch.manual_seed(0)
    dataset = Version01(DetectionDataset("train", ROOT / "data/showroom", limit=24))
    model = build_model(settings)
    criterion = Criterion(settings.loss, model.exit_names)

    def step(network, batch, _):
        images, targets = batch
        boxes = torch.zeros(len(targets), max(1, max(len(t["boxes"]) for t in targets)), 4)
        labels = torch.zeros(boxes.shape[:2], dtype=torch.int64)
        for row, target in enumerate(targets):
            boxes[row, : len(target["boxes"])], labels[row, : len(target["boxes"])] = target["boxes"], 1
        return criterion(network(as_input(images)), Targets(boxes, labels))

    trainer = Trainer(model, step, settings.optim)
    with tempfile.TemporaryDirectory() as out:
        batches = lambda epoch: dataset.loader(epoch)  # noqa: E731
        return strip(fit(trainer, batches, out, identity={}, log=lambda _: None))


def strip(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def detections() -> list[dict]:
    from eelib.deploy import export as deploy
    from eelib.deploy import images
    from eelib.deploy.runtime import Session

    with tempfile.TemporaryDirectory() as out:
        deploy.export(ROOT / "checkpoints/exits.pth", out)
        session = Session(out)
        sources = images.find_images(ROOT / "data/showroom/test")[:20]
        rule = session.by_score({"exit1": 0.6, "exit2": 0.5})
        found = images.detect_files(session, sources, rule, on_broken=lambda error: None)
        return [
            {
                "file": source.path.name,
                "exit": seen.exit_name,
                "boxes": seen.boxes_xyxy[:10].tolist(),
                "scores": seen.scores[:10].tolist(),
            }
            for source, seen in found
        ]


class Version01(torch.utils.data.Dataset):
    """Images as version 0.1 augmented them for SSD."""

    def __init__(self, inner):
        self.inner, self.epoch = inner, 0
        self.transform = v2.Compose(
            [
                v2.RandomZoomOut(fill={tv_tensors.Image: 127, tv_tensors.Mask: 0}, side_range=(1.0, 2.0), p=0.25),
                v2.RandomIoUCrop(min_scale=0.4, max_scale=1.0, sampler_options=[0.0, 0.3, 0.5, 0.7, 1.0], trials=6),
                v2.Resize((320, 320), antialias=True),
                v2.RandomHorizontalFlip(0.5),
                ColourDistortion(),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(min_size=2),
            ]
        )

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        image, target = self.inner[index]
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.epoch * 1_000_003 + index)
            image, target = self.transform(tv_tensors.Image(image), {"boxes": boxes, "labels": target["labels"]})
        return image.as_subclass(torch.Tensor), {"boxes": target["boxes"].as_subclass(torch.Tensor).float()}

    def loader(self, epoch):
        self.epoch = epoch
        collate = lambda items: (torch.stack([i for i, _ in items]), [t for _, t in items])  # noqa: E731
        generator = torch.Generator().manual_seed(epoch)
        return torch.utils.data.DataLoader(
            self, 4, shuffle=True, drop_last=True, collate_fn=collate, generator=generator
        )


class ColourDistortion(v2.Transform):
    """Brightness, contrast, saturation and hue as one linear map of the colours.

    SSD's photometric distortion (section 2.2, "Data augmentation") composes four steps that
    are each linear in RGB (hue as a rotation in YIQ). Multiplying the 3 x 3 matrices first
    costs one pass over the pixels instead of four and needs no HSV round trip, which keeps
    augmentation off the critical path on a CPU.

    Args:
        brightness: largest shift as a share of full scale, in [0, 1].
        contrast, saturation: factors are drawn from [1 - x, 1 + x].
        hue: largest rotation in radians.
    """

    _transformed_types = (tv_tensors.Image,)
    _TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

    def __init__(self, brightness: float = 0.12, contrast: float = 0.4, saturation: float = 0.5, hue: float = 0.3):
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def make_params(self, flat_inputs: list) -> dict:
        """Draw one colour matrix (3, 3) and shift (scalar, 0..255 scale)."""
        uniform = (torch.rand(4) * 2 - 1).tolist()
        contrast = 1 + self.contrast * uniform[1]
        saturation = 1 + self.saturation * uniform[2]
        angle = self.hue * uniform[3]
        cos, sin = math.cos(angle) * saturation, math.sin(angle) * saturation
        rotation = torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = contrast * torch.linalg.inv(self._TO_YIQ) @ rotation @ self._TO_YIQ
        return {"matrix": matrix, "shift": 255 * self.brightness * uniform[0] + 127.5 * (1 - contrast)}

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Apply to a uint8 image (3, H, W)."""
        flat = inpt.reshape(3, -1).float()
        flat = torch.addmm(torch.full((3, 1), params["shift"]), params["matrix"], flat)
        return tv_tensors.wrap(flat.clamp_(0, 255).to(torch.uint8).reshape(inpt.shape), like=inpt)


PARTS = {f.__name__: f for f in (ap_of_exits, routings, certified, phase, ssdlite, detections)}


def differences(old: object, new: object, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = old.keys() | new.keys()
        return [d for k in sorted(keys) for d in differences(old.get(k), new.get(k), f"{at}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for k, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{at}[{k}]")]
    if isinstance(old, float) and isinstance(new, float):
        # sums over masks round otherwise than sums over picked values
        return [] if abs(old - new) <= 1e-5 * max(1.0, abs(old)) else [f"{at}: {old} -> {new}"]
    return [] if old == new else [f"{at}: {old} -> {new}"]


def main() -> int:
    what, *names = sys.argv[1:] or ["check"]
    path = HERE / "golden.json"
    values = {name: json.loads(json.dumps(PARTS[name]())) for name in names or PARTS}
    if what == "write":
        path.write_text(json.dumps(values, indent=1) + "\n")
        return 0
    old = json.loads(path.read_text())
    wrong = [d for name, value in values.items() for d in differences(old[name], value, name)]
    print("\n".join(wrong[:40]) if wrong else f"equal: {', '.join(values)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
