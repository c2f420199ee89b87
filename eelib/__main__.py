"""The command line: ``eelib train | run | validate | route | bench``."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import papermill
import torch

from eelib import batch, calibrate, config, curves, guarantee, phases, policies, records, train
from eelib.data import DataError, DetectionDataset, as_input, build_transform
from eelib.evaluate import coco_ap, decision, detect_exits
from eelib.latency import exit_times
from eelib.routed_ap import RoutedAP, ap_speed, resample

ERRORS = (
    config.ConfigError, DataError, train.TrainingError, records.RecordsError, calibrate.CalibrationError,
    policies.PolicyError, guarantee.GuaranteeError, OSError,
)  # fmt: skip


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
        batch.run_notebook(args.notebook, out, args.params, **overrides)
    except papermill.PapermillExecutionError as error:
        print(f"eelib: {args.notebook}: a cell failed: {error.ename}: {error.evalue}; see {out}", file=sys.stderr)
        return 1
    print(f"executed {out}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """AP of the routed detections of a recorded phase on test, and the record's decision."""
    path = config.ROOT / "params" / f"phase_{phases.tag(args.phase)}.yaml"
    settings = config.load(path)
    folder = Path(args.runs) / f"phase_{phases.tag(args.phase)}"
    if args.compute_map:
        detector = phases.load_phase(settings, folder)
        run = phases.route_split(detector, settings, "test")
        ap = coco_ap(run["dataset"].coco, run["routed"], run["dataset"].image_ids)
    else:
        summary = folder / f"final_summary_phase{phases.tag(args.phase)}.json"
        if not summary.exists():
            raise train.TrainingError(f"{summary}: nothing measured yet; add --compute-map or run `make reproduce`")
        ap = json.loads(summary.read_text())
    answer = {"phase": args.phase, "split": "test", "AP": ap["AP"], "AP50": ap["AP50"], "decision": decision(ap["AP"])}
    if args.json:
        print(json.dumps(answer))
    else:
        print(f"phase {args.phase} on test: AP {ap['AP']:.3f}, AP50 {ap['AP50']:.3f}. Decision: {answer['decision']}.")
    return 0


def _route(args: argparse.Namespace) -> int:
    """Thresholds from calibrate for a budget of time, or with a guarantee; measured on test."""
    values = config.read_yaml(args.params)
    levels = _levels(args.guarantee) if args.guarantee else None
    calibrate.refuse_test(args.calibrate_on, "choosing thresholds")
    if args.policy:
        policies.check_policy(args.policy)
    policies.check_thresholds(args.thresholds or ())
    if not 0 < args.budget <= 1:
        raise policies.PolicyError(f"--budget {args.budget}: expected a share of full's time, above 0 and up to 1")
    names = tuple(dict.fromkeys(("val", args.calibrate_on, "test")))
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    found, cocos = curves.load_study(args.checkpoint, values["root"], args.records, names, args.limit, say)
    costs = curves.read_times(config.resolve(args.times), found["test"].exit_names)
    # a guarantee may look at calibrate once only, so its loss rests on the scores as they are
    method = "none" if levels else values["calibration"]
    splits = policies.prepare(found, cocos, costs, method, args.calibrate_on)
    here, test, stated = splits[args.calibrate_on], splits["test"], {}
    if levels:
        settings = guarantee.sequence(splits["val"], values["penalty"])
        stated = guarantee.certify(here, settings, *levels, values["bound"])
        setting = settings[stated["index"]]
        chosen = setting.route(test) if stated["thresholds"] else np.full(len(test.records), len(costs) - 1)
        stated["risk_on_test"] = float(guarantee.loss_against_full(test.f1, chosen).mean())
    else:
        settings = policies.settings_of(args.policy, here, splits["val"], values)
        if args.thresholds:
            setting = policies.Setting(tuple(args.thresholds), settings[0].confidence)
        else:
            setting = curves.choose(settings, here, [args.budget])[0]
        chosen = setting.route(test)
        stated = {"policy": args.policy, "budget": args.budget, "thresholds": list(setting.thresholds)}
    weights = resample(test.scenes, args.resamples, seed=0)
    measured = curves.point(test, chosen, weights, curves.full_samples(test, weights))
    _print_route(stated | measured, args.json)
    return 0


def _levels(pairs: list[str]) -> tuple[float, float]:
    """Epsilon and delta from ``epsilon=0.05 delta=0.1``."""
    try:
        given = {key: float(value) for key, value in (pair.split("=") for pair in pairs)}
    except ValueError:
        given = {}
    if given.keys() != {"epsilon", "delta"}:
        raise guarantee.GuaranteeError(f"--guarantee {' '.join(pairs)}: expected epsilon=NUMBER delta=NUMBER")
    for name, value in given.items():
        guarantee.check_level(name, value)
    return given["epsilon"], given["delta"]


def _print_route(answer: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
        return
    if "epsilon" in answer:
        print(
            f"guarantee    mean loss <= {answer['epsilon']} with probability {1 - answer['delta']:g} "
            f"({answer['bound']}, n = {answer['n']}, p = {answer['p_value']:.3g}); on test {answer['risk_on_test']:.4f}"
        )
    thresholds = answer["thresholds"]
    print("thresholds   " + ("none certified: all images take full" if thresholds is None else
                             "  ".join(f"exit{k + 1} {t:.4f}" for k, t in enumerate(thresholds))))  # fmt: skip
    print("exit shares  " + "  ".join(f"{name} {share:.3f}" for name, share in answer["exit_shares"].items()))
    low, high = answer["AP_interval"]
    print(f"AP on test   {answer['AP']:.4f}  [{low:.4f}, {high:.4f}]  AP50 {answer['AP50']:.4f}")
    low, high = answer["AP_minus_full_interval"]
    print(f"beside full  {answer['AP_minus_full']:+.4f}  [{low:+.4f}, {high:+.4f}]")
    print(f"time ratio   {answer['time_ratio']:.3f}")


def _bench(args: argparse.Namespace) -> int:
    """Time of each exit in eager mode as a ratio to full, interleaved in one run."""
    if args.routed_ap:
        return _bench_routed_ap(args)
    model = train.load_released(args.checkpoint).eval()
    dataset = DetectionDataset("val", transform=build_transform(320), limit=1)
    times = exit_times(model, as_input(dataset[0][0][None]), repeats=args.repeats)
    for name, t in times.items():
        print(f"{name:6} median {t['median_ms']:6.1f} ms   p95 {t['p95_ms']:6.1f} ms   ratio to full {t['ratio']:.2f}")
    return 0


def _bench_routed_ap(args: argparse.Namespace) -> int:
    """Time of the AP of a routing: merged match flags, pycocotools, hotcoco."""
    found, cocos = curves.load_study(args.checkpoint, "data/showroom", config.ROOT / "runs" / "records", ("test",))
    speed = ap_speed(RoutedAP(found["test"], cocos["test"]), found["test"], cocos["test"])
    for name in ("merge", "pycocotools", "hotcoco"):
        ms = speed[f"{name}_ms"]
        print(
            f"{name:12} " + ("not installed" if ms is None else f"{ms:9.2f} ms   {ms / speed['merge_ms']:8.1f} x merge")
        )
    print(f"merge differs from pycocotools by {speed['largest_difference']:.1e}")
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
    command = add("validate", _validate, "eelib validate --phase 1.4 --compute-map")
    command.add_argument("--phase", required=True, help="a phase with a file in params/, such as 1.4")
    command.add_argument("--compute-map", action="store_true", help="run the detector on test now")
    command.add_argument("--runs", default=str(config.ROOT / "runs"), help="folder of the trained phases")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
    command = add("bench", _bench, "eelib bench --repeats 30")
    command.add_argument("--checkpoint", default=str(config.ROOT / "checkpoints" / "exits.pth"))
    command.add_argument("--repeats", type=int, default=30)
    command.add_argument("--routed-ap", action="store_true", help="time the AP of a routing instead")
    command = add("route", _route, "eelib route --policy benefit --budget 0.75")
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--policy", help=", ".join(policies.POLICIES))
    way.add_argument("--guarantee", nargs="+", metavar="LEVEL", help="epsilon=0.05 delta=0.1")
    command.add_argument("--budget", type=float, default=0.75, help="mean time / time of full")
    command.add_argument("--thresholds", type=float, nargs=2, help="of exit1 and exit2, instead of a budget")
    command.add_argument("--calibrate-on", default="calibrate", help="split that thresholds come from; never test")
    command.add_argument("--checkpoint", default=str(config.ROOT / "checkpoints" / "exits.pth"))
    command.add_argument("--times", default="reports/metrics/exits.json", help="metrics file with each exit's ratio")
    command.add_argument("--params", default=str(config.ROOT / "params" / "report_policies.yaml"))
    command.add_argument("--records", default=str(config.ROOT / "runs" / "records"), help="folder of exit records")
    command.add_argument("--limit", type=int, help="images of each split")
    command.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    command.add_argument("--json", action="store_true", help="one JSON object for machines")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a notebook failed, 2 bad input."""
    args = _parser().parse_args(argv)
    try:
        with torch.inference_mode(mode=args.command in ("validate", "route", "bench")):
            return args.call(args)
    except ERRORS as error:
        print(f"eelib: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
