"""``python -m showroom render | sheet | datasheet``: bad input is one line and exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from showroom import ROOT, ShowroomError, catalogue, dataset, datasheet
from showroom.roles import SPLITS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ShowroomError(f"{message}; see `{self.prog} --help`")


def _whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    """A reader of whole numbers within limits."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}; expected a whole number from {least} to {most}")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m showroom", description="Render data sets like the embedded one, and show them.")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def add(call: Callable, example: str) -> Callable:
        name, text = call.__name__.strip("_"), call.__doc__
        action = actions.add_parser(name, help=text, description=text, epilog=f"example: {parser.prog} {example}")
        action.set_defaults(call=call)
        return action.add_argument

    option = add(_render, "render --split val --scenes 5 --seed 1 --out runs/rendered")
    option("--split", required=True, choices=SPLITS, help="decides which chair models may appear")
    option("--scenes", type=_whole(1), required=True, help="N: make those of the scenes 0 … N - 1 that are missing")
    option("--seed", type=_whole(0), default=0, help="scene i depends on (seed, split, i) alone (default 0)")
    option("--out", type=Path, required=True, help="folder of the data set")
    option("--furniture", type=Path, help="folder of the .sh3f archives (default: what `make furniture` fetched)")
    option("--workers", type=_whole(1), default=os.cpu_count(), help="processes (default: one for each CPU)")
    option("--views", type=_whole(1), default=1, help="pictures of each scene (default 1)")
    option("--samples", type=_whole(1), default=8, help="paths per pixel, before denoising (default 8)")
    option("--quality", type=_whole(1, 100), default=82, help="of the JPEG files (default 82)")
    option = add(_sheet, "sheet runs/rendered --split val")
    option("folder", type=Path, help="folder of a data set")
    option("--split", choices=SPLITS, default="val", help="whose images are shown (default val)")
    option("--count", type=_whole(1), default=10, help="images, spread over the recipes (default 10)")
    option("--columns", type=_whole(1), default=5, help="images in a row (default 5)")
    option("--out", type=Path, help="a .png or .jpg file (default FOLDER/sheet.png)")
    option = add(_datasheet, "datasheet data/showroom")
    option("folder", type=Path, nargs="?", default=ROOT / "data/showroom", help="a data set (default data/showroom)")
    return parser


def _render(args: argparse.Namespace) -> int:
    """Render scenes with COCO annotations; a second start goes on. The exit status is 1 where a scene failed."""
    settings = dataset.Settings(args.split, args.seed, args.views, args.samples, args.quality)
    furniture = catalogue.furniture_folder(args.furniture)
    failed = dataset.render_split(args.out, furniture, settings, args.scenes, args.workers)
    if failed:
        print(f"showroom: {len(failed)} scenes failed: {failed}; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _sheet(args: argparse.Namespace) -> None:
    """Draw images of a split on one sheet, with their boxes; those of crowds are grey."""
    out = args.out or args.folder / "sheet.png"
    print(f"wrote {datasheet.write_sheet(out, args.folder, args.split, args.count, args.columns)}")


def _datasheet(args: argparse.Namespace) -> None:
    """Write the tables of a data set's README.md from its JSON files."""
    print(f"wrote {datasheet.update(args.folder)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a scene failed, 2 bad input, 130 interrupted."""
    try:
        args = _parser().parse_args(argv)
        return args.call(args) or 0
    except (ShowroomError, OSError) as error:
        print(f"showroom: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("showroom: interrupted; `render` goes on where it stopped when it is started again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
