"""Figures of the recorded phases: values in, a Figure out. First our runs of them, then the record's own numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.special import expit

from studies.phases import analysis as record
from studies.phases.config import ConfidenceConfig
from studies.plots import ALARM_COLOUR, EXIT_COLOURS, OURS_COLOUR, RECORDED_COLOUR, TEXT_WIDTH_IN

HOLDS_COLOUR, FAILS_COLOUR = "#BFDDEE", "#EFA47A"


def _by_epoch(*axes) -> None:
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.set_xticks([1, 5, 10, 15, 20])


def training_panels(history: Sequence[Mapping]) -> Figure:
    """A phase by epoch, of :func:`studies.phases.trainer.train_phase`: losses, confidences, temperatures, shares."""
    frame = pd.DataFrame(history).set_index("epoch")
    figure, axes = plt.subplots(2, 2, figsize=(TEXT_WIDTH_IN, 4.4), sharex=True)
    (losses, confidences), (temperatures, shares) = axes
    for name, colour in EXIT_COLOURS.items():
        losses.plot(frame[f"loss_{name}"], color=colour, label=name)
        mean, spread = frame[f"confidence_{name}"], frame[f"confidence_std_{name}"]
        confidences.plot(mean, color=colour)
        confidences.fill_between(frame.index, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        if f"threshold_{name}" in frame:
            confidences.plot(frame[f"threshold_{name}"], color=colour, linestyle="--", linewidth=1)
        temperatures.plot(frame[f"temperature_{name}"], color=colour)
    values = frame[[f"val_share_{name}" for name in EXIT_COLOURS]].T
    shares.stackplot(frame.index, values, colors=EXIT_COLOURS.values(), step="mid")
    for axis, label in zip(axes.flat, ("loss", "confidence", "temperature", "share on val"), strict=True):
        axis.set_ylabel(label)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    losses.legend()
    return figure


def shares_beside_record(phases: Sequence[Mapping]) -> Figure:
    """Exit shares of each phase of ``phases.json``: the record (pale), our short run, first seed, and the serious."""
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.8))
    names = [phase["phase"].replace("_", "\n") for phase in phases]
    untrained = dict.fromkeys(EXIT_COLOURS, 0.0)
    # a bar of position 0.5 is centred on its tick
    for shares, position, alpha in (
        ([phase["recorded"]["exit_shares"] for phase in phases], 1.65, 0.4),
        ([phase["runs"][0]["exit_shares"] for phase in phases], 0.5, 1.0),
        ([phase["serious"]["exit_shares"] if phase["serious"] else untrained for phase in phases], -0.65, 1.0),
    ):
        bars = pd.DataFrame(shares, names)[list(EXIT_COLOURS)].plot.bar
        bars(stacked=True, color=EXIT_COLOURS, ax=axis, rot=0, width=0.26, position=position, alpha=alpha)
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in EXIT_COLOURS.items()]
    axis.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.set(xlim=(-0.6, len(phases) - 0.4), ylabel="share of the images")
    axis.set_xlabel("phase (left: record; middle: 320 steps; right: the longer training)")
    return figure


def _interval(axis, x: float, row: Mapping, key: str, colour: str) -> None:
    """Mean over seeds, 95 % interval over seeds and scenes, and the single seeds as small dots."""
    axis.plot([x, x], row[f"{key}_interval"], color=colour, linewidth=1.4, solid_capstyle="butt")
    axis.scatter(x, row[key], color=colour, s=20, zorder=4)
    axis.scatter([x] * len(row["seeds"]), [seed[key] for seed in row["seeds"].values()], color=colour, s=4, zorder=3)


def causal_ladder(rows: Sequence[Mapping]) -> Figure:
    """What each repair does at every exit: share of the images, spread of the confidence over images, AP.

    Rows are of :func:`studies.phases.ablation.summarise`; a bar is the 95 % interval over seeds and scenes.
    """
    figure, axes = plt.subplots(3, 1, figsize=(TEXT_WIDTH_IN, 5.6), sharex=True)
    labels = ("share of the images", "spread of the confidence\nover images (std)", "AP on test")
    for axis, kind, label in zip(axes, ("share", "spread", "AP"), labels, strict=True):
        for x, row in enumerate(rows):
            for k, (name, colour) in enumerate(EXIT_COLOURS.items()):
                _interval(axis, x + 0.2 * (k - 1), row, f"{kind}_{name}", colour)
        axis.set_ylabel(label)
        axis.grid(axis="y", color="0.93", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[1].set_yscale("log")
    axes[2].set_xticks(range(len(rows)), [row["variant"].replace(" + ", "\n+ ") for row in rows])
    handles = [Line2D([], [], color=colour, marker="o", markersize=4, label=n) for n, colour in EXIT_COLOURS.items()]
    figure.legend(handles=handles, ncols=3, loc="outside upper center")
    return figure


def ablation_dots(rows: Sequence[Mapping]) -> Figure:
    """One defect at a time: AP of full, share of the largest exit, spread of exit1's confidence.

    Rows are of :func:`studies.phases.ablation.summarise`, the working configuration first, which is the vertical
    line; a bar is the 95 % interval, a small dot one seed.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH_IN, 0.185 * len(rows) + 1.0), sharey=True)
    panels = (
        ("AP_full", "AP of full", "destroys_detection"),
        ("largest_share", "share of the\nlargest exit", "all_or_nothing"),
        ("spread", "spread of exit1's\nconfidence (std)", "all_or_nothing"),
    )
    for axis, (key, label, verdict) in zip(axes, panels, strict=True):
        axis.axvline(rows[0][key], color="0.75", linewidth=0.8, zorder=0)
        for y, row in enumerate(rows):
            colour = ALARM_COLOUR if row[verdict] else OURS_COLOUR
            axis.plot(row[f"{key}_interval"], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt")
            axis.scatter([s[key] for s in row["seeds"].values()], [y] * len(row["seeds"]), color=colour, s=4, zorder=3)
            axis.scatter(row[key], y, color=colour, s=18, zorder=4)
        axis.set_xlabel(label)
        axis.grid(axis="y", color="0.93", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    axes[1].set_xlim(0, 1.03)
    axes[2].set_xlim(left=0)
    axes[0].set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=7)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in (OURS_COLOUR, ALARM_COLOUR)]
    said = ["mean, three seeds, 95 % interval", "destroys detection (left), makes all or nothing (middle, right)"]
    figure.legend(handles, said, ncols=2, loc="outside upper right", fontsize=7.5)
    return figure


def check_matrix(checks: pd.DataFrame) -> Figure:
    """Preflight checks against phases, a row of ``phase``, ``check``, ``measured`` and ``holds`` where one applies."""
    column, phases = pd.factorize(checks["phase"])
    line, names = pd.factorize(checks["check"])
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 0.36 * len(names) + 0.7))
    axis.set(xlim=(0, len(phases)), ylim=(len(names), 0))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(len(phases)) + 0.5, phases)
    axis.set_yticks(np.arange(len(names)) + 0.5, names)
    axis.xaxis.tick_top()
    for x, y, measured, holds in zip(column, line, checks["measured"], checks["holds"], strict=True):
        colour = HOLDS_COLOUR if holds else FAILS_COLOUR
        axis.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, color=colour, linewidth=0))
        text = f"{measured:.2f}".replace("-0.00", "0.00")
        axis.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=6.5, color="black")
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in (HOLDS_COLOUR, FAILS_COLOUR)]
    figure.legend(handles, ["holds", "fails"], loc="outside lower right", ncols=2)
    return figure


def rule_curves(rules: Mapping[str, ConfidenceConfig], rows: pd.DataFrame) -> Figure:
    """Confidence of a constant probability under each rule, threshold, and the constant on record.

    Where the curve lies above the threshold every image leaves at exit1, elsewhere none does. The dot is the recorded
    confidence at the probability that it implies, in the colour of the exit that the phase used.

    Args:
        rules: name to rule, one panel each.
        rows: indexed by the same names: ``confidence``, ``threshold``, ``exit``.
    """
    columns, lines = 5, -(-len(rules) // 5)
    figure, axes = plt.subplots(
        lines, columns, figsize=(TEXT_WIDTH_IN, 1.65 * lines), sharex=True, sharey=True, squeeze=False
    )
    p = np.linspace(0, 1, 1001)
    for axis in axes.flat[len(rules) :]:
        axis.axis("off")
    for axis, (name, rule) in zip(axes.flat, rules.items(), strict=False):
        row, c = rows.loc[name], record.uniform_confidence(p, rule, boxes=16)
        leaves = c + 1e-6 >= row["threshold"]
        axis.fill_between(p, 0, 1.04, where=leaves, color=EXIT_COLOURS["exit1"], alpha=0.18, linewidth=0)
        axis.plot(p, np.where(np.abs(np.diff(c, append=c[-1])) > 0.03, np.nan, c), color="0.2", linewidth=1.2)
        axis.axhline(row["threshold"], color="0.45", linestyle="--", linewidth=0.8)
        implied = record.implied_probability(row["confidence"], rule)
        plateau = np.abs(c - row["confidence"]) < 1e-6
        if plateau.sum() > 100:  # 1.8: every probability below the cut gives zero
            axis.plot(p[plateau], c[plateau], linewidth=4, color=EXIT_COLOURS[row["exit"]], clip_on=False)
        elif implied:
            axis.plot(implied[0], row["confidence"], "o", markersize=5.5, color=EXIT_COLOURS[row["exit"]], mec="white")
        axis.set_title(name.replace("_", " "), pad=3)
        axis.set(xlim=(0, 1), ylim=(0, 1.04))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[-1, columns // 2].set_xlabel("chair probability of every box")
    figure.supylabel("confidence of exit1", fontsize=9)
    handles = [
        Line2D([], [], color="0.2", linewidth=1.2, label="rule"),
        Line2D([], [], color="0.45", linestyle="--", linewidth=0.8, label="threshold"),
        Patch(color=EXIT_COLOURS["exit1"], alpha=0.18, label="all leave at exit1"),
    ]
    for name in ("exit1", "full"):
        dot = {"marker": "o", "linestyle": "", "markersize": 5.5}
        handles.append(Line2D([], [], color=EXIT_COLOURS[name], label=f"recorded: {name}", **dot))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2)
    return figure


def rate_of_1_7(trajectory: pd.DataFrame) -> Figure:
    """1.7 by epoch: sampled rate against the logistic and its floor; the confidence above one half."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH_IN, 2.4), width_ratios=(1.5, 1))
    epoch, threshold = trajectory.index, trajectory["threshold_exit1"]
    rate = record.sampled_exit_rate(trajectory["confidence_exit1"], threshold)
    low, high = record.sampling_band(rate, record.TRAIN_IMAGES)
    left.fill_between(epoch, low, high, color=OURS_COLOUR, alpha=0.2, linewidth=0)
    left.plot(epoch, rate, color=OURS_COLOUR, label=r"$\sigma(20\,(c-\theta))$, 95 % of samples")
    floor = record.sampled_exit_rate(0.5, threshold)
    left.plot(epoch, floor, color="0.3", linestyle=":", label="least rate, $c = 0.5$")
    left.plot(epoch, trajectory["rate_exit1"], "o", markersize=3.5, color=EXIT_COLOURS["exit1"], label="recorded")
    left.axhline(record.RATE_TARGETS[0], color="0.45", linestyle="--", linewidth=0.8)
    left.text(1, record.RATE_TARGETS[0] + 0.02, "rate that the loss asks for", fontsize=8, color="0.35")
    left.set(ylim=(0.2, 1.02), ylabel="rate of exit1")
    left.legend(loc="center left", bbox_to_anchor=(0, 0.42))
    right.semilogy(epoch, trajectory["confidence_exit1"] - 0.5, "o-", markersize=3, color=EXIT_COLOURS["exit1"])
    right.set_ylabel("confidence of exit1 minus 0.5\n(logarithmic)")
    _by_epoch(left, right)
    return figure


def gap_of_1_6(trajectory: pd.DataFrame) -> Figure:
    """1.6: the soft rate of its own loss against the hard test that is in use; the way there by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH_IN, 2.4))
    gap1, gap2 = record.soft_fixed_point()
    x = np.linspace(-0.3, 0.3, 601)
    left.plot(x, expit(10 * x), color=OURS_COLOUR, label="soft, in training")
    left.plot([-0.3, 0, 0, 0.3], [0, 0, 1, 1], color="0.3", label="hard, in use")
    last = trajectory.iloc[-1]
    at = last["confidence_exit1"] - last["threshold_exit1"]
    soft = last["soft_rate_exit1"]
    left.plot([at, at], [0, soft], color=EXIT_COLOURS["exit1"], linewidth=1)
    left.plot([at, at], [0, soft], "o", color=EXIT_COLOURS["exit1"], markersize=5, clip_on=False)
    arrow = {"arrowstyle": "-", "color": "0.5", "linewidth": 0.7}
    left.annotate(f"{soft:.2f} soft,\n0 hard", (at, soft), (-0.29, 0.5), fontsize=8, arrowprops=arrow)
    left.set(xlabel="confidence minus threshold, exit1", ylabel="rate of exit1")
    left.legend(loc=(0.53, 0.1), handlelength=1)
    for name, target in (("exit1", gap1), ("exit2", gap2)):
        gap = trajectory[f"confidence_{name}"] - trajectory[f"threshold_{name}"]
        right.plot(gap.index, gap, "o-", markersize=3, color=EXIT_COLOURS[name], label=name)
        right.axhline(target, color=EXIT_COLOURS[name], linestyle="--", linewidth=0.8)
    right.axhline(0, color="0.3", linewidth=0.8)
    right.text(20, 0.012, "leaves above this line", ha="right", fontsize=8, color="0.3")
    _by_epoch(right)
    right.set_ylabel("confidence minus threshold")
    right.legend(loc="lower right")
    return figure


def gate_of_1_9(trajectory: pd.DataFrame) -> Figure:
    """1.9: factor of the gate by its count; confidence, threshold and the implied mean by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH_IN, 2.4), width_ratios=(1, 1.5))
    count = np.arange(7)
    left.bar(count, record.gate_factor(count), color="0.8", width=0.7)
    for n in (0, 1, 2, 3):
        left.text(n, record.gate_factor(n) + 0.02, f"{record.gate_factor(n):.3f}", ha="center", fontsize=8)
    left.set(xlabel="boxes above 0.60", ylabel="factor of the gate", xticks=count)
    epoch, c = trajectory.index, trajectory["confidence_exit1"]
    right.semilogy(epoch, c, "o-", markersize=3, color=EXIT_COLOURS["exit1"], label="confidence of exit1")
    right.semilogy(epoch, trajectory["threshold_exit1"], color="0.45", linestyle="--", label="threshold of exit1")
    shut = epoch >= 5
    mean = (c / record.gate_factor(0))[shut]
    right.semilogy(epoch[shut], mean, color=OURS_COLOUR, linewidth=1, label="mean probability implied")
    right.axvspan(0.5, 3.5, color=RECORDED_COLOUR, alpha=0.18, linewidth=0)
    right.text(2, 0.006, "untrained exits", ha="center", va="bottom", rotation=90, fontsize=8)
    right.set(xlim=(0.5, 20.5), ylim=(0.004, 1.6), ylabel="confidence (logarithmic)")
    _by_epoch(right)
    right.legend(loc="center right", bbox_to_anchor=(1, 0.42))
    return figure


def beside_record(recorded: pd.DataFrame, ours: pd.DataFrame | None, panels: list[tuple[str, str, str]]) -> Figure:
    """A phase by epoch, recorded and reproduced, if it was, one panel a quantity.

    Args:
        panels: (axis label, recorded column, our column); a label that ends in "(log)" has a logarithmic axis.
    """
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(TEXT_WIDTH_IN, 1.9 * rows), sharex=True, squeeze=False)
    for axis, (label, old, new) in zip(axes.flat, panels, strict=True):
        axis.plot(recorded.index, recorded[old], "o", markersize=3.5, color=RECORDED_COLOUR, label="recorded")
        if ours is not None:
            axis.plot(ours.index, ours[new], color=OURS_COLOUR, linewidth=1.4, label="ours")
        if label.endswith("(log)"):
            axis.set_yscale("log")
        axis.set_ylabel(label.replace(" (log)", "\n(logarithmic)"))
    _by_epoch(*axes[-1])
    axes.flat[0].legend()
    return figure


def phase_page(phase: str, history: pd.DataFrame | None) -> Figure:
    """A phase by epoch, ours as lines beside the record as dots: confidence and threshold, loss, where images leave."""
    figure, (confidences, losses, shares) = plt.subplots(1, 3, figsize=(TEXT_WIDTH_IN, 2.2))
    final = record.final_values().loc[phase]
    path = record.trajectory(phase) if (record.FOLDER / f"epochs_{phase.replace('.', '_')}.csv").exists() else None
    for name in ("exit1", "exit2"):
        colour = {"color": EXIT_COLOURS[name]}
        for axis, key, last in (
            (confidences, f"confidence_{name}", final[f"train_confidence_{name}"]),
            (losses, f"loss_{name}", final[f"loss_{name}"]),
        ):
            dots = path[key] if path is not None and key in path else pd.Series({record.EPOCHS: last})
            axis.plot(dots.index, dots, "o", markersize=3, markerfacecolor="white", clip_on=False, **colour)
            if history is not None:
                axis.plot(history.index, history[key], linewidth=1.2, **colour)
        if history is not None:
            threshold = history.get(f"threshold_{name}")
            if threshold is None or threshold.isna().all():
                confidences.axhline(final[f"{name}_threshold_epoch20"], linestyle="--", linewidth=0.8, **colour)
            else:
                confidences.plot(history.index, threshold, linestyle="--", linewidth=0.8, **colour)
    if history is not None:
        values = history[[f"val_share_{name}" for name in EXIT_COLOURS]].T
        shares.stackplot(history.index, values, colors=EXIT_COLOURS.values(), step="mid", linewidth=0)
    small = final["loss_exit2"] < 1  # of 1.1 alone
    losses.set(yscale="log" if small else "linear", ylabel="loss (logarithmic)" if small else "loss")
    confidences.set(ylabel="confidence")
    confidences.set_ylim(bottom=0)
    shares.set(xlim=(0.5, 20.5), ylim=(0, 1), ylabel="share of val, ours")
    _by_epoch(confidences, losses, shares)
    handles = [Patch(color=colour, label=name) for name, colour in EXIT_COLOURS.items()]
    handles += [
        Line2D([], [], color="0.3", linewidth=1.2, label="ours"),
        Line2D([], [], color="0.3", linestyle="--", linewidth=0.8, label="threshold"),
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", markersize=3, linestyle="", label="recorded"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.2)
    return figure
