"""The explorer on made-up flags: its routings are those of the library, its evidence that of the records."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import noisy

from eelib.config import ConfigError
from eelib.routed_ap import RoutedAP
from studies.explorer import Explorer

TIMES = {"exit1": 0.3, "exit2": 0.5, "full": 1.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of reports, and the records that it rests on."""
    reports = tmp_path_factory.mktemp("reports")
    coco, records = noisy(60, empty=0.25)
    RoutedAP(records, coco).save(reports / "plane_released" / "exits_256_seed0.npz", "data", "graphs")
    system = {"name": "exits_256", "seed": 0, "graphs_sha256": "graphs"}
    system["exits"] = {name: {"time_ratio": time} for name, time in TIMES.items()}
    (reports / "metrics").mkdir()
    report = {"split": "test", "split_sha256": "data", "systems": [system]}
    (reports / "metrics" / "plane_released.json").write_text(json.dumps(report))
    return reports, records, RoutedAP(records, coco)


def test_evidence_is_that_of_the_records(written):
    reports, records, _ = written
    explorer = Explorer(reports)
    for index in range(3):
        rows = [records.detections(index, row).scores for row in range(len(records))]
        seen = explorer.evidence(index)
        assert np.allclose(seen["top_score"], [scores.max(initial=0) for scores in rows])
        assert np.allclose(seen["score_sum"], [scores.sum() for scores in rows], atol=1e-5)
        assert seen["count_50"].tolist() == [int((scores > 0.5).sum()) for scores in rows]


def test_routings_have_the_ap_and_time_of_their_exits(written):
    explorer, ap = Explorer(written[0]), written[2]
    everything, nothing = explorer.by_score([0, 0]), explorer.by_score([1.1, 1.1])
    assert explorer.score(everything) == {"AP": ap.of_exit(0), "time": 0.3, "exit1": 1, "exit2": 0, "full": 0}
    assert explorer.score(nothing)["AP"] == ap.of_exit(2) and explorer.score(nothing)["time"] == 1
    middle = explorer.by_score([0.8, 0.6])
    shares = explorer.score(middle)
    assert shares["time"] == pytest.approx(sum(shares[name] * time for name, time in TIMES.items()))


def test_a_coin_lies_on_the_line_between_two_exits(written):
    explorer, ap = Explorer(written[0]), written[2]
    best = max(0.5 * (ap.of_exit(0) + ap.of_exit(2)), ap.of_exit(1))
    assert explorer.coin(0.65) >= best - 1e-12 and explorer.coin(0.2) is None


def test_more_empty_images_cost_ap_by_false_alarms(written):
    explorer = Explorer(written[0])
    chosen = explorer.by_score([0, 0])
    assert explorer.score(chosen, 0.99)["AP"] < explorer.score(chosen, 0.1)["AP"]
    assert explorer.score(chosen, float(explorer.empty.mean()))["AP"] == pytest.approx(explorer.score(chosen)["AP"])


def test_regretted_images_left_early_and_hold_more(written):
    explorer = Explorer(written[0])
    rows = explorer.regretted(explorer.by_score([0, 0]), [0.1, 0.1, 0.1])
    assert rows and all(row["found by full"] > row["found here"] and row["left at"] == "exit1" for row in rows)


def test_the_figure_shows_every_exit_and_the_point(written):
    explorer = Explorer(written[0])
    figure = explorer.figure({"mine": explorer.score(explorer.by_score([0.8, 0.6]))})
    assert figure.axes[0].get_legend_handles_labels()[1] == ["coins of the exits", "exit1", "exit2", "full", "mine"]
    plt.close(figure)


def test_what_is_not_there_is_named(written, tmp_path):
    with pytest.raises(ConfigError, match="plane_released.json: no such metrics file"):
        Explorer(tmp_path)
    with pytest.raises(ValueError, match="system exits_9, seed 0: not in the plane; it has .*exits_256"):
        Explorer(written[0], "exits_9")
