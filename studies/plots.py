"""Figures: one style, one palette, one function that saves; data in, a Figure out."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import seaborn
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from eelib.detections import exit_colour
from eelib.files import write_atomic

TEXT_WIDTH_IN = 5.9
# Okabe and Ito's colour-blind palette. The exits' three colours stand for exits and for nothing else.
EXIT_COLOURS = {name: exit_colour(name) for name in ("exit1", "exit2", "full")}
SERIES_COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#7F5B3A", "#4D4D4D", "#8A8D00")  # of what is no exit
RECORDED_COLOUR, OURS_COLOUR, ALARM_COLOUR, TRUTH_COLOUR = "#999999", "#0072B2", "#D55E00", "#FFFFFF"
PHOTO_DPI, PHOTO_QUALITY = 220, 85  # of figures that hold photographs: text stays sharp, and files small


def style() -> None:
    """Seaborn's plain look at the font sizes of the text, with embedded TrueType fonts."""
    text = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8}
    text |= {"xtick.labelsize": 8, "ytick.labelsize": 8}
    lines = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.linewidth": 0.8}
    files = {"pdf.fonttype": 42, "figure.dpi": 110, "savefig.dpi": 200, "figure.constrained_layout.use": True}
    seaborn.set_theme(context="paper", style="ticks", font="DejaVu Sans", rc=text | lines | files)


def save(figure: Figure, name: str, reports: Path | str) -> None:
    """Write ``figures/<name>.pdf`` and ``.png`` in a folder of reports, byte for byte repeatable."""
    save_to(figure, Path(reports) / "figures" / name)


def save_to(figure: Figure, stem: Path) -> None:
    """Write ``<stem>.pdf``, with photographs as one JPEG in it, and ``<stem>.png`` of 256 colours."""
    photographs = any(axis.images for axis in figure.axes)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=PHOTO_DPI if photographs else plt.rcParams["savefig.dpi"])
    image = Image.open(drawn).convert("RGB")
    dates = {"creationDate": None, "modDate": None}

    def as_pdf(file: BinaryIO) -> None:
        if photographs:
            image.save(file, "PDF", resolution=PHOTO_DPI, quality=PHOTO_QUALITY, **dates)
        else:
            figure.savefig(file, format="pdf", metadata={"CreationDate": None})

    small = image.resize((image.width * 2 // 3, image.height * 2 // 3)) if photographs else image
    for suffix, write in (("pdf", as_pdf), ("png", lambda file: file.write(png_of(small)))):
        write_atomic(stem.with_name(f"{stem.name}.{suffix}"), write)


def png_of(image: Image.Image) -> bytes:
    """An RGB image as PNG of 256 colours, which takes about a third of the bytes."""
    drawn = io.BytesIO()
    image.quantize(256).save(drawn, "PNG", optimize=True)
    return drawn.getvalue()


def image_grid(
    images: Sequence[Tensor], boxes: Sequence[Mapping[str, Tensor]], titles: Sequence[str], **legend: str
) -> Figure:
    """Images with boxes, four in a row.

    Args:
        images: uint8 (3, H, W).
        boxes: for each image a colour to ``boxes_xyxy`` (N, 4) in pixels.
        titles: one per image.
        legend: name to the colour of its boxes.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    height = 1.68 * rows * 4 / columns + 0.3 * bool(legend)
    figure, axes = plt.subplots(rows, columns, figsize=(TEXT_WIDTH_IN, height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, by_colour, title in zip(axes.flat, images, boxes, titles, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        for colour, boxes_xyxy in by_colour.items():
            for x1, y1, x2, y2 in boxes_xyxy.tolist():
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.0))
        axis.set_xlim(0, image.shape[2])
        axis.set_ylim(image.shape[1], 0)
        axis.set_title(title)
    if legend:  # on grey, since chairs are white
        handles = [
            Rectangle((0, 0), 1, 1, facecolor="0.6", edgecolor=colour, linewidth=1.5) for colour in legend.values()
        ]
        figure.legend(handles, legend, loc="outside lower center", ncols=len(legend), frameon=False)
    return figure
