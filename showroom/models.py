"""OBJ and MTL of a furniture model as triangle meshes in metres.

y up, the floor at y = 0, centred in x and z, the front towards +z.
"""

import posixpath
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from showroom import ShowroomError
from showroom.catalogue import Archive, Entry, open_archive

Corner = tuple[int, ...]  # indices of position, uv and normal; -1 where the file gives none
_VECTORS = {"v": 3, "vt": 2, "vn": 3}  # keywords of OBJ and their numbers, in the order of a corner's indices


@dataclass
class ObjMaterial:
    """What is used of an MTL material. Colours are sRGB, as the modellers meant them."""

    name: str = ""
    diffuse: tuple[float, ...] = (0.7, 0.7, 0.7)  # Kd
    specular: tuple[float, ...] = (0.0, 0.0, 0.0)  # Ks
    shininess: float = 10.0  # Ns
    dissolve: float = 1.0  # d: 0 is invisible
    texture: str | None = None  # map_Kd, a file of the archive
    opacity_texture: str | None = None  # map_d
    uv_scale: tuple[float, float] = (1.0, 1.0)


@dataclass
class Part:
    """Triangles of one material: float32 (V, 3), (V, 3), (V, 2) and uint32 (F, 3)."""

    material: ObjMaterial
    vertices: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray


def _split(line: str) -> tuple[str, str]:
    """The first word of a line and the rest, both stripped."""
    words = [*line.split(None, 1), "", ""]
    return words[0], words[1].strip()


def parse_mtl(archive: Archive, path: str) -> dict[str, ObjMaterial]:
    """The materials of an MTL file by name; a texture that the archive lacks is left out."""
    materials: dict[str, ObjMaterial] = {}
    current, folder = None, posixpath.dirname(path)
    for line in archive.read(path).decode("latin-1").splitlines():
        keyword, rest = _split(line)
        if keyword == "newmtl":
            current = materials.setdefault(rest, ObjMaterial(rest, diffuse=(0.8, 0.8, 0.8)))
        elif current is None:
            continue
        elif keyword in ("Kd", "Ks"):
            setattr(current, "diffuse" if keyword == "Kd" else "specular", tuple(map(float, rest.split()[:3])))
        elif keyword in ("Ns", "d"):
            setattr(current, "shininess" if keyword == "Ns" else "dissolve", float(rest.split()[-1]))
        elif keyword in ("map_Kd", "map_d"):
            scale = re.match(r"-s\s+(\S+)\s+(\S+)(?:\s+[\d.eE+-]+)?\s+(.*)", rest)
            if scale:
                current.uv_scale, rest = (float(scale[1]), float(scale[2])), scale[3]
            while rest.startswith("-"):  # another option and its value
                rest = rest.split(None, 2)[-1]
            attribute = "texture" if keyword == "map_Kd" else "opacity_texture"
            setattr(current, attribute, archive.find(folder, rest))
    return materials


def _corner(token: str, counts: list[int]) -> Corner:
    """``7/3/7`` or ``7//7`` or negative, from the end, as zero-based indices."""
    indices = [int(text) if text else 0 for text in [*token.split("/"), "", ""][:3]]
    return tuple(i - 1 if i >= 0 else n + i for i, n in zip(indices, counts, strict=True))


def parse_obj(archive: Archive, path: str) -> tuple[dict[str, list], dict[str, list], dict[str, ObjMaterial]]:
    """Vectors by keyword, triangles of corners by material, and the materials; polygons become fans."""
    vectors, faces, materials = {keyword: [] for keyword in _VECTORS}, {}, {}
    name, folder = "", posixpath.dirname(path)
    for line in archive.read(path).decode("latin-1").replace("\\\n", " ").splitlines():
        keyword, rest = _split(line)
        if keyword in vectors:
            vectors[keyword].append(tuple(map(float, [*rest.split(), "0"][: _VECTORS[keyword]])))
        elif keyword == "f":
            counts = [len(values) for values in vectors.values()]
            corners = [_corner(token, counts) for token in rest.split()]
            fan = [(corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1)]
            faces.setdefault(name, []).extend(fan)
        elif keyword == "usemtl":
            name = rest
        elif keyword == "mtllib":
            library = archive.find(folder, rest)
            materials |= parse_mtl(archive, library) if library else {}
    return vectors, faces, materials


@lru_cache(maxsize=400)
def load(entry: Entry) -> tuple[Part, ...]:
    """The parts of a model, scaled to the catalogue's width, height and depth.

    Raises:
        ShowroomError: the archive lacks the OBJ file, or it holds no triangle.
    """
    archive = open_archive(entry.archive)
    path = archive.find("", entry.model_path)
    if path is None:
        raise ShowroomError(f"{entry.archive}: no file {entry.model_path} (model {entry.key})")
    vectors, faces, materials = parse_obj(archive, path)
    faces = {name: np.array(corners) for name, corners in faces.items() if corners}  # each (F, 3, 3)
    if not faces:
        raise ShowroomError(f"{entry.archive}: {path}: no triangle (model {entry.key})")
    rotation = np.array(entry.rotation).reshape(3, 3)
    positions = np.array(vectors["v"]) @ rotation.T
    normals = np.array(vectors["vn"]).reshape(-1, 3) @ rotation.T
    used = positions[np.unique(np.concatenate([f[:, :, 0].ravel() for f in faces.values()]))]
    low, high = used.min(0), used.max(0)
    scale = np.array(entry.dims_m) / np.maximum(high - low, 1e-9)
    positions = (positions - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]) * scale
    normals = normals / scale  # normals scale by the inverse
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    uvs = np.array(vectors["vt"]).reshape(-1, 2)
    looks = {name: materials.get(name) or ObjMaterial(name) for name in faces}
    parts = [_part(positions, uvs, normals, corners, looks[name]) for name, corners in faces.items()]
    return tuple(part for part in parts if len(part.faces))


def _part(
    positions: np.ndarray, uvs: np.ndarray, normals: np.ndarray, corners: np.ndarray, material: ObjMaterial
) -> Part:
    """Triangles with area, with a normal at each corner, equal corners merged."""
    points = positions[corners[:, :, 0]]  # (F, 3, 3)
    face_normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    area = np.linalg.norm(face_normals, axis=1)
    keep = area > 1e-12
    points, corners = points[keep], corners[keep]
    flat = np.repeat((face_normals[keep] / area[keep, None])[:, None], 3, axis=1)  # (F, 3, 3)
    corner_normals = flat.copy()
    if len(normals):
        given = normals[np.maximum(corners[:, :, 2], 0)]
        usable = (corners[:, :, 2] >= 0) & (np.linalg.norm(given, axis=2) > 0.5)
        corner_normals = np.where(usable[..., None], given, flat)
    corner_uvs = np.zeros((len(points), 3, 2))
    if len(uvs):
        corner_uvs = np.where((corners[:, :, 1] >= 0)[..., None], uvs[np.maximum(corners[:, :, 1], 0)], 0.0)
    columns = [points.reshape(-1, 3), corner_normals.reshape(-1, 3), (corner_uvs * material.uv_scale).reshape(-1, 2)]
    rows = np.concatenate(columns, axis=1).astype(np.float32)  # (3 F, 8)
    keys = np.ascontiguousarray(rows.round(6)).view(np.dtype((np.void, 32))).ravel()  # 8 float32 as one value
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    merged = rows[first]
    faces = inverse.reshape(-1, 3).astype(np.uint32)
    return Part(material, merged[:, :3], merged[:, 3:6], merged[:, 6:], faces)
