"""Notebooks in batch: parameters checked before papermill runs, executed copies kept."""

import base64
import io
import json
import sys
from pathlib import Path

import nbformat
import papermill
from papermill.iorw import LocalHandler, papermill_io
from PIL import Image

from eelib.config import ConfigError, merged, of_the_run, override, read_yaml, resolve
from eelib.files import shorten, write_atomic
from eelib.preprocess import upright_rgb
from studies.phases.config import PhaseConfig, parse
from studies.plots import png_of


class _Whole(LocalHandler):
    """Executed copies, which papermill writes again after each cell, whole or not at all."""

    def write(self, buf: str, path: str) -> None:
        """Called by papermill."""
        write_atomic(Path(self._cwd or "", path), lambda file: file.write(buf.encode()))


papermill_io.register("", _Whole())  # of every path
SMOKE = "base/smoke.yaml"  # what a notebook of phases runs without a phase


def check_parameters(notebook: Path | str, params: Path | str | None, settings: dict | None = None) -> dict:
    """Parameters of a file, if there is one, and dotted keys of ``settings``, checked against the cell tagged
    ``parameters`` of a notebook; papermill itself only warns.

    Raises:
        ConfigError: the notebook is missing, is none, has no cell tagged ``parameters``, or does not know a key; or
            the file is not a valid configuration, or holds what no notebook can be given, such as a date.
    """
    known = parameters_of(notebook)
    values, source = override(read_yaml(params) if params else {}, settings or {}), str(params or "--set")
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ConfigError(f"{source}: key '{unknown[0]}' is not a parameter of {notebook}: {', '.join(known)}")
    if "phase" in values:
        parse(of_the_run(values), source)
    for key, value in values.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ConfigError(f"{source}: key '{key}' is {shorten(value)}; expected text, numbers or lists") from None
    return values


def parameters_of(notebook: Path | str) -> list[str]:
    """Names in the cell tagged ``parameters``; :class:`ConfigError` where there is none, or no notebook."""
    if not Path(notebook).is_file() or Path(notebook).suffix != ".ipynb":
        raise ConfigError(f"{notebook}: no such notebook; expected a file that ends in .ipynb")
    try:
        known = papermill.inspect_notebook(str(notebook))
    except Exception as error:  # papermill and nbformat raise a different type for each way of being no notebook
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{notebook}: not a notebook ({reason[:200]})") from None
    if not known:
        raise ConfigError(f"{notebook}: no cell tagged 'parameters'")
    return list(known)


def run_notebook(notebook: Path, out: Path, params: Path | None, settings: dict) -> None:
    """Execute a notebook by papermill into ``out``; the copy holds the traceback of a failure, or small pictures.

    Raises:
        ConfigError: the parameters do not fit.
        papermill.PapermillExecutionError: a cell failed.
    """
    values = check_parameters(notebook, params, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook), str(out), values, kernel_name="python3", cwd=str(notebook.parent),
        progress_bar=sys.stderr.isatty(),
    )  # fmt: skip
    shrink_pictures(out)


def shrink_pictures(path: Path) -> None:
    """Store the pictures of an executed notebook in 256 colours: they are most of its bytes."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    for data in outputs:
        if "image/png" in data:
            drawn = base64.b64decode(data["image/png"])
            small = png_of(upright_rgb(Image.open(io.BytesIO(drawn))))
            data["image/png"] = base64.b64encode(min(drawn, small, key=len)).decode()
    papermill_io.write(nbformat.writes(notebook), str(path))


def phase_values(names: dict) -> dict:
    """The configuration in a notebook's namespace, merged over the parameter file that it extends.

    `eelib study run` hands over merged parameters. papermill does not know ``extends`` and hands it over as it
    stands, so the file that it names is read here.

    Args:
        names: ``extends``, relative to ``params/``, and the fields of PhaseConfig, where an empty one is not given.
            Without a ``phase`` they are merged over the smoke run.
    """
    given = {key: names[key] for key in PhaseConfig.model_fields if names[key] not in ({}, None, "")}
    extends = names["extends"] if names["phase"] else SMOKE
    return merged(read_yaml(resolve("params") / extends), given) if extends else given
