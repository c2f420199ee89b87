"""`python -m kill [--few N] [COMMAND …]`: kill commands at every write and print what became of it."""

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from kill.campaign import HEADER, kill_everywhere, line


def main() -> int:
    """Run the campaign; the exit status is 1 where a file was half-written or lost, or a run did not go on."""
    parser = argparse.ArgumentParser(prog="python -m kill", description=__doc__)
    parser.add_argument("names", nargs="*", help="commands; all where none is named")
    parser.add_argument("--few", type=int, help="points of each command; all where it is not given")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    from kill.commands import COMMANDS
    from kill.reproduce import kill_reproduce

    campaigns = {command.name: partial(kill_everywhere, command) for command in COMMANDS}
    campaigns["reproduce"] = kill_reproduce
    unknown = set(args.names) - campaigns.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(campaigns)}")
    print(HEADER, flush=True)
    faults, tried = [], 0
    for name in args.names or campaigns:
        with tempfile.TemporaryDirectory() as scratch:
            tally = campaigns[name](Path(scratch), args.few)
        print(line(tally), flush=True)
        tried += tally.tried
        faults += [f"{name}: {fault}" for fault in tally.faults]
        if not tally.tried:
            faults.append(f"{name}: no kill point was reached")
    print(f"{tried} kill points, {len(faults)} faults", flush=True)
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
