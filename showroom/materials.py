"""What a surface looks like, without the renderer's terms."""

import io
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image

from showroom.catalogue import Archive
from showroom.models import ObjMaterial
from showroom.textures import any_colour

BRIGHTEST = 0.9  # linear; a whiter surface would light a room as if it were a lamp
_DARKEST = 0.015
_TEXTURE_SIDE = 384  # px; no finer texel would be seen in the images' 320 px
_METAL = re.compile(r"metal|chrom|inox|steel|alu|acero|acier|iron|silver|brass|cromo|plata|hierro|gold", re.I)
_GLASS = re.compile(r"glass|cristal|vidrio|verre|vitre|transparen", re.I)


@dataclass
class Material:
    """A surface: sRGB colour (3,) in [0, 1] or texture uint8 (H, W, 3); opacity uint8 (H, W)."""

    colour: np.ndarray
    roughness: float = 0.5
    specular: float = 0.4
    metallic: float = 0.0
    opacity: np.ndarray | None = None  # a texel under 128 is a hole
    glass: bool = False  # light goes through, and the annotation looks through


@dataclass
class Emission:
    """Light given off by a surface: linear RGB (3,) or an image (H, W, 3)."""

    radiance: np.ndarray
    sampling_weight: float  # share of the light samples; about the power


@dataclass
class Surface:
    """A triangle mesh in the room: (V, 3), (V, 3) or None for flat, (V, 2), (F, 3)."""

    vertices: np.ndarray
    normals: np.ndarray | None
    uvs: np.ndarray
    faces: np.ndarray
    material: Material
    instance: int = 0  # 1, 2, … for the chairs; 0 for everything else
    emission: Emission | None = None


class Recolour:
    """How one object, or one set of chairs, differs from its catalogue colours.

    Args:
        rng: seeds the variation; later draws do not touch it, so that the order in which
            materials are converted cannot change the layout.
        strong: other colours altogether rather than a slight shift.
    """

    def __init__(self, rng: Generator, strong: bool):
        self.rng = np.random.default_rng(int(rng.integers(2**62)))
        self.strong = strong
        self.colours: dict[tuple, np.ndarray] = {}
        hue_moves = strong and self.rng.random() < 0.5
        self.hue = self.rng.uniform(-0.5, 0.5) if hue_moves else self.rng.normal(0, 0.015)
        self.saturation = self.rng.uniform(0.3, 1.5) if strong else self.rng.uniform(0.8, 1.15)
        self.value = self.rng.uniform(0.45, 1.35) if strong else self.rng.uniform(0.85, 1.1)

    def colour(self, diffuse: tuple[float, ...], metal: bool) -> np.ndarray:
        """The new colour of all parts that share an old one: sRGB (3,)."""
        key = tuple(np.round(diffuse, 1))
        if key not in self.colours:
            if self.strong and not metal and self.rng.random() < 0.75:
                self.colours[key] = any_colour(self.rng)
            else:
                shifted = np.array(diffuse) * self.rng.uniform(0.85, 1.05)
                self.colours[key] = np.clip(shifted, _DARKEST, BRIGHTEST)
        return self.colours[key]

    def texture(self, image: np.ndarray) -> np.ndarray:
        """A texture shifted in hue, saturation and value: uint8 (H, W, 3)."""
        pixels = np.asarray(Image.fromarray(image).convert("HSV")).astype(float)
        pixels[..., 0] = (pixels[..., 0] + (self.hue * 255 if self.strong else 0)) % 256
        pixels[..., 1] = np.clip(pixels[..., 1] * self.saturation, 0, 255)
        pixels[..., 2] = np.clip(pixels[..., 2] * self.value, 0, 255)
        return np.asarray(Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB"))


def linear(colour: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light in [0, BRIGHTEST]."""
    colour = np.clip(np.asarray(colour, float), 0, 1)
    light = np.where(colour < 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return np.minimum(light, BRIGHTEST)


@lru_cache(maxsize=600)
def read_texture(archive: Archive, name: str) -> tuple[np.ndarray, np.ndarray | None] | None:
    """A texture of an archive as uint8 RGB (H, W, 3) and alpha (H, W); None where it cannot be read."""
    try:
        image = Image.open(io.BytesIO(archive.read(name)))
        has_alpha = image.mode in ("RGBA", "LA") or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    except (OSError, SyntaxError):
        return None
    shrink = _TEXTURE_SIDE / max(image.size)
    if shrink < 1:
        image = image.resize([max(1, int(side * shrink)) for side in image.size], Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    alpha = pixels[..., 3] if has_alpha else None
    if alpha is not None and (alpha > 200).all():
        alpha = None
    return np.ascontiguousarray(pixels[..., :3]), alpha


def of_model(material: ObjMaterial, archive: Archive, recolour: Recolour) -> Material:
    """The look of a part of a furniture model."""
    if material.dissolve < 0.6 or (material.dissolve < 0.98 and _GLASS.search(material.name)):
        return Material(np.ones(3), glass=True)
    metal = bool(_METAL.search(material.name)) and not material.texture
    shine = float(np.mean(material.specular))
    # Blinn and Phong's exponent as a GGX roughness
    roughness = float(np.clip((2 / (max(material.shininess, 1) + 2)) ** 0.25, 0.2, 0.9)) if shine > 0.02 else 0.8
    texture, alpha = read_texture(archive, material.texture) if material.texture else None, None
    if texture is not None:
        colour, alpha = recolour.texture(texture[0]), texture[1]
    else:
        colour = recolour.colour(material.diffuse, metal)
    if material.opacity_texture and alpha is None:
        mask = read_texture(archive, material.opacity_texture)
        if mask is not None:
            alpha = mask[0].mean(-1).astype(np.uint8) if mask[1] is None else mask[1]
    roughness, metallic = (0.3, 0.85) if metal else (roughness, 0.0)
    return Material(colour, roughness, min(0.2 + shine, 0.7), metallic, alpha)
