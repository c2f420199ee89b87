"""What notebook 09_explorer moves: any routing of a network's exits, scored in milliseconds from committed match flags.

Nothing here needs weights or images. Time is that of each exit as the plane measured it, the plain detector's being 1.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.detections import exit_colour
from studies.compress.plane import load_flags, times_of
from studies.hull import Hull, at_prevalence
from studies.metrics import read_metrics
from studies.routing.worth import static_flags

COUNTED_FROM = (0.1, 0.3, 0.5)  # scores


class Explorer:
    """One network with exits, of the plane in a folder of reports.

    Args:
        reports: folder of ``metrics/plane.json`` and ``plane/*.npz``.
        system, seed: a network of the plane, float or int8 ("exits_256 int8").

    Attributes:
        flags: match flags of the split that the plane reports.
        exit_names, times: of the E exits; times are shares of the plain detector's.
        cuts: (E,) score from which a box of an exit counts as found: the best one for F1 on ``val``.
        empty: (N,) bool, images without an object.

    Raises:
        ConfigError: no plane in the folder.
        ValueError: it has no such network.
    """

    def __init__(self, reports: Path | str, system: str = "exits_256", seed: int = 0):
        self.report = read_metrics(Path(reports) / "metrics" / "plane.json")
        rows = {(row["name"], row["seed"]): row for row in self.report["systems"]}
        if (system, seed) not in rows:
            raise ValueError(f"system {system}, seed {seed}: not in the plane; it has {sorted({n for n, _ in rows})}")
        row, self.system = rows[system, seed], system
        self.flags = load_flags(reports, self.report, system)[system, seed]
        self.exit_names, self.times = tuple(row["exits"]), times_of(row)
        self.cuts = [exit_["cut"] for exit_ in row["exits"].values()]
        self.empty = self.flags.positives == 0
        self._static = static_flags(reports, self.report, seed)
        self._hulls: dict[float | None, Hull] = {}  # a slider asks for the same shares of empty images again

    def evidence(self, index: int) -> dict[str, np.ndarray]:
        """What an exit shows of every image, each (N,): ``top_score``, ``score_sum``, ``count_10`` and its like."""
        flags, here = self.flags, self.flags.exit == index
        image, score, size = flags.image[here], flags.score[here], flags.images
        top = np.zeros(size)
        np.maximum.at(top, image, score)
        seen = {"top_score": top, "score_sum": np.bincount(image, score, size)}
        for cut in COUNTED_FROM:
            seen[f"count_{round(100 * cut)}"] = np.bincount(image[score > cut], minlength=size)
        return seen

    def route(self, policy: Callable[[dict[str, np.ndarray], int], np.ndarray]) -> np.ndarray:
        """Exit index (N,) at which each image leaves by a policy, which says of the evidence of an exit, and its index,
        whether each image leaves there, bool (N,)."""
        chosen = np.full(self.flags.images, len(self.exit_names) - 1)
        for index in reversed(range(len(self.exit_names) - 1)):
            chosen[np.asarray(policy(self.evidence(index), index), bool)] = index
        return chosen

    def by_score(self, thresholds: Sequence[float]) -> np.ndarray:
        """The routing by best scores: an image leaves where its best score reaches the exit's threshold."""
        return self.route(lambda seen, index: seen["top_score"] >= thresholds[index])

    def weights(self, prevalence: float | None) -> np.ndarray:
        """How much each image counts, so that a share of the images is empty; None is the split's own share."""
        once = np.ones((1, self.flags.images))
        return (once if prevalence is None else at_prevalence(once, self.empty, prevalence))[0]

    def score(self, chosen: np.ndarray, prevalence: float | None = None) -> dict[str, float]:
        """``AP``, mean ``time``, and the share of images at each exit, under a share of empty images."""
        weights = self.weights(prevalence)
        shares = np.bincount(chosen, weights, len(self.exit_names)) / weights.sum()
        result = {"AP": self.flags.ap(chosen, weights), "time": float(shares @ self.times)}
        return result | dict(zip(self.exit_names, shares.tolist(), strict=True))

    def coin(self, time: float, prevalence: float | None = None) -> float | None:
        """AP of the best random mixture of two exits at a mean time; None where no exit is as fast."""
        best = Hull(self.times, np.array([self._alone(prevalence)])).at(time)
        return None if best is None else float(best[0])

    def static_hull(self, prevalence: float | None = None) -> Hull:
        """The plane's static detectors of the first seed, in float and int8, and the coins between any two of them."""
        if prevalence not in self._hulls:
            weights = self.weights(prevalence)
            ap = np.array([[other.flags.of_exit(0, weights) for other in self._static]])
            self._hulls[prevalence] = Hull(np.array([other.time for other in self._static]), ap)
        return self._hulls[prevalence]

    def _alone(self, prevalence: float | None) -> list[float]:
        weights = self.weights(prevalence)
        return [self.flags.of_exit(index, weights) for index in range(len(self.exit_names))]

    def figure(self, points: Mapping[str, Mapping[str, float]], prevalence: float | None = None) -> Figure:
        """Routings of :meth:`score` by name in the plane: beside each exit, its coins and the static detectors."""
        figure, axis = plt.subplots(figsize=(5.9, 3.2))
        static = self.static_hull(prevalence)
        if len(static.times):
            times = np.linspace(static.times.min(), max(1.05, static.times.max()), 200)
            best = [static.at(time)[0] for time in times]
            axis.plot(times, best, color="#4D4D4D", linewidth=1, label="hull of the static detectors")
            axis.plot(static.times, static.samples[0], ".", color="#4D4D4D", label="static detectors, float and int8")
        times = np.linspace(self.times.min(), self.times.max(), 100)
        axis.plot(times, [self.coin(time, prevalence) for time in times], color="#BBBBBB", label="coins of the exits")
        for name, time, ap in zip(self.exit_names, self.times, self._alone(prevalence), strict=True):
            axis.plot(time, ap, "D", color=exit_colour(name), label=name)
        for (name, point), marker in zip(points.items(), "*os^PX", strict=False):
            axis.plot(point["time"], point["AP"], marker, color="black", markersize=10, label=name)
        share = self.empty.mean() if prevalence is None else prevalence
        images = f"{self.flags.images} images of {self.report['split']}"
        axis.set(xlabel="mean time / time of the plain detector", ylabel="AP[.50:.95]")
        axis.set_title(f"{self.system}, {images}, {100 * share:.0f} % empty")
        figure.legend(loc="outside right center", fontsize=7)
        return figure

    def left_at(self, chosen: np.ndarray, name: str, most: int = 4) -> list[dict]:
        """Up to ``most`` images that left at an exit, first those on which the last exit finds most more objects.

        Args:
            chosen: exit index at which each image leaves, (N,).

        Returns:
            A dict each: ``image_id``, ``objects``, ``found here`` and ``found by full`` (or the last exit's name).
        """
        _, right = self.flags.claims(self.cuts)
        index, last = self.exit_names.index(name), self.exit_names[-1]
        rows = np.flatnonzero(chosen == index)
        lost = right[rows, -1] - right[rows, index]
        return [
            {"image_id": self.flags.image_ids[row], "objects": int(self.flags.positives[row]),
             "found here": int(right[row, index]), "found by " + last: int(right[row, -1])}
            for row in rows[np.argsort(-lost, kind="stable")[:most]]
        ]  # fmt: skip
