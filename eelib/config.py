"""One validated configuration for every run: the recorded phases and the repaired path.

A phase is data. Every defect of the record is a field whose default is the right behaviour;
the number in a comment is the defect's number in the record's list (section C). Groups name
the place where a defect acts. Unknown keys are refused with the nearest known name.
"""

import difflib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """A configuration is not valid; the message names file, key, value and what was expected."""


class _Group(BaseModel):
    # strict: "1e-4" in YAML is a string, and a silent conversion would hide the slip
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Group):
    """Which detector, and where its weights start."""

    architecture: Literal["ssdlite", "recorded"] = "ssdlite"  # 11, 12, 13: "recorded" has one 20x20 map an exit
    exits: bool = True  # exit1 and exit2 exist; False is the baseline
    weights: Literal["none", "imagenet", "coco"] = "none"  # start of the trunk; the last two are downloaded
    start: str | None = None  # checkpoint to start from, relative to the repository; overrides `weights`
    train_trunk: bool = True  # False freezes the trunk, statistics included
    context_projection: Literal["trained", "frozen"] = "trained"  # 15: the optimiser forgot the projections
    context_recomputed: bool = False  # 14: branch trunks run twice, which moves their statistics twice


class DataConfig(_Group):
    """Which images, and what happens to them and to their boxes."""

    root: str = "data/showroom"
    image_sizes: list[list[int]] = [[0, 320]]  # [first epoch, side in px]
    augment: Literal["none", "flip", "ssd"] = "ssd"
    normalise: bool = True  # 9: False feeds [0, 1] to a trunk that was trained on [-1, 1]
    rescale_boxes: bool = True  # 7: boxes follow the resize
    flip_boxes: bool = True  # 8: boxes follow the flip
    drop_crowd: bool = True  # 10
    negatives: bool = True  # 10: keep images without a chair
    sample: Literal["seeded", "first"] = "seeded"  # 10: which images, when `limit` cuts
    limit: int | None = Field(None, ge=1)  # train images; None takes all
    eval_limit: int | None = Field(None, ge=1)  # val and test images; None takes all


class TargetsConfig(_Group):
    """What a default box is asked to predict."""

    assignment: Literal["iou", "random", "background"] = "iou"  # 3, 4
    iou_threshold: float = Field(0.5, gt=0, le=1)
    class_layout: Literal["permuted", "column_pairs"] = "permuted"  # 1, 2: rows of the class loss
    boxes: Literal["encoded", "pixels"] = "encoded"  # 6: raw outputs fitted to absolute corners


class LossConfig(_Group):
    """How the terms are formed and weighed."""

    classification: Literal["hard_negative", "quality_focal", "mean"] = "quality_focal"  # 41: "mean" mines nothing
    box: Literal["smooth_l1", "giou"] = "giou"
    mask: float = Field(0.0, ge=0)  # weight of the auxiliary mask loss on the trunk, in training alone
    exit_weights: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)  # exit1, exit2, full
    exit_weights_start: tuple[float, float, float] | None = Field(None, strict=False)  # ramped from, if given
    ramp_epochs: int = Field(4, ge=0)
    teacher: float = Field(0.0, ge=0, le=1)  # share of the next deeper exit in an early exit's loss
    cascade: float = Field(0.0, ge=0)  # 39: the teacher's KL terms once more
    confidence_order: float = Field(0.0, ge=0)  # 38: orders batch means of the confidences


class ConfidenceConfig(_Group):
    """How an exit's boxes become one number; 21: each phase has its own rule."""

    rule: Literal["top_score", "mean_max", "entropy", "counted"] = "top_score"
    cut: float = Field(0.5, ge=0, le=1)  # chair probability above which a box counts
    min_count: int = Field(1, ge=0)  # 32: fewer counted boxes are penalised
    count_bonus: tuple[float, int] = Field((1.0, 1), strict=False)  # factor at min_count, boxes until it is 1
    penalty_few: float = Field(1.0, ge=0, le=1)
    penalty_none: float = Field(1.0, ge=0, le=1)


class ThresholdConfig(_Group):
    """When an image leaves."""

    exit1: float = 0.5
    exit2: float = 0.5


class TemperatureConfig(_Group):
    """The divisor of the logits in the confidence."""

    start: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)
    from_routing: bool = False  # 26: moved by routing losses; right is a fit on held-out NLL
    lr: float = Field(1.0e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # 29: decay on a scalar pulls it to zero


class RoutingConfig(_Group):
    """What is decided together."""

    unit: Literal["image", "batch_mean"] = "image"  # 17: one decision for the mean of a batch


class TimingConfig(_Group):
    """How time is taken."""

    batch_size: int = Field(1, ge=1)  # 18: the record calls 4 images "inference time"
    warmup: int = Field(5, ge=0)  # 18: the record has none


class OptimConfig(_Group):
    """How weights move."""

    epochs: int = Field(1, ge=0)
    batch_size: int = Field(16, ge=1)
    lr: float = Field(2.0e-3, gt=0)
    trunk_lr_factor: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.03, ge=0)
    warmup_steps: int = Field(200, ge=0)
    clip_norm: float = Field(10.0, ge=0)  # 40: at 1.0 pixel losses leave the class term 2 % of a step; 0 is off
    ema_decay: float = Field(0.998, ge=0, lt=1)  # 0 keeps the last weights
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int = Field(1, ge=1)
    workers: int = Field(1, ge=0)
    compile: bool = False  # torch.compile: 1.6 times faster on a CPU, after a minute of compiling a size
    eval_every: int = Field(5, ge=1)


class PhaseConfig(_Group):
    """A whole run."""

    phase: str
    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    targets: TargetsConfig = TargetsConfig()
    loss: LossConfig = LossConfig()
    confidence: ConfidenceConfig = ConfidenceConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    routing: RoutingConfig = RoutingConfig()
    timing: TimingConfig = TimingConfig()
    optim: OptimConfig = OptimConfig()


def parse(values: object, source: str = "configuration") -> PhaseConfig:
    """Validate a mapping.

    Args:
        values: nested mapping of groups and fields.
        source: file that the values came from, for the message.

    Raises:
        ConfigError: one line a problem, with file, dotted key, value and expectation.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of groups, got {type(values).__name__}")
    try:
        return PhaseConfig(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None


def _explain(source: str, error: dict) -> str:
    key = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"][:-1]), n=1, cutoff=0.4)
        return f"{source}: unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if error["type"] == "missing":
        return f"{source}: key '{key}' is missing"
    hint = ""
    if isinstance(value, str) and error["type"].startswith(("float", "int")):
        hint = _number_hint(value)
    return f"{source}: key '{key}' is {value!r}: {error['msg'].lower()}{hint}"


def _known_keys(path: tuple) -> list[str]:
    fields = PhaseConfig.model_fields
    for part in path:
        fields = fields[part].annotation.model_fields
    return list(fields)


def _number_hint(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return ""
    mantissa, e, exponent = value.lower().partition("e")
    proper = f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"
    return f"; YAML reads {value} as text, write {proper} without quotes"


def read_yaml(path: Path | str) -> dict:
    """A YAML mapping; :class:`ConfigError` when the file is missing or is none."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameter file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of groups, got {type(values).__name__}")
    return values


# Keys of a parameter file that belong to the notebook, not to the run's configuration.
NOTEBOOK_KEYS = ("reports", "limit")


def load(path: Path | str) -> PhaseConfig:
    """Read and validate ``params/*.yaml``."""
    values = {key: value for key, value in read_yaml(path).items() if key not in NOTEBOOK_KEYS}
    return parse(values, str(path))


def resolve(path: Path | str) -> Path:
    """A path of a configuration, anchored in the repository and never in the working folder."""
    return ROOT / path
