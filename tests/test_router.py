"""A router's file routes as the setting that it was written from, and nothing wrong is read."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from synthetic import noisy

from eelib.deploy.evidence import (
    EVIDENCE,
    Benefit,
    Column,
    Function,
    Isotonic,
    Never,
    Platt,
    Raw,
    Regressor,
    RouterError,
)
from eelib.deploy.router import Budget, Gate, Guarantee, Router, Times
from eelib.guarantee import certified, sequence
from eelib.policies import POLICIES, settings_of
from eelib.routing import PolicyError, Setting, Split, choose, prepare

COSTS, PASSING = (0.5, 0.7, 1.0), (0.0, 0.01, 0.03)


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    rng, made = np.random.default_rng(0), {}
    for seed, name in enumerate(("val", "calibrate", "test")):
        coco, records = noisy(60, seed=seed, split=name)
        records.evidence[..., 1:] = rng.random((60, 3, len(EVIDENCE) - 1))
        made[name] = coco, records
    records, cocos = ({name: pair[k] for name, pair in made.items()} for k in (1, 0))
    return prepare(records, cocos, COSTS, "platt", passing=PASSING)


def router_of(setting: Setting, split: Split, promise: Budget | Guarantee | None = None, **changes) -> Router:
    values = {
        "exits": split.records.exit_names, "confidence": setting.confidence, "thresholds": setting.thresholds,
        "calibrators": split.calibrators, "gates": (), "promise": promise, "gates_promise": None, "size": 320,
        "times": Times(COSTS, PASSING, (), "the plain detector", {"processor": "one", "threads": "1"}),
        "checkpoint_sha256": "a" * 64, "data_sha256": {"val": "b" * 64, "calibrate": "c" * 64},
    }  # fmt: skip
    return Router(**(values | changes))


def through_json(router: Router) -> Router:
    read = Router.from_dict(json.loads(json.dumps(router.to_dict())))
    assert read == router
    return read


def half(evidence: np.ndarray) -> np.ndarray:
    """A confidence of the user's own."""
    return evidence[:, -1].mean(1).clip(0, 1)


@pytest.mark.parametrize("name", [*POLICIES, f"{__name__}:half"])
def test_every_policy_routes_by_its_file_as_in_the_study(name, splits):
    test = splits["test"]
    settings = settings_of(name, splits["calibrate"], splits["val"], {"grid": 6})
    for budget, setting in zip((0.6, 0.75, 0.9), choose(settings, splits["calibrate"], (0.6, 0.75, 0.9)), strict=True):
        read = through_json(router_of(setting, test, Budget(budget, 0.5)))
        evidence = test.columns(read.confidence.evidence)
        assert (read.route(evidence) == setting.route(test)).all()
        for row in range(0, len(test.records), 7):  # one image at a time, with what has run by then alone
            taken = next(k for k in range(3) if read.leaves(evidence[row : row + 1, : k + 1], k)[0])
            assert taken == setting.route(test)[row]


def test_a_policy_that_no_file_can_hold_is_refused_with_the_reason(splits):
    with pytest.raises(PolicyError, match="policy: 'magic' is unknown; expected fixed, .*, or module:function"):
        settings_of("magic", splits["calibrate"], splits["val"], {"grid": 3})
    with pytest.raises(RouterError, match="'nowhere:half': .*expected module:function to import"):
        settings_of("nowhere:half", splits["calibrate"], splits["val"], {"grid": 3})
    router = router_of(Setting((0.5, 0.5), Column("top_score")), splits["test"])
    with pytest.raises(RouterError, match="confidence is of type function, which no file can hold"):
        replace(router, confidence=lambda evidence: evidence)


def test_gates_end_images_before_the_exits_behind_them(splits):
    setting, test = Setting((0.5, 0.5), Column("top_score")), splits["test"]
    gates = Gate(0, 0.3), Gate(1, 0.5)
    times = Times(COSTS, PASSING, (0.1, 0.6), "the plain detector", {})
    promise = Guarantee("objects", 0.02, 0.1, 400, "betting", 0.05, (), 0.01)
    read = through_json(router_of(setting, test, gates=gates, times=times, gates_promise=promise))
    assert "objects lost by the blank gates <= 0.02 with probability 0.9" in read.describe()
    evidence, holds = test.columns(("top_score",)), np.random.default_rng(0).random((60, 2))
    exits, chosen = setting.route(test), read.route(evidence, holds)
    ends_first = holds[:, 0] < 0.3
    ends_second = ~ends_first & (holds[:, 1] < 0.5) & (exits >= 1)
    assert (chosen == np.where(ends_first, 3, np.where(ends_second, 4, exits))).all()
    assert ends_first.any() and ends_second.any() and (chosen < 3).any()


def test_a_file_is_read_as_it_was_saved(splits, tmp_path):
    router = router_of(Setting((0.5, 0.5), Column("top_score")), splits["test"], Budget(0.75, 0.7))
    assert Router.load(router.save(tmp_path / "router.json")) == router
    whole = (tmp_path / "router.json").read_text()
    for text, message in (
        (whole[:-40], "router.json: not valid JSON"), ("", "router.json: not valid JSON"),
        ("[" * 200_000, "router.json: not valid JSON .nested too deeply"),
        ("[]", "router.json: expected an object of JSON, got list"),
        (whole.replace('"size": 320', '"size": 320.5'), r"router.json: router.size is 320.5; expected a whole number"),
    ):  # fmt: skip
        (tmp_path / "router.json").write_text(text)
        with pytest.raises(RouterError, match=message):
            Router.load(tmp_path / "router.json")
    with pytest.raises(RouterError, match="none.json: no such router; `eelib route --out"):
        Router.load(tmp_path / "none.json")


def test_a_certified_router_and_its_promise_are_read_again(splits):
    settings = sequence(splits["val"], steps=10)
    stated = certified(splits["calibrate"], settings, 0.2, 0.1)
    levels = (stated[k] for k in ("epsilon", "delta", "n", "bound", "p_value"))
    promise = Guarantee("f1", *levels, tuple(stated["cuts"]), stated["risk"])
    read = through_json(router_of(settings[stated["index"]], splits["test"], promise))
    assert read.promise.epsilon == 0.2 and "F1 lost <= 0.2 with probability 0.9" in read.describe()
    evidence = splits["test"].columns(read.confidence.evidence)
    assert (read.route(evidence) == settings[stated["index"]].route(splits["test"])).all()


@pytest.mark.parametrize("calibrator", [Raw(), Platt(0.7, -0.1), Isotonic((0.0, 0.3, 1.0), (0.0, 0.6, 1.0))])
def test_calibrators_map_as_before_they_were_written(calibrator, splits):
    setting = Setting((0.5, 0.5), Column("top_score"))
    read = through_json(router_of(setting, splits["test"], calibrators=(calibrator,) * 3))
    scores = np.linspace(0, 1, 11)
    assert (read.calibrators[1](scores) == calibrator(scores)).all()


def test_without_a_certified_setting_all_images_take_full(splits):
    read = through_json(router_of(Setting((1.0, 1.0), Never()), splits["test"]))
    assert not read.early and (read.route(splits["test"].columns(())) == 2).all()


def edited(values: dict, path: str, value: object) -> dict:
    """A copy of JSON values with one of them replaced, or removed where the value is ``...``."""
    values, *keys = json.loads(json.dumps(values)), *path.split(".")
    place = values
    for key in keys[:-1]:
        place = place[int(key)] if key.isdecimal() else place[key]
    last = int(keys[-1]) if keys[-1].isdecimal() else keys[-1]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return values


@pytest.fixture(scope="module")
def values(splits) -> dict:
    """A router of the benefit, as its file has it."""
    settings = settings_of("benefit", splits["calibrate"], splits["val"], {"grid": 3, "evidence": TWO})
    return router_of(settings[0], splits["test"], Budget(0.75, 0.7), gates=(Gate(0, 0.1),), times=GATED).to_dict()


TWO, GATED = ("top_score", "raw_sum"), Times(COSTS, PASSING, (0.1,), "the plain detector", {})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "router: format is 2; expected 1"),
        ("thresholds", ..., r"router\.thresholds is missing"),
        ("colour", 1, r"router\.colour is unknown; expected exits, confidence,"),
        ("gates", 1, r"router\.gates is 1; expected a list"),
        ("gates.0.threshold", 1.5, r"router\.gates\[0\]\.threshold is 1\.5; expected a number from 0 to 1"),
        ("gates.0.before", 0.5, r"router\.gates\[0\]\.before is 0\.5; expected a whole number"),
        ("exits", [], r"router\.exits is \[\]; expected different names"),
        ("exits", ["exit1", "exit1", "full"], "expected different names"),
        ("exits.1", 7, r"router\.exits\[1\] is 7; expected text"),
        ("thresholds", 0.5, r"router\.thresholds is 0\.5; expected a list"),
        ("thresholds.1", 1.5, r"router\.thresholds\[1\] is 1\.5; expected a number from 0 to 1"),
        ("thresholds.1", float("nan"), r"router\.thresholds\[1\] is nan; expected a finite number"),
        ("thresholds.1", True, r"router\.thresholds\[1\] is True; expected a finite number"),
        ("thresholds.1", 10**400, r"router\.thresholds\[1\] is 1000.*; expected a finite number"),
        ("thresholds", [0.5], r"router\.thresholds has 1 values; expected 2 for exit1, exit2, full"),
        ("confidence", None, r"router\.confidence\.kind is None; expected one of column, benefit, never, function"),
        (
            "confidence.kind",
            "magic",
            r"router\.confidence\.kind is 'magic'; expected one of column, benefit, never, function",
        ),
        ("confidence.kind", ["benefit"], r"router\.confidence\.kind is \['benefit'\]"),
        ("confidence.evidence.0", "colour", r"router\.confidence\.evidence: evidence 'colour' is unknown"),
        ("confidence.evidence.0", "raw_sum", "evidence 'raw_sum' is unknown or stands twice"),
        ("confidence.scale", 0, r"router\.confidence\.scale is 0\.0; expected a number above 0"),
        ("confidence.regressors.1", ..., r"router\.confidence\.regressors has 1 values; expected 2"),
        ("confidence.regressors.0.weights.3", "x", r"regressors\[0\]\.weights\[3\] is 'x'; expected a finite number"),
        ("confidence.regressors.0.weights.3", ..., r"regressors\[0\]\.weights has 3 numbers; expected 4, as mean"),
        ("confidence.regressors.0.spread.2", -1, r"regressors\[0\]\.spread\[2\] is -1\.0; expected a number above 0"),
        ("confidence.regressors.0", 3, r"router\.confidence\.regressors\[0\] is 3; expected an object"),
        (
            "calibrators.0.kind",
            "beta",
            r"router\.calibrators\[0\]\.kind is 'beta'; expected one of raw, isotonic, platt",
        ),
        ("calibrators.0.slope", -2, r"router\.calibrators\[0\]\.slope is -2\.0; expected a number above 0"),
        ("calibrators.2", ..., r"router\.calibrators has 2 values; expected 3"),
        ("times.exits", [0.5, 0.4, 1.0], r"router\.times\.exits: expected times that rise, above 0"),
        ("times.passing.1", -0.1, r"router\.times\.passing: expected 3 times from 0"),
        ("times.machine", [], r"router\.times\.machine is \[\]; expected an object"),
        ("promise.budget", 2.5, r"router\.promise\.budget is 2\.5; expected a number from 0 to 2"),
        ("size", "320", r"router\.size is '320'; expected a whole number"),
        ("promise.kind", "column", r"router\.promise\.kind is 'column'; expected one of budget, guarantee"),
        ("checkpoint_sha256", "a" * 63, r"router\.checkpoint_sha256 is 'a+'; expected a SHA-256"),
        ("data_sha256.calibrate", "x" * 64, r"router\.data_sha256\.calibrate is 'x+'; expected a SHA-256"),
        ("data_sha256.test", "a" * 64, r"router\.data_sha256\.test: nothing is ever tuned on test"),
    ],
)
def test_what_is_wrong_is_named(path, value, message, values):
    assert Router.from_dict(values)
    with pytest.raises(RouterError, match=message):
        Router.from_dict(edited(values, path, value))


@pytest.mark.parametrize("values", [None, [], "router", {}])
def test_what_is_no_router_is_refused(values):
    with pytest.raises(RouterError, match="router: format is"):
        Router.from_dict(values)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(RouterError, match="form is 'square'; expected one of value, complement, inverse"):
        Column("top_score", "square")
    with pytest.raises(RouterError, match="x: expected numbers that rise from 0 to 1"):
        Isotonic((0.0, 0.5, 0.5, 1.0), (0.0, 0.2, 0.3, 1.0))
    with pytest.raises(RouterError, match="y: expected numbers that rise from 0 to 1"):
        Isotonic((0.0, 1.0), (0.2, 1.0))
    with pytest.raises(RouterError, match=r"regressors\[0\]\.mean has 1 numbers; expected 2"):
        Benefit(("top_score",), (Regressor((0.0,), (1.0,), (1.0,), 0.0),), 0.0, 1.0)
    with pytest.raises(RouterError, match="epsilon is 1.2; expected a number from 0 to 1"):
        Guarantee("f1", 1.2, 0.1, 450, "betting", 0.05, (0.4, 0.4, 0.4), 0.01)
    with pytest.raises(RouterError, match="loss is 'ap'; expected one of f1, objects"):
        Guarantee("ap", 0.2, 0.1, 450, "betting", 0.05, (), 0.01)
    with pytest.raises(RouterError, match="evidence 'colour' is unknown or stands twice"):
        Function("module:function", ("colour",))


def test_no_torch_is_imported():
    code = "import sys, eelib.deploy.router; print({'torch', 'pycocotools', 'onnxruntime'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
