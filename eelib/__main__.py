"""The command line: ``eelib train | run | validate | report | bench``."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import papermill
import torch

from eelib import batch, config, phases, reports, scorecard, train
from eelib.data import DataError, DetectionDataset, as_input, build_transform
from eelib.evaluate import coco_ap, detect_exits
from eelib.latency import exit_times

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
    val = DetectionDataset("val", config.resolve(settings.data.root), build_transform(320), keep_crowd=True)

    def evaluate(network, epoch: int) -> dict[str, float]:
        results = detect_exits(network, val)
        return {f"{name}_AP": coco_ap(val.coco, rows, val.image_ids)["AP"] for name, rows in results.items()}

    history = train.fit(
        model,
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


def _report(args: argparse.Namespace) -> int:
    """Write the four reports from the measured results."""
    for path in reports.write_all(args.reports):
        print(f"wrote {path}")
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
    command = add("report", _report, "eelib report")
    command.add_argument(
        "--reports", default=str(config.ROOT / "reports"), help="folder that holds metrics/ and phases/"
    )
    command = add("bench", _bench, "eelib bench --repeats 30")
    command.add_argument("--checkpoint", default=str(config.ROOT / "checkpoints" / "exits.pth"))
    command.add_argument("--repeats", type=int, default=30)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a notebook failed, 2 bad input."""
    args = _parser().parse_args(argv)
    try:
        with torch.inference_mode(mode=args.command in ("validate", "bench")):
            return args.call(args)
    except ERRORS as error:
        print(f"eelib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
