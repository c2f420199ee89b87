"""Ending images that show no object: what blank gates and other views tell.

A *view* is one number an image, small where no object is seen: the probability of a blank gate, the best score of an
exit, the sum of its raw scores as a count of objects, or the gain that a regressor expects of full. An image whose
number lies below a threshold ends there without a box, all others go on to full.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from eelib.deploy.evidence import OF_RAW_SCORES
from eelib.guarantee import certified_gates, fixed_sequence, gate_sequence
from eelib.policies import fit_benefit
from eelib.routing import Split
from studies.compress.results import ROUTERS
from studies.plots import TEXT_WIDTH_IN
from studies.routing.answers import share_of
from studies.routing.worth import Beside, Times

STEPS, WORST = 100, 0.1  # thresholds that are tried, and the share of val's images with objects that the last one ends
BOTH = "both gates"


def views(val: Split, splits: Sequence[Split]) -> list[dict[str, np.ndarray]]:
    """Views of every image of each split, (N,) each: the gates in their order, then those of each exit.

    The benefit is fitted on ``val``: ``calibrate`` is looked at once, for the threshold.
    """
    gain, cross_fitted = fit_benefit([val], lambda split: split.gains, OF_RAW_SCORES)
    answers = []
    for split in splits:
        seen = {gate: split.holds[:, k] for k, gate in enumerate(split.records.gates)}
        score, count = np.moveaxis(split.columns(("top_score", "raw_sum")), -1, 0)
        needed = 1 - cross_fitted.get(split.images, gain(split.columns(gain.evidence)))
        for k, name in enumerate(split.records.exit_names):
            seen |= {f"best score, {name}": score[:, k], f"count, {name}": count[:, k]}
            if k < needed.shape[1]:
                seen[f"benefit, {name}"] = needed[:, k]
        answers.append(seen)
    return answers


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
    index, _ = fixed_sequence(losses, epsilon, delta, "binomial")
    return float(sequence[index]) if index >= 0 else 0.0


def ended(val: Split, calibrate: Split, test: Split, epsilon: float, delta: float) -> dict[str, dict]:
    """What each view does on ``test`` with its certified threshold, and both gates together.

    Returns:
        View to ``AUROC`` (images with objects against empty ones; both gates have none), ``threshold``, ``lost`` (share
        of the images with objects that end) and ``blank_ended`` (share of the empty ones), each with its 95 % Wilson
        interval, ``objects_lost`` (share of all objects), and ``ends`` (N,) bool.
    """
    shows = [split.evaluator.positives > 0 for split in (val, calibrate)]
    on_val, on_calibrate, on_test = views(val, (val, calibrate, test))
    rows = {}
    for name, values in on_test.items():
        threshold = certified_threshold(on_val[name][shows[0]], on_calibrate[name][shows[1]], epsilon, delta)
        auroc = float(roc_auc_score(test.evaluator.positives > 0, values))
        rows[name] = {"AUROC": auroc, "threshold": threshold} | _effect(values < threshold, test)
    both = certified_gates(calibrate, gate_sequence(val), epsilon, delta)["thresholds"]
    rows[BOTH] = {"AUROC": None, "threshold": both} | _effect((test.holds < both).any(1), test)
    return rows


def _effect(ends: np.ndarray, test: Split) -> dict:
    positives = test.evaluator.positives
    row = {"ends": ends, "objects_lost": float(positives[ends].sum() / positives.sum())}
    for key, of in (("lost", positives > 0), ("blank_ended", positives == 0)):
        row[key], row[f"{key}_interval"] = share_of(ends[of].sum(), of.sum())
    return row


def gate_curve(
    splits: Mapping[str, Split], times: Times, epsilons: Sequence[float], delta: float, beside: Sequence[Beside]
) -> list[dict]:
    """What gates save for each share epsilon of the images with objects that they may end, with certainty 1 - delta.

    Beside them a threshold of exit1's best score, and a coin that ends an epsilon of all images without looking: it
    needs no certificate. The certificate is of images with objects, so it holds for every share of empty images.

    Args:
        splits: ``val``, ``calibrate`` and ``test`` under raw scores.
        beside: of ``test``, one for each share.
    """
    val, calibrate, test = (splits[name] for name in ("val", "calibrate", "test"))
    shows, sequence = calibrate.evaluator.positives > 0, gate_sequence(val)
    scores = [split.columns(("top_score",))[:, 0, 0] for split in (val, calibrate, test)]
    seen = scores[0][val.evaluator.positives > 0], scores[1][shows]
    rows, last = [], len(times.exits) - 1
    for epsilon in epsilons:
        both = np.array(certified_gates(calibrate, sequence, epsilon, delta)["thresholds"])
        at_gate = test.holds < both
        behind = np.where(at_gate.any(1), last + 1 + at_gate.argmax(1), last)
        low = scores[2] < certified_threshold(*seen, epsilon, delta)
        routed = {
            BOTH: (behind, np.append(times.gated, times.gates)),
            "best score, exit1": (np.where(low, last + 1, last), np.append(times.exits, times.exits[0])),
        }
        for case in beside:
            told = {"loss": "objects", "epsilon": epsilon, "delta": delta, "n": int(shows.sum())}
            for name, (chosen, costs) in routed.items():
                effect = _effect(chosen > last, test)
                row = told | {"system": name, "certified": bool(effect["lost"] + effect["blank_ended"] > 0)}
                row |= {"risk_on_test": effect["lost"], "blank_ended": effect["blank_ended"]}
                rows.append(row | {"objects_lost": effect["objects_lost"]} | case.routed(chosen, costs))
            row = told | {"system": "coin", "certified": True, "risk_on_test": epsilon, "blank_ended": epsilon}
            left = (1 - epsilon) * case.exits[:, -1]
            coin = case.row((1 - epsilon) * float(times.exits[-1]), (1 - epsilon) * float(case.ap[-1]), left)
            rows.append(row | {"objects_lost": epsilon} | coin)
    return rows


def worth_figure(
    rows: Sequence[Mapping], plane: Mapping | None, coin: Mapping[float, Sequence] | None = None
) -> Figure:
    """A panel for each share of empty images: routings by their family, static systems and the coin of the exits.

    Args:
        rows: of :meth:`studies.routing.worth.Beside.row`, with ``system``, by which they are joined and coloured.
        plane: metrics of the plane, whose static systems are drawn.
        coin: share of empty images to times and AP of the exits alone.
    """
    shares = list(dict.fromkeys(row["prevalence"] for row in rows))
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = plt.subplots(1, len(shares), figsize=(TEXT_WIDTH_IN, 3.6), squeeze=False)
    for axis, share in zip(axes[0], shares, strict=True):
        for row in plane["exits"] if plane else ():
            if row["kind"] != "exits" and abs(row["prevalence"] - share) < 5e-3 and row["seed"] == 0:
                axis.plot(row["time_ratio"], row["AP"], ".", color="#999999", label="static detectors")
        if coin:
            axis.plot(*coin[share], color="black", linewidth=0.8, label="exits alone, and their coin")
        for name in names:
            points = [row for row in rows if (row["prevalence"], row["system"]) == (share, name)]
            points.sort(key=lambda row: row["time"])
            ap = np.array([row["AP"] for row in points])
            reach = np.abs(np.array([row["AP_interval"] for row in points]).T - ap)
            marker, colour = ROUTERS[name]
            axis.errorbar([row["time"] for row in points], ap, reach, color=colour, marker=marker, markersize=4,
                          elinewidth=0.5, linewidth=0.8, label=name)  # fmt: skip
        axis.set_title(f"{100 * share:.0f} % empty")
        axis.set_xlabel("mean time / plain")
    axes[0, 0].set_ylabel("AP[.50:.95] on test, 95 % interval")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return figure
