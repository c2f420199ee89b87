"""Whether an export does with the images of a split what the study measured of its router."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from eelib.coco import Source
from eelib.data import DetectionDataset
from eelib.deploy.export import export
from eelib.deploy.runtime import Session
from eelib.evaluate import coco_ap
from eelib.routers import RoutedSystem, RouterOptions, load_study


def routed_exits(
    system: RoutedSystem, checkpoint: Path | str, source: Source | Path | str, options: RouterOptions
) -> list[str]:
    """The exit or gate, by name, at which a system's router ends each image of ``test``, by the kept records."""
    router = system.router
    test = load_study(checkpoint, source, options.records, ("test",), options.limit)[0]["test"]
    evidence = test.columns(router.confidence.evidence).astype(np.float64)
    holds = test.columns(test.gates)[:, -1].astype(np.float64)
    places = router.route(evidence, holds)
    names = (*router.exits, *(f"blank{k + 1}" for k in range(len(router.gates))))
    return [names[place] for place in places]


def deployed(
    system: RoutedSystem,
    checkpoint: Path | str,
    folder: Path | str,
    source: Source | Path | str = "data/showroom",
    options: RouterOptions | None = None,
) -> dict:
    """Export a detector with its router, detect in all images of ``test``, and put both results side by side.

    Args:
        system: of :func:`eelib.route` or :func:`eelib.certify` for this checkpoint, made with ``options``.
        folder: of the export; it is written.

    Returns:
        ``images``; ``left elsewhere``, the images that left at another exit than in the study; ``AP`` and
        ``exit_shares`` as ``stated`` and as ``deployed``.
    """
    options = options or RouterOptions()
    export(checkpoint, folder, system)
    session = Session(folder)
    dataset = DetectionDataset("test", source, session.size, keep_crowd=True, limit=options.limit)
    files = [dataset.folder / dataset.coco.imgs[i]["file_name"] for i in dataset.image_ids]
    detections = list(session.detect(files, min_score=0))
    left = [d.exit_name for d in detections]
    rows = [
        row for d, i in zip(detections, dataset.image_ids, strict=True) for row in d.to_coco(i, dataset.category_ids)
    ]
    expected, stated = routed_exits(system, checkpoint, source, options), system.measured
    return {
        "images": len(left),
        "left elsewhere": sum(a != b for a, b in zip(left, expected, strict=True)),
        "AP": {"stated": stated["AP"], "deployed": coco_ap(dataset.coco, rows, dataset.image_ids)["AP"]},
        "exit_shares": {
            "stated": stated["exit_shares"],
            "deployed": {name: left.count(name) / len(left) for name in stated["exit_shares"]},
        },
    }


def table(answers: Mapping[str, dict]) -> pd.DataFrame:
    """Two lines for each router, what was stated and what the export did: AP and the share of images at each exit.

    Args:
        answers: of :func:`deployed`, by the router's name.
    """
    return pd.DataFrame(
        {"router": name, "": kind, "AP": answer["AP"][kind]}
        | {f"{exit_name} %": 100 * share for exit_name, share in answer["exit_shares"][kind].items()}
        for name, answer in answers.items()
        for kind in ("stated", "deployed")
    )
