import pytest

from eelib.config import ROOT, ConfigError, read_yaml
from studies.phases.config import PhaseConfig, load, parse

PHASES = [*(ROOT / "params").glob("phase_1_*.yaml"), ROOT / "params/phase_2_0_recorded.yaml"]


@pytest.mark.parametrize("path", sorted(PHASES), ids=lambda p: p.stem)
def test_every_phase_file_is_valid(path):
    assert load(path).phase in path.read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"phase": "1.4", "optim": {"lr": "1e-4"}},
            "key 'optim.lr' is '1e-4': input should be a valid number; write it without quotes",
        ),
        (
            {"phase": "1.4", "targets": {"class_layuot": "permuted"}},
            "unknown key 'targets.class_layuot'; did you mean 'class_layout'",
        ),
        ({"phase": "1.4", "optm": {}}, "unknown key 'optm'; did you mean 'optim'"),
        ({"phase": 1.4}, "key 'phase' is 1.4"),
        ({}, "key 'phase' is missing"),
        ({"phase": "1.4", "loss": {"teacher": 2.0}}, "key 'loss.teacher' is 2.0"),
        ([], "expected a mapping"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(values, "f.yaml")
    assert str(caught.value).startswith("f.yaml: ")


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="no such parameter file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")


def test_the_default_is_the_right_behaviour():
    config = PhaseConfig(phase="x")
    assert config.targets.assignment == "iou"
    assert config.targets.class_layout == "permuted"
    assert config.routing.unit == "image"
