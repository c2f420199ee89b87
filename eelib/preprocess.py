"""Image files as the networks take them: one decoder and one resizer for training, evaluation and deployment.

numpy and Pillow alone.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from eelib.files import InputError

MAX_PIXELS = 100_000_000  # decoded, such an image takes 400 MB; Pillow itself stops at 179 million
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that exchange width and height
TIFF_MAXIMA = (281, 341)  # MaxSampleValue and SMaxSampleValue: the value that is white
# White of a file that does not state it: the smallest of these that no pixel exceeds. Cameras of 12 bits store
# them in 16 without saying so.
WHITES = (255, 4095, 65535, 2**31 - 1)
ImageSource = str | Path | Image.Image | np.ndarray


class ImageError(InputError):
    """An image file is missing, broken or too large; the message names it."""


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's: of large images, which are bounded here, and of odd metadata
            # an open file, because Pillow reads a grey TIFF that is turned wrongly where it may map the file's memory
            with Path(path).open("rb") as file, Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width} x {image.height} px"
                    raise ImageError(f"{path}: image of {size}; expected at most {MAX_PIXELS / 1e6:g} million pixels")
                yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: image file is missing") from None
    except Exception as error:  # decoders of foreign bytes raise whatever they stumble over
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{path}: image cannot be decoded ({reason})") from None


def read_image(path: Path | str) -> Image.Image:
    """Decode a file of any mode to 8-bit RGB, upright.

    An EXIF rotation is applied, transparency is laid on white, 16 and 32 bit and float are scaled so that white
    is 255, the first frame of an animation is taken.

    Raises:
        ImageError: missing, empty, truncated, no image, or of more than :data:`MAX_PIXELS`, which is not decoded.
    """
    with _opened(path) as image:
        image.load()
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An open image of any mode as 8-bit RGB, in the way that :func:`read_image` describes; it is turned in place."""
    ImageOps.exif_transpose(image, in_place=True)  # a copy would lose the tags that say what is white
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read_sizes(path: Path | str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the upright image and of the stored one in pixels, from the file's head.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _opened(path) as image:
        sizes = (image.size[::-1] if image.getexif().get(ORIENTATION) in LYING else image.size), image.size
        return sizes[::-1] if image.format == "TIFF" else sizes  # whose size Pillow states upright


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of mode I, I;16 or F; Pillow's own conversion cuts at 255, which turns a 16-bit image white."""
    values = np.asarray(image)
    highest = np.max(values, where=np.isfinite(values), initial=0)
    tags = getattr(image, "tag_v2", {})
    stated = [np.max(tags[tag]) for tag in TIFF_MAXIMA if tag in tags]
    whites = (*stated, *((1,) if image.mode == "F" else ()), *WHITES, highest)
    white = float(next(white for white in whites if white > 0 and white >= highest))
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), 256):  # in strips, so that float copies stay small
        strip = np.nan_to_num(values[first : first + 256].astype(np.float32), nan=0, posinf=white, neginf=0)
        grey[first : first + 256] = np.rint(strip.clip(0, white) * (255 / white))
    return Image.fromarray(grey)


def as_image(source: ImageSource) -> Image.Image:
    """Any of the kinds of images as an upright RGB image.

    Raises:
        ValueError: an array of another shape, type or range, or something else altogether.
        ImageError: a file that cannot be read.
    """
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, Image.Image):
        return upright_rgb(source.copy())
    if not isinstance(source, np.ndarray):
        raise ValueError(f"image is of type {type(source).__name__}; expected a path, a PIL image or an array")
    if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3) or not source.size:
        raise ValueError(f"image is an array of shape {source.shape}; expected (height, width, 3) or (height, width)")
    if source.dtype != np.uint8:
        if not np.issubdtype(source.dtype, np.floating):
            raise ValueError(f"image is an array of {source.dtype}; expected uint8, or float in [0, 1]")
        if not (np.isfinite(source).all() and source.min() >= 0 and source.max() <= 1):
            raise ValueError(
                f"image is a float array from {source.min():g} to {source.max():g}; expected [0, 1], or uint8 in 0..255"
            )
        source = np.round(source * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(source)).convert("RGB")


def resize(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image at the network's size, bilinear with antialiasing: uint8 (size, size, 3)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image)


def to_input(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as the network takes it: float32 (3, size, size) in [0, 1]."""
    return np.ascontiguousarray(resize(image, size).transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
