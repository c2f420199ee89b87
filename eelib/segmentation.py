"""Segmentations of COCO files: checked before pycocotools' C code draws them.

pycocotools checks nothing: a run-length code that does not cover its image leaves uninitialised memory in the
mask, NaN in a polygon fills the machine's memory, and other slips end in a crash.
"""

import math

import msgspec
import numpy as np

from eelib.files import shorten

Number = int | float
MAX_PERIMETER = 1_000_000  # pixels; pycocotools walks along it in steps of a fifth of a pixel


class _RunLengths(msgspec.Struct):
    size: tuple[int, int]  # height, width
    counts: str | list[int]


_decoder = msgspec.json.Decoder(list[list[Number]] | _RunLengths | None, strict=False)


def read(raw: bytes | msgspec.Raw, size_hw: tuple[int, int]) -> list | dict | None:
    """Decode and check a segmentation.

    Args:
        raw: JSON text: polygons, run lengths (as a list or compressed) or nothing.
        size_hw: height and width of the image in pixels.

    Returns:
        What COCO's JSON holds; None where there is no segmentation: null, no polygon with a point, empty text.

    Raises:
        ValueError: what is wrong with it.
    """
    if bytes(raw).strip() in (b"{}", b'""'):
        return None
    try:
        segmentation = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected polygons or run lengths ({error})") from None
    if segmentation is None or isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation or () if polygon]
        for polygon in polygons:
            _check_polygon(polygon, size_hw)
        return polygons or None
    if segmentation.size != size_hw:
        raise ValueError(
            f"run lengths of {shorten(list(segmentation.size))}; the image has [height, width] {list(size_hw)}"
        )
    counts = segmentation.counts
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    total, pixels = sum(lengths), math.prod(size_hw)
    if total != pixels or min(lengths) < 0:
        covered = f"run lengths cover {shorten(total)} pixels"
        raise ValueError(f"{covered} of the image's {pixels}; expected all, none below 0")
    return {"size": list(segmentation.size), "counts": counts}


def _check_polygon(polygon: list[Number], size_hw: tuple[int, int]) -> None:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"polygon of {len(polygon)} numbers; expected x and y of three points or more")
    reach = max(size_hw)
    if not all(-reach <= value <= 2 * reach for value in polygon):  # NaN as well
        raise ValueError(f"polygon leaves the image of {size_hw[1]} x {size_hw[0]} px by far, or is not finite")
    if len(polygon) * 3 * reach < MAX_PERIMETER:  # twice what it can be at the most
        return
    points = np.array(polygon, float).reshape(-1, 2)
    if np.abs(points - np.roll(points, 1, 0)).max(1).sum() > MAX_PERIMETER:
        raise ValueError(f"polygon is longer than {MAX_PERIMETER:,} pixels")


def _decompressed(text: str) -> list[int]:
    """Run lengths of COCO's compressed text: five bits a character, differences to the run before last."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise ValueError(f"compressed run lengths: {character!r} cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift or not lengths:
        raise ValueError("compressed run lengths end too early")
    return lengths
