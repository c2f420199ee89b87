"""What 05d_policies works on, opened at once, and the one place where it may state a verdict."""

from dataclasses import dataclass
from pathlib import Path

from eelib.checkpoints import load_checkpoint, load_released
from eelib.config import Config, parse, resolve
from eelib.evaluate import provenance
from eelib.files import write_json
from eelib.model import EarlyExitSSDLite
from eelib.routed_ap import RoutedAP
from eelib.routers import load_study
from eelib.routing import Split, prepare
from studies.metrics import current_metrics
from studies.routing.bounds import Judge
from studies.routing.times import Times, common_times
from studies.routing.worth import static_flags

SPLITS = "train", "val", "calibrate", "test"


@dataclass(frozen=True)
class Study:
    """A detector's records on every split, its times, and what judges its routings.

    Attributes:
        model, config: of the detector.
        splits: under calibrated scores.
        raw: the same under scores as they are.
        times: of the exits.
        plane: metrics of the plane that holds the static detectors; None where there is none.
        older: ``routing.json`` of the same computation with an older processor's instructions, if there is one.
        judge: of routings of ``test``.
        smoke: why no verdict is stated, in a sentence; None where the run is whole.
        origin: what every metrics file says of where its numbers are from.
    """

    model: EarlyExitSSDLite
    config: Config
    splits: dict[str, Split]
    raw: dict[str, Split]
    times: Times
    plane: dict | None
    older: dict | None
    judge: Judge
    smoke: str | None
    origin: dict

    def say(self, *sentences: str) -> None:
        """Print verdicts, or in a smoke run the reason why there is none. Nothing else in the notebook prints."""
        print("\n".join([self.smoke] if self.smoke else sentences))

    def write(self, reports: str, name: str, content: dict) -> Path:
        """Write ``metrics/<name>.json`` in a folder of reports."""
        return write_json(resolve(reports) / "metrics" / f"{name}.json", content | self.origin)


def smoke_of(splits: dict[str, Split], times: Times) -> str | None:
    """Why a run may state no verdict: a part of the images, or times that are not those of the reports."""
    for name, split in reversed(splits.items()):  # test first
        taken, there = len(split.records), len(split.coco.imgs)
        if taken < there:
            return f"A smoke run: {taken} of the {there} images of {name}. No verdict follows from it."
    if not times.committed:
        return f"A look: times are shares of {times.unit}, not of the plain detector. No verdict follows from it."
    return None


def same_but_for_the_processor(older: dict | None, here: dict) -> dict | None:
    """``routing.json`` of an older processor; None where images, weights or times are not those of ``here``."""
    alike = ("images", "smoke", "times", "passing", "split_sha256", "calibrate_sha256", "checkpoint_sha256")
    return older if older and all(older.get(key) == here.get(key) for key in alike) else None


def opened(
    checkpoint: str,
    root: str,
    times: str,
    published: str,
    calibration: str,
    limit: int | None,
    resamples: int,
    folder: str = "runs/records",
    log=print,
) -> Study:
    """Record the exits once on every split, and bring the times to the common axis.

    Args:
        times: metrics of 04_exits.
        published: folder of reports with ``metrics/plane.json``, the match flags of its systems and
            ``metrics/routing_older.json``.
        limit: images of each split; None takes all.
        resamples: bootstrap draws of scenes.
        folder: of the records that are kept.
        log: called with a line while records are made.
    """
    path, reports = resolve(checkpoint), resolve(published)
    model, config = load_released(path), parse(load_checkpoint(path)["config"], checkpoint)
    records, cocos = load_study(checkpoint, root, resolve(folder), SPLITS, limit, log)
    matched = {name: RoutedAP(of_split, cocos[name]) for name, of_split in records.items()}
    plane = current_metrics(reports / "metrics" / "plane.json", log)
    taken = common_times(plane, resolve(times), model.exit_names, path, root)
    splits, raw = (
        prepare(records, cocos, taken.costs, method, matched=matched, passing=taken.passing)
        for method in (calibration, "none")
    )
    smoke = smoke_of(splits, taken)
    judge = Judge(splits["test"], resamples, static_flags(reports, plane) if plane and not smoke else ())
    origin: dict = {"images": {name: len(records[name]) for name in SPLITS[1:]}, "smoke": smoke, "resamples": resamples}
    origin |= {"times": dict(zip(model.exit_names, taken.costs.tolist(), strict=True))}
    origin |= {"passing": dict(zip(model.exit_names, taken.passing.tolist(), strict=True))}
    origin |= {"unit": taken.unit, "machine": taken.machine}
    origin |= {f"{name}_sha256": records[name].split_sha256 for name in ("calibrate", "val")}
    origin |= provenance("test", config, path, resolve(root))
    older = same_but_for_the_processor(
        current_metrics(reports / "metrics" / "routing_older.json", lambda _: None), origin
    )
    return Study(model, config, splits, raw, taken, plane, older, judge, smoke, origin)
