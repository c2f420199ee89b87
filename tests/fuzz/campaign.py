"""The large campaign, `make fuzz`: many cases a target, counted; exit status 1 where one is not sound.

python tests/fuzz/campaign.py --cases 2000 --seed 0 [TARGET ...]
"""

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from fuzz_cases import Case
from fuzz_names import STRATEGIES
from fuzz_worker import STARTING, Worker
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

FAULTS = ("traceback", "signal", "hang", "message")
SHOWN = 3  # failing cases of a target that are printed


class Enough(Exception):
    """A target has had its time."""


def campaign(target: str, cases: int, number: int, seconds: float) -> tuple[Counter, int, float, list[str]]:
    """Outcomes of the cases of a target by kind, the longest message, the seconds, and the first failures."""
    kinds, longest, failures, began = Counter(), 0, {}, time.monotonic()
    worker = Worker()

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )  # fmt: skip
    @given(STRATEGIES[target])
    def tries(case) -> None:
        nonlocal longest
        if time.monotonic() > end:
            raise Enough
        outcome = worker.run(target, case)
        kinds[outcome.kind] += 1
        longest = max(longest, len(outcome.text)) if outcome.kind in ("refused", "message") else longest
        if not outcome.sound:
            place = outcome.text.strip().splitlines()[-3:]
            failures.setdefault((outcome.kind, *place[:2]), f"{outcome.kind}: {case!r:.1000}\n{outcome.text}")

    with contextlib.closing(worker):
        sound = worker.run(target, Case(1, (), ()), STARTING)
        end = time.monotonic() + seconds
        if sound.sound:
            with contextlib.suppress(Enough):
                tries()
        else:
            kinds[sound.kind] += 1
            failures[sound.kind] = f"a sound input: {sound.text}"
    return kinds, longest, time.monotonic() - began, list(failures.values())


def main() -> int:
    """Run the campaign and print its figures, a target on each core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(STRATEGIES)}; by default all")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=1800, help="after which a target tries no more")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    unknown = set(options.targets) - STRATEGIES.keys()
    if unknown:
        parser.error(f"no target {', '.join(unknown)}")
    columns = ("cases", "read", "refused", "tracebacks", "signals", "hangs", "messages", "longest", "seconds")
    print(f"{'target':22}" + "".join(f"{name:>11}" for name in columns), flush=True)
    total = Counter()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        asked = options.cases, options.seed, options.seconds
        running = {pool.submit(campaign, target, *asked): target for target in options.targets or STRATEGIES}
        for done in as_completed(running):
            kinds, longest, seconds, failures = done.result()
            total += kinds
            row = (kinds.total(), *(kinds[kind] for kind in ("read", "refused", *FAULTS)), longest, round(seconds))
            print(f"{running[done]:22}" + "".join(f"{value:11,}" for value in row), flush=True)
            for text in failures[:SHOWN]:
                print(text, file=sys.stderr, flush=True)
    faults = sum(total[kind] for kind in FAULTS)
    print(f"{total.total():,} cases, {faults} faults (seed {options.seed})")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
