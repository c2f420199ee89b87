"""The validated configuration of a training: which detector, on which images, by which losses, how long.

The defaults are the recipe by which the released detectors were trained before their last stage. Unknown keys are
refused with the nearest known name, and so are settings that have no effect in combination with the others.
"""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eelib import plain_yaml
from eelib.files import InputError, read_text, shorten

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2**20  # of a parameter file; the largest here has 3 kB


class ConfigError(InputError):
    """A configuration is not valid; the message names file, key, value and what was expected."""


class Group(BaseModel):
    """A group of keys: strict, because a number in quotes is text and a silent conversion would hide the slip."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# Children of the trunk's first part before an exit: from the last 40 x 40 map on; an exit on it starts with a stride.
Cut = Annotated[int, Field(ge=5, le=13)]


class ModelConfig(Group):
    """Which detector, and where its weights start."""

    exits: list[Cut] = Field([8, 12], max_length=5)  # children of the trunk before each exit; [] has full alone
    exit_width: int | None = Field(None, ge=16, le=512, multiple_of=8)  # channels of an exit's own maps; None is 96
    # of the default boxes, as shares of the image's side, rising; None is 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95
    scales: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(None, min_length=7, max_length=7)
    full: bool = True  # False ends the network at its last exit: a truncated detector
    maps: int = Field(6, ge=2, le=6)  # SSDLite maps of full that are kept, finest first; a start may have fewer
    blank_gate: bool = False  # predicts from two maps of the trunk that an image holds no object
    weights: Literal["none", "imagenet", "coco"] = "none"  # start of the trunk; the last two are downloaded
    start: str | None = None  # checkpoint to start from; overrides `weights`
    train_trunk: bool = True  # False freezes the trunk and full, statistics included


class SplitFiles(Group):
    """A split in files of one's own."""

    annotations: str  # COCO JSON
    images: str  # folder of the files that it names


class DataConfig(Group):
    """Which images, and what happens to them."""

    root: str = "data/showroom"  # a folder in eelib's layout or COCO 2017's
    category: str | list[str] | None = None  # names in the annotation files, in the order of labels; None takes all
    # own COCO files by split, instead of `root`; drawn from train where a split has none
    files: dict[Literal["train", "val", "calibrate", "test"], SplitFiles] = {}
    size: int = Field(320, ge=96, le=1024, multiple_of=32)  # side of the square network input in pixels
    augment: Literal["none", "flip", "ssd", "mosaic"] = "mosaic"  # a preset of eelib.augment
    calm: float = Field(0.2, ge=0, le=1)  # last share of the epochs, which has no mosaics
    limit: int | None = Field(None, ge=1)  # train images, drawn with the seed; None takes all
    eval_limit: int | None = Field(None, ge=1)  # val images; None takes all


class LossConfig(Group):
    """How the terms are formed and weighed."""

    iou_threshold: float = Field(0.4, gt=0, le=1)  # of the matching; soft targets grade the weaker matches
    classification: Literal["hard_negative", "quality_focal"] = "quality_focal"
    box: Literal["smooth_l1", "giou"] = "giou"
    exit_weights: list[Annotated[float, Field(ge=0)]] | None = None  # one for each exit; None is 1 for all
    gradient_rescaling: bool = False  # each part of the trunk gets the mean over the exits behind it, not the sum
    distillation: float = Field(0.0, ge=0)  # weight of full's scores and boxes as targets of an exit's positives
    blank: float = Field(0.5, ge=0)  # weight of the blank gates' cross-entropy


class OptimConfig(Group):
    """How weights move."""

    epochs: int = Field(50, ge=0)
    batch_size: int = Field(32, ge=1)
    lr: float = Field(2.0e-3, gt=0)
    trunk_lr_factor: float = Field(0.5, ge=0)  # its features are there already where it starts from weights
    weight_decay: float = Field(0.03, ge=0)
    warmup_steps: int = Field(100, ge=0)
    clip_norm: float = Field(10.0, ge=0)  # 0 is off
    ema_decay: float = Field(0.999, ge=0, lt=1)  # 0 keeps the last weights
    keep: Literal["best", "last"] = "best"  # which epoch, by the exits' mean AP on val
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(1, ge=1, le=64)
    workers: int = Field(1, ge=0, le=64)  # processes that decode, where the images do not fit into memory
    compile: bool = False  # torch.compile: 1.6 times faster on a CPU, after a minute of compiling
    eval_every: int = Field(5, ge=1)  # epochs


class Config(Group):
    """A whole training.

    Examples:
        >>> eelib.Config(name="mine").optim.epochs
        50
    """

    name: str
    seed: int = Field(0, ge=0, lt=2**63)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


def idle_settings(config: Config) -> list[str]:
    """What is set and has no effect in combination with the rest, one line each."""
    model, data, loss = config.model, config.data, config.loss
    count = len(model.exits) + model.full
    rules = (
        (sorted(set(model.exits)) != model.exits, "model.exits", model.exits, "cuts that rise"),
        (model.scales is not None and sorted(set(model.scales)) != model.scales, "model.scales", model.scales,
         "seven shares that rise"),
        (model.exit_width is not None and not model.exits, "model.exit_width", model.exit_width,
         "None where there is no exit"),
        (not count, "model.full", model.full, "True where there is no exit"),
        (model.maps < 6 and not model.full, "model.maps", model.maps, "6 where there is no full path"),
        (not model.train_trunk and not model.exits, "model.train_trunk", False, "True where there is no exit to train"),
        (not model.train_trunk and model.blank_gate, "model.blank_gate", True, "False where the trunk is frozen"),
        (bool(data.files) and data.root != DataConfig().root, "data.root", data.root, "no root beside data.files"),
        (loss.exit_weights is not None and len(loss.exit_weights or ()) != count, "loss.exit_weights",
         loss.exit_weights, f"{count} numbers, one for each exit"),
        (bool(loss.distillation) and not (model.exits and model.full), "loss.distillation", loss.distillation,
         "0 where there is no full path or no exit to learn from it"),
        (loss.gradient_rescaling and not (model.exits and model.train_trunk), "loss.gradient_rescaling", True,
         "False where one exit alone trains the trunk, or none does"),
        (model.blank_gate and not model.full and max(model.exits, default=0) < 8, "model.blank_gate", True,
         "False where the trunk ends before its 8th child"),
    )  # fmt: skip
    return [f"key '{key}' is {value!r}: expected {expected}" for wrong, key, value, expected in rules if wrong]


def parse(values: object, source: str = "configuration") -> Config:
    """Validate a nested mapping of groups and fields; ``source`` is the file that it came from, for the message.

    Raises:
        ConfigError: a line with file and, of each problem, dotted key, value and expectation.
    """
    config = validate(Config, values, source)
    if problems := idle_settings(config):
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return config


def validate(kind: type[BaseModel], values: object, source: str) -> BaseModel:
    """A configuration of a kind; :class:`ConfigError` as :func:`parse` has it, but for idle settings."""
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected a mapping of groups, got {type(values).__name__}")
    if stray := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{source}: key {shorten(stray[0])} is not text")
    try:
        return kind(**values)
    except ValidationError as error:
        problems = [_explain(kind, e) for e in error.errors()]
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        raise ConfigError(f"{source}: {'; '.join(problems[:5] + more)}") from None


def migrate(values: dict) -> dict:
    """The configuration in a checkpoint of eelib 0.1 under today's keys; today's stays as it is.

    Version 0.1 had one configuration for two detectors. The groups of the recorded phases go; they were at
    their defaults wherever the detector was this one.
    """
    if "phase" not in values:
        return values
    old = {group: dict(content) for group, content in values.items() if isinstance(content, dict)}
    model, data, loss = old["model"], old["data"], old["loss"]
    if model.get("architecture", "ssdlite") != "ssdlite":
        raise ConfigError(f"phase {values['phase']} is a recorded phase; `eelib phases` reads it")
    model["exits"] = [8, 12] if model.get("exits", True) else []
    data["size"] = data.get("image_sizes", [[0, 320]])[-1][1]
    loss["iou_threshold"] = old.get("targets", {}).get("iou_threshold", 0.5)
    if loss.get("exit_weights") is not None:
        loss["exit_weights"] = list(loss["exit_weights"]) if model["exits"] else None
    groups = {"model": ModelConfig, "data": DataConfig, "loss": LossConfig, "optim": OptimConfig}
    known = {name: {k: v for k, v in old[name].items() if k in group.model_fields} for name, group in groups.items()}
    return {"name": values["phase"], "seed": values.get("seed", 0), **known}


def saved_config(state: Mapping, source: Path | str) -> Config:
    """The configuration that a checkpoint was trained by; :class:`ConfigError` where it has none."""
    values = state.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: checkpoint has no 'config'; expected the released.pth of a training run")
    try:
        values = migrate(values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{source}: its 'config' cannot be read ({shorten(str(error))})") from None
    return parse(values, str(source))


def override(values: dict, settings: dict[str, object]) -> dict:
    """A copy of nested ``values`` with dotted keys set; groups that are missing are made."""
    result = copy.deepcopy(values)
    for key, value in copy.deepcopy(settings).items():
        *groups, last = key.split(".")
        target = result
        for group in groups:
            target[group] = target.get(group) or {}
            target = target[group]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {key}: '{group}' is {shorten(target)}, not a group of keys")
        target[last] = value
    return result


def _explain(kind: type[BaseModel], error: dict) -> str:
    key = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(kind, error["loc"][:-1]), n=1, cutoff=0.4)
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if error["type"] == "missing":
        return f"key '{key}' is missing"
    number = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value)  # text where papermill reads it
    hint = "; write it without quotes and with a point, such as 1.0e-4" if number else ""
    return f"key '{key}' is {shorten(value)}: {error['msg'].lower()}{hint}"


def _known_keys(kind: type[BaseModel], path: tuple) -> list[str]:
    fields = kind.model_fields
    for part in path:
        # `data.files` is a mapping by split: what is below has no fields to guess from
        fields = getattr(getattr(fields.get(part), "annotation", None), "model_fields", {})
    return list(fields)


def read_yaml(path: Path | str, above: tuple[Path, ...] = ()) -> dict:
    """A YAML mapping, merged over the file that its key ``extends`` names.

    ``extends: base/record.yaml`` is relative to the file. Groups are merged key by key, everything else is
    replaced, and ``extends`` itself is dropped. A base may extend another: ``above``, which callers leave empty,
    holds the files that extend this one, the first one last.

    Raises:
        ConfigError: the file is missing, is no mapping, or extends what is missing or extends it in turn.
    """
    if above and not Path(path).is_file():
        raise ConfigError(f"{above[0]}: key 'extends' names {path}; expected an existing parameter file")
    try:
        text = read_text(path, MAX_BYTES, "a parameter file", ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such parameter file") from None
    try:
        values = plain_yaml.load(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of groups, got {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: key 'extends' is {shorten(base)}; expected a path relative to the file")
    chain = (Path(path), *above)
    if (Path(path).parent / base).resolve() in [file.resolve() for file in chain]:
        circle = ", ".join(file.name for file in reversed(chain))
        raise ConfigError(f"{path}: key 'extends' is '{base}', which closes a circle; the chain so far is {circle}")
    return merged(read_yaml(Path(path).parent / base, chain), values)


def read_settings(settings: Sequence[str]) -> dict[str, object]:
    """``["optim.lr=1e-3"]`` as dotted keys and values, which are read as YAML.

    Raises:
        ConfigError: a setting without "=", one that is given twice, or a value that is no YAML.
    """
    values: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {shorten(setting)}: expected KEY=VALUE, such as optim.epochs=3")
        if key in values:
            raise ConfigError(f"--set {key}: given twice")
        try:
            values[key] = plain_yaml.load(value)
        except ValueError as error:
            raise ConfigError(f"--set {key}: {error}") from None
    return values


def merged(base: dict, values: dict) -> dict:
    """``values`` over ``base``: mappings that both have are merged, everything else is replaced."""
    both = {k: merged(base[k], v) for k, v in values.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | values | both


def of_the_run(values: dict) -> dict:
    """Without the keys of a parameter file that belong to the notebook, not to the run's configuration."""
    return {key: value for key, value in values.items() if key not in ("reports", "limit")}


def load_config(path: Path | str, settings: dict[str, object] | None = None) -> Config:
    """Read and validate a parameter file.

    Args:
        path: YAML; see :func:`read_yaml`.
        settings: values by dotted key that replace the file's.

    Raises:
        ConfigError: a line with file and, of each problem, dotted key, value and expectation.

    Examples:
        >>> config = eelib.load_config("params/exits_256.yaml", {"optim.epochs": 5})
        >>> config.optim.epochs, config.data.size
        (5, 256)
    """
    return parse(override(of_the_run(read_yaml(path)), settings or {}), str(path))


def resolve(path: Path | str) -> Path:
    """A path of a configuration, anchored in the repository and never in the working folder."""
    return ROOT / path
