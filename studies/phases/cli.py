"""``eelib phases``: the nine recorded phases from the command line."""

import functools
import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

from eelib.files import InputError, look_up, write_json
from eelib.options import Json, Set, Share

_flushed = functools.partial(print, flush=True)
app = App("phases", help="The nine recorded phases: check, train, validate, ablate.")


@app.command
def preflight(config: Path, /, *, images: PositiveInt = 24, as_json: Json = False) -> int:
    """Check in seconds whether this phase can learn to detect, and whether its rule can divide images between exits.

    Example: eelib phases preflight params/phase_1_1.yaml

    Args:
        config: parameter file of a phase (YAML).
        images: training images that are looked at.
        as_json: one JSON list for machines.
    """
    from studies.phases.config import load

    settings = load(config)
    from studies.phases.preflight import preflight as measure

    checks = measure(settings, images)
    if as_json:
        print(json.dumps([check._asdict() for check in checks]))
    for check in () if as_json else checks:
        verdict = "ok  " if check.holds else "FAIL"
        print(f"{verdict}  {check.name}: {check.question} is {check.measured:.3f}, expected {check.expected}")
    return 0 if all(check.holds for check in checks) else 1


@app.command
def train(
    config: Path, /, *, profile: str = "", runs: Path = Path("runs"), reports: Path | None = None,
    weights: Path | None = None, set_: Set = None,
) -> None:  # fmt: skip
    """Train a phase as its switches say, or go on with it, and measure it on test.

    Example: eelib phases train params/phase_1_7.yaml --profile serious --reports runs/reports

    Args:
        config: parameter file of a phase (YAML).
        profile: of params/profiles.yaml, such as serious.
        runs: folder of the trained phases; a profile has a folder of its own in it.
        reports: folder of reports that gets what was measured, and the curves by epoch.
        weights: also save the trained branches to this file, in half precision; the trunk is the start's.
        set_: KEY=VALUE in place of a value of the file; may be given often.
    """
    from eelib.config import read_settings, resolve
    from studies.phases.config import load, profile_changes

    settings = load(config, profile_changes(config.stem, profile) | read_settings(set_ or ()))
    if (start := settings.model.start) and not resolve(start).is_file():
        raise InputError(f"{config}: key 'model.start' is '{start}': no such checkpoint")
    from studies.phases.scorecard import summarise
    from studies.phases.trained import run_folder, ship
    from studies.phases.trainer import train_phase
    from studies.phases.verdicts import publish_run

    out = run_folder(settings, runs / profile)
    trained = train_phase(settings, out, resume=True, log=_flushed)
    summary = summarise(settings, trained["detector"], trained["history"], out)
    if reports:
        publish_run(settings, summary, out, reports, profile)
    if weights:
        ship(trained["detector"], settings, weights)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in summary["exit_shares"].items())
    print(f"phase {settings.phase}: images leave at {shares}; AP {summary['AP']:.3f} on test; {out}")


@app.command
def validate(
    phase: str | None = None, /, *, all_: Annotated[bool, Parameter("--all", negative="")] = False,
    compute_map: bool = False, score: Share = 0.5, runs: Path = Path("runs"), as_json: Json = False,
) -> None:  # fmt: skip
    """Report the AP of trained phases on test, which the record never measured, and the decision by its rule.

    Example: eelib phases validate 1.4 --compute-map

    Args:
        phase: one with a file in params/, such as 1.4; by default all.
        all_: all phases, which is the default.
        compute_map: run the detector on test now (in a fresh clone only that of 1.4 exists); otherwise the values
            that were measured after the training are read (in a fresh clone, from reports/).
        score: least score for precision and recall.
        runs: folder of the trained phases.
        as_json: one JSON object (of one phase) or list for machines.
    """
    if phase and all_:
        raise InputError(f"phase {phase} --all: expected a phase or --all")
    params = look_up("params")
    paths = [params / f"phase_{phase.replace('.', '_')}.yaml"] if phase else sorted(params.glob("phase_1_*.yaml"))
    from studies.phases.config import load

    configs = [load(path) for path in paths]
    from studies.phases.scorecard import validate as measure
    from studies.phases.trained import run_folder

    answers = []
    for config in configs:
        answers.append(measure(config, run_folder(config, runs), compute=compute_map, score=score))
        if not as_json:
            print(
                "phase {phase} on {split}: AP {AP:.3f}, AP50 {AP50:.3f}; at score {score} precision {precision:.3f}, "
                "recall {recall:.3f}, {detections_per_image:.1f} detections per image. "
                "Decision: {decision}. From {source}.".format(**answers[-1]),
                flush=True,
            )
    if as_json:
        print(json.dumps(answers[0] if phase else answers))


@app.command
def ablate(params: Path, /, *, part: Annotated[str, Parameter("--part")] = "1/1", reports: Path | None = None) -> None:
    """Train and measure a ladder or an ablation, or a part of it; 05c_causal and 05e_ablation read what it writes.

    Args:
        params: parameter file of either (YAML), params/causal.yaml or params/ablation.yaml.
        part: K/N, the K-th of N parts, to run side by side.
        reports: folder of reports that gets, of all parts, metrics/NAME.json, where NAME is the parameter file's.
    """
    from eelib.config import ConfigError, read_yaml, resolve

    first, _, parts = part.partition("/")
    if not (first.isdecimal() and parts.isdecimal() and 1 <= int(first) <= int(parts)):
        raise ConfigError(f"--part {part}: expected K/N with K from 1 to N")
    values = read_yaml(params)
    for key in ("base", "variants", "common", "seeds", "runs", "resamples"):
        if key not in values:
            raise ConfigError(f"{params}: key '{key}' is missing; expected the parameter file of an ablation")
    from studies.phases import ablation

    jobs = ablation.jobs_of(resolve(values["base"]), values["variants"], values["common"], values["seeds"])
    for job in jobs[int(first) - 1 :: int(parts)]:
        ablation.run_job(job, resolve(values["runs"]), values["resamples"], log=_flushed)
    if reports:
        write_json(reports / "metrics" / f"{params.stem}.json", ablation.study(values, _flushed))
