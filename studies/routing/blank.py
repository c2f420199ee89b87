"""Ending images that show no object: what blank gates and scores tell, and what that is worth by prevalence.

A *view* is one number an image, small where no object is seen: the probability of a blank gate, or the best score of
an exit. An image whose number lies below a threshold ends there without a box, all others go on to full.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from eelib.guarantee import fixed_sequence
from eelib.plots import TEXT_WIDTH_IN
from eelib.routed_ap import RoutedAP, bootstrap, interval, resample
from eelib.routing import Split
from studies.compress.plane import HULLS, flags_of
from studies.hull import Hull, above, at_prevalence

STEPS, WORST = 100, 0.1  # thresholds that are tried, and the share of val's images with objects that the last one ends


def views(split: Split) -> dict[str, np.ndarray]:
    """Views of every image of a split, (N,) each: the gates in their order, then the exits' best scores."""
    top = split.columns(("top_score",))[..., 0]
    gates = {gate: split.holds[:, k] for k, gate in enumerate(split.records.gates)}
    return gates | {f"best score, {name}": top[:, k] for k, name in enumerate(split.records.exit_names)}


def certified_threshold(val: np.ndarray, calibrate: np.ndarray, epsilon: float, delta: float) -> float:
    """The last threshold that is certified to end at most a share of the images with objects.

    Args:
        val: view of ``val``'s images with objects, from which the sequence of thresholds comes.
        calibrate: view of ``calibrate``'s images with objects, on which each is tested in turn.
        epsilon: share that may be ended.
        delta: probability that the promise fails.

    Returns:
        0, which ends none, where nothing is certified.

    Raises:
        GuaranteeError: fewer images than could certify anything.
    """
    least = val.min()
    sequence = np.concatenate(
        (np.linspace(0, least, STEPS, endpoint=False), np.quantile(val, np.linspace(0, WORST, STEPS)))
    )
    losses = (calibrate < sequence[:, None]).astype(float)
    index, _ = fixed_sequence(losses, epsilon, delta, "hoeffding_bentkus")
    return float(sequence[index]) if index >= 0 else 0.0


def ended(val: Split, calibrate: Split, test: Split, epsilon: float, delta: float) -> dict[str, dict]:
    """What each view does on ``test`` with its certified threshold.

    Returns:
        View to ``AUROC`` (images with objects against empty ones), ``threshold``, ``lost`` (share of the images with
        objects that end) and ``blank_ended`` (share of the empty ones), each with its 95 % Wilson interval, and
        ``ends`` (N,) bool.
    """
    objects = {split.name: split.evaluator.positives > 0 for split in (val, calibrate, test)}
    on_val, on_calibrate, rows = views(val), views(calibrate), {}
    for name, values in views(test).items():
        seen = on_val[name][objects[val.name]], on_calibrate[name][objects[calibrate.name]]
        threshold = certified_threshold(*seen, epsilon, delta)
        ends, shows = values < threshold, objects[test.name]
        row = {"AUROC": float(roc_auc_score(shows, values)), "threshold": threshold, "ends": ends}
        for key, of in (("lost", shows), ("blank_ended", ~shows)):
            share = binomtest(int(ends[of].sum()), int(of.sum()))
            bounds = share.proportion_ci(method="wilson")
            row |= {key: float(share.statistic), f"{key}_interval": [float(bounds.low), float(bounds.high)]}
        rows[name] = row
    return rows


def static_flags(reports: Path | str, plane: Mapping) -> dict[str, tuple[float, RoutedAP]]:
    """Time and match flags of every static system of a plane, int8 ones too."""
    flags = {}
    for row in plane["systems"]:
        if row["kind"] in HULLS["static"] and row["seed"] == 0:
            path = flags_of(reports, row["name"], 0, plane["plane"]["name"])
            time = next(iter(row["exits"].values()))["time_ratio"]
            flags[row["name"]] = time, RoutedAP.load(path, plane["split_sha256"], row["graphs_sha256"])
    return flags


def worth(
    test: Split,
    ends: Mapping[str, np.ndarray],
    times: Mapping[str, float],
    prevalences: Sequence[float],
    static: Mapping[str, tuple[float, RoutedAP]],
    resamples: int,
) -> list[dict]:
    """AP and mean time of full behind each view, under several shares of empty images.

    Args:
        ends: view to the images that end there, (N,) bool; none ends in full alone.
        times: time of ending at each view, and of ``full``.
        prevalences: shares of empty images; the split's own comes first by itself.
        static: time and match flags of the systems to compare with, on the same images.

    Returns:
        Rows of ``prevalence``, ``system``, ``time``, ``AP``, intervals, AP ``minus_full`` and, where a static system is
        as fast, ``minus_static`` with ``above``.
    """
    empty, last = test.evaluator.positives == 0, test.evaluator.exits - 1
    ones, drawn = np.ones((1, len(empty)), np.int64), resample(test.scenes, resamples, seed=0)
    alone, rows = {"full alone": np.zeros(len(empty), bool)}, []
    for prevalence in (None, *prevalences):
        once, weights = ones[0], drawn
        if prevalence is not None:
            once, weights = at_prevalence(ones, empty, prevalence)[0], at_prevalence(drawn, empty, prevalence)
        share = float(once @ empty / once.sum())
        peers = None
        if static:
            samples = [bootstrap(flags, [np.zeros(len(empty), int)], weights)[:, 0] for _, flags in static.values()]
            peers = Hull(np.array([time for time, _ in static.values()]), np.stack(samples, 1))
        routings = {name: np.where(of, last + 1, last) for name, of in (alone | dict(ends)).items()}
        samples = bootstrap(test.evaluator, list(routings.values()), weights)
        for k, (name, chosen) in enumerate(routings.items()):
            leaving = float(once @ (chosen > last) / once.sum())
            time = leaving * times.get(name, 0.0) + (1 - leaving) * times["full"]
            row = {"prevalence": share, "system": name, "time": time, "AP": test.evaluator.ap(chosen, once)}
            row |= {"AP_interval": interval(samples[:, k]), "minus_full": interval(samples[:, k] - samples[:, 0])}
            gap = None if peers is None else peers.gap(time, samples[:, k])
            if gap is not None:
                row |= {"minus_static": interval(gap), "above": above(gap)}
            rows.append(row)
    return rows


def worth_figure(rows: Sequence[Mapping], plane: Mapping | None) -> Figure:
    """A panel for each share of empty images: full behind each view, and the static systems of a plane."""
    shares = list(dict.fromkeys(row["prevalence"] for row in rows))
    names = [name for name in dict.fromkeys(row["system"] for row in rows)]
    colours = dict(zip(names, ("#009E73", "#CC79A7", "#D55E00", "#E69F00", "#56B4E9", "#0072B2"), strict=False))
    figure, axes = plt.subplots(1, len(shares), figsize=(TEXT_WIDTH_IN, 3.2), sharey=True, squeeze=False)
    for axis, share in zip(axes[0], shares, strict=True):
        for row in plane["exits"] if plane else ():
            if row["kind"] in HULLS["static"] and abs(row["prevalence"] - share) < 5e-3 and row["seed"] == 0:
                axis.plot(row["time_ratio"], row["AP"], ".", color="#999999", label="static systems")
        for row in (row for row in rows if row["prevalence"] == share):
            low, high = row["AP_interval"]
            axis.errorbar(row["time"], row["AP"], [[row["AP"] - low], [high - row["AP"]]], marker="o", markersize=5,
                          color=colours[row["system"]], elinewidth=0.7, linestyle="", label=row["system"])  # fmt: skip
        axis.set_title(f"{100 * share:.0f} % empty")
        axis.set_xlabel("mean time / plain detector")
        axis.set_xlim(0)
    axes[0, 0].set_ylabel("AP[.50:.95] on test, 95 % interval")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return figure
