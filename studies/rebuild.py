"""What the Snakefile asks of Python: the files behind a result, and what a killed or an older run left.

All paths are relative to the checkout, in which Snakemake runs.
"""

import ast
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path
from typing import IO

import yaml

BESIDE_THE_LIBRARY = ("studies", "showroom")  # packages in which single modules are followed


def alone(path: str, lock: str) -> IO:
    """Remove Snakemake's lock, a folder, where no process is left that could hold it.

    Every Snakemake process of the checkout shares a lock of the kernel on the file ``path`` until it ends, however it
    ends. Whoever gets it exclusively knows that no other process lives, and that Snakemake's own lock is a dead one's.

    Returns:
        The open file. It must stay open as long as the process lives.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock, ignore_errors=True)
    except BlockingIOError:
        pass
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def code(*files: str) -> list[str]:
    """The whole library, and of the studies and the renderer what modules or notebooks import, directly or not."""
    reached, waiting = set(), [Path(file) for file in files]
    while waiting:
        path = waiting.pop()
        if path.suffix == ".py":
            reached.add(path)
        names = _imports(path.read_text(), path.suffix == ".ipynb")
        waiting += {module for name in names for module in _modules(name)} - reached
    return sorted({*map(str, reached), *glob("eelib/**/*.py", recursive=True)})


@functools.cache  # the rules of a Snakefile ask for the same few files some thousand times
def _imports(text: str, notebook: bool) -> list[str]:
    """Dotted names that a module or a notebook imports."""
    if notebook:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    names = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _modules(name: str) -> list[Path]:
    """File of a dotted name outside the library; none for what is no module."""
    if name.split(".")[0] not in BESIDE_THE_LIBRARY:
        return []
    return [path for end in (".py", "/__init__.py") if (path := Path(name.replace(".", "/") + end)).exists()]


def parameters(path: str) -> list[str]:
    """A parameter file and the files that it extends."""
    base = yaml.safe_load(Path(path).read_text()).get("extends")
    return [path, *(parameters(os.path.normpath(Path(path).parent / base)) if base else [])]


def committed(patterns: Iterable[str], source: str = "reports", target: str = "runs/reports") -> list[str]:
    """Copy results that are only read, unless the target has a newer one; the paths in the target."""
    copies = []
    for pattern in patterns:
        for file in sorted(Path(source).glob(pattern)):
            copy = target / file.relative_to(source)
            copies.append(str(copy))
            if not copy.exists() or copy.stat().st_mtime < file.stat().st_mtime:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)
    return copies


def forget(caches: Sequence[str], files: Sequence[str]) -> str:
    """Shell command that deletes caches older than the newest of some files.

    Snakemake runs a notebook again when code changed; what the notebook cached by configuration, weights and data
    it would read as it is.
    """
    newest = max(files, key=os.path.getmtime)
    return "".join(f"find {cache} ! -newer {newest} -delete 2> /dev/null || true; " for cache in caches)
