import pytest

from studies.goals import decision, load_goals


def test_no_quantity_has_two_goals():
    goals = load_goals()
    assert goals.keys() == {"baseline", "routing", "runtime", "plane", "blank"}
    of_exits = [goal["exit"] for goal in goals["plane"]["exits"]]
    assert len(set(of_exits)) == len(of_exits)
    (plain,) = (goal["AP"] for goal in goals["plane"]["exits"] if goal["exit"] == "baseline full")
    assert goals["baseline"]["AP"] == plain


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
