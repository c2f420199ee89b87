"""What the switches of a phase predict, checked against a run: no phase is named, its switches decide.

A check is a sentence and numbers, each with the interval that the prediction leaves it; it holds where every number
lies inside. Each check looks at the configuration, and says nothing when its switches are absent.
"""

import math
from itertools import pairwise

import torch

from eelib.fit import learning_rate_factor
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.loss import first_exit_of_groups, scheduled_thresholds

EARLY = EXIT_NAMES[:2]
SHARE_TOLERANCE = 0.05  # of an exit share, before it counts as another than the recorded one
CONFIDENCE_BAND = 0.05  # around the confidence that the mean probability alone gives; beside the record as well
TEMPERATURE_BAND = 0.1  # share of the recorded temperature
RATE_BAND, GAP_BAND = 0.02, 0.005  # around 1.6's soft rates, and confidence minus threshold
RUNAWAY = 10.0  # T1 that counts as run away: three times the later clamp; the record has 24.56
STANDARD_ERRORS = 4.0  # of a drawn rate
FACTOR_BAND = 0.01  # share of the gate's factor


def check_mechanisms(config: PhaseConfig, run: dict, history: list[dict]) -> list[dict]:
    """All checks that the switches of a phase call for, the most specific first.

    Args:
        run: what :func:`studies.phases.scorecard.summarise` gave.
        history: rows of the training, one an epoch.
    """
    checks = (
        *(_unmoved_thresholds, _soft_optimum, _tautology, _shut_gate, _gate_factor, _untrained_warm_up),
        *(_column_pairs, _uniform_field, _logistic_rate, _runaway_temperature),
    )
    results = (check(config, run, history) for check in checks)
    return [result for result in results if result is not None]


def _result(
    prediction: str, expected: dict[str, tuple[float, float]], measured: dict[str, float | None], otherwise: str
) -> dict:
    """A check; ``otherwise`` is the reason that stands beside numbers outside their interval."""
    result = {"prediction": prediction, "predicted": {k: list(v) for k, v in expected.items()}, "measured": measured}
    return result | {"otherwise": otherwise, "holds": all(inside(result, key) for key in expected)}


def inside(check: dict, key: str) -> bool:
    """Whether a number of a check lies in its predicted interval; what never happened lies in none."""
    value, (low, high) = check["measured"][key], check["predicted"][key]
    return value is not None and low <= value <= high


def _around(value: float, band: float) -> tuple[float, float]:
    return value - band, value + band


def _distribution_on(config: PhaseConfig, kind: str) -> bool:
    return config.loss.exit_distribution > 0 and config.loss.exit_rates == kind


def _unmoved_thresholds(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.5: a comparison has no derivative."""
    if config.thresholds.kind != "parameter" or not _distribution_on(config, "hard"):
        return None
    expected = {f"threshold_{n}": _around(float(torch.tensor(getattr(config.thresholds, n))), 0.0) for n in EARLY}
    text = "No gradient reaches a threshold behind a comparison: both end exactly at their initial float32 values."
    measured = {f"threshold_{name}": run["thresholds"][name] for name in EARLY}
    return _result(text, expected, measured, "Something else than a gradient moved a threshold.")


def _soft_optimum(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.6."""
    if config.thresholds.kind != "parameter" or not _distribution_on(config, "soft"):
        return None
    slope, (r1, r2), last = config.loss.exit_slope[1], config.loss.exit_targets, history[-1]
    expected, measured = {}, {}
    for name, rate, share in zip(EARLY, (r1, r2), (r1, r2 / (1 - r1)), strict=True):
        expected[f"soft_rate_{name}"] = _around(rate, RATE_BAND)
        expected[f"confidence_minus_threshold_{name}"] = _around(math.log(share / (1 - share)) / slope, GAP_BAND)
        expected[f"hard_rate_{name}"] = (0.0, 0.0)
        measured |= {f"{kind}_rate_{name}": run["train_rates"][f"{kind}_{name}"] for kind in ("soft", "hard")}
        measured[f"confidence_minus_threshold_{name}"] = last[f"confidence_{name}"] - last[f"threshold_{name}"]
    text = "The soft rates reach their targets while every image stays below its threshold: hard rates are 0."
    why = "The confidence of single batches still varies by more than its distance from the threshold."
    return _result(text, expected, measured, why)


def _tautology(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, sections B.0, B.2 and B.7."""
    epochs = max(1, config.optim.epochs)
    highest = max(scheduled_thresholds(config.thresholds, epoch, epochs)[0] for epoch in range(epochs))
    least = config.confidence.infimum
    if config.thresholds.kind == "parameter" or not least or highest > least:
        return None
    measured = min([row["val_share_exit1"] for row in history] + [run["exit_shares"]["exit1"]])
    text = f"The rule gives {least:.4g} or more, and no threshold exceeds {highest:.4g}: all images leave at exit1."
    why = "The rule or the schedule is not the recorded one."
    return _result(text, {"least_share_exit1": (1.0, 1.0)}, {"least_share_exit1": measured}, why)


def _shut_gate(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.8: an absorbing state."""
    if config.confidence.gate != "hard_count":
        return None
    expected, measured = {}, {}
    for name in EARLY:
        shut = [row[f"confidence_{name}"] == 0 for row in history]  # in training mode: where the gradient flows
        first = shut.index(True) if any(shut) else None
        expected |= {f"shut_from_epoch_{name}": (1, len(history)), f"epochs_open_afterwards_{name}": (0, 0)}
        measured[f"shut_from_epoch_{name}"] = None if first is None else first + 1
        measured[f"epochs_open_afterwards_{name}"] = shut[first or 0 :].count(False)
    text = "The gate shuts at both exits; it multiplies the gradient by 0 too, so it never opens again."
    rule, p = config.confidence, run["probability_mean"]["exit1"]
    why = f"In some images {rule.min_count} boxes or more stay above {rule.cut}; the mean probability is {p:.3f}."
    # the confidence is the mean probability where the gate is open, and 0 elsewhere
    after = [row for row in history[measured["shut_from_epoch_exit1"] or len(history) :] if row["confidence_exit1"]]
    if after:
        share = sum(row["confidence_exit1"] for row in after) / sum(row["probability_exit1"] for row in after)
        why += f" In the epochs in which exit1's gate is open again, it is so for about {share:.2%} of the images."
    return _result(text, expected, measured, why)


def _gate_factor(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.9."""
    rule = config.confidence
    if rule.gate != "sigmoid_of_count":
        return None
    factor = 1 / (1 + math.exp(rule.gate_slope * rule.min_count))
    measured = {f"gate_factor_{n}": run["confidence_mean"][n] / run["probability_mean"][n] for n in EARLY}
    text = f"No box scores above {rule.cut}: the confidence is {factor:.5f}, the gate at 0, times the mean probability."
    expected = {key: _around(factor, FACTOR_BAND * factor) for key in measured}
    why = f"More than {rule.min_count} boxes are above {rule.cut}: the gate is open.{_counted(run)}"
    return _result(text, expected, measured, why)


def _counted(run: dict) -> str:
    counts = run.get("boxes_above_cut")  # older runs did not count
    if not counts:
        return ""
    return f" Above it are {counts['exit1']:,.0f} of an image's 2,400 boxes at exit1, {counts['exit2']:,.0f} at exit2."


def _untrained_warm_up(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.9 and check 7 of B.11: routing losses of weight 0 leave weight decay alone to act."""
    factors, optim = config.loss.early_weight_by_epoch, config.optim
    epochs = next((e for e, factor in enumerate(factors) if factor), len(factors))
    if not epochs or config.temperature.clamp == "parameter" or epochs > len(history):
        return None
    value, steps = config.temperature.start[0], run["steps"] // optim.epochs
    for epoch in range(epochs):
        lr = config.temperature.lr * learning_rate_factor(epoch, optim.epochs, 0, 0.0)
        value *= (1 - lr * config.temperature.weight_decay) ** steps
    key = f"temperature_exit1_after_{epochs}_epochs"
    text = f"For {epochs} epochs images are routed by untrained exits, and only weight decay moves exit1's temperature."
    measured = {key: history[epochs - 1]["temperature_exit1"]}
    return _result(text, {key: _around(value, 2e-5)}, measured, "A routing loss moved it.")


def _column_pairs(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, sections B.0 and B.1."""
    targets = config.targets
    if (targets.assignment, targets.class_layout, config.confidence.rule) != ("background", "column_pairs", "entropy"):
        return None
    measured = {"loss_full": history[-1]["loss_full"], "confidence_full": run["confidence_mean"]["full"]}
    measured["share_full"] = run["exit_shares"]["full"]
    expected = {"loss_full": (0.0, 0.1 * math.log(2)), "confidence_full": (0.0, 0.1), "share_full": (1.0, 1.0)}
    text = "The class loss, on pairs of columns, falls to 0; the confidence, on pairs of channels, stays near 0: "
    text += "no image leaves early."
    return _result(text, expected, measured, "The class loss has not learnt to count columns yet.")


def _uniform_field(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.0: a scalar against a rule."""
    if config.confidence.rule != "counted":
        return None
    p = torch.tensor([[run["probability_mean"][name]] * 2400 for name in EXIT_NAMES])
    c = confidence(p, config.confidence)
    chosen = EXIT_NAMES[int(first_exit_of_groups(c[None], tuple(run["thresholds"].values())))]
    expected = {f"confidence_{n}": _around(float(v), CONFIDENCE_BAND) for n, v in zip(EARLY, c, strict=False)}
    measured = {f"confidence_{n}": run["confidence_mean"][n] for n in EARLY}
    text = f"The mean probability alone decides the exit: put into the rule, it sends every image to {chosen}."
    share = {f"share_{chosen}": run["exit_shares"][chosen]}
    why = "The boxes' probabilities are not one number here: those above the cut have another mean than all."
    why += _counted(run)
    return _result(text, {f"share_{chosen}": (0.99, 1.0)} | expected, share | measured, why)


def _logistic_rate(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.7 and check 2 of B.11."""
    if not _distribution_on(config, "gumbel"):
        return None
    expected = sum(row["logistic_exit1"] for row in history) / len(history)
    drawn = sum(row["rate_exit1"] for row in history) / len(history)
    draws = run["steps"] * config.optim.batch_size
    error = max(math.sqrt(expected * (1 - expected) / draws), 1 / draws)
    text = "Over the training, sampled exit rates follow the logistic function of 20 × (confidence − threshold)."
    band = {"rate_exit1": _around(expected, STANDARD_ERRORS * error)}
    return _result(text, band, {"rate_exit1": drawn}, "The draws are not the logistic's.")


def _runaway_temperature(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.7: the wanted rate is out of reach, so T1 grows as far as Adam's steps carry it."""
    if not _distribution_on(config, "gumbel") or config.confidence.rule not in ("mean_max", "split_max"):
        return None
    most = config.temperature.start[0] + temperature_budget(config, run)
    text = "The rule cannot give the target exit rate, so exit1's temperature grows as long as Adam takes steps."
    expected = (RUNAWAY, most)
    why = f"{run['steps']:,} steps carry it to {most:.3g} at most, each of them full and upwards."
    if config.temperature.clamp != "none":
        bound = config.temperature.bounds[1]
        text = f"The rule cannot give the target exit rate: exit1's temperature rises until it is held at {bound}."
        expected = _around(bound, 1e-6)
    path = [row["temperature_exit1"] for row in history]
    falling = sum(after < before for before, after in pairwise(path[len(path) // 2 :]))
    measured = {"temperature_exit1": path[-1], "epochs_falling_late": falling}
    return _result(text, {"temperature_exit1": expected, "epochs_falling_late": (0, 0)}, measured, why)


def temperature_budget(config: PhaseConfig, run: dict) -> float:
    """How far Adam's steps can carry a temperature in a whole training, about: the sum of its learning rates."""
    epochs = config.optim.epochs
    factors = [learning_rate_factor(epoch, epochs, 0, 0.0) for epoch in range(epochs)]
    return config.temperature.lr * run["steps"] / epochs * sum(factors)


def agrees(run: dict, recorded: dict) -> bool | None:
    """Whether every exit share is within five points of the recorded one; None where nothing is on record."""
    if not recorded:
        return None
    return all(abs(run["exit_shares"][n] - recorded["exit_shares"][n]) <= SHARE_TOLERANCE for n in EXIT_NAMES)


def explain_difference(config: PhaseConfig, run: dict, recorded: dict) -> str | None:
    """Which of our numbers are not the recorded ones, and why; None where all of them agree.

    Shares agree within five points, confidences within 0.05, temperatures within a tenth.
    """
    if not recorded:
        return None
    parts = []
    if not agrees(run, recorded):
        shares = ((n, run["exit_shares"][n], recorded["exit_shares"][n]) for n in EXIT_NAMES)
        parts.append("the exit shares: " + ", ".join(f"{n} {ours:.0%} (recorded {old:.0%})" for n, ours, old in shares))
    for word, key, ours, band in (
        ("confidence", "confidence", run["confidence_mean"], lambda old: CONFIDENCE_BAND),
        ("temperature", "temperature", run["temperature"], lambda old: TEMPERATURE_BAND * old),
    ):
        pairs = [(n, ours[n], old) for n, old in recorded[key].items() if n in EARLY]
        far = [f"{n} ({new:.3g}, recorded {old:.3g})" for n, new, old in pairs if abs(new - old) > band(old)]
        parts += [f"the {word} of {' and '.join(far)}"] if far else []
    if not parts:
        return None
    lines = [f"Our run differs from the record in {' and in '.join(parts)}."]
    if not agrees(run, recorded):
        levels = (f"{n} {run['confidence_mean'][n]:.4f} against {t:.4f}" for n, t in run["thresholds"].items())
        lines.append(f"Confidences against thresholds at the end: {', '.join(levels)}.")
    p = run["probability_mean"]["exit1"]
    images = f"{run['train_images']:,} images" if run["train_images"] else "all training images that show a chair"
    trunk = "trained" if config.model.train_trunk else "frozen"
    lines.append(
        f"The mean chair probability at exit1 is {p:.3f}. This training had {run['steps']:,} steps on {images} "
        f"with a {trunk} trunk, in which a temperature can move by at most {temperature_budget(config, run):.3g}."
    )
    return " ".join(lines)


def explain_unmet(checks: list[dict]) -> str | None:
    """Which predictions do not hold in a run, in numbers, and why; None where all of them hold."""
    lines = []
    for check in checks:
        if not check["holds"]:
            outside = [key for key in check["predicted"] if not inside(check, key)]
            values = (f"{quantity(k)} is {said(check, k)}, but {wanted(check, k)} was predicted" for k in outside)
            lines.append(f'One prediction fails ("{check["prediction"]}"): {"; ".join(values)}. {check["otherwise"]}')
    return " ".join(lines) or None


def quantity(key: str) -> str:
    """A measured key as words: ``confidence_exit1`` is "confidence of exit1"."""
    name = next((name for name in EXIT_NAMES if key.endswith(f"_{name}")), None)
    return f"{key.removesuffix(f'_{name}').replace('_', ' ')} of {name}" if name else key.replace("_", " ")


def _digits(check: dict, key: str) -> int:
    """Four, or as many as tell the ends of the interval apart."""
    low, high = check["predicted"][key]
    return next((d for d in range(4, 9) if low == high or f"{low:.{d}g}" != f"{high:.{d}g}"), 9)


def said(check: dict, key: str) -> str:
    """What was measured; "never" for what did not happen."""
    value = check["measured"][key]
    return "never" if value is None else f"{value:.{_digits(check, key)}g}"


def wanted(check: dict, key: str) -> str:
    """The predicted interval as words."""
    low, high = check["predicted"][key]
    if low > high:
        return f"{low:.4g} or more"
    digits = _digits(check, key)
    return f"{low:.{digits}g}" if low == high else f"{low:.{digits}g} to {high:.{digits}g}"
