"""Choosing, certifying and measuring routers, and what a deployed session makes of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectors import CLASSES, random_detector, saved, write_rooms

from eelib import routers, timing
from eelib.data import DetectionDataset, as_input
from eelib.deploy.export import export
from eelib.deploy.router import Budget, Gate, Guarantee, Router, Times
from eelib.deploy.runtime import Session
from eelib.files import file_sha256
from eelib.guarantee import GuaranteeError
from eelib.policies import POLICIES
from eelib.routers import RouterOptions, certify, load_study, route
from eelib.routing import PolicyError, prepare
from eelib.timing import UNIT, measured_times, read_times
from studies.routing.deployed import deployed

TIMES = Times((0.3, 0.5, 1.1), (0.0, 0.05, 0.1), (0.1, 0.2), "the plain detector", {"processor": "one"})


@pytest.fixture(scope="module")
def kept_records(tmp_path_factory) -> Path:
    """Records are named by checkpoint and split: a detector is recorded once."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture
def options(kept_records, monkeypatch) -> RouterOptions:
    """Of small studies, at times that every machine agrees on."""
    monkeypatch.setattr(routers, "measured_times", lambda *_: TIMES)
    return RouterOptions(records=kept_records, resamples=5, grid=5)


def least_undecided(evidence: np.ndarray) -> np.ndarray:
    """A confidence of the user's own."""
    return 1 / (1 + np.abs(evidence[:, -1]).sum(1))


def study_exits(system, path, rooms, options) -> list[str]:
    """Where the study's own setting sends the images of test."""
    records, cocos = load_study(path, rooms, options.records)
    splits = prepare(records, cocos, TIMES.exits, options.calibration, passing=TIMES.passing)
    test = splits["test"]
    chosen = system.router.route(
        test.columns(system.setting.confidence.evidence), test.holds if test.records.gates else None
    )
    if not system.router.gates:
        assert (chosen == system.setting.route(test)).all()
    names = (*system.router.exits, "blank1", "blank2")
    return [names[place] for place in chosen]


def on_test(session, rooms, rule=None) -> list:
    """What a session detects in the images of test, as tensors."""
    dataset = DetectionDataset("test", rooms, session.size)
    return session.detect_batch(
        np.stack([as_input(image[None])[0].numpy() for image, _ in map(dataset.__getitem__, range(len(dataset)))]), rule
    )


QUICK = {"benefit", "fixed", f"{__name__}:least_undecided"}


@pytest.mark.parametrize(
    "policy",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in [*POLICIES, *QUICK - {*POLICIES}]],
)
def test_every_policy_deploys_and_images_leave_where_the_study_sent_them(policy, checkpoint, exported, rooms, options):
    path = checkpoint("two exits")
    system = route(path, rooms, policy, 0.6, options=options)
    assert system.stated["policy"] == policy and isinstance(system.router.promise, Budget)
    found = on_test(Session(exported("two exits")), rooms, system.router)
    assert [d.exit_name for d in found] == study_exits(system, path, rooms, options)
    shares = system.measured["exit_shares"]
    assert shares == {name: [d.exit_name for d in found].count(name) / 16 for name in shares}
    read = Router.from_dict(json.loads(json.dumps(system.router.to_dict())))
    assert read == system.router and read.checkpoint_sha256 == file_sha256(path) and read.size == 96


def test_a_routers_file_is_embedded_and_obeyed(checkpoint, rooms, options, tmp_path):
    path = checkpoint("two exits")
    system = route(path, rooms, "max_score", 0.6, options=options)
    export(path, tmp_path / "out", system.save(tmp_path / "router.json"))
    session = Session(tmp_path / "out")
    assert session.router == system.router
    found = on_test(session, rooms)
    assert [d.exit_name for d in found] == study_exits(system, path, rooms, options)
    assert "for a budget of 0.6" in session.describe()
    # scores are calibrated by the router, as they were in the study
    raw = on_test(session, rooms, session.at_exit(found[0].exit_name))[0]
    calibrator = system.router.calibrators[system.router.exits.index(found[0].exit_name)]
    np.testing.assert_allclose(found[0].scores, calibrator(raw.scores.astype(float)), atol=1e-6)


@pytest.mark.slow
def test_the_released_detector_keeps_its_exits_and_its_ap_when_deployed(options, tmp_path):
    wanted = RouterOptions(**(vars(options) | {"limit": 60}))
    path = "checkpoints/exits_256.pth"
    chosen = route(path, policy="max_score", budget=0.75, options=wanted)
    certified = certify(path, epsilon=0.3, delta=0.3, options=wanted)
    for system in (chosen, certified):
        answer = deployed(system, path, tmp_path / "deploy", options=wanted)
        shares = answer["exit_shares"]
        assert answer["images"] == 60 and answer["left elsewhere"] == 0 and shares["stated"] == shares["deployed"]
        assert answer["AP"]["deployed"] == pytest.approx(answer["AP"]["stated"], abs=2e-3)
    assert sum(share > 0 for share in chosen.measured["exit_shares"].values()) > 1


@pytest.mark.slow
def test_two_classes_and_three_exits(tmp_path, options, monkeypatch):
    rooms = write_rooms(tmp_path / "rooms", classes=CLASSES)
    path = saved(random_detector((6, 10, 13), CLASSES), tmp_path / "w.pth")
    times = Times((0.3, 0.5, 0.7, 1.1), (0.0,) * 4, (), "the plain detector", {})
    monkeypatch.setattr(routers, "measured_times", lambda *_: times)
    system = route(path, rooms, "benefit", 0.7, options=options)
    export(path, tmp_path / "out", system)
    names = [d.exit_name for d in on_test(Session(tmp_path / "out"), rooms)]
    shares = system.measured["exit_shares"]
    assert shares == {name: names.count(name) / 16 for name in shares} and len(shares) == 4


def test_gates_are_certified_and_end_the_same_images(checkpoint, exported, rooms, options):
    path, options = checkpoint("gates"), RouterOptions(**(vars(options) | {"gate_epsilon": 0.4, "gate_delta": 0.4}))
    system = route(path, rooms, "max_score", 0.9, options=options)
    promise = system.router.gates_promise
    assert promise.loss == "objects" and promise.images == 12 and promise.risk <= 0.4
    assert all(isinstance(gate, Gate) and gate.before == 0 for gate in system.router.gates)
    assert "objects lost by the blank gates <= 0.4 with probability 0.6" in system.router.describe()
    found = [d.exit_name for d in on_test(Session(exported("gates")), rooms, system.router)]
    assert found == study_exits(system, path, rooms, options)
    shares = system.measured["exit_shares"]
    assert shares == {name: found.count(name) / 16 for name in shares}
    assert system.stated["gates_on_test"].keys() >= {"risk", "objects", "blank_ended"}


def test_gates_that_are_not_there_cannot_be_certified(checkpoint, rooms, options):
    wanted = RouterOptions(**(vars(options) | {"gate_epsilon": 0.4}))
    with pytest.raises(PolicyError, match="gate_epsilon 0.4: the detector has no blank gates"):
        route(checkpoint("two exits"), rooms, options=wanted)


def test_a_certified_router_states_its_promise_and_deploys(checkpoint, exported, rooms, options):
    path = checkpoint("two exits")
    system = certify(path, rooms, 0.5, 0.4, options=options)
    promise = system.router.promise
    assert isinstance(promise, Guarantee) and (promise.epsilon, promise.delta, promise.images) == (0.5, 0.4, 16)
    assert promise.loss == "f1" and "risk_on_test" in system.stated
    found = [d.exit_name for d in on_test(Session(exported("two exits")), rooms, system.router)]
    shares = system.measured["exit_shares"]
    assert shares == {name: found.count(name) / 16 for name in shares}
    with pytest.raises(GuaranteeError, match="epsilon is 1.5"):
        certify(path, rooms, 1.5, options=options)


def test_the_choice_stands_beside_static_exits_and_the_coin(checkpoint, rooms, options):
    system = route(checkpoint("two exits"), rooms, "max_score", 0.6, options=options)
    names = [one["name"] for one in system.comparison["exits"]]
    assert names == ["exit1 alone", "exit2 alone", "full alone"]
    assert [one["time_ratio"] for one in system.comparison["exits"]] == [0.3, 0.5, 1.0]
    assert system.comparison["coin"]["time_ratio"] <= system.comparison["time_ratio"] + 1e-9
    assert system.comparison["split"] == "calibrate" and system.comparison["time_ratio"] <= 0.6
    worse = {**system.comparison, "AP": -1.0}
    notes = type(system)(system.router, system.setting, {"budget": 0.1}, worse, system.measured).notes
    assert any("exit1 alone is no worse" in note for note in notes) and "for a budget of 0.1" in notes[-1]


def test_budgets_and_thresholds_that_cannot_be(checkpoint, rooms, options):
    path = checkpoint("two exits")
    with pytest.raises(PolicyError, match=r"budget 0.2: cannot be kept on calibrate; 'max_score' reaches 0.300 to"):
        route(path, rooms, "max_score", 0.2, options=options)
    with pytest.raises(PolicyError, match=r"thresholds \[0.5\]: expected 2, one for each exit but the last"):
        route(path, rooms, "max_score", thresholds=[0.5], options=options)
    with pytest.raises(PolicyError, match=r"threshold of exit2 is 1.5; expected \[0, 1\]"):
        route(path, rooms, thresholds=[0.5, 1.5], options=options)
    with pytest.raises(PolicyError, match="policy: 'magic' is unknown"):
        route(path, rooms, "magic", options=options)
    with pytest.raises(PolicyError, match="there is nothing to route"):
        route(checkpoint("plain"), rooms, options=options)
    by_hand = route(path, rooms, "max_score", thresholds=[0.0, 0.5], options=options)
    assert by_hand.router.promise is None and by_hand.measured["exit_shares"]["exit1"] == 1.0
    for budget in (0, 1.5, float("nan")):  # before anything is read
        with pytest.raises(PolicyError, match="expected a share of the plain detector's time, above 0 and up to 1"):
            route("none.pth", budget=budget)


def test_times_are_measured_by_an_exported_session(checkpoint, rooms, monkeypatch):
    asked = []

    def exit_times(model, images, session):
        asked.append((tuple(images.shape), session.exits))
        ratios = {"blank1": 0.1, "blank2": 0.2, "exit1": 0.3, "exit2": 0.5, "full": 1.1}
        return {name: {"ratio": ratio, "passed_ratio": 0.01} for name, ratio in ratios.items()}

    monkeypatch.setattr(timing, "exit_times", exit_times)
    times = measured_times(checkpoint("gates"), rooms)
    assert asked == [((8, 3, 96, 96), ("exit1", "exit2", "full"))]
    assert (times.exits, times.gates) == ((0.3, 0.5, 1.1), (0.1, 0.2)) and times.machine["processor"]


def test_times_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(PolicyError, match="no such file of times"):
        read_times(tmp_path / "none.json", ("exit1", "full"), tmp_path / "w.pth")
    times, weights = tmp_path / "times.json", tmp_path / "w.pth"
    times.write_text(json.dumps({"exits": {"full": {"ratio": 1, "passed_ratio": 0.1}}}))
    with pytest.raises(PolicyError, match="no keys exits.<name>.ratio and passed_ratio"):
        read_times(times, ("exit1", "full"), weights)
    weights.write_bytes(b"1")
    with pytest.raises(PolicyError, match="times of other weights than .*w.pth"):
        read_times(times, ("full",), weights)
    times.write_text(json.dumps(json.loads(times.read_text()) | {"checkpoint_sha256": file_sha256(weights)}))
    assert read_times(times, ("full",), weights) == Times((1,), (0.1,), (), UNIT, {"file": str(times)})
    times.write_text(json.dumps(json.loads(times.read_text()) | {"unit": "the last exit in eager torch"}))
    with pytest.raises(PolicyError, match="times.json: key 'unit' is 'the last exit in eager torch'; expected 'this"):
        read_times(times, ("full",), weights)


def test_times_of_a_file_are_told_as_what_they_are(checkpoint, rooms, options, tmp_path):
    path, ratios = checkpoint("two exits"), {"exit1": 0.5, "exit2": 0.7, "full": 1.2}
    exits = {name: {"ratio": ratio, "passed_ratio": 0.1} for name, ratio in ratios.items()}
    times = tmp_path / "exits.json"
    times.write_text(json.dumps({"exits": exits, "checkpoint_sha256": file_sha256(path), "unit": UNIT}))
    router = route(path, rooms, "max_score", 0.8, options=replace(options, times=times)).router
    assert router.times == Times((0.5, 0.7, 1.2), (0.1,) * 3, (), UNIT, {"file": str(times)})
    falling = {name: row | {"ratio": 1 - row["ratio"] / 2} for name, row in exits.items()}
    times.write_text(json.dumps({"exits": falling, "checkpoint_sha256": file_sha256(path)}))
    with pytest.raises(PolicyError, match="exits.json: exits: expected times that rise, above 0"):
        read_times(times, tuple(ratios), path)
