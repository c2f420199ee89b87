"""The explorer on made-up flags: its routings are those of the library, its evidence that of the records."""

import json
import shutil

import numpy as np
import pytest
from matplotlib import pyplot as plt
from synthetic import noisy

from eelib.config import ConfigError
from eelib.routed_ap import RoutedAP
from studies.explorer import Explorer
from studies.routing.worth import static_flags

TIMES = {"exit1": 0.3, "exit2": 0.5, "full": 1.0}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of reports, and the records that it rests on."""
    reports = tmp_path_factory.mktemp("reports")
    coco, records = noisy(60, empty=0.25)
    RoutedAP(records, coco).save(reports / "plane" / "exits_256_seed0.npz", "data", "graphs")
    system = {"name": "exits_256", "kind": "exits", "seed": 0, "graphs_sha256": "graphs"}
    system["exits"] = {name: {"time_ratio": time, "cut": 0.1} for name, time in TIMES.items()}
    alone = RoutedAP(*reversed(noisy(60, empty=0.25, sigma=(9.0,))))
    alone.save(reports / "plane" / "static_seed0.npz", "data", "graphs")
    static = system | {"name": "static", "kind": "input", "exits": {"full": {"time_ratio": 0.9, "cut": 0.1}}}
    (reports / "metrics").mkdir()
    report = {"plane": {"name": "plane"}, "split": "test", "split_sha256": "data", "systems": [system, static]}
    (reports / "metrics" / "plane.json").write_text(json.dumps(report))
    return reports, records, RoutedAP(records, coco)


def test_the_hull_is_of_the_seed_where_it_trained_a_static_detector(written):
    reports = written[0]
    report = json.loads((reports / "metrics" / "plane.json").read_text())
    report["systems"] += [row | {"seed": 1} for row in report["systems"]]
    report["systems"] += [report["systems"][1] | {"name": "other"}]
    for name, kind in (("static_seed1", "exits_256_seed0"), ("other_seed0", "static_seed0")):
        shutil.copy(reports / "plane" / f"{kind}.npz", reports / "plane" / f"{name}.npz")
    first, second = (static_flags(reports, report, seed) for seed in (0, 1))
    # the flags that stand for another seed are told by their three exits
    assert [static.flags.exits for static in first] == [1, 1] and [static.flags.exits for static in second] == [3, 1]


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


def test_images_that_left_somewhere_come_by_what_they_lost(written):
    explorer = Explorer(written[0])
    rows = explorer.left_at(explorer.by_score([0, 0]), "exit1", most=60)
    lost = [row["found by full"] - row["found here"] for row in rows]
    assert len(rows) == 60 and lost == sorted(lost, reverse=True) and lost[0] > 0
    assert explorer.left_at(explorer.by_score([0, 0]), "exit2") == []


def test_the_hull_holds_the_static_detectors_under_any_share_of_empty_images(written):
    explorer = Explorer(written[0])
    alone = RoutedAP(*reversed(noisy(60, empty=0.25, sigma=(9.0,)))).of_exit(0)
    assert explorer.static_hull().times.tolist() == [0.9] and explorer.static_hull().at(0.95)[0] == pytest.approx(alone)
    assert explorer.static_hull(0.9).at(0.95) < explorer.static_hull(0.1).at(0.95)


def test_the_figure_shows_every_exit_and_the_point(written):
    explorer = Explorer(written[0])
    figure = explorer.figure({"mine": explorer.score(explorer.by_score([0.8, 0.6]))})
    static = ["hull of the static detectors", "static detectors, float and int8"]
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == [*static, "coins of the exits", "exit1", "exit2", "full", "mine"]
    plt.close(figure)


def test_what_is_not_there_is_named(written, tmp_path):
    with pytest.raises(ConfigError, match="plane.json: no such metrics file"):
        Explorer(tmp_path)
    with pytest.raises(ValueError, match="system exits_9, seed 0: not in the plane; it has .*exits_256"):
        Explorer(written[0], "exits_9")
