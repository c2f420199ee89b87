"""What each command of ``eelib`` does with its options; :mod:`eelib.__main__` holds the options.

Every function takes the parsed options and gives the exit status. Its docstring is the command's help.
Commands import what they use when they run: ``eelib detect`` works without torch.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from eelib.config import ROOT


def train(args: argparse.Namespace) -> int:
    """Train an SSDLite with or without exits and release its averaged weights."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from eelib import config, data_command, train
    from eelib.checkpoints import save_checkpoint
    from eelib.coco import open_source
    from eelib.data import DetectionDataset
    from eelib.evaluate import coco_ap, detect_exits
    from eelib.supervision import MaskSupervised
    from studies import batch

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
        print(f"released {save_checkpoint(out / 'released.pth', state)}")
    return 0


def widen(args: argparse.Namespace) -> int:
    """Widen a narrow MobileNetV3 that was trained on COCO: weights to start the baseline from."""
    from eelib.checkpoints import save_checkpoint
    from studies.widen import start_weights

    print(f"wrote {save_checkpoint(args.out, start_weights(args.graph))}")
    return 0


def learning_curve(args: argparse.Namespace) -> int:
    """Train the baseline on more and more images with equal steps; AP on val with intervals. Resumable."""
    from studies import batch, learning_curve

    config, curve = learning_curve.load_curve(args.config, batch.read_settings(args.set))
    result = learning_curve.learning_curve(config, curve, args.out, args.reports)
    for gain in result["gains"]:
        low, high = gain["interval"]
        print(f"{gain['from']} to {gain['to']} images: AP {gain['AP']:+.3f}, 95 % [{low:+.3f}, {high:+.3f}]")
    return 0


def generalisation(args: argparse.Namespace) -> int:
    """AP on images of training, on new scenes with its chair models, and on val's new models."""
    import torch

    from studies.generalisation import generalisation

    showroom = ROOT / "data" / "showroom"
    sets = {
        "images of train": ("train", showroom),
        "new scenes, chairs of train": ("train", Path(args.rendered)),
        "new scenes, new chairs (val)": ("val", showroom),
    }
    with torch.inference_mode():
        result = generalisation(args.checkpoint, sets, ROOT / "runs" / "records", args.reports, progress=print)
    for row in result["sets"]:
        low, high = row["interval"]
        print(f"{row['name']}: AP {row['AP']:.3f}, 95 % [{low:.3f}, {high:.3f}], {row['images']} images")
    return 0


def diagnose(args: argparse.Namespace) -> int:
    """Preflight of a phase: can it learn to detect, and can its routing route? Seconds, before any training."""
    from eelib import config
    from studies.phases.preflight import preflight

    checks = preflight(config.load(args.config), args.images)
    if args.json:
        print(json.dumps([check._asdict() for check in checks]))
    else:
        for check in checks:
            verdict = "ok  " if check.holds else "FAIL"
            print(f"{verdict}  {check.name}: {check.question} is {check.measured:.3f}, expected {check.expected}")
    return 0 if all(check.holds for check in checks) else 1


def release(args: argparse.Namespace) -> int:
    """Evaluate trained weights on test and release them with an entry in the manifest."""
    import torch

    from eelib.release import release

    with torch.inference_mode():
        entry = release(args.checkpoint, args.name)
    for name, ap in entry["test"].items():
        print(f"{args.name} {name}: AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f} on {entry['images']} test images")
    return 0


def choose(args: argparse.Namespace) -> int:
    """Rename the best of several released detectors, by val alone."""
    from eelib.release import choose

    chosen = choose(args.name, args.candidates)["chosen"]
    for name, value in chosen["val_mean_AP"].items():
        print(f"{name}: mean AP of the exits on val {value:.4f}")
    print(f"{args.name} is {chosen['from']}")
    return 0


def retire(args: argparse.Namespace) -> int:
    """Keep the exit records of released detectors on test instead of their weights."""
    import torch

    from eelib.release import retire

    with torch.inference_mode():
        for name in args.names:
            print(f"{name} is now {retire(name)}")
    return 0


def ablate(args: argparse.Namespace) -> int:
    """Train and measure a part of an ablation; 05e_ablation reads what is there."""
    from eelib import config
    from studies.phases import ablation

    values = config.read_yaml(args.params)
    part, _, parts = args.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise config.ConfigError(f"--part {args.part}: expected K/N with K from 1 to N")
    jobs = ablation.jobs_of(config.resolve(values["base"]), values["variants"], values["common"], values["seeds"])
    for job in jobs[int(part) - 1 :: int(parts)]:
        ablation.run_job(job, config.resolve(values["runs"]), values["resamples"], log=lambda s: print(s, flush=True))
    return 0


def run(args: argparse.Namespace) -> int:
    """Execute a notebook by papermill."""
    import papermill

    from studies import batch

    out = args.out or f"runs/executed/{Path(args.notebook).stem}.ipynb"
    overrides = {"limit": args.limit} if args.limit is not None else {}
    try:
        batch.run_notebook(args.notebook, out, args.params, batch.read_settings(args.set), **overrides)
    except papermill.PapermillExecutionError as error:
        print(f"eelib: {args.notebook}: a cell failed: {error.ename}: {error.evalue}; see {out}", file=sys.stderr)
        return 1
    print(f"executed {out}")
    return 0


def validate(args: argparse.Namespace) -> int:
    """AP on test of recorded phases, routed, or of a detector on any data set; and the record's decision."""
    import torch

    from eelib import config, data_command
    from studies.phases import scorecard
    from studies.phases import trainer as phases

    if args.checkpoint:
        return _validate_detector(args)
    if data_command.given(args) or args.limit:
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

    from eelib.checkpoints import load_released
    from eelib.data import DetectionDataset, split_sha256
    from eelib.data_command import option_source
    from eelib.evaluate import decision, evaluate_exits
    from eelib.files import file_sha256

    source, size = option_source(args), load_released(args.checkpoint).size
    dataset = DetectionDataset("test", source, size, keep_crowd=True, limit=args.limit)
    with torch.inference_mode():
        exits = evaluate_exits(args.checkpoint, dataset)
    answer = {"checkpoint": args.checkpoint, "checkpoint_sha256": file_sha256(args.checkpoint), "split": "test"}
    answer |= {"split_sha256": split_sha256("test", source), "categories": source.names, "images": len(dataset)}
    answer |= {"exits": exits, "decision": decision(exits["full"]["AP"])}
    if args.json:
        print(json.dumps(answer))
        return 0
    for name, ap in exits.items():
        values = ", ".join(f"{key} {value:.3f}" for key, value in ap.items() if value >= 0)
        print(f"{name} on {len(dataset)} images, {', '.join(source.names)}: {values}")
    print(f"Decision: {answer['decision']}.")
    return 0


def data(args: argparse.Namespace) -> int:
    """Check a data set and count what it holds: COCO 2017, or any COCO files; convert others to COCO."""
    from eelib import data_command

    return data_command.run(args)


def report(args: argparse.Namespace) -> int:
    """Write the four reports from the measured results."""
    from studies.report import reports

    for path in reports.write_all(args.reports):
        print(f"wrote {path}")
    return 0


def bench(args: argparse.Namespace) -> int:
    """Time every runtime, exit and batch size, interleaved; print the ratios, write bench.json."""
    from eelib.deploy import export as deploy
    from eelib.deploy import int8 as quantise
    from eelib.files import write_json
    from studies import bench

    folder = Path(args.export) if args.export else ROOT / "runs" / "bench_export"
    if not args.export:
        deploy.export(args.checkpoint, folder)
        if not args.quick:
            quantise.quantise(folder)
    report = bench.run(args.checkpoint, folder, quick=args.quick, log=print)
    print(bench.table(report["times"]).to_string(index=False))
    for goal in report["goals"]:
        print(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['value']:6.3f} (goal {goal['limit']})  {goal['goal']}")
    print(f"wrote {write_json(Path(args.reports) / 'metrics' / 'bench.json', report)}")
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a released detector as ONNX graphs, one a stage, with a manifest."""
    from eelib import data_command
    from eelib.deploy.export import export

    source = data_command.option_source(args, "calibrate") if data_command.given(args) else None
    manifest = export(args.checkpoint, args.out, args.router, source, args.int8)
    for stage in (*manifest.stages, *manifest.stages_int8):
        size = (Path(args.out) / stage.file).stat().st_size / 2**20
        print(f"{stage.exit:6} {stage.file}  {size:.1f} MiB  sha256 {stage.sha256[:12]}")
    print("categories: " + ", ".join(f"{category.name} (id {category.id})" for category in manifest.categories))
    print(f"router: {manifest.router.describe() if manifest.router else 'none, every image takes the full path'}")
    print(f"exported {args.out}: opset {manifest.opset}, dynamic batch; see `eelib detect --help`")
    return 0


def detect(args: argparse.Namespace) -> int:
    """Detect in an image or a folder with an export, on onnxruntime alone; COCO results JSON."""
    from eelib import detect_command

    return detect_command.run(args)


def route(args: argparse.Namespace) -> int:
    """Thresholds from calibrate for a budget of time, or with a guarantee; measured on test."""
    import torch

    from eelib import route_command

    with torch.inference_mode():
        return route_command.run(args)


def compress(args: argparse.Namespace) -> int:
    """Train the alternatives to early exits and measure all on one axis: AP on test against time."""
    from studies import batch
    from studies.compress import alternatives, variants
    from studies.compress import study as compress

    config = variants.load_config(args.config, batch.read_settings(args.set))
    report = compress.run(config, args.only, Path(args.reports), log=lambda line: print(line, flush=True))
    if report is not None:
        print(alternatives.table(report).round(3).to_string(index=False))
        for one in report["with_exits"]:
            for key, hull in (("minus_peers", "static peers"), ("minus_all", "all static systems")):
                print(f"{one['name']}, routed, against {hull}: {alternatives.verdict(one['points'], key)}")
        print(f"wrote {args.reports}/metrics/compress.json and static.json")
    return 0
