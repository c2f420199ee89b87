"""Tables and figures of the scorecard and of the ladder, from values made by hand."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from eelib.data import load_split
from eelib.detections import Detections
from eelib.records import ExitRecords
from eelib.routed_ap import RoutedAP
from studies.phases import ablation, figures
from studies.phases.scorecard import precision_recall, recorded_card
from studies.phases.verdicts import card_table

matplotlib.use("Agg")
SHARES = {"exit1": 0.25, "exit2": 0.0, "full": 0.75}
ONE = {"exit1": 0.1, "exit2": 0.2, "full": 0.3}
RUN = {
    "seed": 0, "exit_shares": SHARES, "confidence_mean": ONE, "confidence_std": ONE, "temperature": ONE,
    "thresholds": {"exit1": 0.45, "exit2": 0.6}, "loss": {"loss": 9.0, "exit1": 1.0, "order": 0.0},
    "train_rates": {"soft_exit1": 0.3, "hard_exit1": 0.0}, "AP_exits": ONE, "AP": 0.125,
    "time": {"four_images_ms": 40.0, "one_image_ms": 12.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_card_puts_the_record_beside_ours():
    table = card_table(RUN | {"recorded": recorded_card("1.6")}).set_index("quantity")
    assert table.loc["exit_shares full"].tolist() == [1.0, 0.75]
    assert table.loc["loss loss"].tolist() == [pytest.approx(361.09387), 9.0]
    assert table.loc["soft rate exit1"].tolist() == [pytest.approx(0.30020176), 0.3]
    assert card_table(RUN | {"recorded": {}})["recorded"].isna().all()


def test_shares_beside_the_record():
    entry = {
        "phase": "1.6",
        "recorded": recorded_card("1.6"),
        "agree": 1,
        "mechanism_holds": 2,
        "seeds": 3,
        "runs": [RUN],
        "serious": None,
    }
    heights = [patch.get_height() for patch in figures.shares_beside_record([entry]).axes[0].patches]
    assert heights == [0.0, 0.0, 1.0, 0.25, 0.0, 0.75, 0.0, 0.0, 0.0]


def test_ladder_figure_and_tables():
    samples = {key: [0.1, 0.2] for key in ablation._values(RUN)}
    runs = [
        RUN | {"variant": name, "seed": seed, "samples": samples} for name in ("as recorded", "all") for seed in (0, 1)
    ]
    rows = ablation.summarise(runs)
    axes = figures.causal_ladder(rows).axes
    assert [len(axis.lines) for axis in axes] == [6, 6, 6]  # an interval for each of three exits, two rungs
    assert axes[1].get_yscale() == "log"
    table = ablation.ladder_means(rows)
    assert table["exit1 %"].tolist() == ["25", "25"] and table["AP full, 95 %"].tolist() == ["0.100 to 0.200"] * 2


def test_training_panels():
    row = {
        f"{kind}_{n}": 0.5
        for n in SHARES
        for kind in ("loss", "confidence", "confidence_std", "temperature", "val_share")
    }
    axes = figures.training_panels([row | {"epoch": e, "threshold_exit1": 0.4} for e in (1, 2)]).axes
    assert [axis.get_ylabel() for axis in axes] == ["loss", "confidence", "temperature", "share on val"]
    assert len(axes[1].lines) == 4  # three confidences and one threshold


def test_precision_and_recall_at_a_score(tiny):
    """Two objects and a crowd: one hit, one miss, one false alarm, one detection on the crowd, one below the score."""
    coco = load_split("test", tiny)
    boxes = np.float32([[4, 6, 24, 36], [40, 30, 45, 35], [0, 0, 3, 3], [30, 10, 50, 30]])
    found = Detections(boxes, np.float32([0.9, 0.8, 0.7, 0.4]), np.ones(4, np.int64), "exit1")
    nothing = found.rows(slice(0))
    detections = {"exit1": [found, nothing], "full": [nothing, nothing]}
    evaluator = RoutedAP(ExitRecords.of(("test", "", ""), [1, 2], detections), coco)
    values = precision_recall(evaluator, np.array([0, 1]), score=0.5)
    assert values == {"score": 0.5, "precision": 0.5, "recall": 0.5, "detections_per_image": 1.5}
    assert precision_recall(evaluator, np.array([0, 1]), score=0.3)["recall"] == 1.0
    assert precision_recall(evaluator, np.array([1, 1]))["precision"] == 0.0
