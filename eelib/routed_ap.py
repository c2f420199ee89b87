"""The AP of any routing as a merge of match flags: exact, in about a millisecond.

COCO matches detections to objects inside one image, so which detection is right does not
depend on where the other images leave. pycocotools matches every exit's detections once; the
AP of a routing is then its own accumulation over the detections of the exits taken.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eelib.files import write_atomic
from eelib.records import MAX_DETECTIONS, ExitRecords, read_arrays

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
ALL_AREAS = (0.0, 1e10)  # pycocotools' ranges, in square pixels
MOST_CELLS = 10**7  # of a table that a bootstrap keeps
AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


class RoutedAP:
    """Match flags of one split's records, ready to be merged for any routing.

    Attributes:
        image, exit, score: (D,) row, exit index and score of every recorded detection, in the
            order in which pycocotools ranks them: score falling, then image, exit and rank.
        matched, ignored: bool (10, D): right at an IoU threshold; not counted there.
        by_class: (N, K) objects of each image and class that count; positives: (N,) their sum.
        counts: detections of each exit.
        exit_names, image_ids: of the records.

    Examples:
        >>> dataset = eelib.DetectionDataset("val", "my", model.size, keep_crowd=True)
        >>> records = eelib.record(model, dataset, "val", "hash of the split", "hash of the weights")
        >>> evaluator = eelib.RoutedAP(records, dataset.coco)
        >>> 0 <= evaluator.ap([0] * len(records)) <= 1  # every image leaves at the first exit
        True
    """

    def __init__(self, records: ExitRecords, coco: COCO, area: tuple[float, float] = ALL_AREAS):
        self.exits, self.images = len(records.exit_names), len(records)
        self.exit_names, self.image_ids = records.exit_names, records.image_ids
        matches = [_match(records, index, coco, area) for index in range(self.exits)]
        self.by_class = matches[0][-1]
        self.counts = [len(image) for image, *_ in matches]
        self._by_exit = tuple(np.concatenate(parts, -1) for parts in zip(*(m[:-1] for m in matches), strict=True))
        self._rank()

    @property
    def positives(self) -> np.ndarray:
        """As above."""
        return self.by_class.sum(1)

    def _rank(self) -> None:
        """Put all detections into pycocotools' order."""
        image, score, kind, matched, ignored = self._by_exit
        exit_ = np.repeat(np.arange(self.exits), self.counts)
        order = np.lexsort((exit_, image, -score))  # stable, so ranks inside an image stay
        self.image, self.exit, self.score = image[order], exit_[order], score[order]
        self.matched, self.ignored = matched[:, order], ignored[:, order]
        self._pair = (self.image * self.exits + self.exit).astype(np.intp)
        self._of_class = []  # AP ranks the detections of each class for themselves
        for k in range(self.by_class.shape[1]):
            own = np.flatnonzero(kind[order] == k)
            flags = [[np.flatnonzero(row[own]) for row in rows] for rows in (self.matched, self.ignored)]
            self._of_class.append((self._pair[own], *flags))

    def rescored(self, records: ExitRecords) -> "RoutedAP":
        """The same flags under scores that keep the order inside every image, as calibration does.

        Matching looks at nothing but that order, so it need not be done again.

        Raises:
            ValueError: the scores change an image's order, or are of other detections.
        """
        image, _, *flags = self._by_exit
        score = np.concatenate(records.scores).astype(np.float64)
        pair = np.repeat(np.arange(self.exits), self.counts) * self.images + image
        if len(score) != len(image) or ((np.diff(score) > 0) & (np.diff(pair) == 0)).any():
            raise ValueError("rescored: expected scores of the same detections in the same order inside every image")
        other = copy.copy(self)
        other._by_exit = image, score, *flags
        other._rank()
        return other

    def rows(self, rows: Sequence[int]) -> "RoutedAP":
        """The flags of some images, by their rows in rising order."""
        inside, (image, score, kind, matched, ignored) = np.zeros(self.images, bool), self._by_exit
        inside[rows] = True
        kept, other = inside[image], copy.copy(self)
        other.images, other.image_ids = len(rows), tuple(self.image_ids[row] for row in rows)
        other.by_class = self.by_class[inside]
        other.counts = [int(part.sum()) for part in np.split(kept, np.cumsum(self.counts)[:-1])]
        rows = (np.cumsum(inside) - 1)[image[kept]]
        other._by_exit = rows, score[kept], kind[kept], matched[:, kept], ignored[:, kept]
        other._rank()
        return other

    def save(self, path: Path | str, split_hash: str, checkpoint_hash: str) -> Path:
        """Write the flags atomically: a fifth of the records that they come from."""
        image, score, kind, matched, ignored = self._by_exit
        values = {
            "split_sha256": split_hash,
            "checkpoint_sha256": checkpoint_hash,
            "exit_names": self.exit_names,
            "image_ids": self.image_ids,
            "positives": self.by_class.astype(np.uint16),
            "class": kind.astype(np.uint16),
            "counts": self.counts,
            "image": image.astype(np.uint16),
            "score": score.astype(np.float32),  # as the network gives them
            "matched": np.packbits(matched, 1),
            "ignored": np.packbits(ignored, 1),
        }
        return write_atomic(path, lambda file: np.savez_compressed(file, **values))

    @classmethod
    def load(cls, path: Path | str, split_hash: str, checkpoint_hash: str) -> "RoutedAP":
        """Read flags that :meth:`save` wrote; checks and errors are those of :func:`eelib.records.read_arrays`."""
        return read_arrays(path, split_hash, checkpoint_hash, cls._of_arrays, "match flags", "match flags")

    @classmethod
    def _of_arrays(cls, values: dict[str, np.ndarray]) -> "RoutedAP":
        """Flags of the arrays of a file; any exception where these are not what :meth:`save` writes."""
        new, total = cls.__new__(cls), len(values["score"])
        new.exit_names, new.image_ids = tuple(values["exit_names"].tolist()), tuple(values["image_ids"].tolist())
        new.exits, new.images = len(new.exit_names), len(new.image_ids)
        new.by_class = values["positives"].reshape(new.images, -1).astype(np.int64)
        new.counts = values["counts"].tolist()
        kind = values.get("class", np.zeros(total)).astype(np.int64)  # files of one class may lack it
        unpacked = (np.unpackbits(values[key], 1, total).astype(bool) for key in ("matched", "ignored"))
        new._by_exit = values["image"].astype(np.int64), values["score"].astype(np.float64), kind, *unpacked
        image, score, _, *flags = new._by_exit
        for holds, what in (
            (new.exits == len(set(new.exit_names)) == len(new.counts) and sum(new.counts) == total, "exits or counts"),
            (len(set(new.image_ids)) == new.images and (new.by_class >= 0).all(), "image_ids or positives"),
            (image.shape == kind.shape == score.shape == (total,), "image, class or score"),
            (((image >= 0) & (image < new.images)).all() and ((score >= 0) & (score <= 1)).all(), "image or score"),
            (((kind >= 0) & (kind < new.by_class.shape[1])).all(), "class"),
            (all(flag.shape == (len(IOUS), total) for flag in flags), "matched or ignored"),
        ):
            if not holds:
                raise ValueError(f"{what} of another shape or range")
        new._rank()
        return new

    def per_iou(self, chosen: Sequence[int], weights: np.ndarray | None = None) -> np.ndarray:
        """AP at each of the ten IoU thresholds when image i leaves at exit ``chosen[i]``.

        Args:
            chosen: exit index of each image, (N,); from E on the image has no detections, as a blank gate ends it.
            weights: (N,) how often each image counts, for a bootstrap resample; None is once. Floats weight an
                image by any share.

        Returns:
            (10,) in [0, 1], the mean over the classes, or -1 throughout where no object counts, as pycocotools has it.

        Raises:
            ValueError: the routing is not one exit for each image.
        """
        chosen = np.asarray(chosen)
        if chosen.shape != (self.images,) or chosen.min() < 0:
            raise ValueError(f"routing: expected {self.images} exit indices from 0, got {chosen!r}")
        weights = np.ones(self.images, np.int64) if weights is None else weights
        kind = np.int32 if np.issubdtype(weights.dtype, np.integer) else np.float64
        taken, here = np.zeros(self.images * self.exits, kind), chosen < self.exits
        taken[(np.arange(self.images) * self.exits + chosen)[here]] = weights[here]
        of_classes = []
        for positives, (pair, matched, ignored) in zip(self.by_class.T @ weights, self._of_class, strict=True):
            if positives > 0:  # pycocotools' mean leaves out a class without objects
                count = taken.take(pair, mode="clip")  # (D,); "clip" spares a check of what is known to fit
                rank = np.cumsum(count, dtype=kind)
                flags = zip(matched, ignored, strict=True)
                of_classes.append([_average_precision(count, rank, *pair, float(positives)) for pair in flags])
        return np.mean(of_classes, 0) if of_classes else np.full(len(IOUS), -1.0)

    def resampled(self, chosen: Sequence[int], weights: np.ndarray) -> np.ndarray:
        """:meth:`ap` of one routing under many weights, equal up to rounding and five times as fast: (R, N) to (R,).

        Some object must count under each of the weights.
        """
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        counts = self.by_class.T @ weights.T  # objects of each class in each resample, (K, R)
        for positives, (pair, *flags) in zip(counts, self._of_class, strict=True):
            image, exit_ = np.divmod(pair, self.exits)
            inside = exit_ == np.asarray(chosen)[image]
            place = np.cumsum(inside) - 1
            matched, ignored = ([place[row[inside[row]]] for row in rows] for rows in flags)
            places, image = np.unique(np.concatenate(matched)), image[inside]
            before, at = self._before(image, places), [np.searchsorted(places, hits) for hits in matched]
            for start in range(0, len(weights), 64):  # so many resamples stay in the processor's cache
                rows = slice(start, start + 64)
                drawn = weights[rows].T.astype(float)  # (N, R)
                rank = drawn[image].cumsum(0)[places] if before is None else before @ drawn
                taken = drawn[image[places]]
                for index, hits, skipped in zip(at, matched, ignored, strict=True):
                    retrieved = rank[index]
                    if len(skipped):
                        passed = np.concatenate((np.zeros((1, drawn.shape[1])), drawn[image[skipped]].cumsum(0)))
                        retrieved = retrieved - passed[np.searchsorted(skipped, hits)]
                    found = _average_precisions(taken[index].cumsum(0), retrieved, positives[rows])
                    total[rows] += np.where(positives[rows] > 0, found / len(IOUS), 0)
            classes += positives > 0
        return total / classes

    def _before(self, image: np.ndarray, places: np.ndarray) -> np.ndarray | None:
        """Detections, of image (D,) in their order, up to each place in it: (P, N); None where that is too large.

        Times the weights of the images these are the ranks of the places.
        """
        if len(places) * self.images > MOST_CELLS:
            return None
        segment = np.searchsorted(places, np.arange(len(image)))
        cells = (segment * self.images + image)[segment < len(places)]
        counts = np.bincount(cells, minlength=len(places) * self.images).reshape(-1, self.images)
        return counts.cumsum(0).astype(float)

    def ap(self, chosen: Sequence[int], weights: np.ndarray | None = None) -> float:
        """AP[.50:.95] of a routing; arguments as in :meth:`per_iou`."""
        return float(self.per_iou(chosen, weights).mean())

    def scores(self, chosen: Sequence[int], weights: np.ndarray | None = None) -> dict[str, float]:
        """``AP`` and ``AP50`` of a routing; arguments as in :meth:`per_iou`."""
        per_iou = self.per_iou(chosen, weights)
        return {"AP": float(per_iou.mean()), "AP50": float(per_iou[0])}

    def of_exit(self, index: int, weights: np.ndarray | None = None) -> float:
        """AP when every image leaves at one exit."""
        return self.ap(np.full(self.images, index), weights)

    def f1(self, cuts: Sequence[float]) -> np.ndarray:
        """F1 of every image at every exit by :meth:`claims`, (N, E) in [0, 1]; 1 without objects and detections."""
        claimed, right = self.claims(cuts)
        total = claimed + self.positives[:, None]
        return np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0)

    def claims(self, cuts: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Detections of every image at every exit that score above its cut, and those right at IoU 0.5: (N, E) each.

        There is one cut an exit, (E,).
        """
        counted = (self.score > np.asarray(cuts)[self.exit]) & ~self.ignored[0]
        size, shape = self.images * self.exits, (self.images, self.exits)
        claimed = np.bincount(self._pair[counted], minlength=size).reshape(shape)
        right = np.bincount(self._pair[counted & self.matched[0]], minlength=size).reshape(shape)
        return claimed, right

    def gains(self) -> np.ndarray:
        """What full adds to AP on each image beside each early exit, (N, E - 1).

        The mean of two first-order changes of AP, times N: moving the image alone from the exit to full when all
        others are at the exit, and back when all others are at full. AP is no mean over images, so sums of this are
        an approximation.
        """
        full = self.exits - 1
        return np.stack([0.5 * (self.marginal(k, full) - self.marginal(full, k)) for k in range(full)], 1)

    def marginal(self, base: int, other: int) -> np.ndarray:
        """What AP gains when one image alone moves from one exit to another, times N: (N,)."""
        chosen = np.full(self.images, base)
        start, gains = self.ap(chosen), np.zeros(self.images)
        for row in range(self.images):
            chosen[row] = other
            gains[row] = self.ap(chosen) - start
            chosen[row] = base
        return gains * self.images


def _average_precision(count, rank, hits, ignored, positives) -> float:
    """101-point AP at one IoU: only right detections can raise recall or bound the precision."""
    hits = hits[count[hits] > 0]
    if not len(hits):
        return 0.0
    right = np.cumsum(count[hits])
    retrieved = rank[hits]
    if len(ignored):
        before = np.concatenate(([0], np.cumsum(count[ignored])))
        retrieved = retrieved - before[np.searchsorted(ignored, hits)]
    precision = right / (retrieved + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / positives, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].sum() / len(RECALLS))


def _average_precisions(right: np.ndarray, retrieved: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """101-point AP of several resamples, (R,), from right and retrieved detections at every right one, (H, R).

    A detection that a resample leaves out retrieves nothing new and has no more precision than the one before.
    """
    if not len(right):
        return np.zeros(len(positives))
    precision = np.maximum.accumulate((right / (retrieved + np.spacing(1)))[::-1])[::-1]
    recall = right / np.maximum(positives, np.spacing(1))
    reached = np.minimum(100 * recall + 1e-6, 100).astype(np.intp)  # the last of the 101 points that is reached,
    reached -= RECALLS[reached] > recall  # by the comparison that pycocotools makes
    steps = np.diff(reached, axis=0, prepend=-1)
    return (steps * precision).sum(0) / len(RECALLS)


def _match(records: ExitRecords, index: int, coco: COCO, area: tuple[float, float]) -> tuple:
    """pycocotools' own matching of one exit: image rows, scores, classes from 0, matched, ignored, positives."""
    category = coco.getCatIds()
    results = [
        r for row, i in enumerate(records.image_ids) for r in records.detections(index, row).to_coco(i, category)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools fails on an empty list of results
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = list(records.image_ids), category
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(area)], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    images = np.repeat(np.arange(len(records)), records.counts[index])
    kinds, scores = records.labels[index].astype(np.int64) - 1, records.scores[index].astype(np.float64)
    order = np.lexsort((images, kinds))  # pycocotools' results go by class, then image
    flags = np.zeros((2, len(IOUS), len(images)), bool)
    positives, done = np.zeros((len(records), len(category)), np.int64), 0
    for place, image in enumerate(evaluation.evalImgs):
        if image is None:  # neither objects nor detections
            continue
        kind, row = divmod(place, len(records))
        positives[row, kind] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
        here = order[done : done + len(image["dtScores"])]
        done += len(here)
        ignored = np.asarray(image["dtIgnore"], bool)
        flags[0][:, here], flags[1][:, here] = (np.asarray(image["dtMatches"]) != 0) & ~ignored, ignored
    return images, scores, kinds, *flags, positives


def scenes_of(coco: COCO, image_ids: Sequence[int]) -> np.ndarray:
    """Scene of each image; an image that names none is its own."""
    return np.array([coco.imgs[i].get("scene", f"image {i}") for i in image_ids])


def resample(scenes: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap weights, int64 (resamples, N): how often each image counts. Scenes are drawn with all their views."""
    _, group = np.unique(scenes, return_inverse=True)
    groups = group.max() + 1
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return draws[:, group].astype(np.int64)


def bootstrap(evaluator: RoutedAP, routings: Sequence[Sequence[int]], weights: np.ndarray) -> np.ndarray:
    """AP of K routings (N,) on the same resamples (R, N), so that differences are paired: (R, K).

    Resamples without any object are left out.
    """
    weights = weights[(weights @ evaluator.positives) > 0]
    return np.stack([evaluator.resampled(chosen, weights) for chosen in routings], 1)


def interval(samples: np.ndarray) -> list[float]:
    """95 % percentile interval of bootstrap samples (R,): [low, high]."""
    tail = 100 * (1 - 0.95) / 2
    return [float(v) for v in np.percentile(samples, [tail, 100 - tail])]
