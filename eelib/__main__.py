"""The command line: ``eelib --help`` lists the commands, :mod:`eelib.commands` carries them out."""

import argparse
import sys
from collections.abc import Callable

from eelib import commands
from eelib.config import ROOT

# Errors that are bad input, by the module that raises them.
BAD_INPUT = {
    "eelib.config": "ConfigError",
    "eelib.faults": "DataError",
    "eelib.preprocess": "ImageError",
    "eelib.checkpoints": "TrainingError",
    "eelib.deploy.manifest": "DeploymentError",
    "eelib.records": "RecordsError",
    "eelib.calibrate": "CalibrationError",
    "eelib.routing": "PolicyError",
    "eelib.deploy.evidence": "RouterError",
    "eelib.guarantee": "GuaranteeError",
}


def _bad_input() -> tuple[type[Exception], ...]:
    """The classes of BAD_INPUT; one that was never imported was never raised either."""
    return (OSError, *(getattr(sys.modules[m], name) for m, name in BAD_INPUT.items() if m in sys.modules))


def _parser() -> argparse.ArgumentParser:
    from eelib import data_command

    parser = argparse.ArgumentParser(prog="eelib", description="Early-exit object detection.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    help_set = "replace a value of the parameter file; may be given often"

    def add(name: str, call: Callable, example: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=call.__doc__, description=call.__doc__, epilog=f"example: {example}")
        command.set_defaults(call=call)
        return command

    command = add("train", commands.train, "eelib train params/phase_2_0_baseline.yaml --out runs/baseline --resume")
    command.add_argument("config", help="parameter file of a 2.x phase")
    command.add_argument("--out", required=True, help="folder of the checkpoint and the losses")
    command.add_argument("--resume", action="store_true", help="continue from the folder's last.pth")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    data_command.add_options(command)
    command = add("data", commands.data, "eelib data check --data my.json --images my")
    data_command.add_arguments(command)
    command = add("widen", commands.widen, "eelib widen runs/pretrained/package/models/centernet.json")
    command.add_argument("graph", help="JSON file of the narrow detector that `make pretrained` fetches")
    command.add_argument("--out", default=str(ROOT / "runs" / "pretrained" / "start.pth"), help="weights to start from")
    command = add("learning-curve", commands.learning_curve, "eelib learning-curve params/learning_curve.yaml")
    command.add_argument("config", help="parameter file with the key `curve`")
    command.add_argument("--out", default=str(ROOT / "runs" / "learning_curve"), help="folder of the checkpoints")
    command.add_argument("--reports", default=str(ROOT / "runs" / "reports"), help="folder of metrics/ and figures/")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command = add("generalisation", commands.generalisation, "eelib generalisation --rendered runs/new_scenes")
    command.add_argument("--rendered", required=True, help="folder of `eelib showroom render --split train`, new seed")
    command.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "baseline.pth"))
    command.add_argument("--reports", default=str(ROOT / "runs" / "reports"), help="folder of metrics/ and figures/")
    command = add("diagnose", commands.diagnose, "eelib diagnose params/phase_1_1.yaml")
    command.add_argument("config", help="parameter file of any phase")
    command.add_argument("--images", type=int, default=24, help="training images that are looked at")
    command.add_argument("--json", action="store_true", help="a JSON list for machines")
    command = add("release", commands.release, "eelib release runs/baseline/released.pth baseline.pth")
    command.add_argument("checkpoint", help="released.pth of a training run")
    command.add_argument("name", help="file name in checkpoints/")
    command = add(
        "choose", commands.choose, "eelib choose exits.pth exits_frozen.pth exits_joint.pth exits_distilled.pth"
    )
    command.add_argument("name", help="new file name in checkpoints/")
    command.add_argument("candidates", nargs="+", help="released file names")
    command = add("retire", commands.retire, "eelib retire exits_frozen.pth exits_joint.pth")
    command.add_argument("names", nargs="+", help="released file names")
    command = add("ablate", commands.ablate, "eelib ablate params/ablation.yaml --part 1/2")
    command.add_argument("params", help="parameter file of 05e_ablation")
    command.add_argument("--part", default="1/1", help="K/N: the K-th of N parts, to run side by side")
    command = add("run", commands.run, "eelib run notebooks/05_routing.ipynb --params params/phase_1_4.yaml")
    command.add_argument("notebook")
    command.add_argument("--params", help="parameter file, checked before the run")
    command.add_argument("--out", help="executed copy")
    command.add_argument("--limit", type=int, help="images to evaluate")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command = add("validate", commands.validate, "eelib validate --phase 1.4 --compute-map")
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
    command = add("report", commands.report, "eelib report")
    command.add_argument("--reports", default=str(ROOT / "runs" / "reports"), help="folder of metrics/ and phases/")
    checkpoint = str(ROOT / "checkpoints" / "exits.pth")
    command = add("bench", commands.bench, "eelib bench --quick")
    command.add_argument("--checkpoint", default=checkpoint)
    command.add_argument("--export", help="folder of `eelib export`; written afresh without it")
    command.add_argument("--quick", action="store_true", help="few repeats, no torch.compile, no int8: a minute")
    command.add_argument("--reports", default=str(ROOT / "reports"), help="folder of metrics/bench.json")
    command = add("export", commands.export, "eelib export --out runs/deploy")
    command.add_argument("--checkpoint", default=checkpoint, help="a released detector with or without exits")
    command.add_argument("--out", required=True, help="folder of the graphs and the manifest")
    command.add_argument("--int8", action="store_true", help="int8 stages too, calibrated on calibrate")
    command.add_argument("--router", help="file of `eelib route --out`; without one images take the full path")
    data_command.add_options(command)
    command = add(
        "detect", commands.detect, "eelib detect data/showroom/test --policy fixed --threshold 0.5 --draw runs/drawn"
    )
    command.add_argument("images", help="an image or a folder of images")
    command.add_argument("--export", default=str(ROOT / "runs" / "deploy"), help="folder of `eelib export`")
    command.add_argument("--int8", action="store_true", help="the int8 stages of `eelib export --int8`")
    command.add_argument("--policy", help="an exit where all leave, fixed, or a router's file; the export's by default")
    command.add_argument("--threshold", type=float, nargs="+", default=[], help="of fixed: one, or one an early exit")
    command.add_argument("--runtime", default="onnxruntime", help="onnxruntime, openvino, or auto: the faster here")
    command.add_argument("--out", default="runs/detections.json", help="COCO results")
    command.add_argument("--draw", help="folder of annotated images")
    command.add_argument("--draw-score", type=float, default=0.3, help="least score that is drawn")
    command.add_argument("--batch", type=int, default=8, help="images a call")
    command.add_argument("--threads", type=int, default=1, help="of onnxruntime")
    command = add("compress", commands.compress, "eelib compress params/compress.yaml --only width_75")
    command.add_argument("config", help="parameter file of the alternatives")
    command.add_argument("--only", metavar="NAME", help="train one variant, or `search`, and stop")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=help_set)
    command.add_argument("--reports", default=str(ROOT / "runs" / "reports"), help="folder of metrics/")
    command = add("route", commands.route, "eelib route --policy benefit --budget 0.75")
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--policy", help="such as fixed, max_score, benefit; an unknown one lists them all")
    way.add_argument("--guarantee", nargs="+", metavar="LEVEL", help="epsilon=0.05 delta=0.1")
    command.add_argument("--budget", type=float, default=0.75, help="mean time / time of full")
    command.add_argument("--out", help="file of the router, for `eelib export --router`")
    command.add_argument("--gates", type=float, metavar="EPSILON", help="let blank gates lose this share of objects")
    command.add_argument("--thresholds", type=float, nargs="+", help="one an early exit, instead of a budget")
    command.add_argument("--calibrate-on", default="calibrate", help="split that thresholds come from; never test")
    command.add_argument("--checkpoint", default=checkpoint)
    command.add_argument("--times", help="metrics file with each exit's ratio; measured now without it")
    command.add_argument("--calibration", default="isotonic", help="of the scores: isotonic, platt or none")
    command.add_argument("--grid", type=int, default=20, help="quantiles of a confidence that are tried at each exit")
    command.add_argument("--bound", default="hoeffding_bentkus", help="of a guarantee: hoeffding_bentkus or betting")
    command.add_argument("--records", default=str(ROOT / "runs" / "records"), help="folder of exit records")
    data_command.add_options(command)
    command.add_argument("--limit", type=int, help="images of each split")
    command.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
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
