import pytest

from eelib.config import ROOT, ConfigError, PhaseConfig, load, parse, read_yaml


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("phase_*.yaml")), ids=lambda p: p.stem)
def test_every_phase_file_is_valid(path):
    assert load(path).phase in path.read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phase": "1.4", "optim": {"lr": "1e-4"}}, "key 'optim.lr' is '1e-4'.*write 1.0e-4 without quotes"),
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


def files(folder, **texts):
    """Parameter files by stem, one text each; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def test_a_file_says_what_it_changes_of_its_base(tmp_path):
    (tmp_path / "base").mkdir()
    far = "a: 1\nb: {x: 1, y: {p: 1, q: 2}}\nc: [1, 2]"
    files(tmp_path / "base", near="extends: far.yaml\nb: {y: 3}\nd: {z: 1}", far=far)
    path = files(tmp_path, top="extends: base/near.yaml\nb: {x: 5}\nc: [3]\nd: 7\ne: {}")
    assert read_yaml(path) == {"a": 1, "b": {"x": 5, "y": 3}, "c": [3], "d": 7, "e": {}}
    assert read_yaml(tmp_path / "base" / "far.yaml")["b"] == {"x": 1, "y": {"p": 1, "q": 2}}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "extends: none.yaml"}, r"a.yaml: key 'extends' names .*none.yaml; expected an existing"),
        ({"a": "extends: a.yaml"}, r"a.yaml: key 'extends' is 'a.yaml', which closes a circle; .* is a.yaml"),
        (
            {"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: b.yaml"},
            r"c.yaml: key 'extends' is 'b.yaml', which closes a circle; .* is a.yaml, b.yaml, c.yaml",
        ),
        ({"a": "extends: [b.yaml]", "b": "x: 1"}, r"a.yaml: key 'extends' is \['b.yaml'\]; expected a path"),
        ({"a": "extends: b.yaml", "b": "x: [1"}, r"b.yaml: not valid YAML"),
        ({"a": "extends: b.yaml", "b": "- 1"}, r"b.yaml: expected a mapping"),
    ],
)
def test_bad_bases_are_named(tmp_path, texts, message):
    with pytest.raises(ConfigError, match=message):
        read_yaml(files(tmp_path, **texts))


def test_the_default_is_the_right_behaviour():
    config = PhaseConfig(phase="x")
    assert config.targets.assignment == "iou"
    assert config.targets.class_layout == "permuted"
    assert config.routing.unit == "image"
