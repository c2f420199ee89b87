"""Ending empty images: certified thresholds by hand, and worth on made-up splits."""

import dataclasses

import numpy as np
import pytest
from matplotlib import pyplot as plt
from scipy.stats import rankdata
from synthetic import noisy

from eelib.deploy.evidence import EVIDENCE
from eelib.guarantee import GuaranteeError
from eelib.routed_ap import RoutedAP
from eelib.routing import prepare
from studies.routing import blank

TIMES = (0.3, 0.5, 1.0)


@pytest.fixture(scope="module")
def splits():
    """Three splits with one gate, which sees a little less than the best score of the last exit."""
    records, cocos = {}, {}
    for seed, name in enumerate(("val", "calibrate", "test")):
        cocos[name], made = noisy(150, seed, name, empty=0.4)
        shows = RoutedAP(made, cocos[name]).positives > 0
        gate = np.clip(0.3 + 0.5 * shows + np.random.default_rng(seed).normal(0, 0.1, len(shows)), 0, 1)
        columns = np.concatenate((made.evidence, np.repeat(gate[:, None, None], 3, 1)), 2).astype(np.float32)
        records[name] = dataclasses.replace(made, evidence=columns, evidence_names=(*EVIDENCE, "blank1"))
    return prepare(records, cocos, TIMES, "none")


def test_a_threshold_ends_what_can_be_certified_and_no_more():
    view = np.linspace(0.2, 1, 400)
    threshold = blank.certified_threshold(view, view, 0.05, 0.1)
    assert 0.2 < threshold < np.quantile(view, 0.05)
    with pytest.raises(GuaranteeError, match="epsilon"):
        blank.certified_threshold(view, view, 0.001, 0.1)  # 400 images cannot show so little
    assert blank.certified_threshold(view, view * 0.5, 0.05, 0.1) < 0.2  # calibrate decides, not val


def test_views_end_few_images_with_objects(splits):
    rows = blank.ended(splits["val"], splits["calibrate"], splits["test"], 0.1, 0.1)
    assert list(rows) == ["blank1", "best score, exit1", "best score, exit2", "best score, full"]
    shows = splits["test"].evaluator.positives > 0
    for name, row in rows.items():
        values = blank.views(splits["test"])[name]
        assert row["lost"] == row["ends"][shows].mean() and row["blank_ended"] == row["ends"][~shows].mean()
        ranks = rankdata(values)[shows].sum() - shows.sum() * (shows.sum() + 1) / 2  # Mann and Whitney's U
        assert row["AUROC"] == pytest.approx(ranks / (shows.sum() * (~shows).sum()))
        assert row["lost_interval"][0] <= row["lost"] <= row["lost_interval"][1]
    assert rows["blank1"]["blank_ended"] > 0.5 and rows["blank1"]["lost"] < 0.1


def test_ending_empty_images_saves_time_and_costs_no_ap(splits):
    test = splits["test"]
    empty = test.evaluator.positives == 0
    static = {"small": (0.15, test.evaluator)}  # its first exit
    rows = blank.worth(test, {"gate": empty}, {"gate": 0.1, "full": 1.0}, [0.9], static, 50)
    assert [(row["system"], round(row["prevalence"], 2)) for row in rows] == [
        ("full alone", round(empty.mean(), 2)), ("gate", round(empty.mean(), 2)), ("full alone", 0.9), ("gate", 0.9)
    ]  # fmt: skip
    own, gated, _, rare = rows
    assert own["time"] == 1 and own["AP"] == test.evaluator.of_exit(2)
    assert gated["time"] == pytest.approx(empty.mean() * 0.1 + 1 - empty.mean())
    assert rare["time"] == pytest.approx(0.9 * 0.1 + 0.1) and gated["AP"] >= own["AP"]
    assert gated["minus_full"][0] >= 0 and rare["minus_static"][0] > 0 and rare["above"]
    figure = blank.worth_figure(rows, None)
    assert [axis.get_title() for axis in figure.axes] == [f"{100 * empty.mean():.0f} % empty", "90 % empty"]
    plt.close(figure)
