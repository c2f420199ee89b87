"""Released detectors by name, and any checkpoint by its path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eelib.files import InputError, file_sha256, look_up, read_json, shorten

if TYPE_CHECKING:
    from eelib.model import EarlyExitSSDLite

DEFAULT = "exits_256"
MANIFEST = "checkpoints/manifest.json"


class HubError(InputError):
    """There are no weights of this name; the message says where they were looked for and what makes them."""


def load(name: str | Path = DEFAULT) -> EarlyExitSSDLite:
    """A detector that is ready to predict.

    Args:
        name: name of a released detector, such as ``"exits_256"``, searched for in the ``checkpoints`` of the working
            folder and of the folders above it; or the path of a checkpoint, such as a run's ``released.pth``.

    Raises:
        HubError: no such name or file, or released weights that are not the ones that the manifest describes.
        TrainingError: the file is no checkpoint of a detector.

    Examples:
        >>> model = eelib.load("exits_256")
        >>> model.predict("room.jpg").exit_name
        'full'
    """
    path = path_of(name)
    from eelib.checkpoints import load_released  # torch, which a missing file need not wait for

    model = load_released(path).eval()
    model.source = path
    return model


def path_of(detector: EarlyExitSSDLite | str | Path) -> Path:
    """The file of a detector: of what :func:`load` gave, of a released name, or the path itself.

    Raises:
        HubError: no such name or file, or a model that was not loaded from a file.
    """
    if not isinstance(detector, str | Path):
        if not hasattr(detector, "source"):
            raise HubError("the model was not loaded from a file; expected one of `eelib.load`, or a path")
        return detector.source
    path = look_up(detector)
    if path.is_file():
        return _checked(path)
    if path.suffix or len(path.parts) > 1:
        raise HubError(f"{path}: no such checkpoint; `eelib train` makes one, as released.pth of its folder")
    return released_path(str(detector))


def released_path(name: str) -> Path:
    """The file of a released detector, checked against the manifest's hash."""
    manifest = look_up(MANIFEST)
    if not manifest.is_file():
        raise HubError(
            f"{name}: no '{MANIFEST}' in {Path.cwd()} or a folder above it; expected the path of a checkpoint, or a "
            "working folder inside a checkout of eelib"
        )
    released, path = read_manifest(manifest.parent), manifest.parent / f"{name}.pth"
    there = {entry.name for entry in manifest.parent.iterdir()}
    if path.name not in released or path.name not in there:
        known = ", ".join(Path(file).stem for file in released if file in there)
        raise HubError(
            f"{name}: not released; expected one of {known}, which {manifest} lists, or the path of a checkpoint"
        )
    return _checked(path)


def read_manifest(folder: Path | str) -> dict[str, dict]:
    """The manifest of a folder of released weights: an entry for each file; empty where there is none yet.

    Raises:
        HubError: the manifest is not JSON, or an entry is not of a file in the folder, with its ``sha256``.
    """
    path = Path(folder) / Path(MANIFEST).name
    try:
        entries = read_json(path, HubError)
    except FileNotFoundError:
        return {}
    for file, entry in entries.items():
        if Path(file).name != file:
            raise HubError(f"{path}: entry {shorten(file)} is not of a released file; expected a file's name")
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise HubError(f"{path}: entry {shorten(file)} is {shorten(entry)}; expected an object with text 'sha256'")
    return entries


def _checked(path: Path) -> Path:
    """A checkpoint that is, where a manifest of releases lies beside it and lists it, the one that was released."""
    released = read_manifest(path.parent) if path.parent.name == "checkpoints" else {}
    if path.name in released and file_sha256(path) != released[path.name]["sha256"]:
        manifest = path.with_name(Path(MANIFEST).name)
        raise HubError(f"{path}: not the weights that {manifest} describes; their SHA-256 differs")
    return path
