"""Notebooks in batch: parameters checked before papermill runs, executed copies kept."""

from pathlib import Path

import papermill

from eelib.config import NOTEBOOK_KEYS, ConfigError, PhaseConfig, parse, read_yaml


def check_parameters(notebook: Path | str, params: Path | str | None) -> dict:
    """Parameters of a file, checked against the notebook; papermill itself only warns.

    Raises:
        ConfigError: the notebook is missing, has no cell tagged ``parameters``, or does not
            know a key; or the file is not a valid configuration.
    """
    if not Path(notebook).is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    known = papermill.inspect_notebook(str(notebook))
    if not known:
        raise ConfigError(f"{notebook}: no cell tagged 'parameters'")
    if params is None:
        return {}
    values = read_yaml(params)
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{params}: key '{unknown[0]}' is not a parameter of {notebook}: {', '.join(known)}")
    if "phase" in values:
        parse({key: value for key, value in values.items() if key not in NOTEBOOK_KEYS}, str(params))
    return values


def run_notebook(notebook: Path | str, out: Path | str, params: Path | str | None = None, **overrides: object) -> Path:
    """Execute a notebook by papermill into ``out``; the copy holds the traceback of a failure.

    Raises:
        ConfigError: the parameters do not fit.
        papermill.PapermillExecutionError: a cell failed.
    """
    values = check_parameters(notebook, params) | overrides
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook), str(out), values, kernel_name="python3", cwd=str(Path(notebook).parent), log_output=False
    )
    return Path(out)


def phase_values(names: dict) -> dict:
    """The configuration's part of a notebook's namespace; an empty group takes its defaults."""
    return {key: names[key] for key in PhaseConfig.model_fields if names.get(key, {}) != {}}
