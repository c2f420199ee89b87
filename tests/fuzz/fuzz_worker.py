"""A child process that reads what may crash, hang or fill the memory, and what came of each case.

Worker().run("annotations", case)
"""

import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

MEMORY = 3 * 2**29  # bytes that a case may take beyond what the libraries have taken
STARTING = 900  # seconds for imports and sound inputs, and for one case:
SECONDS = 60  # far beyond what any case takes, even where the machine is shared
LONGEST = 1000  # characters of a message, what the command line shows of it


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        kind: ``read``, ``refused``, ``traceback``, ``signal``, ``hang`` or ``message``: one that is not a line, does
            not name its file or is too long.
        text: the message, or the end of the traceback.
    """

    kind: str
    text: str = ""

    @property
    def sound(self) -> bool:
        """Whether the reader did as it should."""
        return self.kind in ("read", "refused")


class Worker:
    """A child process with bounds; it is started when it is first needed, and again after a case has killed it."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def close(self) -> None:
        """End it."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def run(self, target: str, case: object, seconds: float = SECONDS) -> Outcome:
        """Read a case by a target of :mod:`fuzz_targets`; the first case of a target makes its sound input, too."""
        if self.process is None:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__]
            self.process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-3, env=environment)
            if not (started := self._answer(STARTING)).sound:  # it has imported what it needs
                raise RuntimeError(f"the worker did not start: {started}")
        pickle.dump((target, case), self.process.stdin)
        self.process.stdin.flush()
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Outcome:
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.close()
            return Outcome("hang", f"no answer in {seconds} s")
        try:
            return Outcome(*pickle.load(self.process.stdout))
        except EOFError:
            status = self.process.wait()
            self.close()
            return Outcome("signal", signal.Signals(-status).name if status < 0 else f"exit status {status}")


def judge(text: str, name: str) -> Outcome:
    """A reader's own error."""
    if len(text.splitlines()) != 1 or len(text) > LONGEST or name not in text:
        return Outcome("message", text[: 2 * LONGEST])
    return Outcome("refused", text)


def read(target: str, case: object, folder: Path) -> Outcome:
    """What comes of a case, in this process."""
    from fuzz_targets import TARGETS

    chosen = TARGETS[target]
    try:
        chosen.read(case, folder)
    except chosen.errors as error:
        return judge(str(error), chosen.names)
    except BaseException:  # a reader that exits or asks for more memory than there is has a fault, too
        return Outcome("traceback", traceback.format_exc()[-4000:])
    return Outcome("read")


def serve() -> None:
    """Answer cases on stdin until it is closed."""
    answers, cases = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a reader prints is no answer
    import fuzz_targets  # noqa: F401  torch and what else is large, so that the memory of a case is its own

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pickle.dump(("read", ""), answers)
    answers.flush()
    while True:
        try:
            target, case = pickle.load(cases)
        except EOFError:
            return
        with tempfile.TemporaryDirectory() as folder:
            outcome = read(target, case, Path(folder))
        pickle.dump(tuple(outcome), answers)
        answers.flush()


if __name__ == "__main__":
    serve()
