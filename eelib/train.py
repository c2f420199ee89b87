"""One training from its configuration to released weights."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from eelib.augment import PRESETS, augment
from eelib.batches import Batch, EpochBatches, ResidentBatches, Share, StreamedBatches, fits, pool_of, seed_of
from eelib.checkpoints import TrainingError, load_checkpoint, save_checkpoint
from eelib.coco import open_source, read_split
from eelib.config import Config, ConfigError, load_config, resolve
from eelib.data import DetectionDataset, split_sha256
from eelib.evaluate import coco_ap, detect_exits
from eelib.files import locked
from eelib.fit import Step, Trainer, fit, warmup_of
from eelib.heads import EXIT_WIDTH
from eelib.losses import Criterion
from eelib.model import FIRST_PLAN, SCALES, EarlyExitSSDLite, ExitOutput, rebuild
from eelib.progress import tensorboard as tensorboard_in

# Of an exit, which has scores and boxes in one, and of full's classes.
LAST_LAYER = re.compile(r"(\.predictors|\.classification_head\.module_list)\.\d+\.1\.(weight|bias)$")


def build_model(config: Config) -> EarlyExitSSDLite:
    """The detector of a configuration, from its start weights; the trunk frozen where it says so.

    Raises:
        TrainingError: the start checkpoint does not fit, or torchvision's weights cannot be had.
    """
    model, start = config.model, config.model.start
    torch.manual_seed(seed_of(config.seed))
    weights = None if model.weights == "none" or start else model.weights
    try:
        detector = EarlyExitSSDLite(
            model.exits,
            full=model.full,
            blank_gate=model.blank_gate,
            exit_width=model.exit_width or EXIT_WIDTH,
            scales=model.scales or SCALES,
            classes=open_source(config.data).names,
            weights=weights,
            gradient_rescaling=config.loss.gradient_rescaling,
        )
    except OSError as error:  # torchvision downloads them
        problem = f"key 'model.weights' is '{weights}', but they cannot be downloaded ({error})"
        raise TrainingError(f"{problem}; expected 'none' without a network") from None
    if start:
        state = load_checkpoint(resolve(start))
        if model.exit_width:  # exits of another width are learnt anew
            fitting = {
                key.split(".")[1] for key, weight in state["model"].items()
                if re.fullmatch(r"early\.\w+\.down\.0\.1\.0\.weight", key) and weight.shape[:1] == (model.exit_width,)
            }  # fmt: skip
            taken = {
                k: v for k, v in state["model"].items() if not k.startswith("early.") or k.split(".")[1] in fitting
            }
            state |= {"model": taken}
        detector = start_from(detector, state, start)
    if model.full:
        detector.keep_maps(model.maps)
    detector.size = config.data.size
    if not model.train_trunk:
        detector.requires_grad_(False)
        detector.early.requires_grad_(True)
    return detector


def start_from(detector: EarlyExitSSDLite, state: Mapping, source: str) -> EarlyExitSSDLite:
    """The detector with what a checkpoint has of it: widths and tail are the checkpoint's, exits the detector's.

    It keeps its own weights where the checkpoint has none; an exit takes those of the exit at its place, where there is
    one, and else those of its name. ``source`` is named in errors.

    Raises:
        TrainingError: a shape differs, or the checkpoint has nothing of the trunk.
    """
    own = detector.state_dict()
    known = state["model"] | _by_place(state, detector.cuts)
    taken = {key: value.to(own[key].dtype) for key, value in known.items() if key in own}
    classes = (state.get("plan") or {}).get("classes", ("chair",))  # of the first releases
    if len(classes) != len(detector.classes):
        columns = len(classes) + 1, len(detector.classes) + 1
        taken |= {
            k: _of_classes(v, *columns, 4 * (".predictors." in k)) for k, v in taken.items() if LAST_LAYER.search(k)
        }
    if not any(key.startswith("backbone.") for key in taken):
        raise TrainingError(f"{source}: no weights of the trunk; expected a detector of eelib")
    if any(own[key].shape != value.shape for key, value in taken.items()) or "plan" in state:
        plan = dict(state.get("plan") or {}) | {"scales": detector.scales}
        plan |= {"cuts": detector.cuts, "classes": list(detector.classes)}
        mixed = own | taken
        if detector.head is not None:  # a shortened tail stays short
            short = {key for key in own if key not in state["model"] and key.startswith(("backbone.extra", "head."))}
            mixed = {key: value for key, value in mixed.items() if key not in short}
        try:
            _fit_to_trunk(mixed, detector)
            rebuilt = rebuild(plan, mixed)
            rebuilt.load_state_dict(mixed)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise TrainingError(f"{source}: does not fit the detector of 'model' ({reason})") from None
        rebuilt.gradient_rescaling = detector.gradient_rescaling
        return rebuilt
    detector.load_state_dict(own | taken)
    return detector


def _by_place(state: Mapping, cuts: Mapping[str, int]) -> dict[str, Tensor]:
    """Weights of the exits under the names that the exits at their places have in a detector with such cuts."""
    names = {cut: name for name, cut in (state.get("plan") or FIRST_PLAN).get("cuts", {}).items()}
    moved = {f"early.{names[cut]}.": f"early.{name}." for name, cut in cuts.items() if names.get(cut, name) != name}
    return {
        new + key.removeprefix(old): value
        for old, new in moved.items() for key, value in state["model"].items() if key.startswith(old)
    }  # fmt: skip


def _of_classes(value: Tensor, columns: int, wanted: int, others: int) -> Tensor:
    """A last layer's weights for ``wanted`` in place of ``columns`` scores a default box, background among them.

    Each class starts as the mean of the known ones. ``others``: outputs of a box behind the scores of all boxes.
    """
    boxes = len(value) // (columns + others)
    scores = value[: boxes * columns].unflatten(0, (boxes, columns))
    kinds = scores[:, 1:].mean(1, keepdim=True).expand(-1, wanted - 1, *scores.shape[2:])
    return torch.cat((torch.cat((scores[:, :1], kinds), 1).flatten(0, 1), value[boxes * columns :]))


def _fit_to_trunk(state: dict[str, Tensor], detector: EarlyExitSSDLite) -> None:
    """Give exits and gates whose first layer has other channels than the trunk there the detector's own weights.

    The trunk may be pruned, and an exit of the start may have been elsewhere.
    """
    parts = [(f"early.{name}.", "context.0", cut) for name, cut in detector.cuts.items()]
    parts += [(f"blank.{cut}.", "features", int(cut)) for cut in detector.blank]
    for part, first, cut in parts:
        block = f"backbone.features.0.{cut - 1}.block."
        layers = [key.removeprefix(block) for key in state if key.startswith(block) and key.endswith(".0.weight")]
        width = len(state[block + max(layers, key=lambda layer: int(layer.split(".")[0]))])
        if len(state[f"{part}{first}.0.0.weight"]) == width:
            continue
        state |= {key: value for key, value in detector.state_dict().items() if key.startswith(part)}
        for key in [key for key in state if key.startswith(f"{part}{first}.0.") and state[key].ndim]:
            state[key] = state[key][:width]
        state[f"{part}{first}.1.0.weight"] = state[f"{part}{first}.1.0.weight"][:, :width]


def detection_step(config: Config, detector: EarlyExitSSDLite, log: Callable[[str], None] = print) -> Step:
    """``step_loss`` of a :class:`Trainer` for a detector with or without exits."""
    criterion = Criterion(config.loss, detector.exit_names)
    calm, busy = PRESETS[config.data.augment]._replace(mosaic=0.0), PRESETS[config.data.augment]
    frozen = not config.model.train_trunk
    # a frozen full path has nothing to learn; as a teacher it is run all the same
    learn = len(detector.early) if frozen else None
    last = detector.exit_names[-1] if not frozen or config.loss.distillation else [*detector.early][-1]

    def outputs(network: nn.Module, images: Tensor) -> tuple[list[tuple], list[Tensor]]:
        return network(images, last)

    call = compiled(outputs, log) if config.optim.compile else outputs

    def step_loss(model: nn.Module, batch: Batch, _: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            images, targets = augment(batch.pool, batch.draw, config.data.size, calm if batch.calm else busy)
        if frozen:  # statistics of the trunk stay as they are: the full path must not move
            detector.backbone.eval()
            detector.head.eval()
        exits, blank_logits = call(model, images)
        return criterion([ExitOutput(*output) for output in exits], targets, blank_logits, learn)

    return step_loss


class WithGates(nn.Module):
    """A detector that gives all that a training step learns from: its exits, and its blank gates' logits."""

    def __init__(self, detector: EarlyExitSSDLite):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, last: str) -> tuple[list[tuple], list[Tensor]]:
        """Exits up to and with ``last`` as plain tuples, and logits (B,) of each gate."""
        maps: list[Tensor] = []
        exits = self.detector(images, last, maps)
        return [tuple(output) for output in exits], self.detector.blank_logits(maps)


def compiled(call: Callable, log: Callable[[str], None]) -> Callable:
    """``torch.compile`` of a call; the call itself, with a word, where there is no C++ compiler."""
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        log("optim.compile: no C++ compiler found, so the training runs uncompiled")
        return call
    return torch.compile(call, dynamic=False)


def training_set(config: Config) -> DetectionDataset:
    """The training split as ``data`` of a configuration selects it, all images of one size.

    Images that have one size already keep it, so that an augmentation that zooms in finds pixels there; others
    become squares a quarter larger than the network's input.
    """
    data, source = config.data, open_source(config.data)
    sizes = {(image["width"], image["height"]) for image in read_split("train", source).content["images"]}
    same = len(sizes) == 1 and max(next(iter(sizes))) <= 2 * data.size
    side = None if same else data.size * 5 // 4
    return DetectionDataset("train", source, side, limit=data.limit, seed=config.seed)


def epoch_batches(config: Config, dataset: DetectionDataset, device: torch.device, share: Share) -> EpochBatches:
    """Batches of a training: resident on the device where the set fits, streamed otherwise."""
    data, optim = config.data, config.optim
    calm_from = round((1 - data.calm) * optim.epochs)
    if fits(dataset, data.size, device):
        return ResidentBatches(pool_of(dataset, device), optim.batch_size, config.seed, calm_from, share)
    return StreamedBatches(dataset, optim.batch_size, config.seed, calm_from, share, optim.workers, device)


def train(
    config: Config | Path | str,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    log: Callable[[str], None] = print,
) -> Path:
    """Train a detector and release its averaged weights: the one assembly of a training.

    Args:
        config: the configuration, or its parameter file.
        out: folder of the run.
        resume: continue from the folder's last checkpoint.
        overwrite: start anew where the folder holds a run.
        tensorboard: write the numbers of every epoch to ``out/tensorboard``, too.
        log: receives a line an epoch.

    Returns:
        ``released.pth`` in ``out``: the averaged weights of the epoch that ``optim.keep`` chooses, with
        architecture, configuration and history.

    Raises:
        ConfigError, DataError: bad input, before the first epoch.
        TrainingError: the folder holds a run, the training diverges, or the start does not fit.

    Examples:
        >>> eelib.train("my.yaml", out="runs/mine", log=lambda line: None).name
        'released.pth'
    """
    config = config if isinstance(config, Config) else load_config(config)
    out = Path(out)
    with locked(out):
        if (out / "last.pth").exists() and not (resume or overwrite):
            raise TrainingError(f"{out}: holds a run already; expected --resume to go on or --overwrite to start anew")
        source = open_source(config.data)
        dataset = training_set(config)
        val = DetectionDataset("val", source, config.data.size, keep_crowd=True, limit=config.data.eval_limit)
        check_budget(config, len(dataset), val, log)
        detector = build_model(config)
        loggers = [tensorboard_in(out)] if tensorboard else []
        step = detection_step(config, detector, log)
        trainer = Trainer(WithGates(detector), step, config.optim, loggers=loggers)
        share = Share(trainer.fabric.global_rank, trainer.fabric.world_size)
        batches = epoch_batches(config, dataset, trainer.device, share)

        def evaluate(_: nn.Module, __: int) -> dict[str, float]:
            results = detect_exits(detector, val)
            return {f"{name}_AP": coco_ap(val.coco, rows, val.image_ids)["AP"] for name, rows in results.items()}

        identity = {
            "config": config.model_dump(mode="json"),
            "train_sha256": split_sha256("train", source),
            "val_sha256": split_sha256("val", source),
            "threads": torch.get_num_threads() if trainer.device.type == "cpu" else None,
        }
        history = fit(trainer, batches, out, identity=identity, resume=resume, evaluate=evaluate, log=log)
        path = out / "released.pth"
        if trainer.fabric.is_global_zero:
            state = {"model": detector.state_dict(), "plan": detector.plan, "history": history}
            save_checkpoint(path, state | {"config": config.model_dump(mode="json")})
        return path


def check_budget(config: Config, images: int, val: DetectionDataset, log: Callable[[str], None] = print) -> None:
    """What would waste a training, before its first epoch.

    Raises:
        ConfigError: no step is trained at the full rate, or val has no object to choose an epoch by.
    """
    optim = config.optim
    batch = min(optim.batch_size, images // optim.devices)
    steps = optim.epochs * (images // max(1, batch * optim.devices))
    if batch < 2:
        raise ConfigError(f"key 'optim.batch_size': {batch} image a step and process; batch norm needs 2 or more")
    if optim.keep == "best" and not any(val.annotations[i] for i in val.image_ids):
        raise ConfigError(f"{val.file}: 'val' holds no object, so no epoch can be chosen; expected optim.keep 'last'")
    if (warmup := warmup_of(optim, steps)) < optim.warmup_steps and optim.epochs:
        log(f"optim.warmup_steps: {warmup} in place of {optim.warmup_steps}, a fifth of the {steps} steps")
    if batch < optim.batch_size:
        log(f"optim.batch_size: {images} images are fewer than a batch of {optim.batch_size}; steps of {batch}")
