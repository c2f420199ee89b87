"""Structure of the notebooks; nbval runs them."""

import nbformat
import papermill
import pytest
import yaml

from eelib.config import ROOT, ConfigError, read_yaml
from studies.batch import SMOKE, check_parameters, phase_values
from studies.phases.config import PhaseConfig, load, parse

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What the parameters cell of 05_routing gives where no parameter file does.
DEFAULTS = {key: {} for key in PhaseConfig.model_fields} | {"extends": "", "phase": "", "seed": None}
# Which notebook a parameter file drives.
DRIVES = {
    "phase_1": "05_routing",
    "report_record": "00_record",
    "report_data": "01_data",
    "report_matching": "02_anchor_matching",
    "report_preflight": "02b_preflight",
    "report_detector": "06b_detector",
    "report_baseline": "03_baseline",
    "report_exits": "04_exits",
    "report_blank": "05f_blank",
    "report_acceleration": "07_acceleration",
    "report_policies": "05d_policies",
    "report_validation": "06_validation",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_structure(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    assert not any(c.outputs or c.execution_count for c in code), "strip the outputs"
    assert len(code) <= 20
    for cell in code:
        lines = [line for line in cell.source.splitlines() if not line.startswith(("import ", "from "))]
        assert len(lines) <= 18, cell.source  # a plotting helper may stand in one


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_parameters_are_known_to_the_notebook(path):
    driven = [name for prefix, name in DRIVES.items() if path.stem.startswith(prefix)]
    if not driven:  # a command's: a training or a study
        assert read_yaml(path).keys() & {"name", "phase", "systems", "variants", "serious"}
        return
    known = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{driven[0]}.ipynb"))
    assert read_yaml(path).keys() <= known.keys()


def test_an_unknown_parameter_is_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("limitt: 3\n")
    with pytest.raises(ConfigError, match="key 'limitt' is not a parameter"):
        check_parameters(ROOT / "notebooks" / "03_baseline.ipynb", tmp_path / "p.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("phase_1_*.yaml")), ids=lambda p: p.stem)
def test_papermill_and_eelib_run_the_same_phase(path):
    by_papermill = DEFAULTS | yaml.safe_load(path.read_text())
    by_eelib = DEFAULTS | check_parameters(ROOT / "notebooks" / "05_routing.ipynb", path)
    assert parse(phase_values(by_papermill)) == parse(phase_values(by_eelib)) == load(path)


def test_without_a_phase_the_smoke_run_takes_the_values_that_are_given():
    assert parse(phase_values(DEFAULTS)) == load(ROOT / "params" / SMOKE)
    config = parse(phase_values(DEFAULTS | {"seed": 3, "optim": {"epochs": 1}}))
    assert (config.seed, config.optim.epochs, config.optim.batch_size) == (3, 1, 4)
