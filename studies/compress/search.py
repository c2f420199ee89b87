"""A small architecture search: width, depth of the tail, input size and cut points, by optuna.

AP is a proxy: candidates share the weights of the trained variants, train for a few dozen steps and are measured on
a part of ``val``. Time is measured on the candidate's own export, in turn with the released detector. The proxy
ranks; what is chosen is trained like every other variant and measured on its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from eelib.checkpoints import load_released
from eelib.config import resolve
from eelib.deploy.runtime import EarlyExitSession, forced
from eelib.files import file_sha256
from eelib.model import EarlyExitSSDLite
from eelib.timing import measure
from eelib.train import detection_step, fit, training_batches
from studies.compress.systems import export_system, input_image
from studies.compress.variants import (
    RELEASED,
    CompressConfig,
    Variant,
    digest,
    fine_tuning,
    save_model,
    train_variant,
    val_ap,
)


def weights_of(width: str, config: CompressConfig, log: Callable[[str], None] = print) -> Path:
    """Checkpoint with exits that candidates of a width share; it is trained first where it is missing."""
    return resolve(config.exits) if width == RELEASED else train_variant(width, config, log=log) / "variant.pth"


def as_variant(params: Mapping, config: CompressConfig) -> Variant:
    """A trial's parameters as a variant that is trained like the others."""
    start = params["width"]
    width = 1.0 if start == RELEASED else config.variants[start].width
    cuts = (params["exit1"], params["exit2"])
    return Variant(start=start, width=width, size=params["size"], maps=params["maps"], cuts=cuts)


def candidate(variant: Variant, config: CompressConfig, folder: Path) -> tuple[EarlyExitSSDLite, Path]:
    """A candidate with the shared weights of its width after one short joint training, and its checkpoint."""
    model, short = load_released(weights_of(variant.start, config)), {"epochs": 1, "warmup_steps": 4}
    # residual blocks let a head move along its stage
    model.size, model.cuts = variant.size, dict(zip(model.early, variant.cuts, strict=True))
    model.keep_maps(variant.maps)
    short |= {"ema_decay": 0.9, "eval_every": 1, "compile": False}
    base = fine_tuning(config, variant.size, config.search.images, **short)
    settings = base.model_copy(update={"model": base.model.model_copy(update={"exits": True})})
    fit(model, detection_step(settings), training_batches(settings), settings, folder, resume=True, log=lambda _: None)
    return model, save_model(model, settings, folder / "candidate.pth")


def time_ratios(checkpoint: Path, config: CompressConfig, folder: Path) -> dict[str, float]:
    """Time of leaving at each exit of a candidate, and of its full path ``alone``, relative to the released detector.

    All are measured in turn on onnxruntime, one thread, with suppression.
    """
    released = export_system("full", "full", resolve(config.baseline), resolve(config.out) / "export_baseline")
    session = export_system("candidate", "search", checkpoint, folder / "export").session()
    image, graph = input_image(session.size), session.graph(session.manifest["plain"])

    def alone() -> None:
        scores, boxes = graph.run(None, {"features": image})
        session.suppress(boxes[0], scores[0], "full")

    def leaving(session: EarlyExitSession, name: str) -> Callable[[], object]:
        features = input_image(session.size)
        return lambda: session.detect(features, forced(name))

    calls = {name: leaving(session, name) for name in session.exits}
    calls |= {"alone": alone, "reference": leaving(released.session(), "full")}
    times = {name: time["median_ms"] for name, time in measure(calls, config.search.repeats).items()}
    reference_ms = times.pop("reference")
    return {name: ms / reference_ms for name, ms in times.items()}


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

    search = config.search
    shared = [file_sha256(weights_of(width, config, log)) for width in search.widths]
    identity = search.model_dump(exclude={"trials"}), config.seed, config.train.model_dump(), shared
    folder = resolve(config.out) / f"search_{digest(identity)}"
    folder.mkdir(parents=True, exist_ok=True)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        choices = {"width": search.widths, "size": search.sizes, "maps": search.maps}
        choices |= {"exit1": search.exit1, "exit2": search.exit2}
        params = {name: trial.suggest_categorical(name, values) for name, values in choices.items()}
        out = folder / f"trial_{trial.number}"
        model, checkpoint = candidate(as_variant(params, config), config, out)
        ap, times = val_ap(model, search.val_images), time_ratios(checkpoint, config, out)
        trial.set_user_attr("AP", ap)
        trial.set_user_attr("static_ratio", times.pop("alone"))
        trial.set_user_attr("time_ratio", times)
        log(f"trial {trial.number}: {trial.params} AP {', '.join(f'{v:.3f}' for v in ap.values())}")
        return float(np.mean(list(ap.values()))), float(np.mean(list(times.values())))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))), study_name="compress",
        directions=["maximize", "minimize"], load_if_exists=True,
    )  # fmt: skip
    if not study.trials:
        first = {"width": search.widths[0], "size": search.sizes[0], "maps": search.maps[0]}
        study.enqueue_trial(first | {"exit1": search.exit1[0], "exit2": search.exit2[0]})  # what all others are beside
    # a sampler knows nothing of the numbers it drew before a kill: another seed, or it would draw them again
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=4, seed=config.seed + len(study.trials))
    done = [trial for trial in study.trials if trial.values is not None]
    study.optimize(objective, n_trials=max(0, search.trials - len(done)))
    trials = [
        {"number": t.number, "params": t.params, **t.user_attrs, "mean_AP": t.values[0], "mean_time_ratio": t.values[1]}
        for t in study.trials if t.values is not None
    ]  # fmt: skip
    return {
        "proxy": "AP on a part of val after a short training",
        "trials": trials,
        "front": [trial.number for trial in study.best_trials],
        "chosen": choose(trials, config.budget),
    }


def choose(trials: list[dict], budget: float) -> dict:
    """The trial with the best AP of full whose full path alone keeps to a budget of time; of all, if none does."""
    inside = [t for t in trials if t["static_ratio"] <= budget] or trials
    return max(inside, key=lambda t: (t["AP"]["full"], -t["static_ratio"]))
