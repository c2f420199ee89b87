"""One decoder and one resizer: every odd kind of image is the same in evaluation and in detection."""

import io
import json
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin

from eelib import preprocess
from eelib.coco import Source
from eelib.data import DetectionDataset, as_input
from eelib.preprocess import ImageError, read_image, read_sizes, resize, to_input

W, H = 60, 40
RAMP = np.linspace(0, 255, W * H).reshape(H, W).round().astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], 2)


def tiff_info(**tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        info[int(number.removeprefix("tag"))] = value
    return info


def rotated(orientation):
    """Stored so that the orientation makes it upright again."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(COLOURS)
    return image if back is None else image.transpose(Image.Transpose(back))


def exif(orientation):
    values = Image.Exif()
    values[0x0112] = orientation
    return {"exif": values}


def transparent():
    """Hidden colours under an alpha of 0 in the left half."""
    alpha = np.where(np.arange(W) < W // 2, 0, 255)[None].repeat(H, 0).astype(np.uint8)
    return np.dstack([COLOURS, alpha])


ON_WHITE = np.where(transparent()[..., 3:] == 0, 255, COLOURS)
GREY, INFO = np.repeat(RAMP[..., None], 3, 2), {"tiffinfo": tiff_info(tag281=4095)}
# name: image, options of saving, upright RGB
ODD = {
    "16-bit.png": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, GREY),
    "16-bit.tif": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, GREY),
    "16-bit.pgm": (Image.fromarray(RAMP.astype(np.uint16) * 257), {}, GREY),
    "12-in-16.png": (Image.fromarray((RAMP / 255 * 4095).round().astype(np.uint16)), {}, GREY),
    "12-stated.tif": (Image.fromarray((RAMP / 255 * 2000).round().astype(np.uint16)), INFO, GREY * (2000 / 4095)),
    "32-bit.tif": (Image.fromarray(RAMP.astype(np.int32) * 257), {}, GREY),
    "float.tif": (Image.fromarray(RAMP.astype(np.float32)), {}, GREY),
    "unit.tif": (Image.fromarray((RAMP / 255).astype(np.float32)), {}, GREY),
    "float-16.tif": (Image.fromarray(RAMP.astype(np.float32) * 257), {}, GREY),
    "rgba.png": (Image.fromarray(transparent()), {}, ON_WHITE),
    "grey-alpha.png": (
        Image.fromarray(np.dstack([RAMP, transparent()[..., 3]])),
        {},
        np.where(ON_WHITE == 255, 255, GREY),
    ),
    "palette.png": (Image.fromarray(COLOURS).quantize(8), {}, None),
    "palette-hidden.png": (Image.fromarray(COLOURS).quantize(8), {"transparency": 0}, None),
    "colour-key.png": (Image.fromarray(COLOURS), {"transparency": tuple(COLOURS[0, 0].tolist())}, None),
    "one-bit.png": (Image.fromarray(RAMP).convert("1"), {}, None),
    "cmyk.jpg": (Image.fromarray(COLOURS).convert("CMYK"), {"quality": 100}, None),
    "grey.jpg": (Image.fromarray(RAMP), {"quality": 100}, GREY),
    "animation.gif": (Image.fromarray(RAMP), {"save_all": True, "append_images": [Image.new("L", (W, H))]}, GREY),
    **{f"turned-{k}.png": (rotated(k), exif(k), COLOURS) for k in range(1, 9)},
    "turned.jpg": (rotated(6), {**exif(6), "quality": 100, "subsampling": 0}, COLOURS),
}


@pytest.fixture
def folder(tmp_path):
    for name, (image, options, _) in ODD.items():
        image.save(tmp_path / name, **options)
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_upright_eight_bit_colours(name, folder):
    image = read_image(folder / name)
    assert image.mode == "RGB" and image.size == (W, H) == read_sizes(folder / name)[0]
    want = ODD[name][2]
    if want is not None:
        wrong = np.abs(np.asarray(image).astype(float) - want)
        assert wrong.mean() <= (3 if "jpg" in name else 0.5), name
    stored = ODD[name][0].size
    assert read_sizes(folder / name)[1] == stored


def test_hidden_colours_become_white(folder):
    plain = np.asarray(Image.fromarray(COLOURS).quantize(8).convert("RGB"))
    hidden = np.asarray(Image.fromarray(COLOURS).quantize(8)) == 0
    assert np.array_equal(
        np.asarray(read_image(folder / "palette-hidden.png")), np.where(hidden[..., None], 255, plain)
    )
    assert read_image(folder / "colour-key.png").getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("size", [32, W])
def test_evaluation_sees_what_detection_sees(name, size, folder):
    content = {
        "images": [{"id": 1, "file_name": name, "width": W, "height": H}],
        "categories": [{"id": 1, "name": "chair"}],
    }
    (folder / "a.json").write_text(json.dumps(content | {"annotations": []}))
    dataset = DetectionDataset("test", Source({"test": (folder / "a.json", folder)}), size)
    evaluated = as_input(dataset[0][0][None])[0].contiguous().numpy()
    detected = to_input(read_image(folder / name), size)
    assert detected.dtype == np.float32 and np.array_equal(evaluated, detected)


def test_resizing_is_pillows(folder):
    image = Image.fromarray(COLOURS)
    small = resize(image, 24)
    assert small.shape == (24, 24, 3) and small.dtype == np.uint8
    assert np.array_equal(small, np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR)))
    assert np.array_equal(resize(Image.fromarray(COLOURS[:, :H]), H), COLOURS[:, :H])


def test_what_is_not_finite_is_black_or_white(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    pixels = np.asarray(read_image(tmp_path / "a.tif"))
    assert pixels[0, :3, 0].tolist() == [0, 255, 0] and np.array_equal(pixels[1:], GREY[1:])


def test_a_16_bit_image_takes_little_memory(tmp_path):
    """Once three float64 copies of it; now a few bytes a pixel."""
    values = np.linspace(0, 60_000, 4_000_000).astype(np.uint16).reshape(4000, 1000)
    Image.fromarray(values).save(tmp_path / "a.png", compress_level=1)
    tracemalloc.start()
    try:
        read_image(tmp_path / "a.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * values.size


def bomb() -> bytes:
    """A PNG whose text chunk unpacks to 2 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("a", "x" * 2_000_000, zip=True)
    out = io.BytesIO()
    Image.fromarray(RAMP).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def large(width: int, height: int) -> bytes:
    """The head of a PNG of a stated size, with next to no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def whole() -> bytes:
    out = io.BytesIO()
    Image.fromarray(COLOURS).save(out, "JPEG")
    return out.getvalue()


BROKEN = {
    "empty": (b"", "image cannot be decoded"),
    "no image": (b"hello", "image cannot be decoded"),
    "truncated": (whole()[:600], "image cannot be decoded"),
    "text": (bomb(), r"image cannot be decoded \(Decompressed data too large"),
    "large": (large(20_000, 5_001), "image of 20000 x 5001 px; expected at most 100 million pixels"),
    "very large": (large(100_000, 100_000), "image cannot be decoded"),
}


@pytest.mark.parametrize(("raw", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_in_one_line(raw, message, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(raw)
    with warnings.catch_warnings(), pytest.raises(ImageError, match=message) as caught:
        warnings.simplefilter("error")
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="none.png: image file is missing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="image cannot be decoded"):
        read_image(tmp_path)


def test_a_large_image_is_refused_before_it_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="image of 60 x 40 px; expected at most 0.001 million pixels"):
        read_image(folder / "16-bit.png")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_flipped_bytes_give_an_image_or_an_error(tmp_path_factory, kind, data):
    out = io.BytesIO()
    Image.fromarray(COLOURS).save(out, kind)
    raw = bytearray(out.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, min(len(raw), 400) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flipped") / "a"
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "MAX_PIXELS", 1_000_000)
        try:
            assert read_image(path).mode == "RGB"
        except ImageError as error:
            assert str(path) in str(error)
