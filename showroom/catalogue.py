"""The furniture archives of Sweet Home 3D: which models there are, whose they are, and their files."""

import csv
import io
import posixpath
import re
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from showroom import ROOT, ShowroomError

CATALOGUE_FILE = "PluginFurnitureCatalog.properties"
# archive -> (prefix of its models' keys, licence of all of them)
LIBRARIES = {
    "BlendSwap-CC-0": ("bs0", "CC0"),
    "BlendSwap-CC-BY": ("bsby", "CC BY 3.0"),
    "KatorLegaz": ("kl", "CC BY 3.0 US"),
    "Reallusion": ("rl", "CC BY 3.0 US"),
    "Scopia": ("sc", "CC BY 3.0"),
}
UNPACKED = ROOT / "runs" / "furniture"  # where `make furniture` unpacks the Debian packages
_DEBIAN = "usr/share/sweethome3d/furniture"
_UPRIGHT = "1 0 0 0 1 0 0 0 1"
_LARGEST_FILE = 64 * 2**20  # bytes; the largest of the libraries has 9 MB


@dataclass(frozen=True)
class Entry:
    """A furniture model of an archive."""

    key: str  # such as sc/chair3
    name: str
    creator: str
    licence: str
    library: str
    archive: Path
    model_path: str  # of the OBJ inside the archive
    dims_m: tuple[float, float, float]  # width (x), height (y), depth (z)
    rotation: tuple[float, ...]  # 3 x 3, row-major, applied before scaling


def furniture_folder(option: Path | None) -> Path:
    """The folder of the ``.sh3f`` archives: the option, what `make furniture` unpacked, or Debian's.

    Raises:
        ShowroomError: no such folder holds an archive.
    """
    candidates = [option] if option else [UNPACKED / _DEBIAN, Path("/") / _DEBIAN]
    for folder in candidates:
        if any(folder.glob("*.sh3f")):
            return folder
    tried = ", ".join(map(str, candidates))
    raise ShowroomError(f"no furniture archive (*.sh3f) in {tried}; run `make furniture` or name a --furniture folder")


def parse_properties(text: str) -> dict[str, str]:
    """Java properties: comments, continued lines, escapes and ``\\uXXXX``."""
    values = {}
    for line in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        match = re.match(r"\s*([^#!\s][^=:]*?)\s*[=:]\s*(.*)", line)
        if match:
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), match[2])
            values[match[1]] = re.sub(r"\\(.)", r"\1", value).strip()
    return values


@lru_cache(maxsize=1)
def read_catalogue(folder: Path) -> dict[str, Entry]:
    """All models of the archives in a folder, by key; read once per process.

    Raises:
        ShowroomError: an archive is unknown or no zip, or a model lacks a property.
    """
    entries = {}
    for path in sorted(folder.glob("*.sh3f")):
        if path.stem not in LIBRARIES:
            raise ShowroomError(f"{path}: unknown library; expected one of {', '.join(LIBRARIES)}")
        try:
            values = parse_properties(open_archive(path).read(CATALOGUE_FILE).decode("latin-1"))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ShowroomError(f"{path}: not a furniture archive ({error})") from None
        models: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            field, hash_sign, number = name.partition("#")
            if hash_sign and number.isdigit():
                models.setdefault(number, {})[field] = value
        for number, properties in models.items():
            try:
                entry = _entry(path, properties)
            except (KeyError, IndexError, ValueError) as error:
                raise ShowroomError(f"{path}: model #{number}: bad or missing property ({error})") from None
            entries[entry.key] = entry
    return entries


def _entry(path: Path, properties: dict[str, str]) -> Entry:
    prefix, licence = LIBRARIES[path.stem]
    key = f"{prefix}/{properties['id'].split('#')[1]}"
    dims_m = tuple(float(properties[side]) / 100 for side in ("width", "height", "depth"))
    rotation = tuple(map(float, (properties.get("modelRotation") or _UPRIGHT).split()))
    authorship = properties["name"], properties.get("creator", ""), licence
    return Entry(key, *authorship, path.stem, path, properties["model"], dims_m, rotation)


class Archive:
    """Read-only files of a zip, looked up as Windows would: any case, back-slashes, stray folders."""

    def __init__(self, path: Path):
        self.zip = zipfile.ZipFile(path)
        self.names = {name.lower(): name for name in self.zip.namelist()}

    def find(self, folder: str, relative: str) -> str | None:
        """Name of a file named relative to a folder of the archive, or None where there is none.

        An unknown path falls back to a file of the same name in the folder: several models were
        exported with the author's own absolute paths.
        """
        relative = relative.replace("\\", "/").strip()
        for candidate in (relative, relative.rsplit("/", 1)[-1]):
            name = posixpath.normpath(posixpath.join(folder, candidate)).lstrip("/").lower()
            if name in self.names:
                return self.names[name]
        return None

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            ShowroomError: it would unpack to more than a model can be.
        """
        size = self.zip.getinfo(name).file_size
        if size > _LARGEST_FILE:
            where = f"{self.zip.filename}: {name}"
            raise ShowroomError(f"{where} unpacks to {size} bytes; at most {_LARGEST_FILE} expected")
        return self.zip.read(name)


open_archive = lru_cache(maxsize=8)(Archive)  # opened once per process


def attribution(entries: dict[str, Entry], keys: list[str]) -> str:
    """CSV of the author and licence of each model, one per line.

    Raises:
        ShowroomError: a model is in no archive.
    """
    missing = [key for key in keys if key not in entries]
    if missing:
        raise ShowroomError(f"the archives lack {len(missing)} models, such as {missing[0]}; expected version 1.8")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "name", "creator", "license", "library"])
    writer.writerows([e.key, e.name, e.creator, e.licence, e.library] for e in map(entries.get, keys))
    return text.getvalue()
