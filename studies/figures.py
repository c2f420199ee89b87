"""Figures of the dissertation: data in, a Figure out; one function saves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, ScalarFormatter
from torch import Tensor

from eelib.deploy.images import EXIT_COLOURS
from eelib.files import write_atomic

TEXT_WIDTH_IN = 5.9
# Okabe and Ito's colour-blind palette; the exits' colours are in eelib.deploy.images.
RECORDED_COLOUR, OURS_COLOUR = "#999999", "#0072B2"
# What README.md and the reports show: a browser draws no PDF. tests/test_links.py holds the two together.
SHOWN = ("ablation", "acceleration_alternatives", "causal", "detector_1_4", "policies_predictability", "preflight")
HOLDS_COLOUR, FAILS_COLOUR = "#BFDDEE", "#EFA47A"


def style() -> None:
    """Font sizes of the text, embedded TrueType fonts, no frame where none is needed."""
    mpl.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "legend.fontsize": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "figure.constrained_layout.use": True,
        }
    )


def save(figure: Figure, name: str, reports: Path | str) -> None:
    """Write ``figures/<name>.pdf``, and a PNG of what a page shows."""
    for suffix in (".pdf", ".png") if name in SHOWN else (".pdf",):
        save_to(figure, Path(reports) / "figures" / f"{name}{suffix}")


def save_to(figure: Figure, path: Path) -> None:
    """Write a PDF or a PNG, byte for byte repeatable."""
    suffix = path.suffix.removeprefix(".")
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}}[suffix]
    write_atomic(path, lambda file: figure.savefig(file, format=suffix, metadata=metadata))


def image_grid(images: Sequence[Tensor], boxes: Sequence[Mapping[str, Tensor]], titles: Sequence[str]) -> Figure:
    """Images in a row or rows of four with boxes.

    Args:
        images: uint8 (3, H, W).
        boxes: for each image a colour to ``boxes_xyxy`` (N, 4) in pixels.
        titles: one an image.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(TEXT_WIDTH_IN, 1.62 * rows * 4 / columns), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, by_colour, title in zip(axes.flat, images, boxes, titles, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        for colour, rows_ in by_colour.items():
            for x1, y1, x2, y2 in rows_.tolist():
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.0))
        axis.set_xlim(0, image.shape[2])
        axis.set_ylim(image.shape[1], 0)
        axis.set_title(title)
    return figure


def results_xyxy(results: Sequence[Mapping]) -> Tensor:
    """Boxes of COCO results as xyxy, (N, 4)."""
    boxes = torch.tensor([r["bbox"] for r in results]).reshape(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def histograms(values: Mapping[str, Sequence[float]], units: Mapping[str, str], bins: int = 30) -> Figure:
    """One histogram a quantity, side by side; ``units`` labels the axes."""
    figure, axes = plt.subplots(1, len(values), figsize=(TEXT_WIDTH_IN, 2.0), squeeze=False)
    for axis, (name, numbers) in zip(axes.flat, values.items(), strict=True):
        axis.hist(numbers, bins=bins, color=OURS_COLOUR)
        axis.set_xlabel(units[name])
        axis.set_title(name)
    axes.flat[0].set_ylabel("count")
    return figure


def loss_curves(history: Sequence[Mapping], columns: Sequence[str], ylabel: str = "loss") -> Figure:
    """Curves by epoch; dashed lines mark a change of image size, if the history has it."""
    frame = pd.DataFrame(history)
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.4))
    for column in columns:
        known = frame[["epoch", column]].dropna()
        colour = EXIT_COLOURS.get(column.rsplit("_", 1)[-1])
        axis.plot(known["epoch"], known[column], marker="o", markersize=2, color=colour, label=column.replace("_", " "))
    if "image_size" in frame:
        for epoch in frame["epoch"][frame["image_size"].diff() != 0].iloc[1:]:
            axis.axvline(epoch - 0.5, color="0.7", linestyle="--", linewidth=0.8)
    axis.set_xlabel("epoch")
    axis.set_ylabel(ylabel)
    axis.legend()
    return figure


def learning_curve(points: Sequence[Mapping]) -> Figure:
    """AP by training images on a logarithmic axis, with 95 % intervals; points of ``metrics/learning_curve.json``."""
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.4))
    images, ap = [p["images"] for p in points], [p["AP"] for p in points]
    low, high = zip(*(p["interval"] for p in points), strict=True)
    axis.vlines(images, low, high, color=OURS_COLOUR, linewidth=1.0)
    axis.plot(images, ap, marker="o", markersize=4, color=OURS_COLOUR)
    axis.set_xscale("log")
    axis.set_xticks(images, [f"{n:,}" for n in images], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("training images")
    axis.set_ylabel("AP on val (95 % interval)")
    return figure


def exit_bars(values: Mapping[str, Mapping[str, float]], ylabel: str) -> Figure:
    """Bars an exit, grouped by metric: ``values[metric][exit]``."""
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.4))
    exits = list(next(iter(values.values())))
    width = 0.8 / len(exits)
    for k, name in enumerate(exits):
        positions = [i + (k - (len(exits) - 1) / 2) * width for i in range(len(values))]
        heights = [v[name] for v in values.values()]
        bars = axis.bar(positions, heights, width * 0.95, color=EXIT_COLOURS[name], label=name)
        axis.bar_label(bars, fmt="%.3f", fontsize=7)
    axis.set_xticks(range(len(values)), values.keys())
    axis.set_ylabel(ylabel)
    axis.legend()
    return figure


def stacked_parts(parts: Mapping[str, Mapping[str, float]], xlabel: str) -> Figure:
    """One horizontal bar a stage, split by part: ``parts[stage][part]``."""
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 0.5 + 0.45 * len(parts)))
    colours = ("#0072B2", "#E69F00", "#CC79A7", "#999999")
    left = dict.fromkeys(parts, 0.0)
    for part, colour in zip(next(iter(parts.values())), colours, strict=True):
        widths = [values[part] for values in parts.values()]
        axis.barh(list(parts), widths, left=list(left.values()), color=colour, label=part)
        left = {name: left[name] + width for name, width in zip(parts, widths, strict=True)}
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def runtime_ratios(rows: Sequence[Mapping], threads: int = 1) -> Figure:
    """Time an image at each exit over batch sizes, one panel an exit, one line a runtime, log scale."""
    frame = pd.DataFrame(rows)
    frame = frame[(frame["threads"] == threads) & frame["exit"].isin(EXIT_COLOURS)]
    exits = [name for name in EXIT_COLOURS if name in set(frame["exit"])]
    figure, axes = plt.subplots(1, len(exits), figsize=(TEXT_WIDTH_IN, 2.4), sharey=True, squeeze=False)
    runtimes = list(dict.fromkeys(frame["runtime"]))
    for axis, name in zip(axes.flat, exits, strict=True):
        for k, runtime in enumerate(runtimes):
            line = frame[(frame["exit"] == name) & (frame["runtime"] == runtime)]
            if len(line):
                axis.plot(line["batch"], line["median_ms"] / line["batch"], marker="o", color=f"C{k}", label=runtime)
        axis.set_xscale("log")
        axis.set_yscale("log")
        batches = sorted(set(frame["batch"]))
        axis.set_xticks(batches, map(str, batches))
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("batch size")
    axes.flat[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.flat[0].yaxis.set_major_formatter(ScalarFormatter())
    axes.flat[0].set_ylabel("ms an image")
    figure.legend(*axes.flat[-1].get_legend_handles_labels(), ncols=len(runtimes), loc="outside upper center")
    return figure


def recorded_beside_ours(rows: Sequence[Mapping], recorded: str, ours: str, ylabel: str) -> Figure:
    """Bars a phase: the recorded value beside the reproduced one."""
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.4))
    for shift, key, colour, label in ((-0.2, recorded, RECORDED_COLOUR, "recorded"), (0.2, ours, OURS_COLOUR, "ours")):
        bars = axis.bar([i + shift for i in range(len(rows))], [r[key] for r in rows], 0.38, color=colour, label=label)
        axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.set_xticks(range(len(rows)), [f"phase {r['phase']}" for r in rows])
    axis.set_ylabel(ylabel)
    axis.legend()
    return figure


def training_panels(history: Sequence[Mapping]) -> Figure:
    """A recorded phase by epoch: losses, confidences with thresholds, temperatures, exit shares on ``val``.

    Args:
        history: rows of :func:`studies.phases.trainer.train_phase`.
    """
    frame = pd.DataFrame(history)
    figure, axes = plt.subplots(2, 2, figsize=(TEXT_WIDTH_IN, 4.4), sharex=True)
    (losses, confidences), (temperatures, shares) = axes
    for name, colour in EXIT_COLOURS.items():
        losses.plot(frame["epoch"], frame[f"loss_{name}"], color=colour, label=name)
        mean, spread = frame[f"confidence_{name}"], frame[f"confidence_std_{name}"]
        confidences.plot(frame["epoch"], mean, color=colour)
        confidences.fill_between(frame["epoch"], mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        if f"threshold_{name}" in frame:
            confidences.plot(frame["epoch"], frame[f"threshold_{name}"], color=colour, linestyle="--", linewidth=1)
        temperatures.plot(frame["epoch"], frame[f"temperature_{name}"], color=colour)
    bottom = pd.Series(0.0, index=frame.index)
    for name, colour in EXIT_COLOURS.items():
        shares.bar(frame["epoch"], frame[f"val_share_{name}"], 0.9, bottom=bottom, color=colour)
        bottom = bottom + frame[f"val_share_{name}"]
    for axis, label in zip(axes.flat, ("loss", "confidence", "temperature", "share on val"), strict=True):
        axis.set_ylabel(label)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    losses.legend()
    return figure


def _stacked_shares(axis, positions: Sequence[float], shares: Sequence[Mapping[str, float]], width: float, **style_):
    bottom = [0.0] * len(shares)
    for name, colour in EXIT_COLOURS.items():
        heights = [row[name] for row in shares]
        axis.bar(positions, heights, width, bottom=bottom, color=colour, **style_)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]


def shares_beside_record(phases: Sequence[Mapping]) -> Figure:
    """Exit shares of each phase: the record (left, pale) beside the first seed (right).

    Args:
        phases: entries of ``phases.json``.
    """
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 2.6))
    _stacked_shares(
        axis, [i - 0.2 for i in range(len(phases))], [p["recorded"]["exit_shares"] for p in phases], 0.36, alpha=0.45
    )
    _stacked_shares(axis, [i + 0.2 for i in range(len(phases))], [p["runs"][0]["exit_shares"] for p in phases], 0.36)
    axis.set_xticks(range(len(phases)), [p["phase"].replace("_", "\n") for p in phases])
    axis.set_xlabel("phase (left: record, right: ours)")
    axis.set_ylabel("share of the images")
    axis.legend(handles=[Rectangle((0, 0), 1, 1, color=c, label=n) for n, c in EXIT_COLOURS.items()], ncols=3,
                loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return figure


def causal_ladder(rows: Sequence[Mapping]) -> Figure:
    """What each repair does: exit shares, spread of exit1's confidence over images, AP of the full exit.

    Args:
        rows: ``variant``, ``seed``, ``exit_shares``, ``confidence_std`` and ``AP_exits`` of each run;
            bars are means over seeds, dots are single seeds.
    """
    names = list(dict.fromkeys(row["variant"] for row in rows))
    by_name = {name: [row for row in rows if row["variant"] == name] for name in names}
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(TEXT_WIDTH_IN, 5.4), sharex=True, height_ratios=(1, 1, 1)
    )
    means = [
        {e: sum(r["exit_shares"][e] for r in group) / len(group) for e in EXIT_COLOURS} for group in by_name.values()
    ]
    _stacked_shares(top, range(len(names)), means, 0.6)
    top.set_ylabel("share of images")
    handles = [Rectangle((0, 0), 1, 1, color=c, label=n) for n, c in EXIT_COLOURS.items()]
    top.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for i, group in enumerate(by_name.values()):
        for k, (exit_name, colour) in enumerate(EXIT_COLOURS.items()):
            x = [i + 0.18 * (k - 1)] * len(group)
            middle.scatter(x, [r["confidence_std"][exit_name] for r in group], color=colour, s=22, zorder=3)
            bottom.bar(x[0], sum(r["AP_exits"][exit_name] for r in group) / len(group), 0.16, color=colour)
            bottom.scatter(x, [r["AP_exits"][exit_name] for r in group], color="black", s=5, zorder=3)
    middle.set_yscale("log")
    middle.grid(axis="y", color="0.9")
    middle.set_ylabel("spread of confidence\nover images (std)")
    bottom.set_ylabel("AP on test")
    bottom.set_xticks(range(len(names)), [name.replace(" + ", "\n+ ") for name in names])
    return figure


def check_matrix(checks: pd.DataFrame) -> Figure:
    """Preflight checks against phases: what holds, what fails, and the number behind it.

    Args:
        checks: columns ``phase``, ``check``, ``measured`` and ``holds``; a check that does not
            apply to a phase has no row.
    """
    phases, names = list(dict.fromkeys(checks["phase"])), list(dict.fromkeys(checks["check"]))
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, 0.36 * len(names) + 0.7))
    axis.set(xlim=(0, len(phases)), ylim=(len(names), 0))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xticks([k + 0.5 for k in range(len(phases))], phases)
    axis.set_yticks([k + 0.5 for k in range(len(names))], names)
    axis.xaxis.tick_top()
    for row in checks.itertuples():
        x, y = phases.index(row.phase), names.index(row.check)
        colour = HOLDS_COLOUR if row.holds else FAILS_COLOUR
        axis.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, color=colour, linewidth=0))
        text = f"{row.measured:.2f}".replace("-0.00", "0.00")
        axis.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=6.5, color="black")
    handles = [Rectangle((0, 0), 1, 1, color=c) for c in (HOLDS_COLOUR, FAILS_COLOUR)]
    figure.legend(handles, ["holds", "fails"], loc="outside lower right", ncols=2)
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
            colour = "#D55E00" if row[verdict] else OURS_COLOUR
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
