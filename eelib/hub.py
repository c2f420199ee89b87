"""Released detectors by name, and any checkpoint by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from eelib.files import InputError, file_sha256, look_up

if TYPE_CHECKING:
    from eelib.model import EarlyExitSSDLite

DEFAULT = "exits_256"
MANIFEST = "checkpoints/manifest.json"


class HubError(InputError):
    """There are no weights of this name; the message says where they were looked for and what makes them."""


def load(name: str | Path = DEFAULT) -> EarlyExitSSDLite:
    """A detector that is ready to predict.

    Args:
        name: of a released detector, such as ``"exits_256"``, which is looked for in the ``checkpoints`` of the
            working folder and of the folders above it; or the path of a checkpoint, such as a run's ``released.pth``.

    Raises:
        HubError: no such name or file, or released weights that are not the ones that the manifest describes.
        TrainingError: the file is no checkpoint of a detector.

    Example:
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
        return path
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
    try:
        entries = json.loads(manifest.read_text())
        hashes = {Path(file).stem: entries[file]["sha256"] for file in entries}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HubError(f"{manifest}: not a manifest of released detectors ({error})") from None
    path = manifest.parent / f"{name}.pth"
    if name not in hashes or not path.exists():
        known = [stem for stem in hashes if (manifest.parent / f"{stem}.pth").exists()]
        raise HubError(f"{name}: not released; expected one of {', '.join(known)}, or the path of a checkpoint")
    if file_sha256(path) != hashes[name]:
        raise HubError(f"{path}: not the weights that {manifest} describes; their SHA-256 differs")
    return path
