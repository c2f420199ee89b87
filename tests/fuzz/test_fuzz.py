"""Every reader on a few spoilt inputs, the same ones each time; `make fuzz` tries thousands."""

import pytest
from fuzz_cases import Case
from fuzz_names import STRATEGIES
from fuzz_worker import SECONDS, STARTING, Outcome, Worker, judge
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.slow  # `make slow`

CASES = dict.fromkeys(STRATEGIES, 8) | {"checkpoint": 3, "export folder": 3, "annotations": 20, "segmentation": 30}


@pytest.fixture(scope="module")
def worker():
    child = Worker()
    yield child
    child.close()


@pytest.mark.parametrize("target", STRATEGIES)
def test_a_reader_reads_or_refuses_in_one_line(target, worker):
    sound = worker.run(target, Case(1, (), ()), STARTING)
    assert sound.kind == ("refused" if target == "command line" else "read"), sound.text

    @settings(
        max_examples=CASES[target], derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(STRATEGIES[target])
    def tries(case):
        outcome = worker.run(target, case)
        assert outcome.sound, f"{outcome.kind}: {outcome.text}"

    tries()


def test_a_message_is_a_line_of_bounded_length_that_names_the_file():
    assert judge("a.json: key 'b' is 3", "a.json") == Outcome("refused", "a.json: key 'b' is 3")
    for text in ("a.json: key\n'b'", "a.json: " + "x" * 1000, "key 'b' is 3", ""):
        assert judge(text, "a.json").kind == "message"


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        ("a crash", "signal", "SIGSEGV"),
        ("a hang", "hang", "no answer in 1 s"),
        ("all memory", "traceback", "MemoryError"),
        ("a fault", "traceback", "ZeroDivisionError"),
    ],
)
def test_what_a_case_does_to_the_child_is_seen(target, kind, text, worker):
    """A campaign that cannot see a crash would find none."""
    outcome = worker.run(target, None, 1 if kind == "hang" else SECONDS)
    assert outcome.kind == kind and text in outcome.text and not outcome.sound
    assert worker.run("metrics", Case(1, (), ())).kind == "read"
