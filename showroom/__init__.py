"""The renderer of the embedded data set: furniture archives in, COCO JSON and images out.

An optional part (``pip install -r requirements-render.lock``). Nothing else in eelib imports it,
it imports no torch, and what only the extra brings (mitsuba, embreex, pyoidn, cv2) is imported
inside the functions that use it. In the order of the data flow:
roles, catalogue, models, textures, materials, layout, recipes, room, view, film, render,
annotate, dataset, datasheet, command.
"""

IMAGE_SIZE = 320  # side of an image in pixels


class ShowroomError(ValueError):
    """A scene cannot be made or a file is not what it should be; the message says what to do."""
