"""``eelib detect``: images in, COCO results and drawn images out; numpy, PIL and onnxruntime alone."""

import argparse
import sys
import time
from pathlib import Path

from eelib.deploy import images, runtime


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 done, 1 an image was broken and skipped."""
    broken: list[str] = []

    def on_broken(error: Exception) -> None:
        broken.append(str(error))
        print(f"eelib: skipped: {error}", file=sys.stderr)

    if args.batch < 1:
        raise runtime.DeploymentError(f"batch: {args.batch}; expected 1 or more images")
    sources = images.find_images(args.images)
    session = runtime.EarlyExitSession(args.export, args.threads, "stages_int8" if args.int8 else "stages")
    policy = runtime.make_policy(session, args.policy, args.threshold, args.evidence)
    out, drawn = Path(args.out), Path(args.draw) if args.draw else None
    for folder in filter(None, (out.parent, drawn)):
        folder.mkdir(parents=True, exist_ok=True)
    results, left, shown = [], dict.fromkeys(session.exits, 0), time.monotonic()
    found = images.detect_files(session, sources, policy, batch_size=args.batch, on_broken=on_broken)
    for done, (source, image, detections, rows) in enumerate(found, 1):
        results += rows
        left[detections.exit_name] += 1
        if drawn:
            images.draw(image, rows, detections.exit_name, args.draw_score).save(drawn / f"{source.path.stem}.png")
        if time.monotonic() - shown > (0.2 if sys.stderr.isatty() else 10):
            shown = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{done + len(broken)} of {len(sources)} images", end=end, file=sys.stderr, flush=True)
    images.write_results(out, results)
    shares = ", ".join(f"{name} {count}" for name, count in left.items())
    print(f"{len(results)} detections in {sum(left.values())} images ({shares}): {out}")
    if broken:
        print(f"eelib: {len(broken)} of {len(sources)} images are broken", file=sys.stderr)
    return 1 if broken else 0
