import pytest

from studies.goals import decision, load_goals


def test_every_exit_says_what_it_is_a_share_of():
    goals = load_goals()
    assert goals.keys() == {"baseline", "exits", "routing", "runtime", "plane", "blank"}
    assert {name: goal["of"] for name, goal in goals["exits"].items()} == {
        "exit1": "full", "exit2": "full", "full": "baseline"
    }  # fmt: skip
    assert all(0 < goal["AP_share"] < 1 for goal in goals["exits"].values())


@pytest.mark.parametrize(
    ("ap", "text"),
    [
        (0.31, "acceptable fast mode"),
        (0.30, "look closer"),
        (0.20, "look closer"),
        (0.19, "retrain with proper matching"),
    ],
)
def test_decision(ap, text):
    assert decision(ap) == text
