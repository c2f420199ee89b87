"""The numbers and the pictures of a data set's datasheet, from its JSON files.

The tables of ``README.md`` stand between ``<!-- NAME -->`` and ``<!-- /NAME -->``; what is between is
written by code and never by hand.
"""

import collections
import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from eelib.files import write_atomic
from showroom import ShowroomError
from showroom.recipes import RECIPES
from showroom.roles import SPLITS

BOX_COLOUR, CROWD_COLOUR = "#E69F00", "#999999"
# COCO's ranges of an object's area, px²
SMALL, LARGE = 32**2, 96**2


def load(folder: Path | str, splits: Iterable[str] = SPLITS) -> dict[str, dict]:
    """The COCO content of those of the splits that a folder holds.

    Raises:
        ShowroomError: the folder has none of them.
    """
    paths = {split: Path(folder) / f"{split}.json" for split in splits}
    contents = {split: json.loads(path.read_text()) for split, path in paths.items() if path.exists()}
    if not contents:
        raise ShowroomError(f"{folder}: no split; expected one of {', '.join(f'{split}.json' for split in splits)}")
    return contents


def objects(content: dict) -> list[dict]:
    """The annotations that count: no crowds."""
    return [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]


def counts(contents: dict[str, dict]) -> list[dict]:
    """What is in each split, one row a split."""
    rows = []
    for split, content in contents.items():
        images, boxes = content["images"], objects(content)
        row = {"split": split, "images": len(images), "scenes": len({image["scene"] for image in images})}
        row |= {"boxes": len(boxes), "crowd": len(content["annotations"]) - len(boxes)}
        row["without a chair"] = len(images) - len({box["image_id"] for box in boxes})
        row["chair models"] = len({annotation["model"] for annotation in content["annotations"]})
        row |= {"dark": _percent([image["dark"] for image in images])}
        row |= {"blurred": _percent([image["blur"] > 0 for image in images])}
        rows.append(row)
    return rows


def box_sizes(contents: dict[str, dict]) -> list[dict]:
    """Sides of the boxes, COCO's ranges of area, and visibility, one row a split."""
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
    """Images of each recipe in each split, and boxes an image over all of them."""
    images = [(split, image) for split, content in contents.items() for image in content["images"]]
    boxes = collections.Counter((split, box["image_id"]) for split, c in contents.items() for box in objects(c))
    rows = []
    for recipe, share in RECIPES.items():
        of_recipe = [(split, image["id"]) for split, image in images if image["recipe"] == recipe]
        number = collections.Counter(split for split, _ in of_recipe)
        row = {"recipe": recipe, "share": f"{share:.0%}"} | {split: number[split] for split in contents}
        rows.append(row | {"boxes an image": f"{np.mean([boxes[key] for key in of_recipe] or [0]):.1f}"})
    return rows


def held_out_models(contents: dict[str, dict]) -> list[dict]:
    """Boxes of each chair model outside train: too few models to hide behind a mean."""
    held_out = {split: content for split, content in contents.items() if split != "train"}
    number = {s: collections.Counter(box["model"] for box in objects(c)) for s, c in held_out.items()}
    models = sorted({model for counter in number.values() for model in counter})
    return [{"model": model} | {split: number[split][model] for split in held_out} for model in models]


def licences(folder: Path | str) -> list[dict]:
    """Models of each licence and library, and their authors with the number of models of each."""
    groups = collections.defaultdict(collections.Counter)
    with (Path(folder) / "ATTRIBUTION.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            groups[row["license"], row["library"]][row["creator"] or "unnamed"] += 1
    return [
        {
            "licence": licence,
            "library": library,
            "models": authors.total(),
            "authors (models)": ", ".join(f"{name} ({n})" for name, n in sorted(authors.items())),
        }
        for (licence, library), authors in sorted(groups.items())
    ]


def _percent(flags) -> str:
    return f"{np.mean(flags):.0%}" if len(flags) else "–"


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table."""
    if not rows:
        return "(none)"
    lines = [[str(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(rows[0]), ["---"] * len(rows[0]), *lines])


def fill(text: str, folder: Path | str) -> str:
    """The datasheet's text with its tables written afresh.

    Raises:
        ShowroomError: a table's markers are missing.
    """
    contents = load(folder)
    tables = {
        "counts": counts(contents),
        "box sizes": box_sizes(contents),
        "recipes": recipe_counts(contents),
        "held-out models": held_out_models(contents),
        "licences": licences(folder),
    }
    for name, rows in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        if not pattern.search(text):
            raise ShowroomError(f"{folder}: the datasheet has no markers <!-- {name} --> and <!-- /{name} -->")
        table = markdown(rows)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def update(folder: Path | str) -> Path:
    """Write the tables of a folder's README.md."""
    path = Path(folder) / "README.md"
    text = fill(path.read_text(), folder)
    return write_atomic(path, lambda file: file.write(text.encode()))


def sheet(folder: Path | str, split: str, count: int = 10, columns: int = 5, side: int = 240) -> Image.Image:
    """A contact sheet: images spread over the recipes and the scenes, boxes drawn, crowds in grey.

    Raises:
        ShowroomError: the folder lacks the split.
    """
    content = load(folder, [split])[split]
    chosen = _spread(content["images"], count)
    rows = -(-len(chosen) // columns)
    canvas = Image.new("RGB", (columns * side, rows * side), "white")
    for position, image in enumerate(chosen):
        with Image.open(Path(folder) / split / image["file_name"]) as file:
            tile = file.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(tile)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, width, height = (value * side / image["width"] for value in annotation["bbox"])
                colour = CROWD_COLOUR if annotation["iscrowd"] else BOX_COLOUR
                draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour, width=2)
        draw.text((4, 2), image["recipe"], fill="white", stroke_width=2, stroke_fill="black")
        canvas.paste(tile, (position % columns * side, position // columns * side))
    return canvas


def _spread(images: list[dict], count: int) -> list[dict]:
    """So many images: the first scene of each recipe, then the second of each, and so on."""
    turns = collections.Counter()
    ranked = []
    for image in sorted(images, key=lambda image: (image["view"], image["scene"])):
        ranked.append((turns[image["recipe"]], list(RECIPES).index(image["recipe"]), image))
        turns[image["recipe"]] += 1
    ranked.sort(key=lambda row: row[:2])
    return [image for _, _, image in ranked[:count]]


def save_sheet(image: Image.Image, path: Path | str) -> Path:
    """Write a sheet as PNG or JPEG, by the file's suffix."""
    path = Path(path)
    options = {".png": {"format": "PNG"}, ".jpg": {"format": "JPEG", "quality": 80, "optimize": True}}
    if path.suffix not in options:
        raise ShowroomError(f"{path}: suffix {path.suffix!r} is unknown; expected one of {', '.join(options)}")
    return write_atomic(path, lambda file: image.save(file, **options[path.suffix]))
