"""A small architecture search by optuna: width, input size, SSDLite maps and places of exits.

A candidate starts from its width's weights, is trained for a few steps and measured on a part of ``val``: a proxy that
ranks and is never reported. Its time is measured on its own export, in turn with the plain detector. What is chosen
is trained like every other system.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydantic import Field

from eelib.checkpoints import load_checkpoint
from eelib.config import Config, Cut, Group, merged, parse, resolve
from eelib.files import write_json
from eelib.train import train
from studies.compress.systems import System, measure_times, opened

Log = Callable[[str], None]


class Space(Group):
    """The key ``search`` of ``params/search.yaml``."""

    trials: int = Field(8, ge=1)
    starts: dict[str, str]  # width to the checkpoint that its candidates start from
    sizes: list[int] = [320, 256, 224]
    maps: list[int] = [6, 5, 4]
    exits: list[list[Cut]] = [[]]  # children of the trunk before each exit; [] has full alone
    reference: str = "checkpoints/baseline.pth"  # the plain detector: its time is 1
    budget: float = Field(0.75, gt=0)  # of time, that the choice keeps to
    timed_images: int = Field(30, ge=2)  # of val


def settings_of(params: Mapping, space: Space) -> dict[str, dict]:
    """A trial's parameters as the groups ``model`` and ``data`` of a parameter file."""
    exits = [int(cut) for cut in params["exits"].split(",") if cut]
    model = {"start": space.starts[params["width"]], "maps": params["maps"], "exits": exits}
    return {"model": model, "data": {"size": params["size"]}}


def candidate(params: Mapping, config: Config, space: Space, out: Path) -> tuple[dict, dict]:
    """Train a candidate shortly and time it.

    Returns:
        AP of each exit on the part of ``val``, and each exit's time as a share of the plain detector's.
    """
    values = merged(config.model_dump(mode="json"), settings_of(params, space))
    checkpoint = train(parse(values, f"trial {params}"), out, resume=True, log=lambda _: None)
    last = load_checkpoint(checkpoint)["history"][-1]
    ap = {key.removesuffix("_AP"): value for key, value in last.items() if key.endswith("_AP")}
    systems = [
        System("reference", "plain", 0, resolve(space.reference), out.parent / "reference", int8=False),
        System("candidate", "search", 0, checkpoint, out / "export", int8=False),
    ]
    sessions = {system.name: opened(system) for system in systems}
    times = measure_times(sessions, "val", space.timed_images, log=lambda _: None)
    reference = times["reference", "full"]["median_ms"]
    return ap, {name: times["candidate", name]["median_ms"] / reference for name in ap}


def search(config: Config, space: Space, out: Path | str, log: Log = print) -> dict:
    """The search, resumed where it stopped; ``search.json`` in ``out``, the folder of the trials.

    A candidate with exits stands for the mean of its exits' AP and time: a coin among them.

    Args:
        config: of the short trainings, but for what a trial sets.

    Returns:
        ``trials`` (parameters, AP and time of each exit, and their means), ``front`` (numbers of the trials that no
        other one beats in both) and ``chosen``: the groups ``model`` and ``data`` of the parameter file of the trial on
        the front with the best mean AP within the budget; the fastest one, if none does.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    exits = [",".join(map(str, cuts)) for cuts in space.exits]  # optuna chooses among plain values
    choices = {"width": list(space.starts), "size": space.sizes, "maps": space.maps, "exits": exits}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {name: trial.suggest_categorical(name, values) for name, values in choices.items()}
        ap, times = candidate(params, config, space, out / f"trial_{trial.number}")
        trial.set_user_attr("AP", ap)
        trial.set_user_attr("time_ratio", times)
        log(f"trial {trial.number}: {params} AP {', '.join(f'{value:.3f}' for value in ap.values())}")
        return float(np.mean(list(ap.values()))), float(np.mean(list(times.values())))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / "journal.log"))), study_name="search",
        directions=["maximize", "minimize"], load_if_exists=True,
    )  # fmt: skip
    if not study.trials:
        study.enqueue_trial({name: values[0] for name, values in choices.items()})  # what all others are beside
    # a sampler does not remember the numbers that it drew before a stop: with the same seed it would draw them again
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=4, seed=config.seed + len(study.trials))
    study.optimize(objective, n_trials=max(0, space.trials - len([t for t in study.trials if t.values])))
    trials = [
        {"number": t.number, "params": t.params, **t.user_attrs, "mean_AP": t.values[0], "mean_time_ratio": t.values[1]}
        for t in study.trials if t.values
    ]  # fmt: skip
    front = [trial.number for trial in study.best_trials]
    chosen = choose([trial for trial in trials if trial["number"] in front], space.budget)
    result = {"trials": trials, "front": front, "chosen": settings_of(chosen["params"], space)}
    write_json(out / "search.json", result)
    return result


def choose(trials: list[dict], budget: float) -> dict:
    """The trial with the best mean AP within a budget of time; the fastest, if none keeps to it."""
    inside = [trial for trial in trials if trial["mean_time_ratio"] <= budget]
    if not inside:
        return min(trials, key=lambda trial: trial["mean_time_ratio"])
    return max(inside, key=lambda trial: (trial["mean_AP"], -trial["mean_time_ratio"]))
