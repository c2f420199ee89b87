"""Early-exit object detection: train a detector with exits, measure every exit, route, certify, export and detect.

The names below are the public ones; each is imported when it is first used, so that
``eelib.Session`` works where torch is not installed.
"""

import importlib
import sys
import types

__version__ = "0.2.0"

# A public name, and the module that defines it.
_PUBLIC = {
    "load": "eelib.hub", "EarlyExitSSDLite": "eelib.model", "ExitOutput": "eelib.model",
    "Detections": "eelib.detections", "Config": "eelib.config", "load_config": "eelib.config", "train": "eelib.train",
    "Criterion": "eelib.losses", "open_source": "eelib.coco", "DetectionDataset": "eelib.data",
    "evaluate": "eelib.evaluate", "record": "eelib.records", "ExitRecords": "eelib.records",
    "RoutedAP": "eelib.routed_ap", "route": "eelib.routers", "certify": "eelib.routers",
    "Router": "eelib.deploy.router", "POLICIES": "eelib.policies", "export": "eelib.deploy.export",
    "Session": "eelib.deploy.runtime",
}  # fmt: skip
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eelib' has no attribute '{name}'; public are {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]


class _Face(types.ModuleType):
    """Python binds a submodule here when it is first imported; `eelib.train` and `eelib.evaluate` stay functions."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PUBLIC and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
