"""``eelib route``: thresholds for a budget of time or with a guarantee, and what they give on test."""

import argparse
import json
import sys
from dataclasses import replace

from eelib import calibrate, config, curves, data_command, guarantee, policies
from eelib.routed_ap import RoutedAP, ap_speed, resample
from eelib.splits import PolicyError, Setting, check_thresholds, never, prepare


def run(args: argparse.Namespace) -> int:
    """Run the command: choose on calibrate, measure on test, print."""
    values = config.read_yaml(args.params)
    levels = _levels(args.guarantee) if args.guarantee else None
    calibrate.refuse_test(args.calibrate_on, "choosing thresholds")
    if args.policy:
        policies.check_policy(args.policy)
    check_thresholds(args.thresholds or ())
    if args.thresholds and args.policy == "gumbel":
        raise PolicyError("--thresholds: 'gumbel' has a gate for each budget and no thresholds; expected --budget")
    for name, value in (("limit", args.limit), ("resamples", args.resamples)):
        if value is not None and value < 1:
            raise PolicyError(f"--{name} {value}: expected 1 or more")
    if not 0 < args.budget <= 1:
        raise PolicyError(f"--budget {args.budget}: expected a share of full's time, above 0 and up to 1")
    names = tuple(dict.fromkeys(("val", args.calibrate_on, "test")))
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    root = data_command.option_source(args) if data_command.given(args) else config.resolve(values["root"])
    found, cocos = curves.load_study(args.checkpoint, root, args.records, names, args.limit, say)
    costs, passing = curves.read_times(config.resolve(args.times), found["test"].exit_names, args.checkpoint)
    # a guarantee may look at calibrate once only, so its loss rests on the scores as they are
    method = "none" if levels else values["calibration"]
    splits = prepare(found, cocos, costs, method, args.calibrate_on, passing=passing)
    here, test, stated = splits[args.calibrate_on], splits["test"], {}
    if levels:
        settings = guarantee.sequence(splits["val"])
        stated = guarantee.certify(here, settings, *levels, values["bound"])
        setting = settings[stated["index"]] if stated["thresholds"] else Setting((1.0,) * (len(costs) - 1), never)
        chosen = setting.route(test)
        stated["risk_on_test"] = float(guarantee.loss_against_full(test.f1, chosen).mean())
    else:
        settings = policies.settings_of(args.policy, here, splits["val"], values)
        if args.thresholds:
            setting = replace(settings[0], thresholds=tuple(args.thresholds))
        else:
            setting, stated = curves.choose(settings, here, [args.budget])[0], {"budget": args.budget}
        chosen = setting.route(test)
        stated |= {"policy": args.policy, "thresholds": list(setting.thresholds)}
    weights = resample(test.scenes, args.resamples, seed=0)
    measured = curves.point(test, chosen, weights, curves.full_samples(test, weights), setting.reads_boxes)
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


def print_speed(checkpoint: str) -> int:
    """Time of the AP of a routing on test: merged match flags, pycocotools, hotcoco."""
    found, cocos = curves.load_study(
        checkpoint, config.resolve("data/showroom"), config.ROOT / "runs" / "records", ("test",)
    )
    speed = ap_speed(RoutedAP(found["test"], cocos["test"]), found["test"], cocos["test"])
    for name in ("merge", "pycocotools", "hotcoco"):
        ms = speed[f"{name}_ms"]
        taken = "not installed" if ms is None else f"{ms:9.2f} ms   {ms / speed['merge_ms']:8.1f} x merge"
        print(f"{name:12} {taken}")
    print(f"merge differs from pycocotools by {speed['largest_difference']:.1e}")
    return 0
