"""``eelib detect``: images in, COCO results and drawn images out; numpy, PIL and onnxruntime alone."""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from eelib.deploy import images
from eelib.deploy.manifest import DeploymentError
from eelib.deploy.router import Router, Rule
from eelib.deploy.runtime import Session
from eelib.files import write_atomic


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 done, 1 an image was broken and skipped."""
    broken: list[str] = []

    def on_broken(error: Exception) -> None:
        broken.append(str(error))
        print(f"eelib: skipped: {error}", file=sys.stderr)

    if args.batch < 1:
        raise DeploymentError(f"batch: {args.batch}; expected 1 or more images")
    sources = images.find_images(args.images)
    session = Session(args.export, args.threads, args.int8, args.runtime)
    rule = _rule(session, args.policy, args.threshold)
    out, drawn = Path(args.out), Path(args.draw) if args.draw else None
    for folder in filter(None, (out.parent, drawn)):
        folder.mkdir(parents=True, exist_ok=True)
    results, left, shown = [], Counter(), time.monotonic()
    category_ids = [category.id for category in session.manifest.categories]
    found = images.detect_files(session, sources, rule, batch_size=args.batch, on_broken=on_broken)
    for done, (source, detections) in enumerate(found, 1):
        results += images.to_results(source, detections, category_ids)
        left[detections.exit_name] += 1
        if drawn:
            detections.plot(args.draw_score).save(drawn / f"{source.path.stem}.png")
        if time.monotonic() - shown > (0.2 if sys.stderr.isatty() else 10):
            shown = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{done + len(broken)} of {len(sources)} images", end=end, file=sys.stderr, flush=True)
    write_atomic(out, lambda file: file.write((json.dumps(results) + "\n").encode()))
    shares = ", ".join(f"{stage.exit} {left[stage.exit]}" for stage in session.stages)
    print(f"{len(results)} detections in {left.total()} images ({shares}): {out}")
    print(session.describe(), file=sys.stderr)
    if broken:
        print(f"eelib: {len(broken)} of {len(sources)} images are broken", file=sys.stderr)
    return 1 if broken else 0


def _rule(session: Session, policy: str | None, thresholds: list[float]) -> Rule | None:
    """What the options say: an exit's name, ``fixed`` with thresholds of the best score, or a router's file."""
    early = session.exits[:-1]
    if policy in session.exits:
        return session.at_exit(policy)
    if policy == "fixed":
        if len(thresholds) not in (1, len(early)) or not early:
            raise DeploymentError(
                f"threshold: {thresholds}; expected one number, or one for each of {', '.join(early)}"
            )
        values = thresholds * len(early) if len(thresholds) == 1 else thresholds
        return session.by_score(dict(zip(early, values, strict=True)))
    if policy is None:
        return None
    if not Path(policy).is_file():
        raise DeploymentError(f"policy: {policy!r} is unknown; expected fixed, {', '.join(session.exits)} or a router")
    router = Router.load(policy)
    session.manifest.check_router(router)
    return router
