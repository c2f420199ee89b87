"""The numbers and the pictures of a data set's datasheet, from its JSON files.

The tables of ``README.md`` stand between ``<!-- NAME -->`` and ``<!-- /NAME -->``; what is between is
written by code and never by hand.
"""

import csv
import io
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from showroom import ShowroomError
from showroom.files import file_inside, read_coco, read_text, write_atomic, write_image
from showroom.recipes import RECIPES
from showroom.roles import SPLITS

BOX_COLOUR, CROWD_COLOUR = "#E69F00", "#999999"
SMALL, LARGE = 32**2, 96**2  # COCO's ranges of an object's area, px²
_ESCAPED = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " ", "\r": " "})
_TILE = 240  # side of an image on a sheet, px


def load(folder: Path) -> dict[str, dict]:
    """The COCO content of the splits that a folder holds.

    Raises:
        ShowroomError: the folder has none of them, or one is broken.
    """
    contents = {split: read_coco(folder, split) for split in SPLITS if (folder / f"{split}.json").exists()}
    if not contents:
        raise ShowroomError(f"{folder}: no split; expected one of {', '.join(f'{split}.json' for split in SPLITS)}")
    return contents


def objects(content: dict) -> list[dict]:
    """The annotations that count: no crowds."""
    return [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]


def counts(contents: dict[str, dict]) -> list[dict]:
    """What is in each split, one row per split."""
    rows = []
    for split, content in contents.items():
        images, boxes = content["images"], objects(content)
        row = {"split": split, "images": len(images), "scenes": len({image["scene"] for image in images})}
        row |= {"boxes": len(boxes), "crowd": len(content["annotations"]) - len(boxes)}
        row["without a chair"] = len(images) - len({box["image_id"] for box in boxes})
        row["chair models"] = len({annotation["model"] for annotation in content["annotations"]})
        row["dark"] = _percent([image["dark"] for image in images])
        rows.append(row | {"blurred": _percent([image["blur"] > 0 for image in images])})
    return rows


def box_sizes(contents: dict[str, dict]) -> list[dict]:
    """Sides of the boxes, COCO's ranges of area, and visibility, one row per split."""
    rows = []
    for split, content in contents.items():
        boxes = objects(content)
        sides = np.percentile([np.sqrt(box["bbox"][2] * box["bbox"][3]) for box in boxes] or [0], [10, 50, 90])
        areas = np.array([box["area"] for box in boxes])
        row = {"split": split} | {f"side p{p} (px)": f"{v:.0f}" for p, v in zip((10, 50, 90), sides, strict=True)}
        row |= {"small": _percent(areas < SMALL), "medium": _percent((areas >= SMALL) & (areas < LARGE))}
        row |= {"large": _percent(areas >= LARGE)}
        row |= {"half hidden": _percent([box["visibility"] < 0.5 for box in boxes])}
        rows.append(row | {"cut by the edge": _percent([box["touches_edge"] for box in boxes])})
    return rows


def recipe_counts(contents: dict[str, dict]) -> list[dict]:
    """Images of each recipe in each split, and boxes per image over all of them."""
    images = [(split, image) for split, content in contents.items() for image in content["images"]]
    boxes = Counter((split, box["image_id"]) for split, content in contents.items() for box in objects(content))
    rows = []
    for recipe, share in RECIPES.items():
        of_recipe = [(split, image["id"]) for split, image in images if image["recipe"] == recipe]
        number = Counter(split for split, _ in of_recipe)
        row = {"recipe": recipe, "share": f"{share:.0%}"} | {split: number[split] for split in contents}
        rows.append(row | {"boxes an image": f"{np.mean([boxes[key] for key in of_recipe] or [0]):.1f}"})
    return rows


def held_out_models(contents: dict[str, dict]) -> list[dict]:
    """Boxes of each chair model outside train: too few models to hide behind a mean."""
    number = {s: Counter(box["model"] for box in objects(c)) for s, c in contents.items() if s != "train"}
    models = sorted({model for counter in number.values() for model in counter})
    return [{"model": model} | {split: number[split][model] for split in number} for model in models]


def licences(folder: Path) -> list[dict]:
    """Models of each licence and library, and their authors with the number of models of each."""
    groups, path = defaultdict(Counter), file_inside(folder, "ATTRIBUTION.csv")
    try:
        for row in csv.DictReader(io.StringIO(read_text(path), newline=""), restval=""):
            groups[row["license"], row["library"]][row["creator"] or "unnamed"] += 1
    except (csv.Error, KeyError) as error:
        raise ShowroomError(f"{path}: expected CSV with columns license, library and creator ({error})") from None
    return [
        {"licence": licence, "library": library, "models": authors.total()}
        | {"authors (models)": ", ".join(f"{name} ({number})" for name, number in sorted(authors.items()))}
        for (licence, library), authors in sorted(groups.items())
    ]


def _percent(flags) -> str:
    return f"{np.mean(flags):.0%}" if len(flags) else "–"


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table; no value can end its cell or a table's markers."""
    if not rows:
        return "(none)"
    cells = [[str(value).translate(_ESCAPED) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(rows[0]), ["---"] * len(rows[0]), *cells])


def fill(text: str, folder: Path) -> str:
    """The datasheet's text with its tables written afresh.

    Raises:
        ShowroomError: a table's markers are missing.
    """
    contents = load(folder)
    tables = {"counts": counts(contents), "box sizes": box_sizes(contents), "recipes": recipe_counts(contents)}
    tables |= {"held-out models": held_out_models(contents), "licences": licences(folder)}
    for name, rows in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, start_found, rest = text.partition(start)
        _, end_found, after = rest.partition(end)
        if not start_found or not end_found:
            raise ShowroomError(f"{folder}: the datasheet has no markers <!-- {name} --> and <!-- /{name} -->")
        text = f"{before}{start}{markdown(rows)}\n{end}{after}"
    return text


def update(folder: Path) -> Path:
    """Write the tables of a folder's README.md."""
    path = folder / "README.md"
    return write_atomic(path, fill(read_text(path), folder).encode())


def write_sheet(out: Path, folder: Path, split: str, count: int = 10, columns: int = 5) -> Path:
    """Draw a contact sheet, a .png or .jpg: images spread over the recipes and the scenes, boxes drawn, crowds in grey.

    Raises:
        ShowroomError: the folder lacks the split, an image cannot be read, or the suffix is unknown.
    """
    formats = {".png": {"format": "PNG"}, ".jpg": {"format": "JPEG", "quality": 80, "optimize": True}}
    if out.suffix not in formats:
        raise ShowroomError(f"{out}: suffix {out.suffix!r} is unknown; expected one of {', '.join(formats)}")
    content = read_coco(folder, split)
    images = _spread(content["images"], count)
    columns = min(columns, len(images))
    canvas = Image.new("RGB", (columns * _TILE, -(-len(images) // columns) * _TILE), "white")
    for position, image in enumerate(images):
        boxes = [annotation for annotation in content["annotations"] if annotation["image_id"] == image["id"]]
        tile = _tile(file_inside(folder, split, image["file_name"]), image, boxes)
        canvas.paste(tile, (position % columns * _TILE, position // columns * _TILE))
    return write_image(out, canvas, **formats[out.suffix])


def _tile(path: Path, image: dict, annotations: list[dict]) -> Image.Image:
    """An image of a sheet, with its boxes and its recipe."""
    try:
        with Image.open(path) as file:
            tile = file.convert("RGB").resize((_TILE, _TILE), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ShowroomError(f"{path}: not an image that can be read ({error})") from None
    draw = ImageDraw.Draw(tile)
    for annotation in annotations:
        x, y, width, height = (value * _TILE / image["width"] for value in annotation["bbox"])
        colour = CROWD_COLOUR if annotation["iscrowd"] else BOX_COLOUR
        draw.rectangle((x, y, x + max(width - 1, 0), y + max(height - 1, 0)), outline=colour, width=2)
    draw.text((4, 2), image["recipe"], fill="white", stroke_width=2, stroke_fill="black")
    return tile


def _spread(images: list[dict], count: int) -> list[dict]:
    """So many images: the first scene of each recipe, then the second of each, and so on."""
    order, turns = {recipe: rank for rank, recipe in enumerate(RECIPES)}, Counter()

    def turn(image: dict) -> tuple[int, int]:
        turns[image["recipe"]] += 1
        return turns[image["recipe"]], order.get(image["recipe"], len(order))

    by_scene = sorted(images, key=lambda image: (image["view"], image["scene"]))
    return sorted(by_scene, key=turn)[:count]
