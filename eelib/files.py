"""Files: written whole or not at all, and known by their hash."""

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class InputError(ValueError):
    """Something given to eelib is not what it should be; the message, one line, names it and what was expected."""


def partial_of(target: Path) -> Path:
    """The neighbour that a file is written to before it gets its name."""
    return target.with_name(f".{target.name}.partial")


def reserve(partial: Path, wait: bool = True) -> io.BufferedWriter:
    """Open a neighbour for writing, empty and for this process alone until it is closed.

    It has the same name in every process, so that what a killed one left is written over by the next.

    Raises:
        BlockingIOError: another process writes it, and ``wait`` is false.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(partial, "wb", opener=_untouched)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
                file.truncate()
                return file
        file.close()  # whoever had it has renamed or removed it meanwhile


def _untouched(path: str, flags: int) -> int:
    """Open without truncation: the file may still be another process's."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def write_atomic(path: Path | str, write: Callable[[io.BufferedWriter], None]) -> Path:
    """Write a file whole or not at all: to a neighbour first, then renamed over the target, links followed."""
    path = Path(path)
    target = path.resolve()
    try:
        with reserve(partial_of(target)) as file:
            try:
                write(file)
                file.flush()
                partial_of(target).replace(target)
            except BaseException:
                partial_of(target).unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file by itself
            error.filename = str(path)
        raise
    return path


def check_target(option: str, path: Path) -> None:
    """Before the work: :class:`InputError` where a file cannot be written at a path that an option gives."""
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; expected a file")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if parent.is_file():
        raise InputError(f"{option} {path}: {parent} is a file; expected a folder")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{option} {path}: {parent} cannot be written to")


def look_up(path: Path | str) -> Path:
    """A relative path where it exists: in the working folder, or in the nearest folder above it.

    So a notebook finds ``data/showroom`` from its own folder, and a command from anywhere in a checkout. A path
    that exists nowhere is given as it is: the error of whoever opens it then names it.
    """
    path = Path(path)
    if path.is_absolute():
        return path
    here = Path.cwd()
    return next((folder / path for folder in (here, *here.parents) if (folder / path).exists()), path)


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path | str, values: dict) -> Path:
    """Write JSON atomically, keys in their order, one trailing newline."""
    text = json.dumps(values, indent=2) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode()))


@contextmanager
def locked(folder: Path | str) -> Iterator[Path]:
    """A folder, created, that no other process writes to in the meantime; the lock ends with this process.

    Raises:
        NotADirectoryError: there is a file in its place.
        BlockingIOError: another process holds it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: output is not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process writes to this folder") from None
        yield folder
