"""``eelib route``: thresholds for a budget of time or with a guarantee, and what they give on test."""

import argparse
import json
import sys

from eelib import data_command
from eelib.guarantee import GuaranteeError
from eelib.routers import RouterOptions, certify, route


def run(args: argparse.Namespace) -> int:
    """Run the command: choose on calibrate, measure on test, print."""
    levels = _levels(args.guarantee) if args.guarantee else None
    options = RouterOptions(
        calibrate_on=args.calibrate_on, calibration=args.calibration, grid=args.grid, gate_epsilon=args.gates,
        times=args.times, records=args.records, limit=args.limit, resamples=args.resamples,
        progress=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    source = data_command.option_source(args)
    if levels:
        system = certify(args.checkpoint, source, **levels, bound=args.bound, options=options)
    else:
        system = route(args.checkpoint, source, args.policy, args.budget, args.thresholds, options)
    if args.out:
        system.router.save(args.out)
    answer = system.stated | system.measured | {"comparison": system.comparison, "notes": system.notes}
    print(json.dumps(answer) if args.json else _text(answer))
    return 0


def _levels(pairs: list[str]) -> dict[str, float]:
    """Epsilon and delta from ``epsilon=0.05 delta=0.1``."""
    try:
        given = {key: float(value) for key, value in (pair.split("=") for pair in pairs)}
    except ValueError:
        given = {}
    if given.keys() != {"epsilon", "delta"}:
        raise GuaranteeError(f"--guarantee {' '.join(pairs)}: expected epsilon=NUMBER delta=NUMBER")
    return given


def _text(answer: dict) -> str:
    """The answer as aligned lines."""
    lines = []
    if "epsilon" in answer:
        lines.append(
            f"guarantee    mean loss <= {answer['epsilon']} with probability {1 - answer['delta']:g} "
            f"({answer['bound']}, n = {answer['n']}, p = {answer['p_value']:.3g}); on test {answer['risk_on_test']:.4f}"
        )
    thresholds = [f"exit{k + 1} {t:.4f}" for k, t in enumerate(answer["thresholds"] or ())]
    lines.append("thresholds   " + ("  ".join(thresholds) or "none certified: all images take full"))
    lines.append("exit shares  " + "  ".join(f"{name} {share:.3f}" for name, share in answer["exit_shares"].items()))
    low, high = answer["AP_interval"]
    lines.append(f"AP on test   {answer['AP']:.4f}  [{low:.4f}, {high:.4f}]  AP50 {answer['AP50']:.4f}")
    low, high = answer["AP_minus_full_interval"]
    lines.append(f"beside full  {answer['AP_minus_full']:+.4f}  [{low:+.4f}, {high:+.4f}]")
    lines.append(f"time ratio   {answer['time_ratio']:.3f}")
    if "gates" in answer:
        gates, on_test = answer["gates"], answer["gates_on_test"]
        lines.append(
            f"blank gates  objects lost <= {gates['epsilon']} with probability {1 - gates['delta']:g}; on test "
            f"{on_test['risk']:.4f}, of the empty images {on_test['blank_ended']:.0%} end"
        )
    here = answer["comparison"]
    for other in ({"name": "this router"} | here, *here["exits"], here["coin"]):
        lines.append(f"on {here['split']}  AP {other['AP']:.4f} at {other['time_ratio']:.3f}  {other['name']}")
    lines += [f"note: {note}" for note in answer["notes"]]
    return "\n".join(lines)
