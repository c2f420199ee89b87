"""The loop of ``eelib detect``: pictures, videos and cameras in, detections and drawings out as they come.

numpy, Pillow and the runtime alone; PyAV where there is a video.
"""

import contextlib
import itertools
import signal
import statistics
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eelib.deploy.inputs import Inputs
from eelib.deploy.router import Rule
from eelib.deploy.runtime import Session
from eelib.deploy.writing import Coco, Drawings, Item, Lines
from eelib.detections import Detections
from eelib.door import say
from eelib.files import InputError, check_target
from eelib.preprocess import ImageError, read_image, to_input

FEW = 10  # images that are told one by one


class Tally:
    """What was done, for the line a second and the words at the end."""

    def __init__(self, places: list[str], total: int | None):
        self.left, self.total, self.boxes, self.ms = Counter(dict.fromkeys(places, 0)), total, 0, array("d")
        self.broken, self.stopped = 0, False
        self.began = self.shown = time.monotonic()

    @property
    def images(self) -> int:
        """Images that were detected in."""
        return len(self.ms)

    @property
    def per_second(self) -> float:
        """Images a second, reading and writing included."""
        return self.images / max(1e-9, time.monotonic() - self.began)

    def add(self, found: Detections, ms: float) -> None:
        """Count an image; once a second, a line on a terminal."""
        self.left[found.exit_name] += 1
        self.boxes += len(found)
        self.ms.append(ms)
        if (now := time.monotonic()) - self.shown >= 1 and sys.stderr.isatty():
            self.shown, of = now, f" of {self.total}" if self.total else ""
            line = f"{self.images}{of} images, {self.per_second:.1f} images/s, {self.shares()}"
            print(line.ljust(78)[:120], end="\r", file=sys.stderr, flush=True)

    def break_off(self, error: Exception) -> None:
        """Count what cannot be read, and say so."""
        self.broken += 1
        say(str(error))

    def shares(self) -> str:
        """Images that left at each place, and their share."""
        return ", ".join(f"{name} {count} ({count / max(1, self.images):.0%})" for name, count in self.left.items())

    def summary(self, out: Path) -> str:
        """The words at the end."""
        lines = [f"{self.boxes} detections in {self.images} images: {out}", f"left at: {self.shares()}"]
        if self.images:
            p95 = statistics.quantiles(self.ms, n=20)[-1] if self.images > 1 else self.ms[0]
            lines.append(
                f"time: median {statistics.median(self.ms):.1f} ms, p95 {p95:.1f} ms of detection per image; "
                f"{self.per_second:.1f} images/s with reading and writing"
            )
        return "\n".join(lines)


def run(
    session: Session, inputs: Inputs, out: Path, draw: Path | None, min_score: float, draw_score: float, batch: int,
    rule: Rule | None,
) -> int:  # fmt: skip
    """Detect in all inputs; the exit status, 1 where an image or a video broke.

    What was detected until Ctrl-C or an error is written all the same.

    Args:
        session: the detector.
        inputs: of :func:`eelib.deploy.inputs.find`.
        out: JSON Lines where it ends in .jsonl, COCO results where it ends in .json.
        draw: folder of drawings, or a video file; None draws nothing.
        min_score, draw_score: least score that is written, and drawn.
        batch: images of one call.
        rule: where images leave, whatever the session's router says; None leaves it to the router.

    Raises:
        InputError: an output that is an input, a folder or of an unknown kind, or a video that cannot be opened;
            nothing is written then.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise InputError(f"--out {out}: expected a file that ends in .json (COCO results) or .jsonl (a line an image)")
    check_target("--out", out)
    if out.resolve() in inputs.files:
        raise InputError(f"--out {out}: is an input; expected another file")
    tally = Tally([stage.exit for stage in session.stages], _count(inputs))
    items = itertools.takewhile(lambda _: not tally.stopped, _items(inputs, tally))
    ids = [category.id for category in session.manifest.categories]
    told = not (inputs.videos or inputs.cameras) and len(inputs.pictures) <= FEW
    with contextlib.ExitStack() as stack:
        drawings = Drawings(draw, inputs, draw_score) if draw else None
        writer = (Lines if out.suffix == ".jsonl" else Coco)(out)
        for part in filter(None, (drawings, writer)):
            stack.callback(lambda part=part: part.close(keep=finished or tally.images > 0))
        finished = False
        try:
            with _gentle_stop(tally):
                for item, found, ms in _detected(session, items, batch, rule, min_score, keep=bool(draw)):
                    writer.add(item, found, ids)
                    if drawings:
                        drawings.add(item, found)
                    tally.add(found, ms)
                    if told:
                        print(_words(item, found))
        except OSError as error:
            error.filename = error.filename or str(out)  # a full disk names no file by itself
            raise
        finished = True
    print(tally.summary(out))
    about_ids = inputs.about_ids if out.suffix == ".json" else ""
    for line in filter(None, (session.describe() if rule is None else "", about_ids, *inputs.skipped_lines())):
        say(line)
    if tally.broken:
        say(f"{tally.broken} of {tally.images + tally.broken} images or videos are broken")
    if tally.stopped:
        raise KeyboardInterrupt(f"stopped; {out} holds what was detected until then")
    return 1 if tally.broken else 0


@contextlib.contextmanager
def _gentle_stop(tally: Tally) -> Iterator[None]:
    """Ctrl-C lets the image in progress end, so that no line is written half; a second one does not wait."""

    def stop(*_: object) -> None:
        tally.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = None
    with contextlib.suppress(ValueError):  # no signals outside the main thread
        before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt:
        tally.stopped = True
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _count(inputs: Inputs) -> int | None:
    """Open every video before anything is written; how many images there are, None where a video does not state it."""
    counts = []
    for source in (*inputs.videos, *inputs.cameras):
        from eelib.deploy.video import Video

        with Video(source) as video:
            counts.append(video.frames)
    return sum(counts) + len(inputs.pictures) if all(counts) else None


def _detected(
    session: Session, items: Iterator[Item], batch: int, rule: Rule | None, min_score: float, keep: bool
) -> Iterator[tuple[Item, Detections, float]]:
    """Each image, which is kept where it is to be drawn, its detections in its own pixels, and their milliseconds."""
    while True:
        taken, pixels = [], []
        for item in itertools.islice(items, batch):
            pixels.append(to_input(item.image, session.size))
            taken.append(item if keep else item._replace(image=None))
        if not taken:
            return
        began = time.perf_counter()
        answers = session.detect_batch(np.stack(pixels), rule, min_score)
        ms = (time.perf_counter() - began) * 1e3 / len(taken)
        for item, found in zip(taken, answers, strict=True):
            yield item, found.scaled(item.size_wh[0] / session.size, item.size_wh[1] / session.size), ms


def _items(inputs: Inputs, tally: Tally) -> Iterator[Item]:
    """All images in turn, frames of videos and cameras after the pictures."""
    for picture in inputs.pictures:
        try:
            image = read_image(picture.path)
        except ImageError as error:
            tally.break_off(error)
            continue
        yield Item(picture.name, picture.image_id, image.size, image)
    free = itertools.count(max((picture.image_id for picture in inputs.pictures), default=0) + 1)
    for source in (*inputs.videos, *inputs.cameras):
        from eelib.deploy.video import Video, VideoError

        name = f"camera_{source}" if isinstance(source, int) else source.name
        try:
            with Video(source) as video:
                for frame, (image, seconds) in enumerate(video):
                    yield Item(name, next(free), image.size, image, frame, seconds, video.rate)
        except VideoError as error:
            tally.break_off(error)


def _words(item: Item, found: Detections) -> str:
    """One image in a line: where it left, and its best detections."""
    pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    named = [f"{found.classes[label - 1]} {score:.2f}" for label, score in pairs]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return f"{item.name} ({found.exit_name}): {', '.join(named[:5]) or 'nothing'}{more}"
