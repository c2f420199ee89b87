"""Options that several commands share, and the ranges of numbers; light to import."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number

from eelib.files import InputError, check_target

if TYPE_CHECKING:
    from eelib.coco import Source
    from eelib.config import Config
    from eelib.routers import RouterOptions

Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
Level = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
Threads = Annotated[int, Parameter(validator=Number(gte=1, lte=64))]
Set = Annotated[tuple[str, ...] | None, Parameter(name="--set")]
Json = Annotated[bool, Parameter("--json")]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """A data set of one's own.

    Attributes:
        data: COCO JSON, or a folder of splits.
        images: folder of the JSON's images; by default the one beside it that has its name.
        category: category to look for; may be given several times; by default what the detector knows, or all.
    """

    data: Path | None = None
    images: Path | None = None
    category: tuple[str, ...] | None = None

    def settings(self, split: str) -> dict[str, object]:
        """As dotted keys of a configuration; a JSON is this split."""
        from eelib.checking import data_settings

        return data_settings(self.data, self.images, self.category, split)

    def configure(self, file: Path, set_: Set) -> "Config":
        """A parameter file under these options and ``--set``; where it starts from is looked for, too."""
        from eelib.config import load_config, read_settings, resolve

        config = load_config(file, self.settings("train") | read_settings(set_ or ()))
        start = config.model.start
        if start and not resolve(start).is_file():
            maker = "make pretrained" if "pretrained" in Path(start).parts else "eelib train"
            problem = f"key 'model.start' is '{start}': no such checkpoint; `{maker}` makes it"
            advice = "start from a released detector: --set model.start=checkpoints/exits_256.pth"
            raise InputError(f"{problem}, or {advice}")
        return config

    def source(self, split: str = "test") -> "Source":
        """The data set; showroom where none is given."""
        from eelib.checking import chosen_source

        return chosen_source(self.settings(split))

    def source_for(self, checkpoint: Path, split: str = "test") -> "Source":
        """The data set; that of the checkpoint's training where none is given."""
        settings = self.settings(split)  # what is wrong with the options is told before torch is imported
        from eelib.checking import chosen_source
        from eelib.checkpoints import load_checkpoint
        from eelib.config import saved_config

        state = load_checkpoint(checkpoint)
        if classes := (state.get("plan") or {}).get("classes"):
            settings = {"data.category": list(classes)} | settings
        return chosen_source(settings, saved_config(state, checkpoint).data if "config" in state else None)


NO_DATA = DataOptions()


@Parameter(name="*")
@dataclass(frozen=True)
class StudyOptions:
    """What a router is chosen from, and where it is written.

    Attributes:
        out: file of the router, for `eelib export --router`.
        gates: use the blank gates, with thresholds certified to lose at most this share of the images with objects.
        calibrate_on: split that the thresholds come from; never test.
        times: metrics file with the time of each exit; by default they are measured now, on this machine.
        records: folder of exit records, which are made where there are none.
        limit: number of images of each split; by default all.
        resamples: number of bootstrap resamples behind an interval.
        as_json: one JSON object for machines.
    """

    out: Path | None = None
    gates: Level | None = None
    calibrate_on: str = "calibrate"
    times: Path | None = None
    records: Path = Path("runs/records")
    limit: PositiveInt | None = None
    resamples: PositiveInt = 200
    as_json: Json = False

    def options(self, **fitting: object) -> "RouterOptions":
        """As the library takes them."""
        if self.out:
            check_target("--out", self.out)
        from eelib.routers import RouterOptions

        return RouterOptions(
            calibrate_on=self.calibrate_on, gate_epsilon=self.gates, times=self.times and self.times.resolve(),
            records=self.records.resolve(), limit=self.limit, resamples=self.resamples,
            progress=partial(print, file=sys.stderr, flush=True), **fitting,
        )  # fmt: skip


STUDY = StudyOptions()
