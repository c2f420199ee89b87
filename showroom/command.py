"""``eelib showroom render | join | sheet | datasheet``. Imports what it uses when it runs."""

import argparse
import os
import sys
from pathlib import Path

from eelib.config import ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True)

    render = actions.add_parser("render", help="make scenes", description=_render.__doc__)
    render.add_argument("--split", required=True, help="train, val, calibrate or test: which chair models may appear")
    render.add_argument("--scenes", type=int, required=True, help="make the scenes 0 … N - 1 that are missing")
    render.add_argument("--seed", type=int, default=0, help="scene i depends on (seed, split, i) alone")
    render.add_argument("--out", required=True, help="folder of the data set")
    render.add_argument("--furniture", help="folder of the .sh3f archives; `make furniture` fetches them")
    render.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; one scene each at a time")
    render.add_argument("--views", type=int, default=1, help="cameras a scene")
    render.add_argument("--samples", type=int, default=8, help="paths a pixel, before denoising")
    render.add_argument("--quality", type=int, default=82, help="of the JPEG files")
    render.set_defaults(run=_render)

    join = actions.add_parser("join", help="more images for train", description=_join.__doc__)
    join.add_argument("base", help="folder of a data set")
    join.add_argument("more", help="folder of `render --split train`")
    join.add_argument("--out", required=True, help="folder of the joint data set; it must not exist")
    join.set_defaults(run=_join)

    sheet = actions.add_parser("sheet", help="a contact sheet", description=_sheet.__doc__)
    sheet.add_argument("folder", help="folder of a data set")
    sheet.add_argument("--split", default="val")
    sheet.add_argument("--count", type=int, default=10, help="images, spread over the recipes")
    sheet.add_argument("--columns", type=int, default=5)
    sheet.add_argument("--out", help="a .png or .jpg file; FOLDER/sheet.png by default")
    sheet.set_defaults(run=_sheet)

    datasheet = actions.add_parser("datasheet", help="write its tables", description=_datasheet.__doc__)
    datasheet.add_argument("folder", nargs="?", default=str(ROOT / "data" / "showroom"))
    datasheet.set_defaults(run=_datasheet)


def _render(args: argparse.Namespace) -> int:
    """Render scenes with COCO annotations; a second start continues. 1 where a scene failed."""
    from showroom import ShowroomError, catalogue, dataset, roles

    if args.split not in roles.SPLITS:
        raise ShowroomError(f"--split: {args.split!r} is unknown; expected one of {', '.join(roles.SPLITS)}")
    lowest = {"scenes": 1, "seed": 0, "workers": 1, "views": 1, "samples": 1, "quality": 1}
    for name, least in lowest.items():
        if getattr(args, name) < least:
            raise ShowroomError(f"--{name}: {getattr(args, name)}; expected {least} or more")
    settings = dataset.Settings(args.split, args.seed, args.views, args.samples, args.quality)
    furniture = catalogue.furniture_folder(args.furniture)
    failed = dataset.render_split(
        Path(args.out), furniture, settings, args.scenes, args.workers, lambda line: print(line, flush=True)
    )
    if failed:
        print(f"eelib: {len(failed)} scenes failed: {failed}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _join(args: argparse.Namespace) -> int:
    """A data set with the images of both for train, and the other splits of the first."""
    from showroom.join import join

    content = join(args.base, args.more, args.out)
    print(f"wrote {Path(args.out) / 'train.json'}: {len(content['images'])} images of {content['info']['joined']}")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    """Some images of a split on one sheet, with their boxes; those of crowds are grey."""
    from showroom import datasheet

    sheet = datasheet.sheet(args.folder, args.split, args.count, args.columns)
    print(f"wrote {datasheet.save_sheet(sheet, args.out or Path(args.folder) / 'sheet.png')}")
    return 0


def _datasheet(args: argparse.Namespace) -> int:
    """Write the tables of a data set's README.md from its JSON files."""
    from showroom import datasheet

    print(f"wrote {datasheet.update(args.folder)}")
    return 0
