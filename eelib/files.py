"""Files: written whole or not at all, and known by their hash."""

import fcntl
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST = 1000  # characters of a message
MAX_JSON_BYTES = 64 * 2**20  # of a JSON other than annotations; the largest here has 200 kB
SHOWN = 80  # characters of a value in a message


class InputError(ValueError):
    """Something given to eelib is not what it should be; the message, one line, names it and what was expected."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A message as one line of printable text of at most :data:`LONGEST` characters."""
    line = "; ".join(text[: 2 * LONGEST].splitlines())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def shorten(value: object) -> str:
    """A value as a message shows it: bytes as the text that they are, others as Python writes them, cut where long."""
    if isinstance(value, bytes):
        text = value[: 4 * SHOWN].decode(errors="replace")
        return text if len(text) <= SHOWN else text[:SHOWN] + " …"
    if isinstance(value, dict | list | tuple) and len(value) > 20:
        return f"{type(value).__name__} of {len(value)}"
    try:
        text = repr(value[: 4 * SHOWN] if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes, lists in lists
        return f"{type(value).__name__} that is too long to show"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def read_text(path: Path | str, most: int, kind: str, error: type[InputError]) -> str:
    """Text of a file in UTF-8, with or without a byte-order mark.

    Args:
        most: bytes that such a file has at the most.
        kind: what such a file is, for the message.
        error: raised where it is larger, or is not UTF-8; :class:`OSError` where it cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise error(f"{path}: larger than {most:,} bytes; expected {kind}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not UTF-8 text ({reason.reason} at byte {reason.start})") from None


def read_json(path: Path | str, error: type[InputError] = InputError) -> dict:
    """An object of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        error: it is no JSON, is not UTF-8, is no object, or is larger than such a file can be.
    """
    try:
        text = read_text(path, MAX_JSON_BYTES, "a JSON file of eelib", error)
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    try:
        values = json.loads(text)
    except RecursionError:
        raise error(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as reason:  # no JSON, or a number of 5,000 digits
        raise error(f"{path}: not valid JSON ({reason})") from None
    if not isinstance(values, dict):
        raise error(f"{path}: expected an object of JSON, got {type(values).__name__}")
    return values


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
        # opened without truncation: the file may still be another process's
        file = open(partial, "wb", opener=lambda path, flags: os.open(path, flags & ~os.O_TRUNC, 0o666))  # noqa: SIM115
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


def refuse_bomb(path: Path | str, ratio: int, error: type[InputError]) -> None:
    """Before it is unpacked: raise the error for a zip that unpacks to more than 64 MiB and ``ratio`` times its size.

    No file of its kind reaches that ratio; the file need not be a zip.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        unpacked, packed = sum(part.file_size for part in file.infolist()), Path(path).stat().st_size
    if unpacked > max(MAX_JSON_BYTES, ratio * packed):
        raise error(f"{path}: {packed:,} bytes that unpack to {unpacked:,}; expected less than {ratio} times as many")


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
