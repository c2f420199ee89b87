"""Notebooks in batch: parameters checked before papermill runs, executed copies kept."""

from collections.abc import Sequence
from pathlib import Path

import papermill
import yaml

from eelib.config import NOTEBOOK_KEYS, ConfigError, merged, override, read_yaml, resolve
from studies.phases.config import PhaseConfig, parse

SMOKE = "base/smoke.yaml"  # what a notebook of phases runs without a phase


def read_settings(settings: Sequence[str]) -> dict[str, object]:
    """``["optim.epochs=3"]`` as dotted keys and YAML values; :class:`ConfigError` for a setting without "="."""
    pairs = [setting.partition("=") for setting in settings]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise ConfigError(f"--set {key}: expected KEY=VALUE, such as optim.epochs=3")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def check_parameters(notebook: Path | str, params: Path | str | None, settings: dict | None = None) -> dict:
    """Parameters of a file, checked against the notebook; papermill itself only warns.

    Args:
        notebook: has a cell tagged ``parameters``.
        params: parameter file, or None for the notebook's defaults.
        settings: dotted keys that replace values of the file.

    Raises:
        ConfigError: the notebook is missing, has no cell tagged ``parameters``, or does not
            know a key; or the file is not a valid configuration.
    """
    if not Path(notebook).is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    known = papermill.inspect_notebook(str(notebook))
    if not known:
        raise ConfigError(f"{notebook}: no cell tagged 'parameters'")
    if params is None and not settings:
        return {}
    values = override(read_yaml(params) if params else {}, settings or {})
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{params}: key '{unknown[0]}' is not a parameter of {notebook}: {', '.join(known)}")
    if "phase" in values:
        parse({key: value for key, value in values.items() if key not in NOTEBOOK_KEYS}, str(params))
    return values


def run_notebook(
    notebook: Path | str,
    out: Path | str,
    params: Path | str | None = None,
    settings: dict | None = None,
    **overrides: object,
) -> Path:
    """Execute a notebook by papermill into ``out``; the copy holds the traceback of a failure.

    Raises:
        ConfigError: the parameters do not fit.
        papermill.PapermillExecutionError: a cell failed.
    """
    values = check_parameters(notebook, params, settings) | overrides
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook), str(out), values, kernel_name="python3", cwd=str(Path(notebook).parent), log_output=False
    )
    return Path(out)


def phase_values(names: dict) -> dict:
    """The configuration in a notebook's namespace, merged over the parameter file that it extends.

    `eelib run` hands over merged parameters. papermill does not know ``extends`` and hands it over as it
    stands, so the file that it names is read here.

    Args:
        names: ``extends``, relative to ``params/``, and the fields of PhaseConfig, where an empty one is not given.
            Without a ``phase`` they are merged over the smoke run.
    """
    given = {key: names[key] for key in PhaseConfig.model_fields if names[key] not in ({}, None, "")}
    extends = names["extends"] if names["phase"] else SMOKE
    return merged(read_yaml(resolve("params") / extends), given) if extends else given
