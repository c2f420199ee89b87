"""Where a process is killed: before its n-th change of a file in a folder, or within the write that follows.

Python tells an audit hook of every file that it opens, renames, removes or makes, whichever library asks for it. So the
n-th change is the same one in every run, and nothing has to be replaced or waited for. A kill within a write is the
kernel's: the process may not make a file larger than a few bytes any more, and dies by the signal of that limit.
"""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TORN = 50  # bytes that are written of a file before the process dies
# Events, and how many paths they name.
CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEATHS = {-signal.SIGKILL, -signal.SIGXFSZ}


class Point(NamedTuple):
    """A moment of a run: before its change of this number, counted from 1, or in the write that follows it."""

    number: int
    within: bool = False


class Watch:
    """An audit hook that counts changes of files below a folder, and ends the process at a point."""

    def __init__(self, folder: Path | str, point: Point | None = None, ignored: tuple[str, ...] = ()):
        self.folder, self.point, self.ignored = os.path.realpath(folder) + os.sep, point, ignored
        self.last: tuple = ()
        self.opens: list[bool] = []  # of each change, whether it opens a file for writing
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def __call__(self, event: str, args: tuple) -> None:
        """Called by Python at each event of any kind."""
        if event == "open":
            opens, paths = True, args[:1] if isinstance(args[2], int) and args[2] & WRITES else ()
        elif event in CHANGES:
            opens, paths = False, args[: CHANGES[event]]
        else:
            return
        if not any(map(self._inside, paths)) or (opens and paths == self.last):  # Python tells of some opens twice
            return
        self.last = paths
        self.opens.append(opens)
        if self.point is None or len(self.opens) != self.point.number:
            return
        if not self.point.within:
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (TORN, TORN))

    def _inside(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.path.abspath(os.fsdecode(path))
        return name.startswith(self.folder) and not name.removeprefix(self.folder).startswith(self.ignored or "\0")


def points(opens: list[bool]) -> list[Point]:
    """All points of a run with these changes."""
    numbered = list(enumerate(opens, 1))
    return [Point(n, within) for n, opens in numbered for within in ((False, True) if opens else (False,))]


class Ended(NamedTuple):
    """How a child ended: its exit status, negative where a signal ended it, what it printed, and its changes."""

    status: int
    printed: str
    opens: list[bool]


def run_forked(call: Callable[[], int | None], folder: Path, point: Point | None = None) -> Ended:
    """Run a call in a child process, and end it at a point; returns when it and all of its children have ended.

    The caller must not have trained: torch's engine does not survive a fork.
    """
    out, inside = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            for stream in (1, 2):
                os.dup2(inside, stream)
            for end in (out, inside, told):
                os.close(end)
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            watch = Watch(folder, point)
            sys.addaudithook(watch)
            status = call() or 0
            sys.stdout.flush()
            os.write(tell, bytes(watch.opens))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(inside)
    os.close(tell)
    printed = _drain(out)  # ends when the last process that can write to it has ended
    opens = [bool(value) for value in _drain(told)]
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), printed.decode(errors="replace"), opens)


def _drain(end: int) -> bytes:
    with os.fdopen(end, "rb") as file:
        return file.read()
