"""Figures of the recorded phases: values in, a Figure out. First our runs of them, then the record's own numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from eelib.plots import ALARM_COLOUR, EXIT_COLOURS, OURS_COLOUR, RECORDED_COLOUR, TEXT_WIDTH_IN
from studies.phases import analysis as record
from studies.phases.config import ConfidenceConfig

HOLDS_COLOUR, FAILS_COLOUR = "#BFDDEE", "#EFA47A"


def _by_epoch(*axes) -> None:
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.set_xticks([1, 5, 10, 15, 20])


def training_panels(history: Sequence[Mapping]) -> Figure:
    """A recorded phase by epoch: losses, confidences with thresholds, temperatures, exit shares on ``val``.

    Args:
        history: rows of :func:`studies.phases.trainer.train_phase`.
    """
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


def _stacked_shares(axis, shares: pd.DataFrame, **style) -> None:
    """Bars of exit shares, a row of the frame each, with the exits' legend above the axis."""
    shares[list(EXIT_COLOURS)].plot.bar(stacked=True, color=EXIT_COLOURS, ax=axis, rot=0, legend=False, **style)
    handles = [Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in EXIT_COLOURS.items()]
    axis.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def shares_beside_record(phases: Sequence[Mapping]) -> Figure:
    """Exit shares of each phase: the record (left, pale) beside the first seed (right).

    Args:
        phases: entries of ``phases.json``.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.6))
    names = [phase["phase"].replace("_", "\n") for phase in phases]
    # a bar of position 0.5 is centred on its tick
    for shares, position, alpha in (
        ([phase["recorded"]["exit_shares"] for phase in phases], 1.06, 0.45),
        ([phase["runs"][0]["exit_shares"] for phase in phases], -0.06, 1.0),
    ):
        _stacked_shares(axis, pd.DataFrame(shares, names), width=0.36, position=position, alpha=alpha)
    axis.set_xlim(-0.6, len(phases) - 0.4)
    axis.set_xlabel("phase (left: record, right: ours)")
    axis.set_ylabel("share of the images")
    return figure


def causal_ladder(rows: Sequence[Mapping]) -> Figure:
    """What each repair does: exit shares, spread of exit1's confidence over images, AP of the full exit.

    Args:
        rows: ``variant``, ``seed``, ``exit_shares``, ``confidence_std`` and ``AP_exits`` of each run;
            bars are means over seeds, dots are single seeds.
    """
    frame = pd.DataFrame(rows)
    position, names = pd.factorize(frame["variant"])
    shares, spread, ap = (pd.DataFrame(frame[key].tolist()) for key in ("exit_shares", "confidence_std", "AP_exits"))
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(TEXT_WIDTH_IN, 5.4), sharex=True)
    _stacked_shares(top, shares.groupby(position).mean(), width=0.6)
    ap.groupby(position).mean().plot.bar(width=0.54, color=EXIT_COLOURS, ax=bottom, rot=0, legend=False)
    for k, (name, colour) in enumerate(EXIT_COLOURS.items()):
        x = position + 0.18 * (k - 1)
        middle.scatter(x, spread[name], color=colour, s=22, zorder=3)
        bottom.scatter(x, ap[name], color="black", s=5, zorder=3)
    top.set_ylabel("share of images")
    middle.set_yscale("log")
    middle.grid(axis="y", color="0.9")
    middle.set_ylabel("spread of confidence\nover images (std)")
    bottom.set_ylabel("AP on test")
    bottom.set_xticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names])
    return figure


def ablation_dots(rows: Sequence[Mapping]) -> Figure:
    """One defect at a time: AP of full, share of the largest exit, spread of exit1's confidence.

    Args:
        rows: of :func:`studies.phases.ablation.summarise`, the working configuration first; a bar is the
            95 % interval, a small dot one seed, the vertical line the working configuration.
    """
    figure, axes = plt.subplots(1, 3, figsize=(TEXT_WIDTH_IN, 0.185 * len(rows) + 0.8), sharey=True)
    panels = (
        ("AP_full", "AP of full on test", "destroys_detection"),
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
    return figure


def check_matrix(checks: pd.DataFrame) -> Figure:
    """Preflight checks against phases: what holds, what fails, and the number behind it.

    Args:
        checks: columns ``phase``, ``check``, ``measured`` and ``holds``; a check that does not
            apply to a phase has no row.
    """
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

    Where the curve lies above the threshold every image leaves at exit1, elsewhere none does.
    The dot is the recorded confidence at the probability that it implies, in the colour of the
    exit that the phase used.

    Args:
        rules: name to rule, one panel each.
        rows: indexed by the same names: ``confidence``, ``threshold``, ``exit``.
    """
    columns = 5
    lines = -(-len(rules) // columns)
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
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.04)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[-1, columns // 2].set_xlabel("chair probability of every box")
    figure.supylabel("confidence of exit1", fontsize=9)
    handles = [
        Line2D([], [], color="0.2", linewidth=1.2, label="rule"),
        Line2D([], [], color="0.45", linestyle="--", linewidth=0.8, label="threshold"),
        Patch(color=EXIT_COLOURS["exit1"], alpha=0.18, label="all leave at exit1"),
        *(
            Line2D(
                [], [], color=EXIT_COLOURS[name], marker="o", linestyle="", markersize=5.5, label=f"recorded: {name}"
            )
            for name in ("exit1", "full")
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2)
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
    left.set_ylim(0.2, 1.02)
    left.set_ylabel("rate of exit1")
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
    left.plot(x, record.logistic(10 * x), color=OURS_COLOUR, label="soft, in training")
    left.plot([-0.3, 0, 0, 0.3], [0, 0, 1, 1], color="0.3", label="hard, in use")
    last = trajectory.iloc[-1]
    at = last["confidence_exit1"] - last["threshold_exit1"]
    left.plot([at, at], [0, last["soft_rate_exit1"]], color=EXIT_COLOURS["exit1"], linewidth=1)
    left.plot([at, at], [0, last["soft_rate_exit1"]], "o", color=EXIT_COLOURS["exit1"], markersize=5, clip_on=False)
    left.annotate(
        f"{last['soft_rate_exit1']:.2f} soft,\n0 hard", (at, last["soft_rate_exit1"]), (-0.29, 0.5), fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.7},
    )  # fmt: skip
    left.set_xlabel("confidence minus threshold, exit1")
    left.set_ylabel("rate of exit1")
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
    left.set_xlabel("boxes above 0.60")
    left.set_ylabel("factor of the gate")
    left.set_xticks(count)
    epoch, c = trajectory.index, trajectory["confidence_exit1"]
    right.semilogy(epoch, c, "o-", markersize=3, color=EXIT_COLOURS["exit1"], label="confidence of exit1")
    right.semilogy(epoch, trajectory["threshold_exit1"], color="0.45", linestyle="--", label="threshold of exit1")
    shut = epoch >= 5
    mean = (c / record.gate_factor(0))[shut]
    right.semilogy(epoch[shut], mean, color=OURS_COLOUR, linewidth=1, label="mean probability implied")
    right.set_ylabel("confidence (logarithmic)")
    right.axvspan(0.5, 3.5, color=RECORDED_COLOUR, alpha=0.18, linewidth=0)
    right.text(2, 0.006, "untrained exits", ha="center", va="bottom", rotation=90, fontsize=8)
    right.set_xlim(0.5, 20.5)
    right.set_ylim(0.004, 1.6)
    _by_epoch(right)
    right.legend(loc="center right", bbox_to_anchor=(1, 0.42))
    return figure


def beside_record(recorded: pd.DataFrame, ours: pd.DataFrame | None, panels: list[tuple[str, str, str]]) -> Figure:
    """A phase by epoch, recorded and reproduced, one panel a quantity.

    Args:
        recorded: by epoch.
        ours: by epoch, or None when the phase was not run.
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
    """A phase by epoch, ours as lines beside the record as dots: confidence and threshold, loss, where images leave.

    Args:
        phase: ``"1.1"`` to ``"1.9"``.
        history: ours by epoch, or None when the phase was not run.
    """
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
    losses.set_yscale("log" if small else "linear")
    scale = "loss (logarithmic)" if small else "loss"
    for axis, label in ((confidences, "confidence"), (losses, scale), (shares, "share of val, ours")):
        axis.set_ylabel(label)
    confidences.set_ylim(bottom=0)
    shares.set(xlim=(0.5, 20.5), ylim=(0, 1))
    _by_epoch(confidences, losses, shares)
    handles = [Patch(color=colour, label=name) for name, colour in EXIT_COLOURS.items()]
    handles += [
        Line2D([], [], color="0.3", linewidth=1.2, label="ours"),
        Line2D([], [], color="0.3", linestyle="--", linewidth=0.8, label="threshold"),
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", markersize=3, linestyle="", label="recorded"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.2)
    return figure
