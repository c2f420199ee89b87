"""What 05d_policies says in words, made from its numbers: the table of policies and the sentences that read it."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from eelib.routed_ap import interval
from eelib.routing import exit_shares
from studies.hull import above
from studies.routing.bounds import Curve, Recovered
from studies.routing.experiments import COMPLEX
from studies.routing.published import SOURCES
from studies.routing.study import Study


def between(pair: Sequence[float] | None) -> str:
    """An interval in text."""
    return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"


def nearest(curve: Curve, budget: float) -> dict:
    """The point of a policy at a budget."""
    return min(curve.points, key=lambda point: abs(point["budget"] - budget))


def latencies(curve: Curve, key: str) -> str:
    """At how many distinct routings of a policy a verdict holds, of those that have one."""
    verdicts = {point["time_ratio"]: point[key] for point in curve.points if point.get(key) is not None}
    return f"{sum(verdicts.values())} of {len(verdicts)}" if verdicts else ""


def policies_table(
    curves: Mapping[str, Curve], shares: Mapping[str, Recovered], budget: float, older: Mapping | None = None
) -> pd.DataFrame:
    """A line for each policy, the one that recovers most first; AP and time are those at a budget.

    Args:
        older: ``routing.json`` of the same computation with the instructions of an older processor.
    """
    lines = []
    for name in sorted(curves, key=lambda name: -shares[name].share):
        point, curve = nearest(curves[name], budget), curves[name]
        line = {"policy": name, "kind": "complex" if name in COMPLEX else "simple", "source": SOURCES.get(name, "ours")}
        line |= {"share recovered": shares[name].share, "share recovered, 95 %": between(shares[name].interval)}
        if older:
            line["on an older processor"] = older["policies"][name]["recovered"]
        line |= {"time": point["time_ratio"], "AP": point["AP"], "AP, 95 %": between(point["AP_interval"])}
        line |= {"AP of the coin": point["coin"], "AP minus coin, 95 %": between(point["AP_minus_coin_interval"])}
        line |= {"above the coin": latencies(curve, "above_coin")}
        lines.append(line | {"above the hull": latencies(curve, "above_static")})
    return pd.DataFrame(lines)


def processors_read(shares: Mapping[str, float], older: Mapping | None) -> list[str]:
    """How far the shares that policies recover depend on the processor, and which policies therefore have no order."""
    if older is None:
        return ["What another processor's rounding changes was not measured."]
    other = {name: older["policies"][name]["recovered"] for name in shares}
    change = {name: abs(other[name] - share) for name, share in shares.items()}
    most = max(change, key=change.__getitem__)
    rest = max(value for name, value in change.items() if name != most)
    swapped = [
        f"{_named([a])} and {_named([b])}"
        for a, b in combinations(shares, 2)
        if (shares[a] - shares[b]) * (other[a] - other[b]) <= 0
    ]
    order = f"is not the same for {', '.join(swapped)}: none is said to be better" if swapped else "stays the same"
    return [
        "The same computation with the instructions of an older processor (AVX without fused multiply-add) rounds "
        f"differently: the share that {_named([most])} recovers changes by {change[most]:.3f}, every other by "
        f"{rest:.3f} or less. The order {order}."
    ]


def pays(curves: Mapping[str, Curve], kind: str) -> str:
    """Which policies lie above the coin or the hull of static detectors, and where."""
    what = {"coin": "the coin of the exits", "static": "the hull of static detectors"}[kind]
    points = [(name, p) for name, curve in curves.items() for p in curve.points if p.get(f"above_{kind}") is not None]
    distinct = {(name, p["time_ratio"]): p for name, p in points}
    there = {key: p for key, p in distinct.items() if p[f"above_{kind}"]}
    key = "AP_minus_coin_interval" if kind == "coin" else "minus_static"
    below = sum(p[key][1] < 0 for p in distinct.values())
    sentence = f"Of {len(distinct)} routed points {len(there)} lie above {what} and {below} below it"
    if not there:
        return f"{sentence}; no policy is above it at any latency that was tried."
    (name, time), best = max(there.items(), key=lambda item: item[1][key][0])
    names = ", ".join(dict.fromkeys(name for name, _ in there))
    return (
        f"{sentence}; above it are points of {names}, the clearest of {name} at {time:.3f} "
        f"with AP {best['AP']:.3f}, {best[key][0]:+.3f} to {best[key][1]:+.3f}."
    )


def ranked(shares: Mapping[str, Recovered], names: Sequence[str]) -> str:
    """What policies recover, the least first, with intervals."""
    ordered = sorted(names, key=lambda name: shares[name].share)
    return ", ".join(f"{n} {shares[n].share:+.2f} ({between(shares[n].interval)})" for n in ordered)


def simple_or_complex(shares: Mapping[str, Recovered]) -> list[str]:
    """Takeaway 1 of the phase comparison, "simple > complex", judged by what all policies recover.

    The complex one that the simple ones are compared with, the benefit, was named beforehand.
    """
    simple = [name for name in shares if name not in COMPLEX]
    hard = [name for name in shares if name in COMPLEX]
    verdicts: dict[str, list[str]] = {"below": [], "above": [], "undecided": []}
    for name in simple:
        difference = shares[name].samples - shares["benefit"].samples
        side = "above" if above(difference) else "below" if above(-difference) else "undecided"
        verdicts[side].append(name)
    fixed = interval(shares["fixed"].samples - shares["benefit"].samples) if "fixed" in shares else None
    best = max(simple, key=lambda name: shares[name].share)
    lines = [
        'The phase comparison concludes that simple policies beat complex ones ("simple > complex"). A policy is '
        "called complex here if it learns more than its thresholds from data."
    ]
    counts = {side: f"{len(names)} ({_named(names)})" if names else "none" for side, names in verdicts.items()}
    lines.append(
        f"Compared with the benefit router, the best of the complex ones, {counts['above']} of {len(simple)} simple "
        f"policies recover clearly more (the whole 95 % interval of the difference is above 0), {counts['below']} "
        f"clearly less, and for {counts['undecided']} the difference is not clear."
    )
    worse = [name for name in hard if above(shares[best].samples - shares[name].samples)]
    lines.append(
        f"The best simple policy, {_named([best])}, recovers clearly more than {len(worse)} of {len(hard)} complex ones"
        + (f" ({_named(worse)})." if worse else ".")
    )
    if fixed:
        side = "less" if fixed[1] < 0 else "more" if fixed[0] > 0 else "not clearly more or less"
        lines.append(
            f"Fixed thresholds, which the recorded phases use, recover {side} than the benefit router: the difference "
            f"is {between(fixed)}."
        )
    verdict = {
        (True, True): "depends on the rule",
        (True, False): "holds: no simple policy is worse, and some are better",
        (False, True): "does not hold: no simple policy is better, and some are worse",
        (False, False): "is neither shown nor refuted: no difference is clear",
    }[bool(verdicts["above"]), bool(verdicts["below"])]
    return [*lines, f"Beside the benefit router, the conclusion {verdict}."]


def _named(policies: Sequence[str]) -> str:
    return ", ".join(policies).replace("_", " ")


def exits_read(study: Study) -> str:
    """What each exit costs and gives, and where that was measured."""
    parts = [
        f"{name} answers in {time:.3f} of the time with AP {ap:.3f}"
        for name, time, ap in zip(study.model.exit_names, study.times.costs, study.judge.ap, strict=True)
    ]
    return f"On {study.times.machine}, 1.00 being {study.times.unit}: {', '.join(parts)}."


def scores_read(scores: Mapping, used: str) -> str:
    """What calibration does to the scores."""
    before, after = scores["none"], scores[used]
    parts = [f"{n} {before['exits'][n]['d_ece']:.3f} to {row['d_ece']:.3f}" for n, row in after["exits"].items()]
    halved = all(row["d_ece"] <= before["exits"][n]["d_ece"] / 2 for n, row in after["exits"].items())
    return (
        f"{used} takes the calibration error of {', '.join(parts)}: {'' if halved else 'not '}every one is halved. "
        f"AP of the random mix goes from {before['AP_mix']:.3f} to {after['AP_mix']:.3f}."
    )


def published_read(curves: Mapping[str, Curve], shares: Mapping[str, Recovered]) -> str:
    """How the published routers stand."""
    names = [name for name in SOURCES if name in shares]
    clear = [name for name in names if any(point["above_coin"] for point in curves[name].points)]
    return (
        f"Published routers recover, the least first: {ranked(shares, names)}. Above the coin with the whole interval "
        f"at some latency: {', '.join(clear) or 'none'}."
    )


def goal_read(goal: Mapping, goals: Mapping, full_ap: float) -> list[str]:
    """The goal of routing beside what was reached."""
    relative = goal["AP_minus_full"] / max(full_ap, 1e-9)
    met = goal["time_to_full"] <= goals["time"] and relative >= goals["AP"]
    low, high = goal["AP_minus_coin_interval"]
    return [
        f"{goal['policy']}, at thresholds that lose at most {goals['loss']:.0%} of full's AP on calibrate: "
        f"{goal['time_to_full']:.3f} of full's time (goal {goals['time']:g}), which is {goal['time_ratio']:.3f} of the "
        f"plain detector's; AP on test changes by {relative:+.1%} (goal {goals['AP']:+.1%}). The goal is "
        f"{'met' if met else 'missed'}.",
        f"The coin of the same time is at {goal['coin']:.3f}, so the router adds {goal['AP_minus_coin']:+.3f} "
        f"({low:+.3f} to {high:+.3f}).",
    ]


def left_at(chosen: np.ndarray, names: Sequence[str]) -> str:
    """Shares of the images at each exit."""
    shares = exit_shares(chosen, len(names))
    return ", ".join(f"{share:.0%} to {name}" for name, share in zip(names, shares, strict=True)) + "."


def foresight_read(
    policy: str, share: Recovered, seen: Sequence[float], between_seeds: Sequence[float] | None, needed: float | None,
    goal: float
) -> str:  # fmt: skip
    """How well gains are foreseen, and what the goal would take."""
    seeds = f"; another seed of the training foresees it with {_pair(between_seeds)}" if between_seeds else ""
    takes = f"from {needed:.2f} on" if needed else "at no correlation that was tried"
    return (
        f"The evidence foresees the gain of full with a rank correlation of {_pair(seen)} at the early exits{seeds}. "
        f"A noisy oracle reaches the goal of {goal:g} {takes}; {policy} recovers {share.share:.2f} "
        f"({between(share.interval)})."
    )


def _pair(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)


def guarantee_read(answer: Mapping) -> list[str]:
    """What is certified, and how often it failed on resplits."""
    stated, lines = answer["stated"], []
    if stated["thresholds"]:
        lines.append(
            f"Certified on {stated['n']} images: with probability {1 - stated['delta']:g} F1 falls by "
            f"{stated['epsilon']:g} or less on average, at {stated['time_ratio']:.3f} of the plain detector's time. "
            f"The mean loss is {stated['risk']:.4f} on calibrate and {stated['risk_on_test']:.4f} on test."
        )
    else:
        lines.append(f"No threshold could be certified on {stated['n']} images, so all take full.")
    for name, half in answer["resplits"].items():
        low, high = half["interval"]
        lines.append(
            f"The {name} threshold was violated in {half['violations']} of {answer['rounds']} resplits "
            f"({low:.3f} to {high:.3f}), where {stated['delta']:g} is allowed."
        )
    return lines


def metrics(curves: Mapping[str, Curve], shares: Mapping[str, Recovered], goal: dict) -> dict:
    """What ``routing.json`` holds of the policies and the goal."""
    policies = {
        name: {"points": curve.points, "recovered": shares[name].share, "recovered_interval": shares[name].interval}
        | {"source": SOURCES.get(name), "complex": name in COMPLEX}
        for name, curve in curves.items()
    }
    return {"policies": policies, "goal": goal}
