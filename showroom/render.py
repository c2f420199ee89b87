"""Path tracing with mitsuba and denoising with Open Image Denoise.

Pitfalls that the code answers: drjit 1.4 refuses LLVM 14; an ``aov`` integrator around ``path``
doubles the cost, so it runs apart; a kernel is compiled anew (seconds) for each new set of plug-in
types, so every scene holds one hidden surface of each type; ``mi.Bitmap`` refuses read-only
arrays; the v axis is flipped against OBJ; models disagree on winding, so all surfaces are two-sided.
"""

import importlib
import os
from pathlib import Path

import numpy as np

from showroom import IMAGE_SIZE, ShowroomError
from showroom.catalogue import UNPACKED
from showroom.materials import Emission, Material, Surface, linear
from showroom.room import Room, Sun, rectangle
from showroom.view import Camera

MAX_DEPTH = 5  # bounces; more is hardly seen in a room that is lit
GUIDE_SAMPLES = 6  # a pixel, of albedo and normal for the denoiser
EMITTERS = 8  # of a scene, filled up with dark ones
_GLASS_TINT = [0.92, 0.95, 0.94]


def start() -> None:
    """Load mitsuba's LLVM variant, once per process and for one thread.

    Raises:
        ShowroomError: the extra is not installed, or drjit finds no LLVM that it accepts.
    """
    if "DRJIT_LIBLLVM_PATH" not in os.environ:
        folders = (UNPACKED / "usr" / "lib", Path("/usr/lib"))
        libraries = [path for n in (16, 15) for f in folders for path in f.glob(f"*/libLLVM-{n}.so.1")]
        if libraries:
            os.environ["DRJIT_LIBLLVM_PATH"] = str(libraries[0])
    try:
        *_, mitsuba, drjit = map(importlib.import_module, ("cv2", "embreex", "pyoidn", "mitsuba", "drjit"))
    except ImportError as error:
        message = f"{error.name or error} is not installed; run `pip install -r requirements-render.lock`"
        raise ShowroomError(message) from None
    if mitsuba.variant() is None:
        try:
            mitsuba.set_variant("llvm_ad_rgb")
            drjit.eval(drjit.llvm.Float(1) + drjit.llvm.Float(drjit.arange(drjit.llvm.UInt, 2)))
        except (ImportError, RuntimeError) as error:
            message = f"mitsuba finds no LLVM 15 or 16 ({error}); run `make furniture` or set DRJIT_LIBLLVM_PATH"
            raise ShowroomError(message) from None
    drjit.set_thread_count(1)


def radiance(room: Room, camera: Camera, samples: int, seed: int) -> np.ndarray:
    """Render and denoise: linear RGB, float32 (S, S, 3), not negative.

    Args:
        samples: paths a pixel; 8 are enough after denoising.
        seed: of the sampler, in [0, 2**31).
    """
    import mitsuba as mi
    import pyoidn

    scene = mi.load_dict(_scene(room, camera, samples))
    path = mi.load_dict({"type": "path", "max_depth": MAX_DEPTH, "rr_depth": 3})
    guides = mi.load_dict({"type": "aov", "aovs": "albedo:albedo,normal:sh_normal"})
    colour = np.array(mi.render(scene, integrator=path, spp=samples, seed=seed))
    guide = np.array(mi.render(scene, integrator=guides, spp=GUIDE_SAMPLES, seed=seed + 1))
    colour, guide = (np.nan_to_num(image, nan=0, posinf=50, neginf=0) for image in (colour, guide))
    denoised = pyoidn.denoise(
        np.ascontiguousarray(np.clip(colour, 0, 200), np.float32),
        albedo=np.ascontiguousarray(np.clip(guide[..., :3], 0, 1), np.float32),
        normal=np.ascontiguousarray(guide[..., 3:6], np.float32),
        hdr=True,
        quality="high",
    )
    return np.maximum(denoised, 0)


def _scene(room: Room, camera: Camera, samples: int) -> dict:
    """The scene as mitsuba's dictionary."""
    import mitsuba as mi

    surfaces = room.surfaces + _hidden(room)
    scene = {"type": "scene"} | {f"surface{k}": _mesh(surface, f"surface{k}") for k, surface in enumerate(surfaces)}
    scene["sun"] = _spot(room.sun)
    flash = {"type": "point", "sampling_weight": room.flash / 2, "intensity": _rgb(np.full(3, room.flash))}
    scene["flash"] = flash | {"position": (camera.origin + [0, 0.1, 0]).tolist()}
    film = {"type": "hdrfilm", "width": IMAGE_SIZE, "height": IMAGE_SIZE, "rfilter": {"type": "box"}}
    scene["sensor"] = {
        "type": "perspective",
        "fov": camera.fov_deg,
        "near_clip": 0.02,
        "to_world": mi.ScalarTransform4f().look_at(camera.origin.tolist(), camera.target.tolist(), [0, 1, 0]),
        "film": film | {"pixel_format": "rgb", "component_format": "float32"},
        "sampler": {"type": "independent", "sample_count": samples},
    }
    return scene


def _hidden(room: Room) -> list[Surface]:
    """Specks under the floor: one of each plug-in type, and dark emitters up to a constant number."""
    flat, image = np.full(3, 0.5), np.full((2, 2, 3), 128, np.uint8)
    opacity = image[..., 0]
    looks = [Material(flat), Material(image), Material(flat, opacity=opacity), Material(image, opacity=opacity)]
    specks = [(look, None) for look in [*looks, Material(flat, glass=True)]]
    emissions = [Emission(np.full((4, 4, 3), 1e-4, np.float32), 0.0)]
    used = sum(surface.emission is not None for surface in room.surfaces)
    emissions += [Emission(np.full(3, 1e-4), 0.0)] * (EMITTERS - used - 1)
    specks += [(Material(flat), emission) for emission in emissions]
    return [
        rectangle((0, -5 - k, 0), (0.01, 0, 0), (0, 0, 0.01), material=look, emission=emission)
        for k, (look, emission) in enumerate(specks)
    ]


def _rgb(value: np.ndarray) -> dict:
    return {"type": "rgb", "value": [float(channel) for channel in value]}


def _bitmap(image: np.ndarray, raw: bool) -> dict:
    """A texture; raw is linear already."""
    import mitsuba as mi

    return {"type": "bitmap", "bitmap": mi.Bitmap(np.array(image, order="C", copy=True)), "raw": raw}


def _bsdf(surface: Surface) -> dict:
    """Mitsuba's plug-in for a material; an emitter is diffuse."""
    material = surface.material
    if material.glass:
        return {"type": "thindielectric", "specular_transmittance": _rgb(_GLASS_TINT)}
    is_texture = np.ndim(material.colour) == 3
    colour = _bitmap(material.colour, raw=False) if is_texture else _rgb(linear(material.colour))
    if surface.emission is not None:
        return {"type": "diffuse", "reflectance": colour}
    numbers = {name: float(getattr(material, name)) for name in ("roughness", "specular", "metallic")}
    bsdf = {"type": "twosided", "bsdf": {"type": "principled", "base_color": colour} | numbers}
    if material.opacity is not None:
        bsdf = {"type": "mask", "opacity": _bitmap(material.opacity[..., None], raw=True), "bsdf": bsdf}
    return bsdf


def _mesh(surface: Surface, name: str):
    """A mitsuba mesh with its material and, where it gives light, its emitter."""
    import mitsuba as mi

    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(_bsdf(surface))
    if surface.emission is not None:
        light = surface.emission.radiance
        emitter = {
            "type": "area",
            "sampling_weight": float(surface.emission.sampling_weight),
            "radiance": _bitmap(light, raw=True) if np.ndim(light) == 3 else _rgb(light),
        }
        properties["emitter"] = mi.load_dict(emitter)
    arrays = {"vertex_positions": surface.vertices, "vertex_texcoords": surface.uvs * [1, -1] + [0, 1]}
    if surface.normals is not None:
        arrays["vertex_normals"] = surface.normals
    sizes, has_normals = (len(surface.vertices), len(surface.faces)), surface.normals is not None
    mesh = mi.Mesh(name, *sizes, has_vertex_normals=has_normals, has_vertex_texcoords=True, props=properties)
    parameters = mi.traverse(mesh)
    parameters["faces"] = np.ascontiguousarray(surface.faces, np.uint32).ravel()
    for key, array in arrays.items():
        parameters[key] = np.ascontiguousarray(array, np.float32).ravel()
    parameters.update()
    return mesh


def _spot(sun: Sun | None) -> dict:
    """The sun's beam through a window of two by two panes; without one, a light too weak to see."""
    import mitsuba as mi

    if sun is None:
        sun, weight = Sun(np.array([0, 1.0, 0]), np.array([0.01, 0, 0]), np.full(3, 1e-4)), 1e-4
    else:
        weight = 0.08 * float(sun.intensity[0])
    panes = np.zeros((32, 32, 3), np.float32)
    panes[4:28, 6:26] = 1
    panes[15:17] = panes[:, 15:17] = 0
    return {
        "type": "spot",
        "sampling_weight": weight,
        "intensity": _rgb(sun.intensity),
        "cutoff_angle": 28.0,
        "beam_width": 26.0,
        "texture": _bitmap(panes, raw=True),
        "to_world": mi.ScalarTransform4f().look_at(sun.origin.tolist(), sun.target.tolist(), [0.01, 1, 0.02]),
    }
