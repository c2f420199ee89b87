"""What notebook 09_explorer moves: any routing of a network's exits, scored in milliseconds from committed match flags.

Nothing here needs weights or images. Time is that of each exit as the plane measured it, the plain detector's being 1.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eelib.detections import exit_colour
from eelib.routed_ap import RoutedAP
from studies.compress.plane import flags_of
from studies.hull import Hull, at_prevalence
from studies.report.metrics_files import read_metrics

COUNTED_FROM = (0.1, 0.3, 0.5)  # scores


class Explorer:
    """One network with exits, of the plane in a folder of reports.

    Args:
        reports: folder of ``metrics/PLANE.json`` and ``PLANE/*.npz``.
        system, seed: a network of the plane.
        plane: its name.

    Attributes:
        flags: match flags of the split that the plane reports.
        exit_names, times: of the E exits; times are shares of the plain detector's.

    Raises:
        ConfigError: no plane in the folder.
        ValueError: it has no such network.
    """

    def __init__(self, reports: Path | str, system: str = "exits_256", seed: int = 0, plane: str = "plane_released"):
        self.report = read_metrics(Path(reports) / "metrics" / f"{plane}.json")
        rows = {(row["name"], row["seed"]): row for row in self.report["systems"]}
        if (system, seed) not in rows:
            raise ValueError(f"system {system}, seed {seed}: not in the plane; it has {sorted({n for n, _ in rows})}")
        row, self.system = rows[system, seed], system
        self.flags = RoutedAP.load(
            flags_of(reports, system, seed, plane), self.report["split_sha256"], row["graphs_sha256"]
        )
        self.exit_names = tuple(row["exits"])
        self.times = np.array([exit_["time_ratio"] for exit_ in row["exits"].values()])
        self.empty = self.flags.positives == 0

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
        """Exit index at which each image leaves, (N,).

        Args:
            policy: of the evidence of an exit and its index; says of every image whether it leaves there, bool (N,).
        """
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

    def _alone(self, prevalence: float | None) -> list[float]:
        weights = self.weights(prevalence)
        return [self.flags.of_exit(index, weights) for index in range(len(self.exit_names))]

    def figure(self, points: Mapping[str, Mapping[str, float]], prevalence: float | None = None) -> Figure:
        """Routings of :meth:`score` by name, beside each exit and the coins that join them."""
        figure, axis = plt.subplots(figsize=(5.0, 3.0))
        alone = self._alone(prevalence)
        times = np.linspace(self.times.min(), self.times.max(), 100)
        axis.plot(times, [self.coin(time, prevalence) for time in times], color="#999999", label="coins of the exits")
        for name, time, ap in zip(self.exit_names, self.times, alone, strict=True):
            axis.plot(time, ap, "D", color=exit_colour(name), label=name)
        for (name, point), marker in zip(points.items(), "o^sPX*", strict=False):
            axis.plot(point["time"], point["AP"], marker, color="black", markersize=8, label=name)
        share = self.empty.mean() if prevalence is None else prevalence
        axis.set_title(
            f"{self.system}, {self.flags.images} images of {self.report['split']}, {100 * share:.0f} % empty"
        )
        axis.set_xlabel("mean time / time of the plain detector")
        axis.set_ylabel("AP[.50:.95]")
        axis.legend(fontsize=7)
        return figure

    def regretted(self, chosen: np.ndarray, cuts: Sequence[float], most: int = 8) -> list[dict]:
        """Images that left early and on which the last exit finds most more objects.

        Args:
            cuts: of each exit, score from which a box counts.
        """
        _, right = self.flags.claims(cuts)
        rows = np.arange(self.flags.images)
        lost = right[:, -1] - right[rows, chosen]
        worst = [row for row in np.argsort(-lost, kind="stable")[:most] if lost[row] > 0]
        return [
            {"image_id": self.flags.image_ids[row], "left at": self.exit_names[chosen[row]],
             "objects": int(self.flags.positives[row]), "found here": int(right[row, chosen[row]]),
             "found by " + self.exit_names[-1]: int(right[row, -1])}
            for row in worst
        ]  # fmt: skip
