"""What the switches of a phase predict, checked against a run: no phase is named, its switches decide.

Each check looks at the configuration, and says nothing when its switches are absent. Otherwise it
returns ``prediction`` (a sentence), ``predicted`` and ``measured`` (values by name) and ``holds``.
"""

import math

import torch

from eelib.fit import learning_rate_factor
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, PhaseConfig
from studies.phases.loss import first_exit_of_groups, scheduled_thresholds

EARLY = EXIT_NAMES[:2]
SHARE_TOLERANCE = 0.05  # of an exit share, before a difference from the record is explained


def check_mechanisms(config: PhaseConfig, run: dict, history: list[dict]) -> list[dict]:
    """All checks that the switches of a phase call for, the most specific first.

    Args:
        config: the phase.
        run: what :func:`studies.phases.scorecard.measure_phase` gave.
        history: rows of the training, one an epoch.
    """
    checks = (
        *(_unmoved_thresholds, _soft_optimum, _tautology, _shut_gate, _gate_factor, _untrained_warm_up),
        *(_column_pairs, _uniform_field, _logistic_rate, _runaway_temperature),
    )
    results = (check(config, run, history) for check in checks)
    return [result for result in results if result is not None]


def _result(prediction: str, predicted: dict, measured: dict, holds: bool) -> dict:
    return {"prediction": prediction, "predicted": predicted, "measured": measured, "holds": bool(holds)}


def _distribution_on(config: PhaseConfig, kind: str) -> bool:
    return config.loss.exit_distribution > 0 and config.loss.exit_rates == kind


def _unmoved_thresholds(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.5: a comparison has no derivative."""
    if config.thresholds.kind != "parameter" or not _distribution_on(config, "hard"):
        return None
    start = {name: float(torch.tensor(getattr(config.thresholds, name))) for name in EARLY}
    text = "No gradient reaches a threshold behind a comparison: both end on the float32 of their start."
    return _result(text, start, run["thresholds"], run["thresholds"] == start)


def _soft_optimum(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.6."""
    if config.thresholds.kind != "parameter" or not _distribution_on(config, "soft"):
        return None
    slope, (r1, r2), last = config.loss.exit_slope[1], config.loss.exit_targets, history[-1]
    gaps = [math.log(r / (1 - r)) / slope for r in (r1, r2 / (1 - r1))]
    predicted = {"soft_exit1": r1, "soft_exit2": r2, "hard_exit1": 0.0, "hard_exit2": 0.0}
    measured = {key: run["train_rates"][key] for key in predicted}
    holds = all(
        abs(measured[f"soft_{n}"] - r) < 0.02 and measured[f"hard_{n}"] < 0.05
        for n, r in zip(EARLY, (r1, r2), strict=True)
    )
    predicted |= {f"gap_{name}": gap for name, gap in zip(EARLY, gaps, strict=True)}
    measured |= {f"gap_{n}": last[f"confidence_{n}"] - last[f"threshold_{n}"] for n in EARLY}
    text = "Soft rates reach their targets while every image stays below its threshold: hard rates are 0."
    return _result(text, predicted, measured, holds)


def _tautology(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, sections B.0, B.2 and B.7."""
    epochs = max(1, config.optim.epochs)
    highest = max(scheduled_thresholds(config.thresholds, epoch, epochs)[0] for epoch in range(epochs))
    least = config.confidence.infimum
    if config.thresholds.kind == "parameter" or not least or highest > least:
        return None
    measured = min([row["val_share_exit1"] for row in history] + [run["exit_shares"]["exit1"]])
    text = f"The rule cannot give less than {least:.4g}, no threshold exceeds {highest:.4g}: all images leave at exit1."
    return _result(text, {"least_exit1_share": 1.0}, {"least_exit1_share": measured}, measured == 1.0)


def _shut_gate(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.8: an absorbing state."""
    if config.confidence.gate != "hard_count":
        return None
    measured, holds = {}, True
    for name in EARLY:
        shut = [row[f"confidence_{name}"] == 0 for row in history]  # in training mode: where the gradient flows
        first = shut.index(True) if any(shut) else None
        reopened = 0 if first is None else shut[first:].count(False)
        measured |= {f"shut_from_epoch_{name}": None if first is None else first + 1, f"reopened_{name}": reopened}
        holds = holds and first is not None and reopened == 0
    predicted = {f"reopened_{name}": 0 for name in EARLY}
    text = "The gate shuts at both exits; it multiplies the gradient by 0 too, so it never opens again."
    return _result(text, predicted, measured, holds)


def _gate_factor(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.9."""
    rule = config.confidence
    if rule.gate != "sigmoid_of_count":
        return None
    factor = 1 / (1 + math.exp(rule.gate_slope * rule.min_count))
    measured = {f"factor_{n}": run["confidence_mean"][n] / run["probability_mean"][n] for n in EARLY}
    holds = all(abs(value / factor - 1) < 0.01 for value in measured.values())
    text = f"No box is above {rule.cut}: the confidence is the mean probability times {factor:.5f}, the gate at 0."
    return _result(text, {key: factor for key in measured}, measured, holds)


def _untrained_warm_up(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.9 and check 7 of B.11: routing losses of weight 0 leave weight decay alone to act."""
    factors, optim = config.loss.early_weight_by_epoch, config.optim
    epochs = next((e for e, factor in enumerate(factors) if factor), len(factors))
    if not epochs or config.temperature.clamp == "parameter" or epochs > len(history):
        return None
    expected, steps = config.temperature.start[0], run["steps"] // optim.epochs
    for epoch in range(epochs):
        lr = config.temperature.lr * learning_rate_factor(epoch, optim.epochs, 0, 0.0)
        expected *= (1 - lr * config.temperature.weight_decay) ** steps
    measured = {"temperature_exit1": history[epochs - 1]["temperature_exit1"]}
    measured["exit1_share_by_epoch"] = [row["val_share_exit1"] for row in history[: epochs + 1]]
    text = f"For {epochs} epochs untrained exits are routed, and T1 moves by weight decay alone."
    holds = abs(measured["temperature_exit1"] - expected) < 2e-5
    return _result(text, {"temperature_exit1": expected}, measured, holds)


def _column_pairs(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, sections B.0 and B.1."""
    targets = config.targets
    if (targets.assignment, targets.class_layout, config.confidence.rule) != ("background", "column_pairs", "entropy"):
        return None
    first, last = history[0]["loss_full"], history[-1]["loss_full"]
    measured = {"full_loss_first": first, "full_loss_last": last, "confidence_full": run["confidence_mean"]["full"]}
    measured["full_share"] = run["exit_shares"]["full"]
    predicted = {"full_loss_last": 0.0, "confidence_full": 0.0, "full_share": 1.0}
    holds = last < 0.1 * math.log(2) and measured["confidence_full"] < 0.1 and measured["full_share"] == 1.0
    text = "The class loss goes to 0 on column pairs, the confidence on channel pairs stays near 0: nobody leaves."
    return _result(text, predicted, measured, holds)


def _uniform_field(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.0: a scalar against a rule."""
    if config.confidence.rule != "counted":
        return None
    p = torch.tensor([[run["probability_mean"][name]] * 2400 for name in EXIT_NAMES])
    c = confidence(p, config.confidence)
    chosen = EXIT_NAMES[int(first_exit_of_groups(c[None], tuple(run["thresholds"].values())))]
    predicted = {f"share_{chosen}": 1.0, "confidence_exit1": float(c[0]), "confidence_exit2": float(c[1])}
    measured = {f"share_{chosen}": run["exit_shares"][chosen]}
    measured |= {f"confidence_{n}": run["confidence_mean"][n] for n in EARLY}
    measured |= {f"confidence_std_{n}": run["confidence_std"][n] for n in EARLY}
    text = f"The mean probability alone, put through the rule, decides for all images: they take {chosen}."
    return _result(text, predicted, measured, measured[f"share_{chosen}"] >= 0.99)


def _logistic_rate(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.7 and check 2 of B.11."""
    if not _distribution_on(config, "gumbel"):
        return None
    expected = sum(row["logistic_exit1"] for row in history) / len(history)
    drawn = sum(row["rate_exit1"] for row in history) / len(history)
    draws = run["steps"] * config.optim.batch_size
    error = max(math.sqrt(expected * (1 - expected) / draws), 1 / draws)
    measured = {"rate_exit1": drawn, "standard_errors": abs(drawn - expected) / error}
    text = "Drawn exit rates follow the logistic of 20 (confidence - threshold), over all draws of the training."
    return _result(text, {"rate_exit1": expected}, measured, measured["standard_errors"] < 4)


def _runaway_temperature(config: PhaseConfig, run: dict, history: list[dict]) -> dict | None:
    """The record, section B.7: the wanted rate is out of reach, so T1 grows as far as Adam's steps carry it."""
    if not _distribution_on(config, "gumbel") or config.confidence.rule not in ("mean_max", "split_max"):
        return None
    epochs = config.optim.epochs
    factors = [learning_rate_factor(e, epochs, 0, 0.0) for e in range(epochs)]
    budget = config.temperature.lr * run["steps"] / epochs * sum(factors)
    path = [row["temperature_exit1"] for row in history]
    late = path[len(path) // 2 :]
    measured = {"temperature_exit1_first": path[0], "temperature_exit1_last": path[-1]}
    measured["rises_late"] = all(b >= a for a, b in zip(late, late[1:], strict=False))
    holds = measured["rises_late"] and path[-1] > config.temperature.start[0]
    predicted = {"temperature_exit1_above": config.temperature.start[0], "temperature_exit1_at_most": path[0] + budget}
    text = f"The wanted rate is out of the rule's reach: T1 rises to the end, bounded by Adam's {run['steps']:,} steps."
    return _result(text, predicted, measured, holds)


def explain_difference(config: PhaseConfig, run: dict, recorded: dict) -> str | None:
    """Why our exit shares are not the recorded ones, in numbers; None where they agree within 5 points."""
    if not recorded:
        return None
    shares = {name: recorded["exit_shares"][name] for name in EXIT_NAMES}
    if all(abs(run["exit_shares"][n] - s) <= SHARE_TOLERANCE for n, s in shares.items()):
        return None
    parts = [f"{n} {run['exit_shares'][n]:.0%} (recorded {s:.0%})" for n, s in shares.items()]
    lines = ["Exit shares differ: " + ", ".join(parts) + "."]
    for name in EARLY:
        c, spread, theta = run["confidence_mean"][name], run["confidence_std"][name], run["thresholds"][name]
        side = "at or above" if c >= theta else "below"
        old = recorded["confidence"][name]
        old_side = "at or above" if old >= recorded["thresholds"][name] else "below"
        lines.append(
            f"{name}: confidence {c:.4f} (spread {spread:.2g}) is {side} its threshold {theta:.4f}; "
            f"on record {old:.4f} was {old_side} {recorded['thresholds'][name]:.4f}."
        )
    lines.append(
        f"The mean probability at exit1 is {run['probability_mean']['exit1']:.3f}. Nothing supervises this level, so "
        f"it is where initial weights and drift leave it: {_budget(config, run)}."
    )
    return " ".join(lines)


def explain_unmet(config: PhaseConfig, run: dict, checks: list[dict]) -> str | None:
    """Why predictions do not hold in this run, in numbers; None where all of them hold."""
    unmet = [check for check in checks if not check["holds"]]
    if not unmet:
        return None
    lines = [f"Not seen here: {check['prediction']} Measured: {check['measured']}." for check in unmet]
    levels = ", ".join(f"{n} {run['confidence_mean'][n]:.4f} against {t:.4f}" for n, t in run["thresholds"].items())
    lines.append(f"Confidences against thresholds at the end: {levels}; {_budget(config, run)}.")
    return " ".join(lines)


def _budget(config: PhaseConfig, run: dict) -> str:
    images = f"{run['train_images']:,}" if run["train_images"] else "all"
    trunk = "a trained trunk" if config.model.train_trunk else "a frozen trunk"
    here = f"here after {run['steps']:,} steps on {images} images of another data set with {trunk}"
    return here + ", on record after 25,000 steps on 5,000 images"
