"""AP in parts: by difficulty, size and chair model, per exit and routed, and of detectors side by side.

Intervals and differences are paired bootstraps over scenes: every system meets the same resamples.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from eelib.config import resolve
from eelib.data import as_coco, load_split
from eelib.records import records_of
from eelib.routed_ap import ALL_AREAS, AREAS, RoutedAP, bootstrap, interval, resample, scenes_of
from eelib.routing import Split
from studies.plots import EXIT_COLOURS, TEXT_WIDTH_IN


def only_model(coco: COCO, model: str) -> COCO:
    """Annotations in which only the chairs of one furniture model count; the others are ignored.

    pycocotools overwrites an annotation's ``ignore``, but leaves out objects whose area is
    beyond its range: that is where the other chairs go. A detection on one of them is neither
    right nor wrong; all others count against this model.
    """
    changed = copy.deepcopy(coco.dataset)
    for annotation in changed["annotations"]:
        if annotation.get("model") != model:
            annotation["area"] = 2 * ALL_AREAS[1]
    return as_coco(changed)


def groups_of(split: Split) -> dict[str, np.ndarray]:
    """Images by difficulty tag: name to bool (N,). Clutter is cut at its median."""
    images = [split.coco.imgs[i] for i in split.records.image_ids]
    groups = {"all": np.ones(len(images), bool)}
    words = {"recipe": "scene: {}", "dark": "dark: {}", "blur": "blur: {} px"}
    for tag, word in words.items():
        for value in sorted({image[tag] for image in images if tag in image}, key=str):
            said = {True: "yes", False: "no"}[value] if tag == "dark" else value
            groups[word.format(said)] = np.array([image.get(tag) == value for image in images])
    clutter = np.array([image.get("clutter", np.nan) for image in images], float)
    if not np.isnan(clutter).any():
        groups["clutter: low"] = clutter <= np.median(clutter)
        groups["clutter: high"] = clutter > np.median(clutter)
    return groups


def breakdown(split: Split, routings: Mapping[str, np.ndarray], weights: np.ndarray, models: bool = True) -> list[dict]:
    """AP and AP50 of several routings by tag, size of the chair and chair model.

    Args:
        routings: name to exit of each image, (N,); the others are compared with ``full``.
        weights: (R, N) resamples for the intervals.
        models: by chair model, too: over the images that show it, other chairs ignored.

    Returns:
        Rows of group, objects, system, AP, AP50, the ends of AP's interval, and the same for
        AP less full's on the same resamples; None where nothing can be found.
    """
    rows = []
    for name, inside in groups_of(split).items():
        rows += _rows(name, split.evaluator, routings, weights * inside, inside.astype(np.int64))
    for name, area in AREAS.items():
        rows += _rows(f"size {name}", RoutedAP(split.records, split.coco, area), routings, weights, None)
    shown: dict[str, set] = {}
    for annotation in split.coco.dataset["annotations"]:
        # only chairs count as positives; other furniture shares the annotation file
        if models and "model" in annotation:
            shown.setdefault(annotation["model"], set()).add(annotation["image_id"])
    for name, ids in sorted(shown.items()):
        shows = [row for row, i in enumerate(split.records.image_ids) if i in ids]
        if not shows:
            continue
        evaluator = RoutedAP(split.records.rows(shows), only_model(split.coco, name))
        rows += _rows(f"model {name}", evaluator, {k: r[shows] for k, r in routings.items()}, weights[:, shows], None)
    return rows


def _rows(group, evaluator, routings, weights, once) -> list[dict]:
    samples = bootstrap(evaluator, list(routings.values()), weights)
    objects = int(evaluator.positives @ (once if once is not None else np.ones(evaluator.images, np.int64)))
    by_system = {system: evaluator.scores(chosen, once) for system, chosen in routings.items()}
    rows = []
    for index, (system, scores) in enumerate(by_system.items()):
        row = {"group": group, "objects": objects, "system": system}
        row |= scores if objects else dict.fromkeys(scores)
        row["AP low"], row["AP high"] = interval(samples[:, index]) if len(samples) else (None, None)
        if "full" in by_system:
            less = samples[:, index] - samples[:, list(by_system).index("full")] if len(samples) else ()
            row["minus full"] = scores["AP"] - by_system["full"]["AP"] if objects else None
            row["minus full low"], row["minus full high"] = interval(less) if len(samples) else (None, None)
        rows.append(row)
    return rows


def compare_detectors(
    detectors: Mapping[str, Path | str | RoutedAP],
    baseline: Path | str | RoutedAP,
    root: Path | str,
    folder: Path | str,
    *,
    resamples: int,
    limit: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict]:
    """AP of every exit of several detectors on ``test``, paired by scene.

    Args:
        detectors: name to released detector with exits, or to its match flags on ``test``; the others are
            compared with the first.
        baseline: released detector without exits, or its match flags: the measure of the full paths.
        folder: of exit records; made where there are none.
        resamples: bootstrap draws of scenes.
        limit: test images; None takes all, and so do the match flags of a baseline.

    Returns:
        Rows of ``training``, ``exit``, ``AP``, ``AP50``, ``AP_interval``, ``share_of_full`` (AP /
        that of the same detector's full), ``share_of_baseline`` and, beyond the first detector,
        ``minus_first``, each with its ``_interval``; the baseline is the first row.
    """
    coco = load_split("test", resolve(root))
    rows, first, weights, image_ids = [], {}, None, set()
    for training, released in {"baseline": baseline, **detectors}.items():
        if isinstance(released, RoutedAP):  # of all images, whatever the limit
            rows_taken = [row for row, i in enumerate(released.image_ids) if weights is None or i in image_ids]
            evaluator = released.rows(rows_taken)
        else:
            evaluator = RoutedAP(records_of("test", resolve(released), resolve(root), folder, limit, progress), coco)
        if weights is None:
            image_ids = set(evaluator.image_ids)
            weights = resample(scenes_of(coco, evaluator.image_ids), resamples, seed=0)
        routings = [np.full(evaluator.images, k) for k in range(evaluator.exits)]
        samples = bootstrap(evaluator, routings, weights)
        scores = [evaluator.scores(chosen) for chosen in routings]
        ap = [values["AP"] for values in scores]
        if training == "baseline":
            whole, whole_samples = ap[-1], samples[:, -1]
        for k, name in enumerate(evaluator.exit_names):
            row = {"training": training, "exit": name} | scores[k]
            row |= {"AP_interval": interval(samples[:, k])}
            row |= _ratio("share_of_full", ap[k], ap[-1], samples[:, k], samples[:, -1])
            row |= _ratio("share_of_baseline", ap[k], whole, samples[:, k], whole_samples)
            if training != "baseline":
                named, first_ap, first_samples = first.setdefault(name, (training, ap[k], samples[:, k]))
                if named != training:
                    row["minus_first"] = ap[k] - first_ap
                    row["minus_first_interval"] = interval(samples[:, k] - first_samples)
            rows.append(row)
    return rows


def _ratio(key: str, value: float, whole: float, samples: np.ndarray, whole_samples: np.ndarray) -> dict:
    """A ratio of APs with its interval; None where the whole is 0."""
    if whole <= 0 or not (whole_samples > 0).all():
        return {key: None, f"{key}_interval": None}
    return {key: value / whole, f"{key}_interval": interval(samples / whole_samples)}


def trainings_table(rows: list[dict]) -> pd.DataFrame:
    """Detectors side by side, a line an exit: AP with interval, shares, difference to the first.

    Args:
        rows: of :func:`compare_detectors`.
    """
    names = {"training": "training", "exit": "exit", "AP": "AP", "AP_interval": ("low", "high"), "AP50": "AP50"}
    names |= {"share_of_full": "/ own full", "share_of_baseline": "/ baseline"}
    names |= {"share_of_baseline_interval": ("/ baseline low", "/ baseline high")}
    names |= {"minus_first": "minus the first", "minus_first_interval": ("difference low", "difference high")}
    lines = []
    for row in rows:
        line = {}
        for key, name in names.items():
            value = row.get(key)
            line |= {name: value} if isinstance(name, str) else dict(zip(name, value or (None, None), strict=True))
        lines.append(line)
    return pd.DataFrame(lines).astype({key: object for key in ("minus the first", "difference low", "difference high")})


def ap_dots(
    values: Mapping[str, Mapping[str, tuple[float, float, float]]], baseline: float | None = None, of: str = "test"
) -> Figure:
    """AP with its 95 % interval, a line a group and a colour a system.

    Args:
        values: ``values[group][system]`` is AP and the ends of its interval; what is no exit is black.
        baseline: AP of the detector without exits, drawn as a line.
        of: the images that AP is measured on.
    """
    systems = list(dict.fromkeys(system for row in values.values() for system in row))
    height = 0.5 if len(values) < 8 else 0.3
    figure, axis = plt.subplots(figsize=(TEXT_WIDTH_IN, height * len(values) + 1.0))
    if baseline is not None:
        axis.axvline(baseline, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axis.annotate(" baseline", (baseline, 1), xycoords=("data", "axes fraction"), va="bottom", fontsize=7)
    for k, system in enumerate(systems):
        colour = EXIT_COLOURS.get(system, "black")
        shift = (k - (len(systems) - 1) / 2) * 0.7 / len(systems)
        rows = [(y + shift, *row[system]) for y, row in enumerate(values.values()) if system in row]
        for y, _, low, high in rows:
            axis.plot([low, high], [y, y], color=colour, linewidth=1.2)
        axis.scatter([ap for _, ap, _, _ in rows], [y for y, *_ in rows], color=colour, s=16, zorder=3, label=system)
    axis.set_yticks(range(len(values)), values)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"AP[.50:.95] on {of}")
    if len(systems) > 1:
        figure.legend(*axis.get_legend_handles_labels(), ncols=len(systems), loc="outside upper left")
    return figure
