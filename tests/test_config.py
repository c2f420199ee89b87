import pytest

from eelib.checkpoints import load_checkpoint
from eelib.config import ROOT, Config, ConfigError, load_config, migrate, override, parse, read_settings, read_yaml

MINIMAL = {"name": "t"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optim": {"lr": "1e-4"}},
            "key 'optim.lr' is '1e-4': input should be a valid number; write it without quotes",
        ),
        ({"loss": {"clasification": "giou"}}, "unknown key 'loss.clasification'; did you mean 'classification'"),
        ({"optm": {}}, "unknown key 'optm'; did you mean 'optim'"),
        ({"name": 1.4}, "key 'name' is 1.4"),
        ({"loss": {"distillation": -1.0}}, "key 'loss.distillation' is -1.0"),
        ({"optim": {"lr": float("inf")}}, "key 'optim.lr' is inf"),
        ({"loss": {"iou_threshold": float("nan")}}, "key 'loss.iou_threshold' is nan"),
        ({"data": {"size": 300}}, "key 'data.size' is 300.*multiple of 32"),
        ({"data": {"size": 40_000}}, "key 'data.size' is 40000"),
        ({"optim": {"accelerator": "tpu"}}, "key 'optim.accelerator' is 'tpu'"),
        ({"optim": {"workers": 100_000}}, "key 'optim.workers' is 100000"),
        ({"seed": 2**63}, "key 'seed' is 9223372036854775808"),
        ({"model": {"exits": [4]}}, "key 'model.exits.0' is 4"),
        ({"model": {"exits": [5, 6, 7, 8, 9, 10]}}, "key 'model.exits'.*at most 5"),
        ({"data": {"root": ["x" * 1000] * 40}}, "key 'data.root' is list of 40"),
        ({1: 2}, "key 1 is not text"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(MINIMAL | values, "f.yaml")
    assert str(caught.value).startswith("f.yaml: ") and len(str(caught.value)) < 400


def test_a_configuration_has_a_name():
    with pytest.raises(ConfigError, match="key 'name' is missing"):
        parse({})
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse([])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"exits": [12, 8]}}, r"'model.exits' is \[12, 8\]: expected cuts that rise"),
        ({"model": {"exits": [8, 8]}}, "expected cuts that rise"),
        ({"model": {"exits": [], "full": False}}, "'model.full'.*True where there is no exit"),
        ({"model": {"exits": [8], "full": False, "maps": 4}}, "'model.maps' is 4: expected 6 where there is no full"),
        ({"model": {"exits": [], "train_trunk": False}}, "'model.train_trunk'.*no exit to train"),
        ({"model": {"train_trunk": False, "blank_gate": True}}, "'model.blank_gate'.*trunk is frozen"),
        ({"model": {"exits": [7], "full": False, "blank_gate": True}}, "'model.blank_gate'.*8th child"),
        ({"loss": {"exit_weights": [1.0, 1.0]}}, "'loss.exit_weights'.*3 numbers, one for each exit"),
        ({"model": {"exits": []}, "loss": {"distillation": 1.0}}, "'loss.distillation'.*no full path or no exit"),
        ({"model": {"train_trunk": False}, "loss": {"gradient_rescaling": True}}, "'loss.gradient_rescaling'"),
        (
            {"data": {"root": "mine", "files": {"train": {"annotations": "a", "images": "b"}}}},
            "'data.root'.*no root beside data.files",
        ),
    ],
)
def test_settings_without_effect_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(MINIMAL | values)


def test_override_sets_dotted_keys():
    assert override({"a": {"b": 1}}, {"a.b": 2, "c.d": 3}) == {"a": {"b": 2}, "c": {"d": 3}}
    with pytest.raises(ConfigError, match="--set name.x: 'name' is 't', not a group"):
        override(MINIMAL, {"name.x": 1})


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match="no such parameter file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")


OLD = {
    "phase": "2.6",
    "seed": 3,
    "model": {"architecture": "ssdlite", "exits": True, "start": "a.pth", "train_trunk": False, "single_map": False},
    "data": {"root": "data/showroom", "image_sizes": [[0, 192], [4, 256]], "augment": "ssd", "normalise": True},
    "targets": {"iou_threshold": 0.4, "assignment": "iou"},
    "loss": {"classification": "quality_focal", "exit_weights": [1.0, 2.0, 3.0], "distillation": 1.0, "teacher": 0.0},
    "thresholds": {"exit1": 0.5},
    "optim": {"epochs": 8, "lr": 1.4e-3, "decay_all": False, "cosine": "step", "clip_norm": 10.0},
}


def test_a_configuration_of_version_0_1_is_read():
    config = parse(migrate(OLD))
    assert (config.name, config.seed, config.model.exits, config.data.size) == ("2.6", 3, [8, 12], 256)
    assert config.loss.iou_threshold == 0.4 and config.loss.exit_weights == [1.0, 2.0, 3.0]
    assert config.optim.epochs == 8 and not config.model.train_trunk
    baseline = OLD | {"model": {"architecture": "ssdlite", "exits": False}, "loss": {"exit_weights": [1.0, 1.0, 1.0]}}
    assert parse(migrate(baseline)).model.exits == [] and parse(migrate(baseline)).loss.exit_weights is None
    with pytest.raises(ConfigError, match="phase 2.6 is a recorded phase"):
        migrate(OLD | {"model": {"architecture": "recorded"}})
    today = Config(name="t").model_dump(mode="json")
    assert migrate(today) == today


@pytest.mark.parametrize("name", ["phases_start", "baseline", "exits_256", "exits_320"])
def test_released_configurations_are_valid(name):
    state = load_checkpoint(ROOT / "checkpoints" / f"{name}.pth")
    assert parse(migrate(state["config"])).optim.epochs > 0


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb:\n  c: 1\n  c: 2", "key 'c' stands twice, in line 3 and in line 4"),
        (b"optim: {a: 1}\nx: 1\noptim: {b: 2}", "key 'optim' stands twice, in line 1 and in line 3"),
        (b"a: &a [*a]", "line 1: a value that holds itself"),
        (b"a: &a [1]\n"
         + b"\n".join(b"%c: &%c [%s]" % (k + 1, k + 1, b", ".join([b"*%c" % k] * 20)) for k in range(97, 105)),
         "stands for more than 10,000 values"),
        (b"1: 2", "line 1: key 1 is not text"),
        (b"a: {[1]: 2}", "line 1: key that is a sequence is not text"),
        (b"a: 2020-99-99", "not valid YAML .month must be in 1..12"),
        (b"a: !!int 'x'", "not valid YAML"),
        (b"a: !!timestamp 'x'", "not valid YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML .could not determine a constructor"),
        (b"a: " + b"9" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 50_000, "nested too deeply"),
        (b'a: "\\0"', "text with a NUL character"),
        (b"a: 1\n---\nb: 2", "found another document in line 2"),
        (b"a: \xe9", "not UTF-8 text"),
        (b"a: 1\n" * 300_000, "larger than 1,048,576 bytes"),
        (b"", "expected a mapping of groups, got NoneType"),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_told_in_one_short_line(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < 400


def test_what_is_plain_yaml_is_read(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfx: &x {a: 1e-3}\ny: {<<: *x, b: [1, 2E5, .5e1]}\nz: ['1e-3', \"1e5\", 1e]")
    assert read_yaml(path) == {"x": {"a": 1e-3}, "y": {"a": 1e-3, "b": [1, 2e5, 5.0]}, "z": ["1e-3", "1e5", "1e"]}


def test_a_rate_needs_no_point(tmp_path):
    (tmp_path / "f.yaml").write_text("name: t\noptim: {lr: 1e-4, weight_decay: 5E-4}")
    optim = load_config(tmp_path / "f.yaml").optim
    assert (optim.lr, optim.weight_decay) == (1e-4, 5e-4)


def test_settings_are_read_with_plain_numbers():
    given = ["optim.lr=1e-3", "a.b=-2E5", "c='1e-3'", "d=[.5e1, 2]", "e=null", "f=", "g=1e", "h=x=y"]
    expected = {"optim.lr": 1e-3, "a.b": -2e5, "c": "1e-3", "d": [5.0, 2], "e": None, "f": None, "g": "1e", "h": "x=y"}
    assert read_settings(given) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optim.lr=[1"], r"--set optim.lr: not valid YAML \(expected ',' or '\]'"),
        (["optim.lr"], "--set 'optim.lr': expected KEY=VALUE, such as optim.epochs=3"),
        (["=1"], "expected KEY=VALUE"),
        (["a..b=1"], "expected KEY=VALUE"),
        (["a=1", "a=2"], "--set a: given twice"),
        (["a=" + "[" * 5000], "--set a: not valid YAML .nested too deeply"),
        (["a={1: 2}"], "--set a: line 1: key 1 is not text"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(settings)


SYSTEMS = [path for path in sorted((ROOT / "params").glob("*.yaml")) if "extends: base/recipe" in path.read_text()]


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_every_system_is_a_parameter_file(path):
    values = {key: value for key, value in read_yaml(path).items() if key not in ("search", "curve")}
    config = parse(values, str(path))
    assert config.name == path.stem
