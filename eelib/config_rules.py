"""What a configuration may not combine: a switch that cannot act, a threshold that every image reaches."""

from pydantic import BaseModel

# A switch is refused where it cannot act: the key, the key that it depends on, and the values that let it act.
_ON_RECORDED = (
    *(f"model.{key}" for key in ("single_map", "full_truncated", "full_head")),
    *(f"model.context_{key}" for key in ("projection", "recomputed", "detached")),
    *("data.normalise", "data.val_limit"),
    *(f"targets.{key}" for key in ("assignment", "class_layout", "class_index", "boxes")),
    *(f"loss.{key}" for key in ("exit_weights_start", "ramp_epochs", "teacher", "cascade", "confidence_order")),
    *(f"loss.{key}" for key in ("early_weight_by_epoch", "full_weight_floor", "exit_distribution")),
    *("thresholds.kind", "temperature.from_routing"),
)
_NEEDS = (
    *((key, "model.architecture", ("recorded",)) for key in _ON_RECORDED),
    *((f"optim.{key}", "model.architecture", ("ssdlite",)) for key in ("compile",)),
    *((key, "model.architecture", ("ssdlite",)) for key in ("data.image_sizes", "loss.mask")),
    *((f"loss.{key}", "model.architecture", ("ssdlite",)) for key in ("gradient_rescaling", "distillation")),
    *((f"loss.{key}", "model.exits", (True,)) for key in ("gradient_rescaling", "distillation")),
    *((f"loss.{key}", "model.train_trunk", (True,)) for key in ("gradient_rescaling", "mask")),
    ("model.exits", "model.architecture", ("ssdlite",)),
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
    ("data.flip_boxes", "data.augment", ("flip", "ssd")),
    ("optim.trunk_lr_factor", "model.train_trunk", (True,)),
    ("loss.gumbel_temperature", "loss.exit_rates", ("gumbel",)),
    ("loss.exit_slope", "loss.exit_rates", ("soft", "gumbel")),
)


def value_at(config: BaseModel, key: str) -> object:
    """The value of a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def idle_switches(config: BaseModel) -> list[str]:
    """What is set in a phase's configuration and cannot act beside the rest of it, one line each."""
    default, problems = type(config)(phase=config.phase), []
    for key, other, allowed in _NEEDS:
        if value_at(config, key) != value_at(default, key) and value_at(config, other) not in allowed:
            expected = " or ".join(repr(v) for v in allowed)
            problems.append(
                f"key '{key}' is {value_at(config, key)!r} but cannot act: it needs '{other}' to be {expected}, "
                f"not {value_at(config, other)!r}"
            )
    if config.data.files and config.data.root != default.data.root:
        problems.append(f"key 'data.root' is {config.data.root!r} but cannot act: 'data.files' names the files")
    if config.loss.classification == "mean" and config.model.architecture == "ssdlite":
        problems.append("key 'loss.classification' is 'mean' but cannot act: the SSDLite always mines or focuses")
    cached = config.model.architecture == "recorded" and not config.model.train_trunk
    if cached and config.data.augment == "ssd":
        problems.append(
            "key 'data.augment' is 'ssd' but cannot act: a frozen trunk's maps are cached; expected 'flip' or 'none'"
        )
    if config.loss.ramp_epochs != default.loss.ramp_epochs and config.loss.exit_weights_start is None:
        problems.append("key 'loss.ramp_epochs' cannot act: it needs 'loss.exit_weights_start'")
    if config.loss.exit_distribution and config.loss.rates_detached and config.thresholds.kind != "parameter":
        problems.append(
            "key 'loss.exit_distribution' cannot act: with 'loss.rates_detached' it moves thresholds alone, and "
            f"'thresholds.kind' is {config.thresholds.kind!r}"
        )
    return problems


def tautologies(config: BaseModel) -> list[str]:
    """A threshold of a phase's configuration that the confidence rule cannot miss: one line, or none."""
    least, t = config.confidence.infimum, config.thresholds
    if t.tautology == "allowed" or t.exit1 > least or least == 0.0:
        return []
    return [
        f"key 'thresholds.exit1' is {t.exit1}, but the rule '{config.confidence.rule}' cannot give less than "
        f"{least:.4g}: every image would leave; raise it or set 'thresholds.tautology' to 'allowed'"
    ]
