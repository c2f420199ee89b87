from studies.goals import load_goals


def test_every_exit_says_what_it_is_a_share_of():
    goals = load_goals()
    assert goals.keys() == {"baseline", "exits", "routing", "runtime", "plane", "blank"}
    assert {name: goal["of"] for name, goal in goals["exits"].items()} == {
        "exit1": "full", "exit2": "full", "full": "baseline"
    }  # fmt: skip
    assert all(0 < goal["AP_share"] < 1 for goal in goals["exits"].values())
