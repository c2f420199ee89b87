"""The renderer of the embedded data set: furniture archives in, images and COCO JSON out.

A program of its own (``python -m showroom --help``) that imports nothing of eelib and no torch. What
only requirements-render.lock brings (mitsuba, embreex, pyoidn, cv2) is imported inside the functions
that use it. In the order of the data flow: roles, catalogue, models, textures, materials, layout,
recipes, room, view, film, render, annotate, files, dataset, datasheet.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
IMAGE_SIZE = 320  # side of an image in pixels


class ShowroomError(ValueError):
    """A scene cannot be made or a file is not what it should be; the message says what to do."""
