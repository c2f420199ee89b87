"""The command line; ``eelib --help`` lists the commands, from ``diagnose`` and ``train`` to ``export`` and ``detect``.

Commands import what they use when they run: ``eelib detect`` works without torch.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from eelib.config import ROOT
from eelib.showroom import command as showroom

# Errors that are bad input, by the module that raises them.
BAD_INPUT = {
    "eelib.config": "ConfigError",
    "eelib.sources": "DataError",
    "eelib.train": "TrainingError",
    "eelib.runtime": "DeploymentError",
    "eelib.records": "RecordsError",
    "eelib.calibrate": "CalibrationError",
    "eelib.policies": "PolicyError",
    "eelib.guarantee": "GuaranteeError",
    "eelib.showroom": "ShowroomError",
}


def _bad_input() -> tuple[type[Exception], ...]:
    """The classes of BAD_INPUT; one that was never imported was never raised either."""
    return (OSError, *(getattr(sys.modules[m], name) for m, name in BAD_INPUT.items() if m in sys.modules))


def _train(args: argparse.Namespace) -> int:
    """Train an SSDLite with or without exits and release its averaged weights."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from eelib import batch, config, data_command, train
    from eelib.data import DetectionDataset, build_transform
    from eelib.evaluate import coco_ap, detect_exits
    from eelib.sources import open_source
    from eelib.supervision import MaskSupervised

    settings = config.load(args.config, batch.read_settings(args.set) | data_command.data_settings(args, "train"))
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: output is not a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out}: output folder is not writable")
    model = train.build_model(settings)
    val = DetectionDataset("val", open_source(settings.data), keep_crowd=True)

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
    if rank_zero_only.rank == 0:
        print(f"released {train.save_checkpoint(out / 'released.pth', state)}")
    return 0


def _learning_curve(args: argparse.Namespace) -> int:
    """Train the baseline on more and more images with equal steps; AP on val with intervals. Resumable."""
    from eelib import batch, figures, learning_curve

    config, curve = learning_curve.load_curve(args.config, batch.read_settings(args.set))
    result = learning_curve.learning_curve(config, curve, args.out, args.reports)
    figures.style()
    figures.save(figures.learning_curve(result["points"]), "learning_curve", args.reports)
    for gain in result["gains"]:
        low, high = gain["interval"]
        print(f"{gain['from']} to {gain['to']} images: AP {gain['AP']:+.3f}, 95 % [{low:+.3f}, {high:+.3f}]")
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    """Preflight of a phase: can it learn to detect, and can its routing route? Seconds, before any training."""
    from eelib import config
    from eelib.diagnose import preflight

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
    import torch

    from eelib.release import release

    with torch.inference_mode():
        entry = release(args.checkpoint, args.name)
    for name, ap in entry["test"].items():
        print(f"{args.name} {name}: AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f} on {entry['images']} test images")
    return 0


def _choose(args: argparse.Namespace) -> int:
    """Release the best of several released detectors under one more name, by val alone."""
    from eelib.release import choose

    chosen = choose(args.name, args.candidates)["chosen"]
    for name, value in chosen["val_mean_AP"].items():
        print(f"{name}: mean AP of the exits on val {value:.4f}")
    print(f"{args.name} is {chosen['from']}")
    return 0


def _ablate(args: argparse.Namespace) -> int:
    """Train and measure a part of an ablation; 05e_ablation reads what is there."""
    from eelib import ablation, config

    values = config.read_yaml(args.params)
    part, _, parts = args.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise config.ConfigError(f"--part {args.part}: expected K/N with K from 1 to N")
    jobs = ablation.jobs_of(config.resolve(values["base"]), values["variants"], values["common"], values["seeds"])
    for job in jobs[int(part) - 1 :: int(parts)]:
        ablation.run_job(job, config.resolve(values["runs"]), values["resamples"], log=lambda s: print(s, flush=True))
    return 0


def _run(args: argparse.Namespace) -> int:
    """Execute a notebook by papermill."""
    import papermill

    from eelib import batch

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
    """AP on test of recorded phases, routed, or of a detector on any data set; and the record's decision."""
    import torch

    from eelib import config, phases, scorecard

    if args.checkpoint:
        return _validate_detector(args)
    if args.data or args.images or args.category or args.limit:
        raise config.ConfigError("--data, --images, --category, --limit: need --checkpoint; a phase has its own")
    if args.all:
        paths = sorted((config.ROOT / "params").glob("phase_1_*.yaml"))
    else:
        paths = [config.ROOT / "params" / f"phase_{phases.tag(args.phase)}.yaml"]
    answers = []
    for path in paths:
        settings = config.load(path)
        folder = phases.run_folder(settings, args.runs)
        with torch.inference_mode():
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


def _validate_detector(args: argparse.Namespace) -> int:
    import torch

    from eelib.data import DetectionDataset, build_transform, split_sha256
    from eelib.data_command import option_source
    from eelib.evaluate import decision, evaluate_exits
    from eelib.files import file_sha256

    source = option_source(args)
    dataset = DetectionDataset("test", source, build_transform(320), keep_crowd=True, limit=args.limit)
    with torch.inference_mode():
        exits = evaluate_exits(args.checkpoint, dataset)
    answer = {"checkpoint": args.checkpoint, "checkpoint_sha256": file_sha256(args.checkpoint), "split": "test"}
    answer |= {"split_sha256": split_sha256("test", source), "category": source.category, "images": len(dataset)}
    answer |= {"exits": exits, "decision": decision(exits["full"]["AP"])}
    if args.json:
        print(json.dumps(answer))
        return 0
    for name, ap in exits.items():
        values = ", ".join(f"{key} {value:.3f}" for key, value in ap.items() if value >= 0)
        print(f"{name} on {len(dataset)} images, {source.category}: {values}")
    print(f"Decision: {answer['decision']}.")
    return 0


def _data(args: argparse.Namespace) -> int:
    """Check a data set and count what it holds: COCO 2017, or any COCO files."""
    from eelib import data_command

    return data_command.run(args)


def _report(args: argparse.Namespace) -> int:
    """Write the four reports from the measured results."""
    from eelib import reports

    for path in reports.write_all(args.reports):
        print(f"wrote {path}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    """Time every runtime, exit and batch size, interleaved; print the ratios, write bench.json."""
    if args.coco_index:
        from eelib import data_command

        return data_command.print_index_speed()
    if args.routed_ap:
        from eelib import route_command

        return route_command.print_speed(args.checkpoint)
    from eelib import bench, deploy, quantise

    folder = Path(args.export) if args.export else ROOT / "runs" / "bench_export"
    if not args.export:
        deploy.export(args.checkpoint, folder)
        if not args.quick:
            quantise.quantise(folder)
    report = bench.run(args.checkpoint, folder, quick=args.quick, log=print)
    print(bench.table(report).to_string(index=False))
    for goal in report["goals"]:
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['value']:6.3f} (goal {goal['limit']})  {goal['goal']}")
    print(f"wrote {bench.save(report, Path(args.reports))}")
    return 0


def _export(args: argparse.Namespace) -> int:
    """Write a released detector as ONNX graphs, one a stage, with a manifest."""
    from eelib import deploy, quantise

    manifest = deploy.export(args.checkpoint, args.out)
    if args.int8:
        manifest = quantise.quantise(args.out)
    for stage in [*manifest["stages"], *manifest.get("stages_int8", [])]:
        size = (Path(args.out) / stage["file"]).stat().st_size / 2**20
        print(f"{stage['exit']:6} {stage['file']}  {size:.1f} MiB  sha256 {stage['sha256'][:12]}")
    print(f"exported {args.out}: opset {manifest['opset']}, dynamic batch; see `eelib detect --help`")
    return 0


def _detect(args: argparse.Namespace) -> int:
    """Detect in an image or a folder with an export, on onnxruntime alone; COCO results JSON."""
    from eelib import detect_command

    return detect_command.run(args)


def _route(args: argparse.Namespace) -> int:
    """Thresholds from calibrate for a budget of time, or with a guarantee; measured on test."""
    import torch

    from eelib import route_command

    with torch.inference_mode():
        return route_command.run(args)


def _showroom(args: argparse.Namespace) -> int:
    """Render more of the embedded data set, show it, or write its datasheet."""
    return args.run(args)


def _compress(args: argparse.Namespace) -> int:
    """Train the alternatives to early exits and measure all on one axis: AP on test against time."""
    from eelib import batch, compress, variants

    config = variants.load_config(args.config, batch.read_settings(args.set))
    report = compress.run(config, args.only, Path(args.reports), log=lambda line: print(line, flush=True))
    if report is not None:
        print(compress.table(report).round(3).to_string(index=False))
        for one in report["with_exits"]:
            for key, hull in (("minus_peers", "static peers"), ("minus_all", "all static systems")):
                print(f"{one['name']}, routed, against {hull}: {compress.verdict(one['points'], key)}")
        print(f"wrote {args.reports}/metrics/compress.json and static.json")
    return 0


def _parser() -> argparse.ArgumentParser:
    from eelib import data_command

    parser = argparse.ArgumentParser(prog="eelib", description="Early-exit object detection.")
    commands = parser.add_subparsers(dest="command", required=True)
    help_set = "replace a value of the parameter file; may be given often"

    def add(name: str, call: Callable, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=call.__doc__, description=call.__doc__, epilog=f"example: {example}")
        command.set_defaults(call=call)
        return command

    command = add("train", _train, "eelib train params/phase_2_0_baseline.yaml --out runs/baseline --resume")
    command.add_argument("config", help="parameter file of a 2.x phase")
    command.add_argument("--out", required=True, help="folder of the checkpoint and the losses")
    command.add_argument("--resume", action="store_true", help="continue from the folder's last.pth")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    data_command.add_options(command)
    command = add("data", _data, "eelib data coco --root data/coco")
    kinds = command.add_subparsers(dest="what", required=True)
    kind = kinds.add_parser("coco", help="COCO 2017 in a folder; how to obtain what is missing")
    kind.add_argument("--root", required=True, help="folder of annotations/, train2017/ and val2017/")
    kind.add_argument("--category", help="category to look for; by default chair")
    kind = kinds.add_parser("check", help="any COCO JSON and its images, or a folder of splits; showroom by default")
    data_command.add_options(kind)
    for kind in kinds.choices.values():
        kind.add_argument("--decode", action="store_true", help="decode every image too")
        kind.add_argument("--json", action="store_true", help="a JSON list for machines")
    command = add("learning-curve", _learning_curve, "eelib learning-curve params/learning_curve.yaml")
    command.add_argument("config", help="parameter file with the key `curve`")
    command.add_argument("--out", default=str(ROOT / "runs" / "learning_curve"), help="folder of the checkpoints")
    command.add_argument("--reports", default=str(ROOT / "reports"), help="folder of metrics/ and figures/")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command = add("diagnose", _diagnose, "eelib diagnose params/phase_1_1.yaml")
    command.add_argument("config", help="parameter file of any phase")
    command.add_argument("--images", type=int, default=24, help="training images that are looked at")
    command.add_argument("--json", action="store_true", help="a JSON list for machines")
    command = add("release", _release, "eelib release runs/baseline/released.pth baseline.pth")
    command.add_argument("checkpoint", help="released.pth of a training run")
    command.add_argument("name", help="file name in checkpoints/")
    command = add("choose", _choose, "eelib choose exits.pth exits_frozen.pth exits_joint.pth exits_distilled.pth")
    command.add_argument("name", help="file name of the copy in checkpoints/")
    command.add_argument("candidates", nargs="+", help="released file names")
    command = add("ablate", _ablate, "eelib ablate params/ablation.yaml --part 1/2")
    command.add_argument("params", help="parameter file of 05e_ablation")
    command.add_argument("--part", default="1/1", help="K/N: the K-th of N parts, to run side by side")
    command = add("run", _run, "eelib run notebooks/05_routing.ipynb --params params/phase_1_4.yaml")
    command.add_argument("notebook")
    command.add_argument("--params", help="parameter file, checked before the run")
    command.add_argument("--out", help="executed copy")
    command.add_argument("--limit", type=int, help="images to evaluate")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command = add("validate", _validate, "eelib validate --phase 1.4 --compute-map")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--phase", help="a phase with a file in params/, such as 1.4")
    which.add_argument("--all", action="store_true", help="all recorded phases")
    which.add_argument("--checkpoint", help="a released detector, on showroom or on --data")
    data_command.add_options(command)
    command.add_argument("--limit", type=int, help="images of --checkpoint's test")
    command.add_argument("--score", type=float, default=0.5, help="least score for precision and recall")
    command.add_argument("--compute-map", action="store_true", help="run the detector on test now")
    command.add_argument("--runs", default=str(ROOT / "runs"), help="folder of the trained phases")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
    command = add("report", _report, "eelib report")
    command.add_argument("--reports", default=str(ROOT / "reports"), help="folder that holds metrics/ and phases/")
    checkpoint = str(ROOT / "checkpoints" / "exits.pth")
    command = add("bench", _bench, "eelib bench --quick")
    command.add_argument("--checkpoint", default=checkpoint)
    command.add_argument("--export", help="folder of `eelib export`; written afresh without it")
    command.add_argument("--quick", action="store_true", help="few repeats, no torch.compile, no int8: a minute")
    command.add_argument("--reports", default=str(ROOT / "reports"), help="folder of metrics/bench.json")
    command.add_argument("--coco-index", action="store_true", help="time the index of a file of COCO's size instead")
    command.add_argument("--routed-ap", action="store_true", help="time the AP of a routing instead, by three scorers")
    command = add("export", _export, "eelib export --out runs/deploy")
    command.add_argument("--checkpoint", default=checkpoint, help="a released detector with or without exits")
    command.add_argument("--out", required=True, help="folder of the graphs and the manifest")
    command.add_argument("--int8", action="store_true", help="int8 stages too, calibrated on calibrate")
    command = add("detect", _detect, "eelib detect data/showroom/test --policy fixed --threshold 0.5 --draw runs/drawn")
    command.add_argument("images", help="an image or a folder of images")
    command.add_argument("--export", default=str(ROOT / "runs" / "deploy"), help="folder of `eelib export`")
    command.add_argument("--int8", action="store_true", help="the int8 stages of `eelib export --int8`")
    command.add_argument("--policy", default="fixed", help="fixed, or the exit where all leave: exit1, exit2, full")
    command.add_argument("--threshold", type=float, nargs="+", default=[], help="of fixed: one, or one an early exit")
    command.add_argument("--evidence", help="what fixed compares: max_score or count; the manifest's by default")
    command.add_argument("--out", default="runs/detections.json", help="COCO results")
    command.add_argument("--draw", help="folder of annotated images")
    command.add_argument("--draw-score", type=float, default=0.3, help="least score that is drawn")
    command.add_argument("--batch", type=int, default=8, help="images a call")
    command.add_argument("--threads", type=int, default=1, help="of onnxruntime")
    command = add("compress", _compress, "eelib compress params/compress.yaml --only width_75")
    command.add_argument("config", help="parameter file of the alternatives")
    command.add_argument("--only", metavar="NAME", help="train one variant, or `search`, and stop")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command.add_argument("--reports", default=str(ROOT / "reports"), help="folder of metrics/")
    command = add("route", _route, "eelib route --policy benefit --budget 0.75")
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--policy", help="such as fixed, max_score, benefit; an unknown one lists them all")
    way.add_argument("--guarantee", nargs="+", metavar="LEVEL", help="epsilon=0.05 delta=0.1")
    command.add_argument("--budget", type=float, default=0.75, help="mean time / time of full")
    command.add_argument("--thresholds", type=float, nargs=2, help="of exit1 and exit2, instead of a budget")
    command.add_argument("--calibrate-on", default="calibrate", help="split that thresholds come from; never test")
    command.add_argument("--checkpoint", default=checkpoint)
    command.add_argument("--times", default="reports/metrics/exits.json", help="metrics file with each exit's ratio")
    command.add_argument("--params", default=str(ROOT / "params" / "report_policies.yaml"))
    command.add_argument("--records", default=str(ROOT / "runs" / "records"), help="folder of exit records")
    command.add_argument("--limit", type=int, help="images of each split")
    command.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
    command = add("showroom", _showroom, "eelib showroom render --split val --scenes 5 --seed 1 --out runs/rendered")
    showroom.add_arguments(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a notebook failed or an image is broken, 2 bad input."""
    args = _parser().parse_args(argv)
    try:
        return args.call(args)
    except _bad_input() as error:
        print(f"eelib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
