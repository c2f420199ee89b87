"""Published routers, answers beyond AP, and the sentences of 05d_policies, which a smoke run must not state."""

from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import noisy

from eelib.config import ROOT, LossConfig
from eelib.data import DetectionDataset
from eelib.losses import Criterion, Targets
from eelib.model import EarlyExitSSDLite
from eelib.policies import POLICIES, settings_of
from eelib.routing import prepare
from studies.routing import answers, bounds, claims, figures, published, study
from studies.routing.bounds import Judge, Recovered
from studies.routing.experiments import COMPLEX, EXPERIMENTS
from studies.routing.times import Times

COSTS = (0.4, 0.6, 0.8)
COMMON = Times(np.array(COSTS), np.zeros((0, 2)), np.zeros(3), "the plain detector", "some processor", True)


@pytest.fixture(scope="module")
def splits():
    made = {s: noisy(60, seed=k, split=s) for k, s in enumerate(("train", "val", "calibrate", "test"))}
    return prepare({s: r for s, (_, r) in made.items()}, {s: c for s, (c, _) in made.items()}, COSTS)


def study_of(splits, times=COMMON):
    judge = Judge(splits["test"], 20)
    model = SimpleNamespace(exit_names=splits["test"].records.exit_names)
    return study.Study(model, None, splits, splits, times, None, None, judge, study.smoke_of(splits, times), {})


def test_branchynet_leaves_where_the_best_box_is_decided_either_way():
    evidence = np.array([0.5, 0.99, 0.01, 0.9])[:, None, None] * np.ones((1, 2, 1))
    at = published.Certainty()(evidence)[:, 0]
    assert at[0] == pytest.approx(0) and at[1] == pytest.approx(at[2]) and at[1] > 0.9 > at[3] > 0.5
    q = 0.9
    assert at[3] == pytest.approx(1 + q * np.log2(q) + (1 - q) * np.log2(1 - q))


def test_msdnets_shares_are_a_geometric_series(splits):
    here = splits["calibrate"]
    for setting in settings_of("percentile", here, splits["val"], {})[8:16]:
        first, second, last = np.bincount(setting.route(here), minlength=3)
        assert abs(second**2 - first * last) <= 60 * 3  # as near as whole images can come


def test_dynamic_dets_router_keeps_the_images_that_gain_least():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 8))
    gain = features[:, 0] + 5.0  # full is better on all: without the median none would stay
    router = published.train_router(features, 10 + gain, np.full(400, 10.0), epochs=30, lr=0.01, batch_size=32)
    stays = router(published.torch.tensor(features, dtype=published.torch.float32)).detach().numpy()
    assert 0.4 < (stays > 0.5).mean() < 0.6
    assert np.corrcoef(stays, gain)[0, 1] < -0.7
    again = published.train_router(features, 10 + gain, np.full(400, 10.0), epochs=30, lr=0.01, batch_size=32)
    assert (again(published.torch.tensor(features, dtype=published.torch.float32)).detach().numpy() == stays).all()


def test_dynamic_det_routes_by_what_it_learnt_on_train(splits, monkeypatch):
    monkeypatch.setitem(POLICIES, "dynamic_det", EXPERIMENTS["dynamic_det"])
    trunk = {n: [np.hstack([s.gains[:, k : k + 1]] * 4) for k in range(2)] for n, s in splits.items()}
    gains = splits["train"].gains
    options = {"grid": 5, "dynamic_det": {"epochs": 20, "lr": 0.01, "batch_size": 16}, "splits": splits, "trunk": trunk}
    options["losses"] = np.hstack([gains, np.zeros((60, 1))])
    settings = settings_of("dynamic_det", splits["calibrate"], splits["val"], options)
    answer = settings[0].on(splits["test"])
    assert answer.shape == (60, 2) and ((answer >= 0) & (answer <= 1)).all()
    assert np.corrcoef(answer[:, 0], splits["test"].gains[:, 0])[0, 1] < -0.5
    with pytest.raises(NotImplementedError, match="known for some splits"):
        settings[0].on(replace(splits["test"], records=splits["test"].records.rows(range(5))))


def test_losses_of_the_exits_are_those_of_training(tiny):
    published.torch.manual_seed(0)
    model, loss = EarlyExitSSDLite().eval(), LossConfig(distillation=0.0)
    dataset = DetectionDataset("val", tiny, 320)
    found = published.exit_losses(model, dataset, loss)
    assert found.shape == (2, 3) and (found > 0).all()
    image, target = dataset[0]
    with published.torch.no_grad():
        outputs = list(model.exits(published.batches(dataset, 1).__next__()[0]))
    _, parts = Criterion(loss, model.exit_names)(outputs, Targets(target["boxes"][None], target["labels"][None]))
    expected = [parts[f"{n}_classification"] + parts[f"{n}_bbox_regression"] for n in model.exit_names]
    assert found[0] == pytest.approx(np.array([float(value) for value in expected]), rel=1e-4)


def test_answers_by_hand(splits):
    test = splits["test"]
    judge, full = Judge(test, 30), np.full(60, 2)
    routings = {"exit1": np.zeros(60, int), "exit2": np.ones(60, int), "full": full, "mixed": np.arange(60) % 3}
    rows = {row["system"]: row for row in answers.answers(test, routings, judge.weights)}
    empty = test.evaluator.positives == 0
    claimed, right = test.evaluator.claims(test.cuts)
    for name, chosen in routings.items():
        row, at = rows[name], (np.arange(60), chosen)
        assert row["precision"] == right[at].sum() / claimed[at].sum()
        assert row["recall"] == right[at].sum() / test.evaluator.positives.sum()
        assert row["false_alarms"] == (claimed[at][empty] > 0).mean()
        loss = test.f1[:, 2] - test.f1[at]
        assert row["loss"] == pytest.approx(loss.mean()) and row["quantiles"]["0.9"] == np.quantile(loss, 0.9)
        assert sum(row["counts"]) == (loss > 0).sum() == round(row["losing"] * 60)
        for key in ("precision", "recall", "false_alarms"):
            low, high = row[f"{key}_interval"]
            assert low <= row[key] <= high
    assert rows["full"]["losing"] == rows["full"]["gaining"] == 0 < rows["exit1"]["losing"]
    assert len(answers.table(list(rows.values()))) == 4
    text = " ".join(answers.read(list(rows.values()), test.records.exit_names))
    assert f"on the {empty.sum()} empty images: exit1 {rows['exit1']['false_alarms']:.0%}" in text
    drawn = answers.figure(list(rows.values()))
    assert [text.get_text() for text in drawn.axes[0].get_yticklabels()] == ["exit1", "exit2", "full", "mixed"]
    plt.close(drawn)


def measured(splits):
    of = study_of(splits)
    here, budgets = splits["calibrate"], [0.5, 0.6, 0.7, 0.8]
    oracle = bounds.oracle_curve(of.judge, [0.4, *budgets])
    area = bounds.areas(of.judge, oracle)
    names = "fixed", "max_score", "percentile", "benefit"
    settings = {name: settings_of(name, here, splits["val"], {"grid": 4}) for name in names}
    curves = {name: bounds.policy_curve(rows, here, of.judge, budgets) for name, rows in settings.items()}
    return of, curves, {name: bounds.recovered(curve, area) for name, curve in curves.items()}, oracle


def test_what_policies_are_said_to_add_is_counted(splits):
    of, curves, shares, oracle = measured(splits)
    table = claims.policies_table(curves, shares, 0.6).set_index("policy")
    assert list(table.index) == sorted(shares, key=lambda name: -shares[name].share)
    assert table.loc["percentile", "source"] == "MSDNet (Huang et al., ICLR 2018)"
    assert table.loc["benefit", "source"] == "ours"
    routed = {"images": {"test": 60}, "times": {"full": 0.8}, "checkpoint_sha256": "a"}
    assert study.same_but_for_the_processor(dict(routed), routed) == routed
    for key, value in (("images", {"test": 48}), ("times", {"full": 0.7}), ("checkpoint_sha256", "b")):
        assert study.same_but_for_the_processor(routed | {key: value}, routed) is None  # no effect of a processor
    other = {name: {"recovered": share.share + 0.001} for name, share in shares.items()}
    other["fixed"] = {"recovered": shares["benefit"].share + 0.002}
    (text,) = claims.processors_read({n: of.share for n, of in shares.items()}, {"policies": other})
    change = other["fixed"]["recovered"] - shares["fixed"].share
    assert f"fixed recovers changes by {abs(change):.3f}, every other by 0.001 or less" in text
    assert "fixed and benefit" in text and "max score and percentile" not in text
    assert claims.policies_table(curves, shares, 0.6, {"policies": other})["on an older processor"].notna().all()
    points = {(n, p["time_ratio"]): p for n, curve in curves.items() for p in curve.points}
    above = sum(p["above_coin"] for p in points.values())
    assert claims.pays(curves, "coin").startswith(f"Of {len(points)} routed points {above} lie above the coin")
    assert claims.pays(curves, "static").startswith("Of 0 routed points 0 lie above the hull")
    best = claims.pays({"oracle": oracle}, "coin")
    assert "above it are points of oracle" in best
    content = claims.metrics(curves, shares, {})
    assert content["policies"]["fixed"]["recovered_interval"] == shares["fixed"].interval
    for drawn in (
        figures.ap_time_plane(curves, oracle, of.judge, "it", [{"time_ratio": 0.3, "AP": 0.1}]),
        figures.recovered_bars(shares),
    ):
        assert drawn.axes
        plt.close(drawn)


@pytest.mark.parametrize(
    ("simple", "verdict"),
    [
        ((0.1, 0.1), "holds: no simple policy is worse"),
        ((-0.1, -0.1), "does not hold: no simple policy is better"),
        ((0.1, -0.1), "depends on the rule"),
        ((0.0, 0.0), "is neither shown nor refuted"),
    ],
)
def test_simple_against_complex_is_judged_by_intervals(simple, verdict):
    noise = np.random.default_rng(0).normal(0, 0.01, 500)
    assert "benefit" in COMPLEX
    shares = {"benefit": Recovered(0.2, 0.2 + noise)}
    for name, gap in zip(("fixed", "max_score"), simple, strict=True):
        shares[name] = Recovered(0.2 + gap, 0.2 + gap + np.roll(noise, 7))
    lines = claims.simple_or_complex(shares)
    assert f"the conclusion {verdict}" in lines[-1] and "fixed" in lines[1]


def test_a_smoke_run_says_so_and_states_no_verdict(splits, capsys):
    whole = study_of(splits)
    whole.say("exit1 pays")
    assert whole.smoke is None and capsys.readouterr().out == "exit1 pays\n"
    rows = range(12)
    part = replace(
        splits["test"], records=splits["test"].records.rows(rows), evaluator=splits["test"].evaluator.rows(rows)
    )
    some = study_of(splits | {"test": part})
    some.say("exit1 pays", "and so does exit2")
    assert capsys.readouterr().out == "A smoke run: 12 of the 60 images of test. No verdict follows from it.\n"
    assert some.judge.point(np.zeros(12, int))["above_coin"] is None
    study_of(splits, COMMON._replace(committed=False)).say("exit1 pays")
    assert "No verdict follows" in capsys.readouterr().out


def test_the_notebook_speaks_through_the_study_alone():
    """So what a smoke run keeps to itself is all that the notebook could claim; its defaults are a smoke run."""
    notebook = nbformat.read(ROOT / "notebooks" / "05d_policies.ipynb", as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.id != "05d-smoke"]
    assert not any("print(" in source or "display(" in source for source in code)
    last = [source.splitlines()[-1] for source in code]
    assert all(not line or line[0] not in "\"'f{" for line in last)  # no sentence is shown as a value
    limit = next(line for source in code for line in source.splitlines() if line.startswith("limit"))
    assert int(limit.split("=")[1].split("#")[0]) < 200
    assert sum("study.say(" in source for source in code) >= 10
