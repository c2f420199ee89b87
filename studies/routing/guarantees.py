"""Certificates as curves: what is promised for which epsilon, what it costs, and whether the promise holds.

Three systems are walked in turn from the one that risks least, each in an order fixed on ``val``: the router, one
threshold of the best score, and a coin that takes an exit for a whole run. Of a coin the expected loss of an image
is known, so nothing is tossed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import norm

from eelib import guarantee
from eelib.guarantee import BOUNDS, Quality, drops, fixed_sequence
from eelib.policies import BEST_SCORE
from eelib.routing import Setting, Split, hull_mixture
from studies.hull import at_prevalence
from studies.plots import SERIES_COLOURS, TEXT_WIDTH_IN
from studies.routing.answers import share_of
from studies.routing.worth import Beside

Step = Setting | np.ndarray  # thresholds, or the shares (E,) of a coin
STEPS = 50
SYSTEMS = "router", "best score", "best score, exit1", "both gates", "coin"
COLOURS = dict(zip(SYSTEMS, SERIES_COLOURS, strict=False))


def recall_of(split: Split) -> np.ndarray:
    """Recall of every image at every exit, (N, E); 1 where there is nothing to find, so that nothing is lost there."""
    objects = split.evaluator.positives[:, None]
    return np.where(objects > 0, split.evaluator.claims(split.cuts)[1] / np.maximum(objects, 1), 1.0)


QUALITIES: dict[str, Quality] = {"F1": guarantee.f1_of, "recall": recall_of}


def walks(val: Split, quality: Quality, evidence: Sequence[str]) -> dict[str, list[Step]]:
    """Systems to test, from the safest down, fixed on ``val`` alone."""
    scores = val.columns(("top_score",))[:, :-1, 0]
    levels = np.unique(np.quantile(scores, np.linspace(0, 1, STEPS)))[::-1]
    lost = drops(quality(val)).mean(0)
    budgets = np.linspace(val.costs[-1], val.costs[0], STEPS)
    return {
        "router": guarantee.sequence(val, STEPS, evidence, quality),
        "best score": [Setting((float(level),) * scores.shape[1], BEST_SCORE) for level in levels],
        "coin": [hull_mixture(val.costs, -lost, budget) for budget in budgets],
    }


def losses_of(steps: Sequence[Step], split: Split, quality: Quality) -> np.ndarray:
    """Loss of each image under each step, (S, N); of a coin the expected one."""
    drop = drops(quality(split))
    rows = np.arange(len(drop))
    return np.array([drop[rows, step.route(split)] if isinstance(step, Setting) else drop @ step for step in steps])


def certified_step(
    losses: np.ndarray, epsilon: float, delta: float, empty: np.ndarray, prevalence: float | None = None
) -> tuple[int, float]:
    """Index of the last certified step, -1 for none, and its p-value, under a share of empty images.

    An image counts by its weight over the mean weight, divided by the greatest such factor so that losses stay in
    [0, 1]; epsilon is divided by it, too. Given how many images are empty this is a mean of independent losses, for
    which the bound holds.

    Args:
        losses: (S, n) on ``calibrate``.
        empty: (n,) bool.
        prevalence: None is the split's own.

    Returns:
        -1 as well where there are fewer images than could certify anything.
    """
    factor = np.ones(len(empty))
    if prevalence is not None:
        factor = at_prevalence(factor[None], empty, prevalence)[0]
    factor, least = factor / factor.mean(), epsilon * factor.mean() / factor.max()
    if len(empty) < guarantee.smallest_set(least, delta):
        return -1, 1.0
    return fixed_sequence(losses * factor / factor.max(), least, delta)


def curve(
    splits: Mapping[str, Split], name: str, evidence: Sequence[str], epsilons: Sequence[float], delta: float,
    beside: Sequence[Beside],
) -> list[dict]:  # fmt: skip
    """Certified systems of one loss for each epsilon and share of empty images, with their AP and time on ``test``.

    Recall is of the images with objects, so its certificate holds for every share; of F1 there is one for each.

    Args:
        splits: ``val``, ``calibrate`` and ``test`` under raw scores.
        name: of :data:`QUALITIES`.
        evidence: that the router reads.
        beside: of ``test``, one for each share, the split's own first.
    """
    quality, rows = QUALITIES[name], []
    calibrate, test = splits["calibrate"], splits["test"]
    empty = calibrate.evaluator.positives == 0
    counts = ~empty if name == "recall" else np.ones(len(empty), bool)
    on_test = ~(test.evaluator.positives == 0) if name == "recall" else np.ones(len(test.records), bool)
    full = np.eye(len(test.costs))[-1]
    for system, steps in walks(splits["val"], quality, evidence).items():
        losses, risks = losses_of(steps, calibrate, quality)[:, counts], losses_of(steps, test, quality)
        for case, epsilon in ((case, epsilon) for case in beside for epsilon in epsilons):
            share = None if case is beside[0] or name == "recall" else case.prevalence
            index, p_value = certified_step(losses, epsilon, delta, empty[counts], share)
            step = steps[index] if index >= 0 else full
            weights = case.once * on_test
            row = {"loss": name, "system": system, "epsilon": epsilon, "delta": delta, "n": int(counts.sum())}
            row |= {"certified": index >= 0, "p_value": p_value, "risk": 0.0 if index < 0 else losses[index].mean()}
            row["risk_on_test"] = 0.0 if index < 0 else float(weights @ risks[index] / weights.sum())
            if isinstance(step, Setting):
                row |= case.routed(step.route(test), test.paid(step.confidence.reads_boxes))
            else:
                row |= case.mixed(step, test.costs)
            rows.append(row)
    return rows


def _normal(losses: np.ndarray, epsilon: float) -> float:
    """What a textbook's test of a mean gives: no p-value where losses are few and mostly 0."""
    spread = losses.std(ddof=1) / np.sqrt(len(losses))
    return float(norm.cdf((losses.mean() - epsilon) / spread)) if spread else float(losses.mean() > epsilon)


# Rules of stopping: how sure one has to be at delta that a step is safe. The last two promise nothing, and the check
# has to find that out.
RULES: dict[str, Callable[[np.ndarray, float, float], bool]] = {
    "Hoeffding-Bentkus": lambda losses, epsilon, delta: BOUNDS["hoeffding_bentkus"](losses, epsilon) <= delta,
    "betting": lambda losses, epsilon, delta: guarantee.betting(losses, epsilon, delta) <= delta,
    "binomial": lambda losses, epsilon, delta: BOUNDS["binomial"](losses, epsilon) <= delta,
    "normal": lambda losses, epsilon, delta: _normal(losses, epsilon) <= delta,
    "naive": lambda losses, epsilon, delta: losses.mean() <= epsilon,
}


def redrawn(
    losses: np.ndarray, epsilon: float, deltas: Sequence[float], sizes: Sequence[int], rounds: int, rules: Sequence[str]
) -> Iterator[dict]:
    """Does the promise hold? A pool of images is the population: draw from it, certify, look at the pool's own mean.

    The mean loss of the pool is known without noise, so a rule that promises delta must be wrong in delta of the rounds
    or fewer. ``fails`` where the whole 95 % interval of the rate, Clopper and Pearson's, lies above delta.

    Args:
        losses: (S, N) of the pool, the steps in their order.
        sizes: images that are drawn, with replacement.
        rules: of :data:`RULES`.
    """
    true = losses.mean(1)
    for size in sizes:
        rng = np.random.default_rng(size)  # every rule meets the same draws
        draws = [losses[:, rng.integers(0, losses.shape[1], size)] for _ in range(rounds)]
        for rule in rules:
            for delta in deltas:
                wrong, last = 0, []
                for drawn in draws:
                    index = next((k for k, row in enumerate(drawn) if not RULES[rule](row, epsilon, delta)), len(drawn))
                    wrong += index > 0 and true[index - 1] > epsilon
                    last.append(index - 1)
                rate, ends = share_of(wrong, rounds, "exact")
                row = {"rule": rule, "delta": delta, "epsilon": epsilon, "n": size, "rounds": rounds}
                row |= {"violations": int(wrong), "rate": rate, "interval": ends, "fails": ends[0] > delta}
                yield row | {"certified": float(np.mean(np.array(last) >= 0))}


def table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """A line for each loss, epsilon and system: what was certified, the risk on ``test``, and time and AP by share."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        line = lines.setdefault((row["loss"], row["epsilon"], row["system"]), {
            "loss": row["loss"], "epsilon": row["epsilon"], "system": row["system"], "n": row["n"],
            "risk on test": row["risk_on_test"], "blanks ended": row.get("blank_ended"),
        })  # fmt: skip
        share = f"{100 * row['prevalence']:.0f} %"
        low, high = row["AP_interval"]
        line |= {f"time {share}": row["time"], f"AP {share}": row["AP"], f"low {share}": low, f"high {share}": high}
    return pd.DataFrame(lines.values(), dtype=object)


def sentences(rows: Sequence[Mapping]) -> list[str]:
    """Each certified system beside the certified coin at the same epsilon, in words."""
    told = []
    for loss, share in dict.fromkeys((row["loss"], row["prevalence"]) for row in rows):
        here = [row for row in rows if (row["loss"], row["prevalence"]) == (loss, share)]
        coins = {row["epsilon"]: row for row in here if row["system"] == "coin"}
        for name in dict.fromkeys(row["system"] for row in here if row["system"] != "coin"):
            points = [row for row in here if row["system"] == name and row["certified"]]
            faster = [row for row in points if row["time"] < coins[row["epsilon"]]["time"] - 1e-9]
            above = [row for row in points if row["above_coin"]]
            static = [row for row in points if row.get("above_static")]
            text = f"{loss}, {100 * share:.0f} % empty: {name} is certified at {len(points)} of {len(coins)} epsilons, "
            text += f"faster than the certified coin at {len(faster)}; above a coin of its own time at {len(above)}, "
            told.append(text + f"above all static detectors at {len(static)}")
    return told


def curves_figure(rows: Sequence[Mapping]) -> Figure:
    """Certified time over epsilon, and the AP that goes with it: a column for each loss, one share of empty images."""
    names = list(dict.fromkeys(row["loss"] for row in rows))
    figure, axes = plt.subplots(2, len(names), figsize=(TEXT_WIDTH_IN, 4.4), sharex="col", sharey="row", squeeze=False)
    for column, name in zip(axes.T, names, strict=True):
        for system in dict.fromkeys(row["system"] for row in rows if row["loss"] == name):
            points = [row for row in rows if (row["loss"], row["system"]) == (name, system)]
            epsilons = [row["epsilon"] for row in points]
            how = {"color": COLOURS[system], "marker": "o", "markersize": 3, "label": system}
            column[0].plot(epsilons, [row["time"] for row in points], **how)
            column[1].plot(epsilons, [row["AP"] for row in points], **how)
            column[1].fill_between(epsilons, *np.array([row["AP_interval"] for row in points]).T, alpha=0.12,
                                   color=COLOURS[system], linewidth=0)  # fmt: skip
        column[0].set_title(f"loss: {name}")
        column[1].set_xlabel("ε")
        column[0].legend(fontsize=6.5)
    axes[0, 0].set_ylabel("mean time / plain detector")
    axes[1, 0].set_ylabel("AP[.50:.95] on test")
    return figure


def redrawn_figure(rows: Sequence[Mapping]) -> Figure:
    """Share of the rounds in which a promise is broken, over the images drawn: a column a delta, a row a loss."""
    losses, deltas = (list(dict.fromkeys(row[key] for row in rows)) for key in ("loss", "delta"))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    size = (TEXT_WIDTH_IN, 2.1 * len(losses) + 0.6)
    figure, axes = plt.subplots(len(losses), len(deltas), figsize=size, sharex=True, sharey="row", squeeze=False)
    for axis, (loss, delta) in zip(axes.flat, ((loss, delta) for loss in losses for delta in deltas), strict=True):
        here = [row for row in rows if row["loss"] == loss and row["delta"] == delta]
        for k, rule in enumerate(rules):
            points = [row for row in here if row["rule"] == rule]
            rates = np.array([row["rate"] for row in points])
            reach = np.abs(np.array([row["interval"] for row in points]).T - rates) if points else None
            axis.errorbar([row["n"] + 5 * k for row in points], rates, reach, marker="o^sDv"[k], markersize=3.5,
                          linewidth=0.8, elinewidth=0.8, label=rule, color=SERIES_COLOURS[k])  # fmt: skip
        axis.axhline(delta, color="black", linestyle="--", linewidth=0.8)
        axis.set_title(f"loss: {loss}, ε = {here[0]['epsilon']:g}, δ = {delta:g} (dashed)")
        axis.set_ylim(bottom=-0.01)
    for axis in axes[-1]:
        axis.set_xlabel("images drawn")
    for axis in axes[:, 0]:
        axis.set_ylabel("promise broken, 95 %")
    handles = {label: handle for a in axes.flat for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7)
    return figure
