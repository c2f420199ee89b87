"""A small architecture search: width, depth of the tail, input size and cut points, by optuna.

Time comes from a look-up table: every segment that a candidate is made of is exported and measured
once, on one thread of onnxruntime. AP is a proxy: candidates share the weights of the trained
variants, train for a few dozen steps and are measured on a part of ``val``. The proxy ranks; what
is chosen is trained like every other variant and measured on its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from eelib.checkpoints import TrainingError, load_released
from eelib.config import resolve
from eelib.deploy.export import ExitStage, FullStage, Trunk, write_graph
from eelib.deploy.runtime import open_graph
from eelib.files import file_sha256, write_json
from eelib.model import EarlyExitSSDLite
from eelib.timing import measure
from eelib.train import detection_step, fit, training_batches
from studies.compress.variants import (
    RELEASED,
    CompressConfig,
    Variant,
    digest,
    fine_tuning,
    train_variant,
    val_ap,
)  # fmt: skip


def weights_of(width: str, config: CompressConfig, log: Callable[[str], None] = print) -> Path:
    """Checkpoint with exits that candidates of a width share; it is trained first where it is missing."""
    return resolve(config.exits) if width == RELEASED else train_variant(width, config, log=log) / "variant.pth"


def asked(config: CompressConfig) -> dict[str, list[int]]:
    """Sizes, maps and bounds of segments that candidates, variants and the released detector need."""
    search, variants = config.search, [Variant(), *config.variants.values()]
    cuts = [cut for v in variants for cut in v.cuts]
    return {
        "sizes": sorted({*search.sizes, *(v.size for v in variants)}),
        "maps": sorted({*search.maps, *(v.maps for v in variants)}, reverse=True),
        "bounds": sorted({0, *search.exit1, *search.exit2, *cuts}),
    }


def segments(
    model: EarlyExitSSDLite, bounds: Sequence[int], maps: Sequence[int]
) -> dict[str, tuple[torch.nn.Module, int]]:
    """Every piece that a candidate of one width and size is made of: name to module and where it starts.

    Args:
        bounds: children of the trunk between which segments lie, from 0 to the last cut.
        maps: numbers of SSDLite maps, falling.
    """
    pieces = {f"trunk {a}-{b}": (Trunk(model, a, b), a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)}
    for name, cut in model.cuts.items():  # the same at each cut of a stage, whose blocks have the same channels
        pieces[name] = (ExitStage(model, name, cut), cut)
    for count in maps:
        model.keep_maps(count)
        pieces[f"tail {count}"] = (FullStage(model, bounds[-1]), bounds[-1])
    return pieces


@torch.no_grad()
def _graphs(
    path: Path, size: int, bounds: Sequence[int], maps: Sequence[int], folder: Path
) -> dict[str, Callable[[], object]]:
    """Export the segments of one width and size; name to a call that runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = load_released(path).eval()
    model.size = size
    image, calls = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)), {}
    for name, (module, start) in segments(model, bounds, maps).items():
        example = model.segment((image - 0.5) / 0.5, 0, start) if start else image
        outputs = module.eval()(example)
        count = len(outputs) if isinstance(outputs, tuple) else 1
        entry = write_graph(module, example, [f"out{k}" for k in range(count)], folder, name.replace(" ", "_"))
        graph, array = open_graph(folder, entry), np.ascontiguousarray(example.numpy())
        calls[name] = lambda g=graph, a=array: g.run(None, {"features": a})
    return calls


def latency_table(config: CompressConfig, log: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """Milliseconds of every segment: ``"width size"`` to segment to median; measured once, then read.

    All segments are measured in turn in one run, so that they can be added up.
    """
    need = asked(config)
    paths = {width: weights_of(width, config, log) for width in config.search.widths}
    identity = [{width: file_sha256(path) for width, path in paths.items()}, need, config.search.repeats]
    folder = resolve(config.out) / f"table_{digest(identity)}"
    if (folder / "table.json").exists():
        return json.loads((folder / "table.json").read_text())
    log("measuring the look-up table of segments")
    calls = {}
    for width, path in paths.items():
        for size in need["sizes"]:
            graphs = _graphs(path, size, need["bounds"], need["maps"], folder / f"{width}_{size}")
            calls |= {(f"{width} {size}", name): call for name, call in graphs.items()}
    table: dict[str, dict[str, float]] = {}
    for (key, name), times in measure(calls, config.search.repeats, warmup=3).items():
        table.setdefault(key, {})[name] = times["median_ms"]
    write_json(folder / "table.json", table)
    return table


def predicted_ms(
    table: Mapping[str, Mapping[str, float]], width: str, variant: Variant, exits: bool
) -> dict[str, float]:
    """Time of leaving at each exit of a candidate, from the table; the suppression is left out.

    Args:
        table: of :func:`latency_table`.
        width: the candidate's, a name of the table.
        exits: False gives ``full`` of the detector without exits.

    Raises:
        TrainingError: the table has no such segment.
    """
    pieces = table.get(f"{width} {variant.size}", {})
    trunk = {tuple(map(int, name[6:].split("-"))): ms for name, ms in pieces.items() if name.startswith("trunk")}
    if f"tail {variant.maps}" not in pieces or not set(variant.cuts) <= {b for _, b in trunk}:
        raise TrainingError(
            f"look-up table: no '{width}' of {variant.size} px with {variant.maps} maps and cuts {variant.cuts}"
        )
    total, done, times = 0.0, 0, {}
    for name, cut in zip(("exit1", "exit2"), variant.cuts, strict=True):
        total += sum(ms for (a, b), ms in trunk.items() if done <= a and b <= cut) + exits * pieces[name]
        done, times[name] = cut, total
    times["full"] = total + sum(ms for (a, _), ms in trunk.items() if a >= done) + pieces[f"tail {variant.maps}"]
    return times if exits else {"full": times["full"]}


def candidate(width: str, variant: Variant, config: CompressConfig) -> EarlyExitSSDLite:
    """A candidate with the shared weights of its width; residual blocks let a head move along its stage."""
    model = load_released(weights_of(width, config))
    model.size, model.cuts = variant.size, dict(zip(model.early, variant.cuts, strict=True))
    model.keep_maps(variant.maps)
    return model


def proxy_ap(width: str, variant: Variant, config: CompressConfig, folder: Path) -> dict[str, float]:
    """AP of each exit on a part of ``val`` after one short joint training."""
    model, search = candidate(width, variant, config), config.search
    short = {"epochs": 1, "warmup_steps": 4, "ema_decay": 0.9, "eval_every": 1, "compile": False}
    base = fine_tuning(config, variant.size, search.images, **short)
    settings = base.model_copy(update={"model": base.model.model_copy(update={"exits": True})})
    fit(model, detection_step(settings), training_batches(settings), settings, folder, resume=True, log=lambda _: None)
    return val_ap(model, search.val_images)


def run(config: CompressConfig, log: Callable[[str], None] = print) -> dict:
    """The search, resumed where it stopped.

    Returns:
        ``trials`` (parameters, AP and time of each exit, mean AP, mean time / full), ``front`` (numbers
        of the trials that no other one beats in both), ``chosen``: the trial with the best AP of full
        among those whose full path alone keeps to the budget; of all, if none does.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    search, table = config.search, latency_table(config, log)
    whole = predicted_ms(table, RELEASED, Variant(), exits=False)["full"]
    shared = [file_sha256(weights_of(width, config)) for width in search.widths]
    identity = search.model_dump(exclude={"trials"}), config.seed, config.train.model_dump(), shared
    folder = resolve(config.out) / f"search_{digest(identity)}"
    folder.mkdir(parents=True, exist_ok=True)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        width = trial.suggest_categorical("width", search.widths)
        size, maps = trial.suggest_categorical("size", search.sizes), trial.suggest_categorical("maps", search.maps)
        cuts = tuple(trial.suggest_categorical(name, getattr(search, name)) for name in ("exit1", "exit2"))
        variant = Variant(start=width, size=size, maps=maps, cuts=cuts)
        ap = proxy_ap(width, variant, config, folder / f"trial_{trial.number}")
        times = predicted_ms(table, width, variant, exits=True)
        trial.set_user_attr("AP", ap)
        trial.set_user_attr("time_ratio", {name: ms / whole for name, ms in times.items()})
        trial.set_user_attr("static_ratio", predicted_ms(table, width, variant, exits=False)["full"] / whole)
        log(f"trial {trial.number}: {trial.params} AP {', '.join(f'{v:.3f}' for v in ap.values())}")
        return float(np.mean(list(ap.values()))), float(np.mean(list(times.values()))) / whole

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))), study_name="compress",
        directions=["maximize", "minimize"], load_if_exists=True,
    )  # fmt: skip
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not study.trials:
        first = {"width": search.widths[0], "size": search.sizes[0], "maps": search.maps[0]}
        study.enqueue_trial(first | {"exit1": search.exit1[0], "exit2": search.exit2[0]})  # what all others are beside
    # a sampler knows nothing of the numbers it drew before a kill: another seed, or it would draw them again
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=4, seed=config.seed + len(study.trials))
    study.optimize(objective, n_trials=max(0, search.trials - len(done)))
    return _summary(study, config.budget)


def _summary(study, budget: float) -> dict:
    trials = []
    for trial in study.trials:
        if trial.values is not None:
            found = {"number": trial.number, "params": trial.params, **trial.user_attrs}
            trials.append(found | {"mean_AP": trial.values[0], "mean_time_ratio": trial.values[1]})
    front = [trial.number for trial in study.best_trials]
    return {"proxy": "AP on a part of val after a short training", "trials": trials, "front": front,
            "chosen": choose(trials, budget)}  # fmt: skip


def choose(trials: list[dict], budget: float) -> dict:
    """The trial with the best AP of full whose full path alone keeps to a budget of time; of all, if none does."""
    inside = [t for t in trials if t["static_ratio"] <= budget] or trials
    return max(inside, key=lambda t: (t["AP"]["full"], -t["static_ratio"]))


def as_variant(chosen: Mapping, config: CompressConfig) -> Variant:
    """The chosen trial as a variant that is trained like the others."""
    params = chosen["params"]
    start = params["width"]
    width = 1.0 if start == RELEASED else config.variants[start].width
    cuts = (params["exit1"], params["exit2"])
    return Variant(start=start, width=width, size=params["size"], maps=params["maps"], cuts=cuts)
