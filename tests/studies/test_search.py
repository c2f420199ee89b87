"""The architecture search: what a trial stands for, what is chosen, and two trials end to end."""

import json

import pytest

from eelib.config import ROOT, ConfigError, load_config, parse
from studies.compress.search import Space, choose, search, settings_of
from studies.parameters import load_study

pytestmark = pytest.mark.slow  # `make slow`

PARAMS = ROOT / "params" / "search.yaml"
BASELINE = str(ROOT / "checkpoints" / "baseline.pth")


def test_a_trial_is_a_part_of_a_parameter_file():
    _, space = load_study(PARAMS, "search", Space)
    params = {"width": "0.75", "size": 256, "maps": 4, "exits": "8,12"}
    groups = settings_of(params, space)
    assert groups["model"] == {"start": "runs/starts/width_75.pth", "maps": 4, "exits": [8, 12]}
    assert parse({"name": "searched"} | groups).data.size == 256
    searched = load_config(ROOT / "params" / "searched.yaml")
    params = {"width": "0.75", "size": 320, "maps": 4, "exits": ""}
    assert parse({"name": "searched"} | settings_of(params, space)).model == searched.model


def test_the_best_inside_the_budget_is_chosen():
    slow, good, fast = (
        {"mean_AP": ap, "mean_time_ratio": time} for ap, time in ((0.3, 0.9), (0.2, 0.7), (0.2, 0.6))
    )  # fmt: skip
    assert choose([slow, good, fast], 0.75) is fast and choose([slow, good, fast], 1.0) is slow
    assert choose([slow, good], 0.1) is good  # none keeps to it: the fastest


def test_bad_spaces_are_refused():
    for settings, message in (
        ({"search.trials": 0}, "search: key 'trials' is 0"),
        ({"search.exits": [[3]]}, "key 'exits.0.0' is 3"),
        ({"search.width": 1}, "unknown key 'width'"),
        ({"optim.lr": "x"}, "key 'optim.lr' is 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(PARAMS, "search", Space, settings)


SMALL = {
    "data.limit": 8, "data.eval_limit": 4, "optim.batch_size": 4, "optim.warmup_steps": 1, "data.size": 96,
    "search.trials": 2, "search.starts": {"1.0": BASELINE}, "search.sizes": [96], "search.maps": [4],
    "search.exits": [[], [8, 12]], "search.reference": BASELINE, "search.timed_images": 2,
}  # fmt: skip


def test_two_trials_end_to_end_and_a_search_that_goes_on(tmp_path):
    pytest.importorskip("optuna")
    lines = []
    config, space = load_study(PARAMS, "search", Space, SMALL)
    result = search(config, space, tmp_path, log=lines.append)
    assert json.loads((tmp_path / "search.json").read_text()) == result
    first, second = result["trials"]
    assert first["params"] == {"width": "1.0", "size": 96, "maps": 4, "exits": ""} and list(first["AP"]) == ["full"]
    for trial in (first, second):
        assert trial["mean_AP"] == pytest.approx(sum(trial["AP"].values()) / len(trial["AP"]))
        assert trial["time_ratio"].keys() == trial["AP"].keys() and trial["mean_time_ratio"] < 1
    assert result["chosen"]["data"] == {"size": 96} and set(result["front"]) <= {0, 1}
    assert len(lines) == 2
    again = search(config, space, tmp_path, log=lines.append)
    assert again == result and len(lines) == 2  # what is done is read
