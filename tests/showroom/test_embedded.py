"""The embedded data against the renderer's own rules."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from showroom import ROOT, ShowroomError, datasheet, recipes, roles
from showroom.annotate import LEAST_VISIBILITY, is_crowd

SHOWROOM = ROOT / "data" / "showroom"


@pytest.fixture(scope="module")
def embedded():
    return datasheet.load(SHOWROOM)


@pytest.mark.parametrize("split", roles.SPLITS)
def test_embedded_boxes_are_the_extent_of_their_masks(embedded, split):
    annotations = embedded[split]["annotations"]
    for annotation in annotations[:: len(annotations) // 150]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = columns[0], rows[0]
        width, height = columns[-1] + 1 - x, rows[-1] + 1 - y
        assert annotation["bbox"] == [x, y, width, height]
        assert annotation["area"] == mask.sum()
        edges = (x == 0, y == 0, x + width == 320, y + height == 320)
        assert annotation["touches_edge"] == any(edges)


def test_embedded_annotations_keep_the_crowd_rule(embedded):
    for content in embedded.values():
        for annotation in content["annotations"]:
            visibility = annotation["visibility"]
            assert 0 <= visibility <= 1
            if abs(visibility - LEAST_VISIBILITY) > 0.0005:  # the JSON rounds it to three decimals
                assert annotation["iscrowd"] == is_crowd(annotation["area"], visibility, min(annotation["bbox"][2:]))


def test_embedded_masks_of_an_image_do_not_overlap(embedded):
    for content in embedded.values():
        by_image = {}
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
        for masks in list(by_image.values())[::25]:
            assert coco_mask.area(coco_mask.merge(masks)) == sum(coco_mask.area(masks))


def test_embedded_splits_share_no_chair_and_hold_empty_images(embedded):
    seen = {s: {annotation["model"] for annotation in c["annotations"]} for s, c in embedded.items()}
    assert not seen["train"] & seen["val"] and not (seen["train"] | seen["val"]) & (seen["calibrate"] | seen["test"])
    # version 1 still has the daybed that new renders leave out
    for split, models_seen in seen.items():
        allowed = set(roles.flatten(roles.chairs_of(split)))
        assert models_seen - {"sc/ext_chair"} <= allowed
    for content in embedded.values():
        with_chair = {annotation["image_id"] for annotation in content["annotations"]}
        assert len(with_chair) < len(content["images"])
        assert {image["recipe"] for image in content["images"]} == set(recipes.RECIPES)
    scenes = [{image["scene"] for image in embedded[split]["images"]} for split in ("calibrate", "test")]
    assert not scenes[0] & scenes[1]


def test_every_model_is_attributed(embedded):
    listed = {line.split(",")[0] for line in (SHOWROOM / "ATTRIBUTION.csv").read_text().splitlines()[1:]}
    assert set(roles.all_models()) <= listed
    assert {annotation["model"] for content in embedded.values() for annotation in content["annotations"]} <= listed


def test_the_datasheet_holds_the_numbers_of_the_data():
    text = (SHOWROOM / "README.md").read_text()
    assert datasheet.fill(text, SHOWROOM) == text, "run `python -m showroom datasheet`"
    with pytest.raises(ShowroomError, match="no markers <!-- counts -->"):
        datasheet.fill("", SHOWROOM)
    for name in ("contact_sheet.jpg", "rendered_sheet.jpg"):
        assert name in text and (SHOWROOM / name).stat().st_size < 400_000
