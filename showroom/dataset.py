"""Scenes to files: one part per scene, written whole or not at all, then one COCO JSON per split.

Scene i of a split depends on (seed, split, i) alone, and its view v on v besides: neither the
number of scenes nor of processes changes an image.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from showroom import IMAGE_SIZE, ShowroomError, film, recipes, render, roles, room
from showroom.annotate import CATEGORY_ID, annotate
from showroom.catalogue import Entry, attribution, read_catalogue
from showroom.files import locked, read_json, write_atomic, write_image
from showroom.layout import Scene
from showroom.view import Camera, Caster, choose_camera

VERSION = "1.1"  # 1.0 is the embedded set
_LAYOUTS = 6  # rooms that are tried until a camera sees a chair
Outcome = tuple[int, str, str]  # a scene, its recipe, and what went wrong


@dataclass(frozen=True)
class Settings:
    """What an image depends on, beside its scene."""

    split: str
    seed: int
    views: int = 1  # cameras per scene
    samples: int = 8  # paths per pixel
    quality: int = 82  # of the JPEG


@dataclass
class Composition:
    """A scene that is ready to be photographed."""

    scene: Scene
    room: room.Room
    caster: Caster
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
            return Composition(scene, built, caster, cameras)
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


def read_part(out: Path, settings: Settings, scene_id: int) -> dict | None:
    """The settings and the views of a finished scene; None where it is still to be made.

    Raises:
        ShowroomError: it was made with other settings; mixing them would hide what the data is.
    """
    path = part_path(out, settings.split, scene_id)
    part = read_json(path) if path.exists() else None
    made_with = part.get("settings", {}) if isinstance(part, dict) else part
    if made_with not in (None, asdict(settings)):
        raise ShowroomError(f"{path}: made with {made_with!r:.200}, not {asdict(settings)}; choose another --out")
    return part


def render_scene(out: Path, furniture: Path, settings: Settings, scene_id: int) -> str:
    """Make a scene's images and its part. Returns the scene's recipe."""
    composition = compose(read_catalogue(furniture), settings, scene_id)
    scene, views = composition.scene, []
    for view, camera in enumerate(composition.cameras):
        rng = scene_rng(settings, scene_id, 1 + view)
        light = render.radiance(composition.room, camera, settings.samples, int(rng.integers(2**31 - 1)))
        pixels, tags = film.expose(light, rng)
        name = f"{scene_id:06d}_{view}.jpg"
        options = {"format": "JPEG", "quality": settings.quality, "optimize": True}
        write_image(out / settings.split / name, Image.fromarray(pixels), **options)
        entry = {"file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE, "recipe": scene.recipe}
        entry |= {"clutter": round(scene.clutter, 3), **tags, "scene": scene_id, "view": view}
        views.append({"image": entry, "annotations": annotations_of(composition, camera)})
    part = json.dumps({"settings": asdict(settings), "views": views})
    write_atomic(part_path(out, settings.split, scene_id), part.encode())
    return scene.recipe


def _attempt(out: Path, furniture: Path, settings: Settings, scene_id: int) -> Outcome:
    """Render a scene; whatever goes wrong, the other scenes go on."""
    try:
        return scene_id, render_scene(out, furniture, settings, scene_id), ""
    except Exception as error:
        return scene_id, "", f"{type(error).__name__}: {error}"


def start_worker(start: Callable[[], None]) -> None:
    """Prepare a process that ends with the one that started it, however that ends, and at Ctrl-C.

    Without the watch a worker whose parent was killed would wait for its next scene for ever.
    """

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    start()


def outcomes(
    attempt: Callable[[int], Outcome], todo: list[int], workers: int, start: Callable[[], None] = render.start
) -> Iterator[Outcome]:
    """What an attempt at each scene returns, as scenes end; each process runs ``start`` before its first one."""
    if workers == 1:
        yield from map(attempt, todo)
        return
    # spawn: mitsuba's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, start_worker, (start,))
    try:
        futures = {pool.submit(attempt, scene_id): scene_id for scene_id in todo}
        for future in as_completed(futures):
            error = future.exception()  # the process died, by a signal or for want of memory
            yield (futures[future], "", f"{type(error).__name__}: {error}") if error else future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def render_split(out: Path, furniture: Path, settings: Settings, scenes: int, workers: int = 1) -> list[int]:
    """Make the scenes 0 … scenes - 1 that are not there yet, then the split's JSON.

    Returns:
        The scenes that failed; a second start tries them again.

    Raises:
        ShowroomError: the extra, the furniture or LLVM is missing, or the folder holds other data.
    """
    render.start()
    with locked(out):
        write_atomic(out / "ATTRIBUTION.csv", attribution(read_catalogue(furniture), roles.all_models()).encode())
        todo = [scene_id for scene_id in range(scenes) if not read_part(out, settings, scene_id)]
        print(f"{settings.split}: {scenes - len(todo)} of {scenes} scenes are done; {workers} processes", flush=True)
        failed, started = [], time.monotonic()
        attempt = partial(_attempt, out, furniture, settings)
        for count, (scene_id, recipe, error) in enumerate(outcomes(attempt, todo, workers), 1):
            left_s = (time.monotonic() - started) / count * (len(todo) - count)
            result = f"FAILED {error}" if error else recipe
            print(f"{count}/{len(todo)} scene {scene_id}: {result}; {left_s / 60:.1f} min left", flush=True)
            if error:
                failed.append(scene_id)
        content = merge(out, settings, [scene_id for scene_id in range(scenes) if scene_id not in failed])
        boxes = sum(not annotation["iscrowd"] for annotation in content["annotations"])
        images = len(content["images"])
        print(f"wrote {out / settings.split}.json: {images} images, {boxes} boxes, {len(failed)} failures")
    return failed


def merge(out: Path, settings: Settings, scene_ids: list[int]) -> dict:
    """Write a split's COCO JSON from the parts of its scenes; returns its content."""
    images, annotations = [], []
    for scene_id in scene_ids:
        for view in read_part(out, settings, scene_id)["views"]:
            images.append({"id": len(images) + 1} | view["image"])
            for annotation in view["annotations"]:
                annotations.append({"id": len(annotations) + 1, "image_id": len(images)} | annotation)
    info = {"description": "showroom: path-traced indoor scenes for chair detection", "version": VERSION}
    info |= {"license": "CC BY 3.0, see ATTRIBUTION.csv", "settings": asdict(settings)}
    categories = [{"id": CATEGORY_ID, "name": "chair", "supercategory": "furniture"}]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_atomic(out / f"{settings.split}.json", json.dumps(content, separators=(",", ":")).encode())
    return content
