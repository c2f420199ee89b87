"""Segmentations: what pycocotools draws for what is sound, one line for what is not."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from eelib.coco import SHOWROOM, Source
from eelib.data import DetectionDataset
from eelib.faults import DataError
from eelib.segmentation import read
from studies.phases.preflight import Outlined

SIZE = (48, 64)  # height, width


def parsed(value, size_hw=SIZE):
    return read(json.dumps(value).encode(), size_hw)


def drawn(shape):
    """The mask that pycocotools makes of what was read."""
    coco = COCO()
    coco.imgs = {1: {"height": SIZE[0], "width": SIZE[1]}}
    return coco.annToMask({"image_id": 1, "segmentation": shape})


def test_what_is_sound_is_read_as_it_is():
    content = json.loads((SHOWROOM / "val.json").read_text())
    for annotation in content["annotations"][:100]:
        assert parsed(annotation["segmentation"], (320, 320)) == annotation["segmentation"]
    triangles = [[4, 6, 24, 6, 4, 36], [30.5, 10, 50, 10.25, 30, 30]]
    assert parsed(triangles) == triangles and drawn(triangles).sum() > 300


def test_run_lengths_as_a_list_and_compressed():
    pixels = np.zeros(SIZE, np.uint8)
    pixels[3:20, 5:9] = 1
    text = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    for form in (counts, [str(n) for n in counts], text):
        assert np.array_equal(drawn(parsed({"size": list(SIZE), "counts": form})), pixels)
    # pycocotools' merge stops at two runs of nothing and leaves the rest of the mask as it was in memory: none is used
    nothing = [0, 0, 0, 10, 48 * 64 - 10]
    assert drawn(parsed({"size": list(SIZE), "counts": nothing})).sum() == 10


@pytest.mark.parametrize("nothing", [None, [], [[]], {}, ""])
def test_no_segmentation_is_none(nothing):
    assert parsed(nothing) is None


REFUSED = {
    "flat list": ([10, 10, 50, 10, 50, 40], "expected polygons or run lengths"),
    "text": ("@x", "expected polygons or run lengths"),
    "number": (7, "expected polygons or run lengths"),
    "two points": ([[1, 2, 3, 4]], "polygon of 4 numbers; expected x and y of three points or more"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "polygon of 7 numbers"),
    "one of several": ([[1, 2, 3, 4, 5, 6], [1, 2]], "polygon of 2 numbers"),
    "nan": ([[10, 10, "nan", 10, 50, 40]], "or is not finite"),
    "infinite": ([[10, 10, "inf", 10, 50, 40]], "or is not finite"),
    "far": ([[10, 10, 1e9, 10, 50, 40]], "leaves the image of 64 x 48 px by far"),
    "far whole number": ([[10, 10, 10**400, "nan", 50, 40]], "by far"),
    "a point null": ([[10, None, 1, 10, 50, 40]], "expected polygons or run lengths"),
    "too long": ([[0, 0, 64, 48] * 20_000], "polygon is longer than 1,000,000 pixels"),
    "another size": (
        {"size": [24, 64], "counts": [1000, 536]},
        r"run lengths of \[24, 64\]; the image has .* \[48, 64\]",
    ),
    "huge size": ({"size": [100_000, 100_000], "counts": [5, 5]}, "run lengths of"),
    "short": ({"size": [48, 64], "counts": [1000, 2000]}, "run lengths cover 3000 pixels of the image's 3072"),
    "long": ({"size": [48, 64], "counts": [1000, 2073]}, "cover 3073 pixels"),
    "negative": ({"size": [48, 64], "counts": [4000, -928]}, "none below 0"),
    "no counts": ({"size": [48, 64], "counts": []}, "cover 0 pixels"),
    "counts missing": ({"size": [48, 64]}, "expected polygons or run lengths"),
    "counts null": ({"size": [48, 64], "counts": None}, "expected polygons or run lengths"),
    "counts half": ({"size": [48, 64], "counts": [1000.5, 2071.5]}, "expected polygons or run lengths"),
    "size missing": ({"counts": [3072]}, "expected polygons or run lengths"),
    "size negative": ({"size": [-48, -64], "counts": [3072]}, "run lengths of"),
    "text too short": ({"size": [48, 64], "counts": "Wja1"}, "run lengths cover"),
    "text ends early": ({"size": [48, 64], "counts": "W"}, "compressed run lengths end too early"),
    "text without a code": ({"size": [48, 64], "counts": "ab c"}, "compressed run lengths: ' ' cannot be read"),
    "text that never ends": ({"size": [48, 64], "counts": "o" * 1000}, "compressed run lengths"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        parsed(value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_lists_in_lists_are_refused_however_deep():
    with pytest.raises(ValueError, match="expected polygons or run lengths"):
        read(b"[" * 5000 + b"]" * 5000, SIZE)


numbers = st.one_of(st.integers(-100, 4000), st.floats(-100, 100), st.just(math.nan), st.just(1e300), st.just(2**70))
lengths = st.lists(st.integers(-5, 3072), max_size=8)
fitting = st.lists(st.integers(0, 3072), max_size=6).map(lambda n: [*n, 3072 - sum(n)])
texts = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)
run_lengths = st.fixed_dictionaries({"size": st.just(SIZE), "counts": st.one_of(lengths, fitting, texts)})


@settings(max_examples=150, deadline=None)
@example({"size": [48, 64], "counts": "0"})
@given(st.one_of(st.lists(st.lists(numbers, max_size=9), max_size=3), run_lengths))
def test_anything_is_a_mask_or_refused(value):
    text = json.dumps(value, default=list).replace("NaN", '"NaN"')
    try:
        shape = read(text.encode(), SIZE)
    except ValueError:
        return
    if shape is not None:
        pixels = drawn(shape)
        assert pixels.shape == SIZE and pixels.dtype == np.uint8 and pixels.max() <= 1


@pytest.mark.parametrize(
    "value", [[10, 10, 50, 10], "@x", {"size": [48, 64], "counts": [1000]}, [[1, 2, math.nan] * 2]]
)
def test_what_needs_segmentations_refuses_in_one_line(value, tiny):
    content = json.loads((tiny / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = value
    path = tiny / "train.json"
    path.write_text(json.dumps(content))
    source = Source({name: (path, tiny / "train") for name in ("train", "val", "calibrate", "test")})
    with pytest.raises(DataError, match=r"train.json: annotations\[0\] \(id 1\): 'segmentation' is .*3 of this kind"):
        Outlined("train", source)
    assert len(DetectionDataset("train", source)) == 2  # where nobody asks for them, they are not looked at
