"""More images for ``train``: an embedded or rendered set and renders of another seed, as one data set."""

import json
import shutil
from pathlib import Path

from eelib.coco import read_coco
from eelib.files import write_atomic
from showroom import ShowroomError

HELD_OUT = ("val", "calibrate", "test")


def join(base: Path | str, more: Path | str, out: Path | str) -> dict:
    """Write a data set whose ``train`` holds the images of both and whose other splits are those of ``base``.

    Images of ``more`` are named after their seed and get ids and scenes of their own, so that a
    bootstrap over scenes never takes two rooms for one.

    Args:
        base: folder of a data set, such as ``data/showroom``.
        more: folder of ``eelib showroom render --split train``.
        out: folder that is written; it must not exist.

    Returns:
        Content of the joint ``train.json``; ``info.joined`` tells both parts.

    Raises:
        ShowroomError: ``out`` exists, ``more`` was not rendered for ``train``, or two images have one name.
        DataError: a set is missing or broken.
    """
    base, more, out = Path(base), Path(more), Path(out)
    if out.exists():
        raise ShowroomError(f"{out}: exists; expected a new folder")
    content, added = (
        read_coco(folder / "train.json", segmentations=True).content for folder in (base, more)
    )
    settings = added["info"].get("settings") or {}
    if settings.get("split") != "train":
        raise ShowroomError(f"{more / 'train.json'}: key 'info.settings' is {settings}; expected renders of train")
    last = {key: max(row["id"] for row in content[key]) for key in ("images", "annotations")}
    scene = max(image["scene"] for image in content["images"]) + 1
    images = [
        image | {"id": image["id"] + last["images"], "scene": image["scene"] + scene,
                 "file_name": f"{settings['seed']}_{image['file_name']}"}
        for image in added["images"]
    ]  # fmt: skip
    taken = {image["file_name"] for image in content["images"]} & {image["file_name"] for image in images}
    if taken:
        raise ShowroomError(f"{more}: {min(taken)} is in {base} already; expected renders of another seed")
    annotations = [
        row | {"id": row["id"] + last["annotations"], "image_id": row["image_id"] + last["images"]}
        for row in added["annotations"]
    ]
    parts = [{"images": len(content["images"])}, {"images": len(images), "settings": settings}]
    whole = {
        "info": content["info"] | {"joined": [*content["info"].get("joined", parts[:1]), parts[1]]},
        "images": content["images"] + images,
        "annotations": content["annotations"] + annotations,
        "categories": content["categories"],
    }
    for split in ("train", *HELD_OUT):
        shutil.copytree(base / split, out / split)
        if split != "train":
            shutil.copy2(base / f"{split}.json", out / f"{split}.json")
    for image, own in zip(images, added["images"], strict=True):
        shutil.copy2(more / "train" / own["file_name"], out / "train" / image["file_name"])
    shutil.copy2(base / "ATTRIBUTION.csv", out / "ATTRIBUTION.csv")
    text = json.dumps(whole, separators=(",", ":"))  # last: a folder without it is no data set
    write_atomic(out / "train.json", lambda file: file.write(text.encode()))
    return whole
