"""Three small renders; they need the extra and the furniture."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from showroom import ShowroomError, catalogue, dataset, recipes, render, roles


def _absent() -> str:
    """Why nothing can be rendered here, or nothing."""
    extra = [name for name in ("mitsuba", "pyoidn", "embreex", "cv2") if importlib.util.find_spec(name) is None]
    if extra:
        return f"{', '.join(extra)} not installed: pip install -r requirements-render.lock"
    try:
        catalogue.furniture_folder(None)
    except ShowroomError as error:
        return str(error)
    return ""


SETTINGS = dataset.Settings("val", seed=1, samples=2)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A scene with chairs and one without; the folder and the scenes' ids."""
    if _absent():
        pytest.skip(_absent())
    empty = next(i for i in range(1000) if recipes.draw(dataset.scene_rng(SETTINGS, i)) == "neg")
    folder = tmp_path_factory.mktemp("rendered")
    furniture = catalogue.furniture_folder(None)
    render.start()
    for scene_id in (0, empty):
        dataset.render_scene(folder, furniture, SETTINGS, scene_id)
    return folder, furniture, (0, empty)


@pytest.mark.timeout(1200)
def test_rendered_annotations_are_what_the_rays_see(rendered):
    folder, furniture, (scene_id, empty) = rendered
    content = dataset.merge(folder, SETTINGS, [scene_id, empty])
    composition = dataset.compose(catalogue.read_catalogue(furniture), SETTINGS, scene_id)
    buffer, _ = composition.caster.cast(composition.cameras[0])
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] == 1]
    # no chair without an annotation, and no other pixel in a mask
    painted = sum(coco_mask.decode(annotation["segmentation"]).astype(int) for annotation in annotations)
    assert (painted == (buffer > 0)).all() and len(annotations) == len(np.unique(buffer[buffer > 0])) > 0
    for annotation in annotations:
        rows, columns = np.nonzero(coco_mask.decode(annotation["segmentation"]))
        x, y = columns.min(), rows.min()
        assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert 0 < annotation["visibility"] <= 1
        assert annotation["model"] in roles.HELD_OUT["val"]
    assert content["images"][1]["recipe"] == "neg"
    assert not [annotation for annotation in content["annotations"] if annotation["image_id"] == 2]
    for image in content["images"]:
        pixels = np.asarray(Image.open(folder / "val" / image["file_name"]))
        assert pixels.shape == (320, 320, 3) and pixels.std() > 10


@pytest.mark.timeout(1200)
def test_the_same_seed_makes_the_same_image(rendered, tmp_path):
    folder, furniture, (scene_id, _) = rendered
    dataset.render_scene(tmp_path, furniture, SETTINGS, scene_id)
    for path in (f"val/{scene_id:06d}_0.jpg", f"parts/val/{scene_id:06d}.json"):
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()
