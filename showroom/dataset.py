"""Scenes to files: a part a scene, written whole or not at all, then one COCO JSON a split.

Scene i of a split depends on (seed, split, i) alone, and its view v on v besides: neither the
number of scenes nor of processes changes an image.
"""

import io
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from eelib.files import write_atomic
from showroom import IMAGE_SIZE, ShowroomError, film, recipes, render, roles, room
from showroom.annotate import CATEGORY_ID, annotate
from showroom.catalogue import Entry, attribution, read_catalogue
from showroom.layout import Scene
from showroom.view import Camera, Caster, choose_camera

VERSION = "1.1"  # 1.0 is the embedded set
_LAYOUTS = 6  # rooms that are tried until a camera sees a chair


@dataclass(frozen=True)
class Settings:
    """What an image depends on, beside its scene."""

    split: str
    seed: int
    views: int = 1  # cameras a scene
    samples: int = 8  # paths a pixel
    quality: int = 82  # of the JPEG


@dataclass
class Composition:
    """A scene that is ready to be photographed; rng goes on to draw the cameras."""

    scene: Scene
    room: room.Room
    caster: Caster
    rng: Generator
    cameras: list[Camera]


def scene_rng(settings: Settings, scene_id: int, stream: int = 0) -> Generator:
    """Stream 0 draws the scene and its cameras, stream 1 + v the film of view v."""
    return np.random.default_rng([settings.seed, roles.SPLITS[settings.split], scene_id, stream])


def compose(entries: Mapping[str, Entry], settings: Settings, scene_id: int) -> Composition:
    """Furnish a room and find its cameras.

    Raises:
        ShowroomError: no camera sees a chair in any of the rooms that were tried.
    """
    rng = scene_rng(settings, scene_id)
    for _ in range(_LAYOUTS):
        scene = recipes.build(entries, roles.chairs_of(settings.split), rng)
        built = room.build(scene, rng)
        caster = Caster(built.surfaces)
        cameras: list[Camera] = []
        for _ in range(settings.views):
            camera = choose_camera(scene, caster, rng, avoid=cameras)
            if camera is not None:
                cameras.append(camera)
        if cameras:
            return Composition(scene, built, caster, rng, cameras)
    raise ShowroomError(f"scene {scene_id} of {settings.split}: no camera sees a chair in {_LAYOUTS} rooms")


def annotations_of(composition: Composition, camera: Camera) -> list[dict]:
    """The chairs that a camera sees, as COCO annotations without ids."""
    instances, _ = composition.caster.cast(camera)
    silhouettes = {}
    for instance in np.unique(instances[instances > 0]).tolist():
        alone = Caster([surface for surface in composition.room.surfaces if surface.instance == instance])
        silhouettes[instance] = int((alone.cast(camera)[0] > 0).sum())
    models = {item.instance: item.entry.key for item in composition.scene.chair_items}
    return annotate(instances, silhouettes, models)


def part_path(out: Path, split: str, scene_id: int) -> Path:
    """File of a finished scene's annotations."""
    return out / "parts" / split / f"{scene_id:06d}.json"


def is_done(out: Path, settings: Settings, scene_id: int) -> bool:
    """Was this scene finished, with these settings?

    Raises:
        ShowroomError: it was made with other settings; mixing them would hide what the data is.
    """
    path = part_path(out, settings.split, scene_id)
    if not path.exists():
        return False
    made_with = json.loads(path.read_text())["settings"]
    if made_with != asdict(settings):
        raise ShowroomError(f"{path}: made with {made_with}, not {asdict(settings)}; choose another --out")
    return True


def render_scene(out: Path, furniture: Path, settings: Settings, scene_id: int) -> str:
    """Make a scene's images and its part. Returns the scene's recipe."""
    composition = compose(_entries(furniture), settings, scene_id)
    scene, views = composition.scene, []
    for view, camera in enumerate(composition.cameras):
        rng = scene_rng(settings, scene_id, 1 + view)
        light = render.radiance(composition.room, camera, settings.samples, int(rng.integers(2**31 - 1)))
        pixels, tags = film.expose(light, rng)
        name = f"{scene_id:06d}_{view}.jpg"
        image = io.BytesIO()
        Image.fromarray(pixels).save(image, "JPEG", quality=settings.quality, optimize=True)
        write_atomic(out / settings.split / name, lambda file, image=image: file.write(image.getvalue()))
        entry = {"file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE, "recipe": scene.recipe}
        entry |= {"clutter": round(scene.clutter, 3), **tags, "scene": scene_id, "view": view}
        views.append({"image": entry, "annotations": annotations_of(composition, camera)})
    text = json.dumps({"settings": asdict(settings), "views": views})
    write_atomic(part_path(out, settings.split, scene_id), lambda file: file.write(text.encode()))
    return scene.recipe


@lru_cache(maxsize=1)
def _entries(furniture: Path) -> dict[str, Entry]:
    return read_catalogue(furniture)


def _attempt(out: Path, furniture: Path, settings: Settings, scene_id: int) -> tuple[int, str, str]:
    """A scene, its recipe, and what went wrong: whatever it is, the other scenes go on."""
    try:
        return scene_id, render_scene(out, furniture, settings, scene_id), ""
    except Exception as error:
        return scene_id, "", f"{type(error).__name__}: {error}"


def _outcomes(out: Path, furniture: Path, settings: Settings, todo: list[int], workers: int) -> Iterator:
    """What :func:`_attempt` returns, as scenes end."""
    if workers == 1:
        yield from (_attempt(out, furniture, settings, scene_id) for scene_id in todo)
        return
    # spawn: mitsuba's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=render.start) as pool:
        futures = {pool.submit(_attempt, out, furniture, settings, scene_id): scene_id for scene_id in todo}
        for future in as_completed(futures):
            error = future.exception()  # the process died, by a signal or for want of memory
            yield (futures[future], "", f"{type(error).__name__}: {error}") if error else future.result()


def render_split(
    out: Path, furniture: Path, settings: Settings, scenes: int, workers: int = 1, log: Callable[[str], None] = print
) -> list[int]:
    """Make the scenes 0 … scenes - 1 that are not there yet, then the split's JSON.

    Returns:
        The scenes that failed; a second start tries them again.

    Raises:
        ShowroomError: the extra, the furniture or LLVM is missing, or the folder holds other data.
    """
    render.start()
    csv = attribution(_entries(furniture), roles.all_models())
    write_atomic(out / "ATTRIBUTION.csv", lambda file: file.write(csv.encode()))
    todo = [scene_id for scene_id in range(scenes) if not is_done(out, settings, scene_id)]
    log(f"{settings.split}: {scenes - len(todo)} of {scenes} scenes are done; {workers} processes")
    failed, started = [], time.monotonic()
    for count, (scene_id, recipe, error) in enumerate(_outcomes(out, furniture, settings, todo, workers), 1):
        left_s = (time.monotonic() - started) / count * (len(todo) - count)
        log(f"{count}/{len(todo)} scene {scene_id}: {'FAILED ' + error if error else recipe}; {_duration(left_s)} left")
        if error:
            failed.append(scene_id)
    content = merge(out, settings.split, [scene_id for scene_id in range(scenes) if scene_id not in failed])
    boxes = sum(not annotation["iscrowd"] for annotation in content["annotations"])
    log(f"wrote {out / settings.split}.json: {len(content['images'])} images, {boxes} boxes, {len(failed)} failures")
    return failed


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def merge(out: Path, split: str, scene_ids: list[int]) -> dict:
    """Write a split's COCO JSON from the parts of its scenes; returns its content."""
    images, annotations, settings = [], [], None
    for scene_id in scene_ids:
        part = json.loads(part_path(out, split, scene_id).read_text())
        settings = part["settings"]  # the same in every part: `is_done` refuses others
        for view in part["views"]:
            images.append({"id": len(images) + 1} | view["image"])
            for annotation in view["annotations"]:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images)} | annotation)
    info = {"description": "showroom: path-traced indoor scenes for chair detection", "version": VERSION}
    info |= {"license": "CC BY 3.0, see ATTRIBUTION.csv", "settings": settings}
    categories = [{"id": CATEGORY_ID, "name": "chair", "supercategory": "furniture"}]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    text = json.dumps(content, separators=(",", ":"))
    write_atomic(out / f"{split}.json", lambda file: file.write(text.encode()))
    return content
