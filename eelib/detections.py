"""What a detector answers for one image: boxes, scores, classes, and the exit that answered. numpy and Pillow alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colour-blind palette, one colour an exit throughout; the last exit is green wherever it lies.
LAST_COLOUR = "#009E73"
EARLY_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#0072B2")


def exit_colour(name: str) -> str:
    """The colour of an exit by its name: ``exit1``, ``exit2``, … and ``full``."""
    number = name.removeprefix("exit")
    return EARLY_COLOURS[(int(number) - 1) % len(EARLY_COLOURS)] if number.isdecimal() else LAST_COLOUR


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes_xyxy: float32 (N, 4) in pixels.
        scores: float32 (N,) in [0, 1].
        labels: int64 (N,), 1 to K.
        exit_name: the exit that answered.
        classes: names of the classes, in the order of the labels from 1.
        image: the upright image that the boxes lie on, where it is at hand.

    Examples:
        >>> found = eelib.Session("deploy").detect("room.jpg")
        >>> sure = found.boxes_xyxy[found.scores > 0.5]
        >>> found.plot().save("drawn.png")
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    exit_name: str
    classes: tuple[str, ...] = ()
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        """How many, and where the image left; then the ten best, a line each: class, score, corners in pixels."""
        lines = [f"{len(self)} detection{'s' * (len(self) != 1)} at {self.exit_name}"]
        for box, score, label in zip(self.boxes_xyxy[:10].round(), self.scores, self.labels, strict=False):
            name = self.classes[label - 1] if self.classes else label
            lines.append(f"{name} {score:.2f} at ({', '.join(f'{value:.0f}' for value in box)})")
        return "\n".join(lines + ["..."] * (len(self) > 10))

    def rows(self, rows: np.ndarray | slice) -> "Detections":
        """Some of the detections."""
        return replace(self, boxes_xyxy=self.boxes_xyxy[rows], scores=self.scores[rows], labels=self.labels[rows])

    def scaled(self, x: float, y: float) -> "Detections":
        """The same boxes in other pixels: x times as wide, y times as high."""
        return replace(self, boxes_xyxy=self.boxes_xyxy * np.array([x, y, x, y], np.float32))

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict]:
        """COCO results: ``bbox`` [x, y, width, height] in pixels, and the ``category_id`` of each label."""
        boxes = self.boxes_xyxy.copy()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
            for box, score, label in rows
        ]

    def plot(self, min_score: float = 0.3, image: Image.Image | None = None) -> Image.Image:
        """A copy of the image with the boxes, their classes and scores, and the exit that answered.

        Args:
            min_score: least score that is drawn, in [0, 1].
            image: to draw on; by default the one that was detected in.

        Raises:
            ValueError: there is no image to draw on.
        """
        image = image or self.image
        if image is None:
            raise ValueError("plot: no image is at hand; expected one as 'image'")
        canvas = image.convert("RGB")
        pen, colour = ImageDraw.Draw(canvas), exit_colour(self.exit_name)
        unit = max(canvas.size) / 320  # lines and letters grow with the picture
        font = ImageFont.load_default(11 * unit)
        for box, score, label in zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            if score >= min_score:
                name = f"{self.classes[label - 1]} " if len(self.classes) > 1 else ""
                pen.rectangle(box, outline=colour, width=max(2, round(1.5 * unit)))
                _write(pen, (box[0], box[1]), f"{name}{score:.2f}", font, colour)
        _write(pen, (0, 0), self.exit_name, font, colour)
        return canvas


def _write(pen: ImageDraw.ImageDraw, at: tuple, text: str, font: ImageFont.FreeTypeFont, colour: str) -> None:
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    margin = font.size / 5
    pen.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill=colour)
    pen.text(at, text, font=font, fill="black")
