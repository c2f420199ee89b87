"""``python -m eelib``: the command line of :mod:`eelib.cli`."""

import sys

from eelib.cli import main

if __name__ == "__main__":
    sys.exit(main())
