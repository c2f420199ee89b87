"""Alternatives to early exits, trained: narrower by pruning, smaller input, a distilled student.

Each variant is a line of ``params/compress.yaml``. It starts from the released detector or from another variant,
so that pruning goes step by step, and is trained by :func:`eelib.train.fit` with the losses and targets of the
baseline. Its folder is named after all that decides it: a changed line trains anew, a killed run goes on, a
finished one is read.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from eelib.checkpoints import TrainingError, load_checkpoint, load_released, save_checkpoint
from eelib.config import ConfigError, override, parse, read_yaml, resolve
from eelib.data import DetectionDataset, as_input, split_sha256
from eelib.evaluate import coco_ap, detect_exits
from eelib.files import file_sha256, write_json
from eelib.losses import joint_loss
from eelib.model import EarlyExitSSDLite, ExitOutput
from eelib.train import detection_step, fit, training_batches, training_set
from studies.compress.prune import prune, without_exits
from studies.phases.config import PhaseConfig

RELEASED = "released"  # the start of a variant that starts from no other one


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# Inside these two stages of the trunk all blocks have the same channels and a residual path, so that a
# trained head still finds its features when it moves.
Cut1, Cut2 = Annotated[int, Field(ge=8, le=11)], Annotated[int, Field(ge=12, le=13)]


class Variant(_Strict):
    """One alternative."""

    start: str = RELEASED  # or another variant
    width: float = Field(1.0, gt=0, le=1)  # share of the channels of every layer that stays
    size: int = Field(320, ge=96, multiple_of=32)  # side of the input in pixels
    maps: int = Field(6, ge=2, le=6)  # SSDLite maps, finest first
    cuts: tuple[Cut1, Cut2] = Field((8, 12), strict=False)  # children of the trunk before exit1 and exit2
    teacher: float = Field(0.0, ge=0)  # weight of the distillation from the baseline


class Budget(_Strict):
    """Training of each variant."""

    images: int | None = Field(None, ge=8)  # of train, drawn with the seed; None takes all
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(1.0e-3, gt=0)
    warmup_steps: int = Field(20, ge=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
    compile: bool = False  # a minute per variant, then 1.6 times faster; pays from some thousand images


class Search(_Strict):
    """Architecture search by optuna."""

    trials: int = Field(8, ge=1)
    images: int = Field(192, ge=8)  # of train, once, per trial
    val_images: int = Field(96, ge=1)
    widths: list[str] = [RELEASED]  # variants whose weights the candidates share
    sizes: list[int] = [320, 256, 224]
    maps: list[int] = [6, 5, 4]
    exit1: list[Cut1] = [8, 10]
    exit2: list[Cut2] = [12, 13]
    repeats: int = Field(30, ge=2)  # timed rounds of a candidate


class CompressConfig(_Strict):
    """``params/compress.yaml``."""

    baseline: str = "checkpoints/baseline.pth"  # teacher, and the detector that all are compared with
    exits: str = "checkpoints/exits.pth"  # what is pruned: the same detector with its two exits
    out: str = "runs/compress"
    seed: int = Field(0, ge=0)
    seeds: list[Annotated[int, Field(ge=0)]] = []  # others, of the best alternative and the exits on it
    importance_images: int = Field(64, ge=1)  # of train, for the pruning
    train: Budget = Budget()
    variants: dict[str, Variant]
    search: Search = Search()
    budget: float = Field(0.75, gt=0)  # time / full that the best alternative may take
    budgets: list[float] = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]  # of routing on top of it, as shares of its own full
    int8_images: int = Field(64, ge=1)  # of calibrate
    repeats: int = Field(60, ge=2)  # timed rounds
    resamples: int = Field(200, ge=2)  # bootstrap over scenes
    limit: int | None = Field(None, ge=1)  # images of val, calibrate and test; None takes all


def load_config(path: Path | str, settings: dict | None = None) -> CompressConfig:
    """Read and check ``params/compress.yaml``.

    Raises:
        ConfigError: a key, a value, or a start that is no variant; the message names file and key.
    """
    try:
        config = CompressConfig(**override(read_yaml(path), settings or {}))
        problems = list(_problems(config))
    except ValidationError as error:
        problems = [f"key '{'.'.join(map(str, e['loc']))}' is {e.get('input')!r}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def _problems(config: CompressConfig) -> Iterator[str]:
    names = [RELEASED, *config.variants]
    if len({config.seed, *config.seeds}) <= len(config.seeds):
        yield f"key 'seeds' is {config.seeds}; expected different seeds, none of them 'seed'"
    for name in set(config.search.widths).difference(names):
        yield f"key 'search.widths' names '{name}', which is no variant"
    for name, variant in config.variants.items():
        key = f"key 'variants.{name}"
        if variant.start not in names:
            yield f"{key}.start' is '{variant.start}'; expected one of {', '.join(names)}"
        elif variant.start != RELEASED and variant.width > config.variants[variant.start].width:
            yield f"{key}.width' is {variant.width}; its start is narrower"
        chain = _chain(name, config.variants)
        if chain[-1] in chain[:-1]:
            yield f"{key}.start': {' -> '.join(chain)} goes in a circle"
        if variant.teacher and (variant.size, variant.maps) != (320, 6):
            yield f"{key}.teacher': the teacher has six maps of 320 px; so must its student"


def _chain(name: str, variants: dict[str, Variant]) -> list[str]:
    """A variant and those that it descends from, as far as there are such; ends where a name comes again."""
    chain = [name]
    while variants[chain[-1]].start in variants and chain[-1] not in chain[:-1]:
        chain.append(variants[chain[-1]].start)
    return chain


def digest(values: object) -> str:
    """Eight characters that stand for plain values: what a folder of a run is named after."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def folder_of(name: str, config: CompressConfig, variants: dict[str, Variant] | None = None) -> Path:
    """Folder of a variant; its name changes with all that its weights and its AP on ``val`` depend on."""
    variants = variants or config.variants
    chain = [variants[each].model_dump() for each in _chain(name, variants)]
    shared = config.train.model_dump(), config.seed, config.importance_images, config.limit
    weights = file_sha256(_existing(config.baseline)), file_sha256(_existing(config.exits))
    data = split_sha256("train"), split_sha256("val")
    return resolve(config.out) / f"{name}_{digest([chain, shared, weights, data])}"


def _existing(path: str) -> Path:
    if not resolve(path).exists():
        raise TrainingError(f"{path}: no such checkpoint; compression starts from released weights")
    return resolve(path)


def fine_tuning(config: CompressConfig, size: int, images: int | None = None, **optim: object) -> PhaseConfig:
    """The baseline's own configuration with the budget of a variant."""
    source = load_checkpoint(_existing(config.baseline)).get("config")
    budget = config.train.model_dump(exclude={"images"}) | {"eval_every": config.train.epochs, "keep": "last"} | optim
    settings = {f"optim.{key}": value for key, value in budget.items()}
    settings |= {"optim.devices": 1, "loss.mask": 0.0, "model.start": config.exits, "seed": config.seed}
    settings |= {"data.image_sizes": [[0, size]], "data.limit": images or config.train.images}
    return parse(override(parse(source, config.baseline).model_dump(mode="json"), settings), config.baseline)


def distilling_step(settings: PhaseConfig, teacher: EarlyExitSSDLite, weight: float) -> Callable:
    """``step_loss`` of :func:`eelib.train.fit`: the full path's own loss, and its distance from a teacher."""

    def step_loss(model: nn.Module, batch: tuple, _: float) -> tuple[Tensor, dict[str, float]]:
        images, loss = as_input(batch[0]), settings.loss
        with torch.no_grad():
            taught = teacher.eval()(images)[-1]._replace(name="teacher")
        total, parts = joint_loss(
            [ExitOutput(*model(images)[-1])],
            batch[1],
            loss.exit_weights,
            teacher=taught,
            distillation=weight,
            iou_threshold=settings.targets.iou_threshold,
            classification=loss.classification,
            box=loss.box,
        )
        return total, {"loss": float(total.detach()), **parts}

    return step_loss


def val_ap(model: EarlyExitSSDLite, limit: int | None) -> dict[str, float]:
    """AP of every exit on ``val`` at the model's size: what all choices rest on."""
    dataset = DetectionDataset("val", size=model.size, keep_crowd=True, limit=limit)
    results = detect_exits(model, dataset)
    return {name: coco_ap(dataset.coco, rows, dataset.image_ids)["AP"] for name, rows in results.items()}


def start_of(
    name: str, config: CompressConfig, variants: dict[str, Variant], log: Callable = print
) -> EarlyExitSSDLite:
    """The detector with exits that a variant starts from, pruned, shortened and resized, not yet trained."""
    variant = variants[name]
    if variant.start == RELEASED:
        model, width = load_released(_existing(config.exits)), 1.0
    else:
        model = load_released(train_variant(variant.start, config, variants, log) / "variant.pth")
        width = variants[variant.start].width
    if not model.early:
        raise TrainingError(f"{config.exits}: no early exits; expected the released detector with exits")
    model.size = variant.size
    if variant.width < width:
        settings = fine_tuning(config, variant.size, config.importance_images)
        dataset = training_set(settings)
        dataset.transform = variant.size
        prune(model, 1 - variant.width / width, dataset, settings.targets.iou_threshold)
    model.keep_maps(variant.maps)
    model.cuts = dict(zip(model.early, variant.cuts, strict=True))
    return model


def train_variant(
    name: str, config: CompressConfig, variants: dict[str, Variant] | None = None, log: Callable[[str], None] = print
) -> Path:
    """Train the full path of a variant, or find it trained.

    Returns:
        Its folder: ``variant.pth`` with the exits as they came through the pruning, ``static.pth``
        without them, and ``variant.json`` with AP on ``val``, seconds and the history.

    Raises:
        TrainingError: the released checkpoints are missing or do not fit.
    """
    variants = variants or config.variants
    folder, variant = folder_of(name, config, variants), variants[name]
    if (folder / "variant.json").exists():
        return folder
    if not (folder / "start.pth").exists():
        model = start_of(name, config, variants, log)
        save_checkpoint(folder / "start.pth", {"model": model.state_dict(), "plan": model.plan})
    model = load_released(folder / "start.pth")
    static = without_exits(model)
    settings = fine_tuning(config, variant.size)
    step = detection_step(settings)
    if variant.teacher:
        step = distilling_step(settings, load_released(_existing(config.baseline)), variant.teacher)
    log(f"training {name}")
    history = fit(static, step, training_batches(settings), settings, folder, resume=True, log=log)
    model.load_state_dict(model.state_dict() | static.state_dict())
    save_model(model, settings, folder / "variant.pth")
    save_model(static, settings, folder / "static.pth")
    _finish(folder / "variant.json", static, history, config)
    return folder


def train_heads(folder: Path, config: CompressConfig, log: Callable[[str], None] = print) -> None:
    """Train the exits of a variant on its frozen trunk: ``exits.pth`` and ``exits.json`` in its folder."""
    if (folder / "exits.json").exists():
        return
    model = load_released(folder / "variant.pth").requires_grad_(False)
    model.early.requires_grad_(True)
    changes = {"model.exits": True, "model.train_trunk": False, "optim.trunk_lr_factor": 1.0}
    settings = parse(override(fine_tuning(config, model.size).model_dump(mode="json"), changes))
    log(f"training the exits of {folder.name}")
    batches, run = training_batches(settings), folder / "heads"
    history = fit(model, detection_step(settings), batches, settings, run, resume=True, log=log)
    save_model(model, settings, folder / "exits.pth")
    _finish(folder / "exits.json", model, history, config)


def save_model(model: EarlyExitSSDLite, settings: PhaseConfig, path: Path) -> Path:
    """A checkpoint with the plan of a changed architecture and the configuration of its training."""
    state = {"model": model.state_dict(), "plan": model.plan, "config": settings.model_dump(mode="json")}
    return save_checkpoint(path, state)


def _finish(path: Path, model: EarlyExitSSDLite, history: list[dict], config: CompressConfig) -> None:
    seconds = sum(row["seconds"] for row in history)
    write_json(path, {"val_AP": val_ap(model, config.limit), "seconds": seconds, "history": history})
