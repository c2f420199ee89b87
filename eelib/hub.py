"""Released detectors by name, and any checkpoint by its path."""

import json
from pathlib import Path

from eelib.checkpoints import TrainingError, load_released
from eelib.files import file_sha256, look_up
from eelib.model import EarlyExitSSDLite

DEFAULT = "exits_256"
MANIFEST = "checkpoints/manifest.json"


def load(name: str | Path = DEFAULT) -> EarlyExitSSDLite:
    """A detector that is ready to predict.

    Args:
        name: of a released detector, such as ``"exits_256"``, which is looked for in the ``checkpoints`` of the
            working folder and of the folders above it; or the path of a checkpoint, such as a run's ``released.pth``.

    Raises:
        TrainingError: no such name or file, no checkpoint, or released weights that are not the ones that the
            manifest describes.

    Example:
        >>> eelib.load("exits_256").predict("room.jpg").plot()
    """
    path = path_of(name)
    model = load_released(path).eval()
    model.source = path
    return model


def path_of(detector: EarlyExitSSDLite | str | Path) -> Path:
    """The file of a detector: of what :func:`load` gave, of a released name, or the path itself.

    Raises:
        TrainingError: no such name, or a model that was not loaded from a file.
    """
    if isinstance(detector, EarlyExitSSDLite):
        if not hasattr(detector, "source"):
            raise TrainingError("the model was not loaded from a file; expected one of `eelib.load`, or a path")
        return detector.source
    path = Path(detector)
    return released_path(str(detector)) if not path.suffix and not path.exists() else look_up(path)


def released_path(name: str) -> Path:
    """The file of a released detector, checked against the manifest's hash."""
    manifest = look_up(MANIFEST)
    if not manifest.is_file():
        raise TrainingError(
            f"{name}: no '{MANIFEST}' in {Path.cwd()} or a folder above it; expected the path of a checkpoint, or a "
            "working folder inside a checkout of eelib"
        )
    try:
        entries = json.loads(manifest.read_text())
        hashes = {Path(file).stem: entries[file]["sha256"] for file in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{manifest}: not a manifest of released detectors ({error})") from None
    path = manifest.parent / f"{name}.pth"
    if name not in hashes or not path.exists():
        known = [stem for stem in hashes if (manifest.parent / f"{stem}.pth").exists()]
        raise TrainingError(f"{name}: not released; expected one of {', '.join(known)}, or the path of a checkpoint")
    if file_sha256(path) != hashes[name]:
        raise TrainingError(f"{path}: not the weights that {manifest} describes; their SHA-256 differs")
    return path
