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

from eelib.config_rules import idle_switches, tautologies

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """A configuration is not valid; the message names file, key, value and what was expected."""


class _Group(BaseModel):
    # strict: "1e-4" in YAML is a string, and a silent conversion would hide the slip
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Group):
    """Which detector, and where its weights start."""

    architecture: Literal["ssdlite", "recorded"] = "ssdlite"  # "recorded": three branches, each a switch below
    exits: bool = True  # exit1 and exit2 exist; False is the baseline
    weights: Literal["none", "imagenet", "coco"] = "none"  # start of the trunk; the last two are downloaded
    start: str | None = None  # checkpoint to start from, relative to the repository; overrides `weights`
    train_trunk: bool = True  # False freezes the trunk, statistics included
    single_map: bool = False  # 11: one 20x20 map an exit and unnamed boxes, no pyramid
    full_truncated: bool = False  # 12: full ends with the trunk's first part; False runs SSDLite's tail
    full_head: Literal["light", "heavy"] = "light"  # 13: "heavy" costs 358 MMAC, "light" is SSDLite's predictor
    context_projection: Literal["trained", "frozen"] = "trained"  # 15: the optimiser forgot the projections
    context_recomputed: bool = False  # 14: branch trunks run twice, which moves their statistics twice
    context_detached: bool = True  # 16: False lets a deeper exit's loss train the branches before it


class SplitFiles(_Group):
    """A split in files of one's own; paths relative to the repository."""

    annotations: str  # COCO JSON
    images: str  # folder of the files that it names


class DataConfig(_Group):
    """Which images, and what happens to them and to their boxes."""

    root: str = "data/showroom"  # a folder in eelib's layout or COCO 2017's
    category: str = "chair"  # its name in the annotation files
    # own COCO files by split, instead of `root`; val and calibrate are drawn from train where they have none
    files: dict[Literal["train", "val", "calibrate", "test"], SplitFiles] = {}
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
    val_limit: int | None = Field(None, ge=1)  # val images routed after each epoch of a recorded phase; None takes all


class TargetsConfig(_Group):
    """What a default box is asked to predict."""

    assignment: Literal["iou", "random", "background"] = "iou"  # 3, 4
    iou_threshold: float = Field(0.5, gt=0, le=1)
    class_layout: Literal["permuted", "column_pairs"] = "permuted"  # 1: what a row of the class loss pairs
    class_index: Literal["cell_major", "channel_major"] = "cell_major"  # 2: the rows' order; boxes are cell-major
    boxes: Literal["encoded", "pixels", "zero_or_teacher"] = "encoded"  # 6: absolute corners; 5: no ground truth


class LossConfig(_Group):
    """How the terms are formed and weighed."""

    classification: Literal["hard_negative", "quality_focal", "mean"] = "quality_focal"  # 41: "mean" mines nothing
    box: Literal["smooth_l1", "giou"] = "giou"
    mask: float = Field(0.0, ge=0)  # weight of the auxiliary mask loss on the trunk, in training alone
    exit_weights: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)  # exit1, exit2, full
    gradient_rescaling: bool = False  # each part of the trunk gets the mean over the exits behind it, not the sum
    distillation: float = Field(0.0, ge=0)  # weight of full's scores and boxes as targets of an exit's positives
    exit_weights_start: tuple[float, float, float] | None = Field(None, strict=False)  # ramped from, if given
    ramp_epochs: int = Field(4, ge=0)
    teacher: float = Field(0.0, ge=0, le=1)  # share of the next deeper exit in an early exit's loss
    cascade: float = Field(0.0, ge=0)  # 39: the teacher's KL terms once more
    confidence_order: float = Field(0.0, ge=0)  # 38: orders batch means of the confidences
    early_weight_by_epoch: list[float] = []  # 35: factor on all early terms, the last one holds; 0 leaves heads random
    full_weight_floor: float = Field(0.0, ge=0)  # 36: least weight of the full exit, so the three no longer sum to 1
    exit_distribution: float = Field(0.0, ge=0)  # weight of the squared error of simulated exit rates
    exit_targets: tuple[float, float] = Field((0.30, 0.25), strict=False)  # rates wanted at exit1 and exit2
    exit_rates: Literal["soft", "hard", "gumbel"] = "soft"  # 23: "hard" has no gradient; 34: "gumbel" saturates
    exit_slope: tuple[float, float] = Field((10.0, 100.0), strict=False)  # 24: first and last epoch
    gumbel_temperature: float = Field(1.0, gt=0)  # 34: smaller saturates sooner
    rates_detached: bool = True  # 25: False lets confidence, threshold and temperature share one gradient


class ConfidenceConfig(_Group):
    """How an exit's boxes become one number; 21: each phase has its own rule."""

    rule: Literal["top_score", "mean_max", "split_max", "entropy", "counted", "gated_mean"] = "top_score"  # 33: means
    cut: float = Field(0.5, ge=0, le=1)  # chair probability above which a box counts
    min_count: int = Field(1, ge=0)  # 32: fewer counted boxes are penalised
    count_bonus: tuple[float, int] = Field((1.0, 1), strict=False)  # factor at min_count, boxes until it is 1
    penalty_few: float = Field(1.0, ge=0, le=1)
    penalty_none: float = Field(1.0, ge=0, le=1)
    gate: Literal["none", "hard_count", "sigmoid_of_count", "soft_count"] = "none"  # 30, 31: no gradient to the count
    gate_slope: float = Field(2.0, gt=0)  # of the sigmoid in count - min_count
    soft_count_slope: float = Field(20.0, gt=0)  # of the soft count, the sum of sigmoid(slope * (p - cut))

    @property
    def infimum(self) -> float:
        """Least value that the rule can give for any probabilities: a threshold at or below it lets every image go."""
        if self.rule in ("mean_max", "split_max"):
            return 0.5
        if self.rule != "counted":
            return 0.0
        cut, m = self.cut, max(self.cut, 1 - self.cut)
        values = [self.penalty_none * (m if cut < 0.5 else 0.5)]
        values.append(self.count_bonus[0] * (0.8 * cut + 0.2 * m))
        if self.min_count > 1:
            values.append(self.penalty_few * (0.6 * cut + 0.4 * m))
        return min(values)


class ThresholdConfig(_Group):
    """When an image leaves."""

    exit1: float = 0.5
    exit2: float = 0.5
    kind: Literal["fixed", "schedule", "parameter"] = "fixed"  # "parameter" is moved by loss.exit_distribution alone
    exit1_end: float = 0.5
    exit2_end: float = 0.5
    schedule_end: Literal["reached", "missed"] = "reached"  # 37: e / E stops one step short, e / (E - 1) arrives
    lr: float = Field(1.0e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # 29: decay on a scalar pulls it to zero
    bounded: bool = True  # 25: False lets a threshold leave [0, 1]
    tautology: Literal["refused", "allowed"] = "refused"  # 22: a threshold that the rule cannot miss


class TemperatureConfig(_Group):
    """The divisor of the logits in the confidence."""

    start: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)
    from_routing: bool = False  # 26: moved by routing losses; right is a fit on held-out NLL
    lr: float = Field(1.0e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # 29: decay on a scalar pulls it to zero
    clamp: Literal["parameter", "forward", "none"] = "parameter"  # 27: none; 28: "forward" kills the gradient outside
    bounds: tuple[float, float] = Field((0.5, 3.0), strict=False)


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
    decay_all: bool = False  # True decays norms and biases too, as the record does
    warmup_steps: int = Field(200, ge=0)
    cosine: Literal["step", "epoch"] = "step"  # "epoch": one rate an epoch, to 0, as the record
    clip_norm: float = Field(10.0, ge=0)  # 40: at 1.0 pixel losses leave the class term 2 % of a step; 0 is off
    ema_decay: float = Field(0.998, ge=0, lt=1)  # 0 keeps the last weights
    keep: Literal["best", "last"] = "best"  # 43: which epoch, by the exits' mean AP on val
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
        config = PhaseConfig(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None
    problems = [*idle_switches(config), *tautologies(config)]
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return config


def override(values: dict, settings: dict[str, object]) -> dict:
    """A copy of nested ``values`` with dotted keys set; groups that are missing are made."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for key, value in settings.items():
        *groups, last = key.split(".")
        target = result
        for group in groups:
            target[group] = dict(target.get(group) or {})
            target = target[group]
        target[last] = value
    return result


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
        # `data.files` is a mapping by split: what is below has no fields to guess from
        fields = getattr(getattr(fields.get(part), "annotation", None), "model_fields", {})
    return list(fields)


def _number_hint(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return ""
    mantissa, e, exponent = value.lower().partition("e")
    proper = f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"
    return f"; YAML reads {value} as text, write {proper} without quotes"


def read_yaml(path: Path | str, above: tuple[Path, ...] = ()) -> dict:
    """A YAML mapping, merged over the file that its key ``extends`` names.

    ``extends: base/record.yaml`` is relative to the file. Groups are merged key by key, everything else is
    replaced, and ``extends`` itself is dropped. A base may extend another.

    Args:
        path: of the parameter file.
        above: files that extend this one, the first one last; callers leave it empty.

    Raises:
        ConfigError: the file is missing, is no mapping, or extends what is missing or extends it in turn.
    """
    if above and not Path(path).is_file():
        raise ConfigError(f"{above[0]}: key 'extends' names {path}; expected an existing parameter file")
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameter file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of groups, got {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: key 'extends' is {base!r}; expected a path relative to the file")
    chain = (Path(path), *above)
    if (Path(path).parent / base).resolve() in [file.resolve() for file in chain]:
        circle = ", ".join(file.name for file in reversed(chain))
        raise ConfigError(f"{path}: key 'extends' is '{base}', which closes a circle; the chain so far is {circle}")
    return merged(read_yaml(Path(path).parent / base, chain), values)


def merged(base: dict, values: dict) -> dict:
    """``values`` over ``base``: mappings that both have are merged, everything else is replaced."""
    both = {k: merged(base[k], v) for k, v in values.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | values | both


# Keys of a parameter file that belong to the notebook, not to the run's configuration.
NOTEBOOK_KEYS = ("reports", "limit")


def load(path: Path | str, settings: dict[str, object] | None = None) -> PhaseConfig:
    """Read and validate ``params/*.yaml``; dotted keys of ``settings`` replace values of the file."""
    values = {key: value for key, value in read_yaml(path).items() if key not in NOTEBOOK_KEYS}
    return parse(override(values, settings or {}), str(path))


def resolve(path: Path | str) -> Path:
    """A path of a configuration, anchored in the repository and never in the working folder."""
    return ROOT / path
