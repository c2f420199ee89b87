"""The command line: ``eelib diagnose | train | release | run | validate | bench``."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import papermill
import torch

from eelib import batch, config, phases, scorecard, train
from eelib.data import DataError, DetectionDataset, as_input, build_transform
from eelib.diagnose import preflight
from eelib.evaluate import coco_ap, detect_exits
from eelib.latency import exit_times
from eelib.release import release
from eelib.supervision import MaskSupervised

ERRORS = (config.ConfigError, DataError, train.TrainingError, OSError)


def _train(args: argparse.Namespace) -> int:
    """Train an SSDLite with or without exits and release its averaged weights."""
    settings = config.load(args.config)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: output is not a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out}: output folder is not writable")
    model = train.build_model(settings)
    val = DetectionDataset("val", config.resolve(settings.data.root), keep_crowd=True)

    trained = MaskSupervised(model) if settings.loss.mask else model

    def evaluate(_, epoch: int) -> dict[str, float]:
        # at the size that this epoch trained on: weights of 192 px say little at 320 px
        val.transform = build_transform(train.image_size_at(epoch, settings.data.image_sizes))
        results = detect_exits(model, val)
        return {f"{name}_AP": coco_ap(val.coco, rows, val.image_ids)["AP"] for name, rows in results.items()}

    history = train.fit(
        trained,
        train.detection_step(settings),
        train.training_batches(settings),
        settings,
        out,
        resume=args.resume,
        evaluate=evaluate,
    )
    state = {"model": model.state_dict(), "config": settings.model_dump(mode="json"), "history": history}
    print(f"released {train.save_checkpoint(out / 'released.pth', state)}")
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    """Preflight of a phase: can it learn to detect, and can its routing route? Seconds, before any training."""
    checks = preflight(config.load(args.config), args.images)
    if args.json:
        print(json.dumps([check._asdict() for check in checks]))
    else:
        for check in checks:
            verdict = "ok  " if check.holds else "FAIL"
            print(f"{verdict}  {check.name}: {check.question} is {check.measured:.3f}, expected {check.expected}")
    return 0 if all(check.holds for check in checks) else 1


def _release(args: argparse.Namespace) -> int:
    """Evaluate trained weights on test and release them with an entry in the manifest."""
    entry = release(args.checkpoint, args.name)
    for name, ap in entry["test"].items():
        print(f"{args.name} {name}: AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f} on {entry['images']} test images")
    return 0


def _run(args: argparse.Namespace) -> int:
    """Execute a notebook by papermill."""
    out = args.out or f"runs/executed/{Path(args.notebook).stem}.ipynb"
    overrides = {"limit": args.limit} if args.limit is not None else {}
    try:
        batch.run_notebook(args.notebook, out, args.params, batch.read_settings(args.set), **overrides)
    except papermill.PapermillExecutionError as error:
        print(f"eelib: {args.notebook}: a cell failed: {error.ename}: {error.evalue}; see {out}", file=sys.stderr)
        return 1
    print(f"executed {out}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """AP of the routed detections of recorded phases on test, and the record's decision."""
    if args.all:
        paths = sorted((config.ROOT / "params").glob("phase_1_*.yaml"))
    else:
        paths = [config.ROOT / "params" / f"phase_{phases.tag(args.phase)}.yaml"]
    answers = []
    for path in paths:
        settings = config.load(path)
        folder = phases.run_folder(settings, args.runs)
        answers.append(scorecard.validate(settings, folder, compute=args.compute_map, score=args.score))
        if not args.json:
            print(
                "phase {phase} on {split}: AP {AP:.3f}, AP50 {AP50:.3f}; at score {score} precision {precision:.3f}, "
                "recall {recall:.3f}, {detections_per_image:.1f} detections an image. "
                "Decision: {decision}.".format(**answers[-1]),
                flush=True,
            )
    if args.json:
        print(json.dumps(answers if args.all else answers[0]))
    return 0


def _bench(args: argparse.Namespace) -> int:
    """Time of each exit in eager mode as a ratio to full, interleaved in one run."""
    model = train.load_released(args.checkpoint).eval()
    dataset = DetectionDataset("val", transform=build_transform(320), limit=1)
    times = exit_times(model, as_input(dataset[0][0][None]), repeats=args.repeats)
    for name, t in times.items():
        print(f"{name:6} median {t['median_ms']:6.1f} ms   p95 {t['p95_ms']:6.1f} ms   ratio to full {t['ratio']:.2f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eelib", description="Early-exit object detection.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, call: Callable, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=call.__doc__, description=call.__doc__, epilog=f"example: {example}")
        command.set_defaults(call=call)
        return command

    command = add("train", _train, "eelib train params/phase_2_0_baseline.yaml --out runs/baseline --resume")
    command.add_argument("config", help="parameter file of a 2.x phase")
    command.add_argument("--out", required=True, help="folder of the checkpoint and the losses")
    command.add_argument("--resume", action="store_true", help="continue from the folder's last.pth")
    command = add("diagnose", _diagnose, "eelib diagnose params/phase_1_1.yaml")
    command.add_argument("config", help="parameter file of any phase")
    command.add_argument("--images", type=int, default=24, help="training images that are looked at")
    command.add_argument("--json", action="store_true", help="a JSON list for machines")
    command = add("release", _release, "eelib release runs/baseline/released.pth baseline.pth")
    command.add_argument("checkpoint", help="released.pth of a training run")
    command.add_argument("name", help="file name in checkpoints/")
    command = add("run", _run, "eelib run notebooks/05_routing.ipynb --params params/phase_1_4.yaml")
    command.add_argument("notebook")
    command.add_argument("--params", help="parameter file, checked before the run")
    command.add_argument("--out", help="executed copy")
    command.add_argument("--limit", type=int, help="images to evaluate")
    help_set = "replace a value of the parameter file; may be given often"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command = add("validate", _validate, "eelib validate --phase 1.4 --compute-map")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--phase", help="a phase with a file in params/, such as 1.4")
    which.add_argument("--all", action="store_true", help="all recorded phases")
    command.add_argument("--score", type=float, default=0.5, help="least score for precision and recall")
    command.add_argument("--compute-map", action="store_true", help="run the detector on test now")
    command.add_argument("--runs", default=str(config.ROOT / "runs"), help="folder of the trained phases")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
    command = add("bench", _bench, "eelib bench --repeats 30")
    command.add_argument("--checkpoint", default=str(config.ROOT / "checkpoints" / "exits.pth"))
    command.add_argument("--repeats", type=int, default=30)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a notebook failed, 2 bad input."""
    args = _parser().parse_args(argv)
    try:
        with torch.inference_mode(mode=args.command in ("release", "validate", "bench")):
            return args.call(args)
    except ERRORS as error:
        print(f"eelib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
