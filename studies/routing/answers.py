"""More than AP: what a system answers above a cut, how often it cries wolf, and what its images lose.

A box counts from the score that ``val`` chose for its exit, after calibration. An image's loss is the drop of its F1
against the last exit; it is below 0 where leaving early is better.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import binomtest

from eelib.data import DetectionDataset
from eelib.routed_ap import interval
from eelib.routing import Split
from studies.plots import EXIT_COLOURS, OURS_COLOUR, SERIES_COLOURS, TEXT_WIDTH_IN, image_grid

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
LEVELS = (0.25, 0.5)  # of a loss; the figure counts images between them
SHADES = ("#FDE0C5", "#EB7F54", "#A0362C")  # of images that lose less than the first level, between them, and more


def share_of(count: int, total: int, method: str = "wilson") -> tuple[float, list[float]]:
    """A share and its 95 % interval, Wilson's or (``exact``) Clopper and Pearson's."""
    test = binomtest(int(count), int(total))
    return float(test.statistic), [float(end) for end in test.proportion_ci(0.95, method)]


def answers(split: Split, routings: Mapping[str, np.ndarray], weights: np.ndarray) -> list[dict]:
    """What systems answer on a split.

    Args:
        split: with calibrated scores and the cuts of ``val``.
        routings: system to the exit of each image, (N,).
        weights: (R, N) bootstrap resamples.

    Returns:
        Rows of ``system``, ``precision`` and ``recall`` of all boxes at IoU 0.5, ``false_alarms``, the share of images
        without an object that show a box, each with its 95 % interval (Wilson's for false alarms); ``F1``, the mean of
        the images; ``loss``, its mean drop; ``losing`` and ``gaining``, the shares of images above and below 0;
        ``quantiles`` of the loss, and ``counts`` of the images that lose up to each of :data:`LEVELS` and more.
    """
    claimed, right = split.evaluator.claims(split.cuts)
    rows, images, objects = [], np.arange(len(split.records)), split.evaluator.positives
    empty = objects == 0
    for name, chosen in routings.items():
        boxes, hits = claimed[images, chosen], right[images, chosen]
        shares = {"precision": (hits, boxes), "recall": (hits, objects)}
        row: dict = {"system": name}
        for key, (part, whole) in shares.items():
            drawn = weights @ part / np.maximum(weights @ whole, 1)
            row |= {key: float(part.sum() / max(1, whole.sum())), f"{key}_interval": interval(drawn)}
        if empty.any():
            row["false_alarms"], row["false_alarms_interval"] = share_of((boxes[empty] > 0).sum(), empty.sum())
        f1 = split.f1[images, chosen]
        loss = split.f1[:, -1] - f1
        counts = np.histogram(loss[loss > 0], (0, *LEVELS, 1.01))[0]
        row |= {"F1": float(f1.mean()), "loss": float(loss.mean())}
        row |= {"losing": float((loss > 0).mean()), "gaining": float((loss < 0).mean())}
        row |= {"quantiles": dict(zip(map(str, QUANTILES), np.quantile(loss, QUANTILES).tolist(), strict=True))}
        rows.append(row | {"counts": counts.tolist(), "images": len(images), "empty_images": int(empty.sum())})
    return rows


def table(rows: Sequence[Mapping]) -> pd.DataFrame:
    """A line for each system: shares, and how the images' losses are spread."""
    lines = []
    for row in rows:
        line = {key: row[key] for key in ("system", "precision", "recall")}
        line |= {"false alarms": row.get("false_alarms"), "mean F1": row["F1"]}
        line |= {"lose": row["losing"], "gain": row["gaining"], "mean loss": row["loss"]}
        lines.append(line | {f"loss, {100 * float(q):.0f} %": row["quantiles"][q] for q in ("0.9", "0.95", "0.99")})
    return pd.DataFrame(lines)


def read(rows: Sequence[Mapping], exits: Sequence[str]) -> list[str]:
    """What the table says of the exits and of the routed systems."""
    alone, routed = ([row for row in rows if (row["system"] in exits) == inside] for inside in (True, False))
    parts = [f"{r['system']} {r['precision']:.2f} and {r['recall']:.2f}" for r in alone]
    lines = [f"Precision and recall above the cut: {', '.join(parts)}."]
    if all("false_alarms" in row for row in rows):
        alarms = [f"{r['system']} {r['false_alarms']:.0%}" for r in alone]
        low, high = (of(routed, key=lambda r: r["false_alarms"]) for of in (min, max))
        lines.append(
            f"False alarms on the {rows[0]['empty_images']} empty images: {', '.join(alarms)}; the routers lie between "
            f"{low['false_alarms']:.0%} ({low['system']}) and {high['false_alarms']:.0%} ({high['system']})."
        )
    lose = [f"{r['system']} on {r['losing']:.0%} and gains on {r['gaining']:.0%}" for r in alone[:-1]]
    worst = [f"{r['quantiles']['0.95']:.2f}" for r in alone[:-1]]
    least, most = (of(routed, key=lambda r: r["losing"]) for of in (min, max))
    lines.append(
        f"Against full, F1 falls at {', '.join(lose)} of the images; one image in twenty loses {' and '.join(worst)} "
        f"or more. Routed, between {least['losing']:.0%} ({least['system']}) and {most['losing']:.0%} "
        f"({most['system']}) of the images lose."
    )
    return lines


def figure(rows: Sequence[Mapping]) -> Figure:
    """A line for each system: precision and recall, false alarms on empty images, and images that lose against full."""
    names, places = [row["system"].replace("_", " ") for row in rows], np.arange(len(rows))
    drawn, axes = plt.subplots(
        1, 3, figsize=(TEXT_WIDTH_IN, 0.21 * len(rows) + 1.1), sharey=True, width_ratios=(3, 3, 4)
    )
    for key, marker, colour in (("precision", "o", OURS_COLOUR), ("recall", "s", SERIES_COLOURS[1])):
        _bars(axes[0], rows, places, key, marker, colour, key)
    axes[0].set_xlabel("precision, recall")
    if all("false_alarms" in row for row in rows):
        _bars(axes[1], rows, places, "false_alarms", "o", "#4D4D4D")
    axes[1].set_xlabel("share of empty images\nwith a false alarm")
    start = np.zeros(len(rows))
    labels = (f"up to {LEVELS[0]:g}", f"{LEVELS[0]:g} to {LEVELS[1]:g}", f"more than {LEVELS[1]:g}")
    for k, (label, shade) in enumerate(zip(labels, SHADES, strict=True)):
        width = np.array([100 * row["counts"][k] / row["images"] for row in rows])
        axes[2].barh(places, width, left=start, color=shade, height=0.7, label=f"loses {label}")
        start += width
    gain = [100 * row["gaining"] for row in rows]
    axes[2].barh(places, [-g for g in gain], color="#B8D8BA", height=0.7, label="gains")
    axes[2].axvline(0, color="black", linewidth=0.6)
    axes[2].xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes[2].set_xlabel("% of images, by loss of F1")
    axes[0].set_yticks(places, names)
    for tick, row in zip(axes[0].get_yticklabels(), rows, strict=True):
        tick.set_color(EXIT_COLOURS.get(row["system"], "black"))
    axes[0].invert_yaxis()
    for axis in axes[:2]:
        axis.grid(axis="x", color="#E5E5E5", linewidth=0.5)
    handles, texts = (sum(parts, []) for parts in zip(*(a.get_legend_handles_labels() for a in axes), strict=True))
    drawn.legend(handles, texts, loc="outside lower center", ncols=3, fontsize=7)
    return drawn


def _bars(axis: plt.Axes, rows: Sequence[Mapping], places: np.ndarray, key: str, marker: str, colour: str, label=None):
    values = np.array([row[key] for row in rows])
    reach = np.abs(np.array([row[f"{key}_interval"] for row in rows]).T - values)
    axis.errorbar(values, places, xerr=reach, color=colour, marker=marker, markersize=4, elinewidth=0.7, linestyle="",
                  label=label)  # fmt: skip


def examples(split: Split, chosen: np.ndarray, root: str) -> Figure:
    """Four images of each exit: boxes above its cut in its colour, the annotated objects in white."""
    rng, names = np.random.default_rng(0), split.records.exit_names
    picked = [(k, row) for k in range(len(names)) for row in rng.permutation(np.flatnonzero(chosen == k))[:4]]
    dataset, images, boxes = DetectionDataset(split.name, root, keep_crowd=True), [], []
    for k, row in picked:
        image, target = dataset[dataset.image_ids.index(split.records.image_ids[row])]
        found = split.records.detections(k, row)
        shown = torch.from_numpy(found.boxes_xyxy[found.scores > split.cuts[k]])
        images.append(image)
        boxes.append({"white": target["boxes"], EXIT_COLOURS[names[k]]: shown})
    return image_grid(images, boxes, [names[k] for k, _ in picked])
