"""The configuration of the recorded phases: every defect of the record is a key whose default is right.

The number in a comment is the defect's number in the record's list (section C). Groups name
the place where a defect acts. A switch that cannot act beside the others is refused.
"""

from operator import attrgetter
from pathlib import Path
from typing import Literal

from pydantic import Field

from eelib.config import (
    ConfigError,
    Group,
    OptimConfig,
    SplitFiles,
    of_the_run,
    override,
    read_yaml,
    resolve,
    validate,
)

EXIT_NAMES = ("exit1", "exit2", "full")  # of every phase, in the order in which they are computed


class ModelConfig(Group):
    """Which detector, and where its weights start."""

    weights: Literal["none", "imagenet", "coco"] = "none"  # start of the trunk; the last two are downloaded
    start: str | None = None  # checkpoint to start from, relative to the repository; overrides `weights`
    train_trunk: bool = True  # False freezes the trunk, statistics included
    single_map: bool = False  # 11: one 20x20 map an exit and unnamed boxes, no pyramid
    full_truncated: bool = False  # 12: full ends with the trunk's first part; False runs SSDLite's tail
    full_head: Literal["light", "heavy"] = "light"  # 13: "heavy" costs 358 MMAC, "light" is SSDLite's predictor
    context_projection: Literal["trained", "frozen"] = "trained"  # 15: the optimiser forgot the projections
    context_recomputed: bool = False  # 14: branch trunks run twice, which moves their statistics twice
    context_detached: bool = True  # 16: False lets a deeper exit's loss train the branches before it


class DataConfig(Group):
    """Which images, and what happens to them and to their boxes."""

    root: str = "data/showroom"  # a folder in eelib's layout or COCO 2017's
    category: str = "chair"  # its name in the annotation files
    # own COCO files by split, instead of `root`; val and calibrate are drawn from train where they have none
    files: dict[Literal["train", "val", "calibrate", "test"], SplitFiles] = {}
    augment: Literal["none", "flip"] = "flip"
    normalise: bool = True  # 9: False feeds [0, 1] to a trunk that was trained on [-1, 1]
    rescale_boxes: bool = True  # 7: boxes follow the resize
    flip_boxes: bool = True  # 8: boxes follow the flip
    drop_crowd: bool = True  # 10
    negatives: bool = True  # 10: keep images without a chair
    sample: Literal["seeded", "first"] = "seeded"  # 10: which images, when `limit` cuts
    limit: int | None = Field(None, ge=1)  # train images; None takes all
    eval_limit: int | None = Field(None, ge=1)  # val and test images; None takes all
    val_limit: int | None = Field(None, ge=1)  # val images routed after each epoch of a recorded phase; None takes all


class TargetsConfig(Group):
    """What a default box is asked to predict."""

    assignment: Literal["iou", "random", "background"] = "iou"  # 3, 4
    iou_threshold: float = Field(0.5, gt=0, le=1)
    class_layout: Literal["permuted", "column_pairs"] = "permuted"  # 1: what a row of the class loss pairs
    class_index: Literal["cell_major", "channel_major"] = "cell_major"  # 2: the rows' order; boxes are cell-major
    boxes: Literal["encoded", "pixels", "zero_or_teacher"] = "encoded"  # 6: absolute corners; 5: no ground truth


class LossConfig(Group):
    """How the terms are formed and weighed."""

    classification: Literal["hard_negative", "quality_focal", "mean"] = "quality_focal"  # 41: "mean" mines nothing
    box: Literal["smooth_l1", "giou"] = "giou"
    exit_weights: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)  # exit1, exit2, full
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


class ConfidenceConfig(Group):
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


class ThresholdConfig(Group):
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


class TemperatureConfig(Group):
    """The divisor of the logits in the confidence."""

    start: tuple[float, float, float] = Field((1.0, 1.0, 1.0), strict=False)
    from_routing: bool = False  # 26: moved by routing losses; right is a fit on held-out NLL
    lr: float = Field(1.0e-2, gt=0)
    weight_decay: float = Field(0.0, ge=0)  # 29: decay on a scalar pulls it to zero
    clamp: Literal["parameter", "forward", "none"] = "parameter"  # 27: none; 28: "forward" kills the gradient outside
    bounds: tuple[float, float] = Field((0.5, 3.0), strict=False)


class RoutingConfig(Group):
    """What is decided together."""

    unit: Literal["image", "batch_mean"] = "image"  # 17: one decision for the mean of a batch


class TimingConfig(Group):
    """How time is taken."""

    batch_size: int = Field(1, ge=1)  # 18: the record calls 4 images "inference time"
    warmup: int = Field(5, ge=0)  # 18: the record has none


class PhaseOptim(OptimConfig):
    """How weights move: the library's keys with the repaired path's first values, and two of the record's own."""

    epochs: int = Field(1, ge=0)
    batch_size: int = Field(16, ge=1)
    trunk_lr_factor: float = Field(1.0, ge=0)
    decay_all: bool = False  # True decays norms and biases too, as the record does
    warmup_steps: int = Field(200, ge=0)
    cosine: Literal["step", "epoch"] = "step"  # "epoch": one rate an epoch, to 0, as the record
    clip_norm: float = Field(10.0, ge=0)  # 40: at 1.0 pixel losses leave the class term 2 % of a step; 0 is off
    ema_decay: float = Field(0.998, ge=0, lt=1)  # 0 keeps the last weights
    keep: Literal["best", "last"] = "best"  # 43: which epoch, by full's AP on val
    accelerator: Literal["cpu", "cuda"] = "cpu"


class PhaseConfig(Group):
    """A whole run of a phase."""

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
    optim: PhaseOptim = PhaseOptim()


# A switch is refused where it cannot act: the key, the key that it depends on, and the values that let it act.
_NEEDS = (
    *((f"confidence.{key}", "confidence.rule", ("counted",)) for key in ("count_bonus", "penalty_few", "penalty_none")),
    *((f"confidence.{key}", "confidence.rule", ("counted", "gated_mean")) for key in ("cut", "min_count")),
    ("confidence.gate", "confidence.rule", ("gated_mean",)),
    ("confidence.gate_slope", "confidence.gate", ("sigmoid_of_count", "soft_count")),
    ("confidence.soft_count_slope", "confidence.gate", ("soft_count",)),
    *((f"thresholds.{key}", "thresholds.kind", ("parameter",)) for key in ("lr", "weight_decay", "bounded")),
    *((f"thresholds.{key}", "thresholds.kind", ("schedule",)) for key in ("exit1_end", "exit2_end", "schedule_end")),
    *((f"temperature.{key}", "temperature.from_routing", (True,)) for key in ("lr", "weight_decay")),
    ("temperature.bounds", "temperature.clamp", ("parameter", "forward")),
    ("targets.iou_threshold", "targets.assignment", ("iou",)),
    ("loss.box", "targets.boxes", ("encoded", "pixels")),
    ("data.flip_boxes", "data.augment", ("flip",)),
    ("optim.trunk_lr_factor", "model.train_trunk", (True,)),
    ("loss.gumbel_temperature", "loss.exit_rates", ("gumbel",)),
    ("loss.exit_slope", "loss.exit_rates", ("soft", "gumbel")),
)


def contradictions(config: PhaseConfig) -> list[str]:
    """What is set in a phase's configuration and cannot act beside the rest of it, and a threshold that every image
    reaches, one line each.
    """
    default, problems = type(config)(phase=config.phase), []
    for key, other, allowed in _NEEDS:
        value, beside = attrgetter(key, other)(config)
        if value != attrgetter(key)(default) and beside not in allowed:
            expected = " or ".join(map(repr, allowed))
            problems.append(
                f"key '{key}' is {value!r} but cannot act: it needs '{other}' to be {expected}, not {beside!r}"
            )
    if config.data.files and config.data.root != default.data.root:
        problems.append(f"key 'data.root' is {config.data.root!r} but cannot act: 'data.files' names the files")
    if config.loss.ramp_epochs != default.loss.ramp_epochs and config.loss.exit_weights_start is None:
        problems.append("key 'loss.ramp_epochs' cannot act: it needs 'loss.exit_weights_start'")
    if config.loss.exit_distribution and config.loss.rates_detached and config.thresholds.kind != "parameter":
        problems.append(
            "key 'loss.exit_distribution' cannot act: with 'loss.rates_detached' it moves thresholds alone, and "
            f"'thresholds.kind' is {config.thresholds.kind!r}"
        )
    least, threshold = config.confidence.infimum, config.thresholds.exit1
    if config.thresholds.tautology == "refused" and least != 0.0 and threshold <= least:
        problems.append(
            f"key 'thresholds.exit1' is {threshold}, but the rule '{config.confidence.rule}' cannot give less than "
            f"{least:.4g}: every image would leave; raise it or set 'thresholds.tautology' to 'allowed'"
        )
    return problems


def parse(values: object, source: str = "configuration") -> PhaseConfig:
    """Validate a mapping; :class:`ConfigError` which tells all problems."""
    config = validate(PhaseConfig, values, source)
    if problems := contradictions(config):
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return config


def load(path: Path | str, settings: dict[str, object] | None = None) -> PhaseConfig:
    """Read and validate a phase's parameter file; dotted keys of ``settings`` replace values of the file."""
    return parse(override(of_the_run(read_yaml(path)), settings or {}), str(path))


def profile_changes(phase: str, profile: str) -> dict[str, object]:
    """What a profile of ``params/profiles.yaml`` changes of ``"phase_1_4"``; nothing without a profile.

    Raises:
        ConfigError: no such profile, or it has no such phase.
    """
    source = resolve("params") / "profiles.yaml"
    profiles = {"": {phase: {}}} | read_yaml(source)
    if phase not in profiles.get(profile, {}):
        known = ", ".join(f"'{name} {key}'" for name, phases in profiles.items() if name for key in phases)
        raise ConfigError(f"{source}: no profile '{profile}' of '{phase}'; expected one of {known}")
    return profiles[profile][phase]
