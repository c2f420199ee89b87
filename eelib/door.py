"""The door of the command line: whatever happens inside becomes an exit status and a line that helps.

=======  =========================================================================================
status   meaning
=======  =========================================================================================
0        done
1        the command ran, and a check, an image, a notebook or a scene failed
2        bad input: one line names the file and the key, or the option, and what was expected
70       a fault of eelib: the error's type and first line; ``--traceback`` shows the rest
130      stopped by Ctrl-C: one line says how to go on
141      whoever read the output, such as ``head``, has closed it
=======  =========================================================================================
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from eelib.files import InputError, one_line

TRACEBACK = "EELIB_TRACEBACK"  # set to 1, it does what --traceback does
# What goes on where Ctrl-C stopped a command.
GO_ON = {
    "train": "the same command with --resume goes on after the last epoch",
    **dict.fromkeys(("route", "certify"), "the same command goes on; records that were finished are kept"),
    **dict.fromkeys(("phases", "study"), "the same command goes on"),
}
# The extra that brings a package, by the name under which the package is imported.
EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchvision", "lightning_fabric", "pycocotools", "pydantic", "yaml", "msgspec", "onnx", "scipy",
         "sklearn", "pandas"), "train",
    ),
    **dict.fromkeys(("papermill", "nbformat", "jinja2"), "notebooks"),
    **dict.fromkeys(("optuna", "torch_pruning"), "compress"),
    "av": "video",
    "globox": "convert",
    "openvino": "openvino",
}  # fmt: skip


def enter(call: Callable[[list[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        call: runs the arguments and gives an exit status, or None for 0.
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status, see the table above.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    whole = "--traceback" in argv or os.environ.get(TRACEBACK) == "1"
    argv = [word for word in argv if word != "--traceback"]
    for stream in (sys.stdout, sys.stderr):  # a file name that is no text must not end a command in print
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = call(argv)
        _flush()
        return int(status or 0)
    except (BrokenPipeError, SystemExit):  # the latter is how rich, which prints the help, answers a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the exit flushes, and fails, again
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if whole:
            traceback.print_exc()
        status, text = _verdict(error, argv)
        say(text)
        return status


def _flush() -> None:
    """Meet a full disk here, where it becomes a line, and not at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def say(text: str) -> None:
    """One line on stderr, bounded in length."""
    print(f"eelib: {one_line(text)}", file=sys.stderr, flush=True)


def _verdict(error: BaseException, argv: Sequence[str]) -> tuple[int, str]:
    """Exit status, and what is said."""
    kind, text = type(error), str(error)
    words = [word for word in argv[:2] if not word.startswith("-")]
    if kind is KeyboardInterrupt:
        return 130, text or f"stopped; {GO_ON.get(words[0] if words else '', 'nothing was written half')}"
    if isinstance(error, InputError) or kind.__module__.startswith("cyclopts"):
        return 2, text
    if isinstance(error, OSError):
        where = error.filename or ("standard output" if error.errno == errno.ENOSPC else "")
        return 2, f"{where}: {error.strerror}" if where and error.strerror else text or kind.__name__
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").split(".")[0]) in EXTRAS:
        return 2, f"this needs the package {package}: pip install '.[{EXTRAS[package]}]'"
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError":
        return 2, "out of memory; expected a smaller batch or image size"
    first = (text.strip() or "no message").splitlines()[0]
    command = " ".join(["eelib", *words[:1]])
    return 70, f"{command}: {kind.__name__}: {first[:300]}; this is a fault of eelib, --traceback shows the rest"
