"""More images for ``train``: an embedded or rendered set and renders of another seed, as one data set."""

import json
import shutil
from pathlib import Path

from showroom import ShowroomError
from showroom.files import file_inside, read_coco, write_atomic
from showroom.roles import SPLITS


def join(base: Path, more: Path, out: Path) -> dict:
    """Write a data set whose ``train`` holds the images of both and whose other splits are those of ``base``.

    Images of ``more`` are named after their seed and get ids and scenes of their own, so that a
    bootstrap over scenes never takes two rooms for one. Only the files that the JSON names are copied.

    Args:
        base: folder of a data set, such as ``data/showroom``.
        more: folder of ``python -m showroom render --split train``.
        out: folder that is written; it must not exist yet.

    Returns:
        Content of the joint ``train.json``; ``info.joined`` lists both parts.

    Raises:
        ShowroomError: ``out`` exists, ``more`` was not rendered for ``train``, two images have the same
            name, or a set is missing or broken.
    """
    if out.exists() or out.is_symlink():
        raise ShowroomError(f"{out}: exists; expected a new folder")
    contents, added = {split: read_coco(base, split) for split in SPLITS}, read_coco(more, "train")
    train, settings = contents["train"], added["info"].get("settings")
    if not isinstance(settings, dict) or settings.get("split") != "train" or type(settings.get("seed")) is not int:
        message = f"key 'info.settings' is {settings!r:.100}; expected renders of train and their seed"
        raise ShowroomError(f"{more / 'train.json'}: {message}")
    last = {key: max((row["id"] for row in train[key]), default=0) for key in ("images", "annotations")}
    scene = max((image["scene"] for image in train["images"]), default=-1) + 1
    images = [
        image
        | {"id": image["id"] + last["images"], "scene": image["scene"] + scene}
        | {"file_name": f"{settings['seed']}_{image['file_name']}"}
        for image in added["images"]
    ]
    taken = {image["file_name"] for image in train["images"]} & {image["file_name"] for image in images}
    if taken:
        raise ShowroomError(f"{more}: {min(taken)} is in {base} already; expected renders of another seed")
    annotations = [
        row | {"id": row["id"] + last["annotations"], "image_id": row["image_id"] + last["images"]}
        for row in added["annotations"]
    ]
    joined = train["info"].get("joined", [{"images": len(train["images"])}])
    if not isinstance(joined, list):
        raise ShowroomError(f"{base / 'train.json'}: key 'info.joined' is {joined!r:.100}; expected a list")
    joint = {
        "info": train["info"] | {"joined": [*joined, {"images": len(images), "settings": settings}]},
        "images": train["images"] + images,
        "annotations": train["annotations"] + annotations,
        "categories": train["categories"],
    }
    names = [(split, image["file_name"]) for split, content in contents.items() for image in content["images"]]
    names += [(f"{split}.json",) for split in SPLITS if split != "train"] + [("ATTRIBUTION.csv",)]
    copies = {out.joinpath(*name): file_inside(base, *name) for name in names}
    for image, source in zip(images, added["images"], strict=True):
        copies[out / "train" / image["file_name"]] = file_inside(more, "train", source["file_name"])
    for target, source in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target, follow_symlinks=False)
    # last: a folder without it is no data set
    write_atomic(out / "train.json", json.dumps(joint, separators=(",", ":")).encode())
    return joint
