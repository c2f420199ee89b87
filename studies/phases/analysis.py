"""The record re-analysed without training: what its own numbers say about its outcomes.

Tables come from ``data/record`` (sources named there); formulas restate the record's sections A.5 and B.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.special import expit
from torch import nn

from eelib.config import ROOT, ConfigError
from eelib.model import CUTS
from studies.phases.confidence import confidence
from studies.phases.config import EXIT_NAMES, ConfidenceConfig, load
from studies.phases.detector import RecordedDetector
from studies.profiling import macs

FOLDER = ROOT / "data" / "record"
EPOCHS, STEPS_PER_EPOCH = 20, 1250
TRAIN_IMAGES, VAL_BATCHES = 5000, 145  # a batch has four images
RATE_TARGETS = (0.30, 0.25)  # what the distribution loss of 1.5 to 1.9 asks of exit1 and exit2
LOSS_WEIGHTS = (0.3, 0.4, 0.3)  # exit1, exit2, full after the ramp
FULL_WEIGHT_1_9 = 0.5  # a floor in 1.9 keeps the full loss at this weight (defect 36)
CASCADE, ORDER, DISTRIBUTION = 0.05, 0.02, 0.1


def final_values() -> pd.DataFrame:
    """The recorded final row of every phase, indexed by ``"1.1"`` to ``"1.9"``."""
    return pd.read_csv(FOLDER / "phases.csv", dtype={"phase": str}).set_index("phase")


def recorded_values(phase: str) -> dict[str, float]:
    """The recorded numbers of a phase's final row, ``"1.1_max"`` too; empty for a phase that is not on record."""
    for table in ("phases.csv", "lost_run.csv"):
        rows = pd.read_csv(FOLDER / table, dtype={"phase": str}).set_index("phase")
        if phase in rows.index:
            return pd.to_numeric(rows.loc[phase], errors="coerce").dropna().astype(float).to_dict()
    return {}


def trajectory(phase: str) -> pd.DataFrame:
    """The recorded values of a phase by epoch (1.1, 1.6, 1.7, 1.8 and 1.9), indexed by epoch from 1.

    Raises:
        ConfigError: no trajectory of this phase is held.
    """
    path = FOLDER / f"epochs_{phase.replace('.', '_')}.csv"
    if not path.exists():
        held = sorted(p.stem.removeprefix("epochs_").replace("_", ".") for p in FOLDER.glob("epochs_*.csv"))
        raise ConfigError(f"{path}: no trajectory of phase {phase!r} is held; expected one of {', '.join(held)}")
    return pd.read_csv(path).set_index("epoch")


def other_runs() -> pd.DataFrame:
    """Runs that the comparison does not list, indexed by name."""
    return pd.read_csv(FOLDER / "other_runs.csv").set_index("run")


@functools.cache
def narrative() -> dict:
    """``phases``, ``claims`` and ``slips`` of ``narrative.yaml``."""
    return yaml.safe_load((FOLDER / "narrative.yaml").read_text())


@functools.cache
def phase_rules() -> dict[str, ConfidenceConfig]:
    """Confidence rule of each phase, from its parameter file: the one place where it is written."""
    paths = sorted((ROOT / "params").glob("phase_1_*.yaml"))
    return {settings.phase: settings.confidence for settings in map(load, paths)}


# --- a constant against a threshold -----------------------------------------------------------


def uniform_confidence(p: Sequence[float] | np.ndarray, rule: ConfidenceConfig, boxes: int = 2400) -> np.ndarray:
    """Confidence of each of N fields of equal boxes, whose chair probabilities are ``p``; both (N,).

    Source: the record, section B.0.
    """
    column = torch.as_tensor(np.asarray(p), dtype=torch.float32)[:, None]
    return confidence(column.expand(-1, boxes).contiguous(), rule).double().numpy()


def implied_probability(value: float, rule: ConfidenceConfig) -> list[float]:
    """Every constant chair probability that gives a recorded confidence, nearest to 0.5 first.

    The column-pair loss pushes both channels of a box the same way, so a constant near one half
    is the one to expect; other solutions are listed behind it. Empty when only a jump crosses.
    """
    p = np.linspace(0, 1, 20_001)
    c = uniform_confidence(p, rule, boxes=16)
    gap = c - value
    crossing = np.flatnonzero((gap[:-1] * gap[1:] <= 0) & (np.abs(np.diff(c)) < 20 / len(p)))
    # neighbouring grid points of one crossing count once
    separate = [i for n, i in enumerate(crossing) if n == 0 or i - crossing[n - 1] > 2]
    return sorted((float(p[i]) for i in separate), key=lambda x: abs(x - 0.5))


def predicted_exit(confidence_: float, row: pd.Series) -> str:
    """Where every batch of a recorded phase goes when all its confidences are one number, by its last thresholds."""
    return next((name for name in EXIT_NAMES[:2] if confidence_ >= row[f"{name}_threshold_epoch20"]), "full")


def recorded_exit(row: pd.Series) -> str:
    """Where the recorded phase sent its validation batches at the end."""
    return max(EXIT_NAMES, key=lambda name: row[f"val_batches_{name}"])


def constant_against_threshold(rules: dict[str, ConfidenceConfig], p: float) -> pd.DataFrame:
    """One constant probability in every rule: predicted beside recorded exit, a row a phase that has a rule."""
    lines = []
    for phase, row in final_values().filter(rules, axis=0).iterrows():
        c = float(uniform_confidence([p], rules[phase])[0])
        line = {"phase": phase, "confidence": c}
        line |= {f"threshold {name}": row[f"{name}_threshold_epoch20"] for name in EXIT_NAMES[:2]}
        line |= {"predicted": predicted_exit(c, row), "recorded": recorded_exit(row)}
        lines.append(line | {"agrees": line["predicted"] == line["recorded"]})
    return pd.DataFrame(lines)


def constants_that_agree(rules: dict[str, ConfidenceConfig]) -> dict[str, list[tuple]]:
    """For each phase the intervals of p in [0, 1] whose predicted exit is the recorded one."""
    p, intervals = np.arange(0, 1.00025, 0.0005), {}
    for phase, row in final_values().filter(rules, axis=0).iterrows():
        c = uniform_confidence(p, rules[phase], boxes=16) + 1e-6  # 0.35 in float32 is a hair below 0.35
        right = np.array([predicted_exit(x, row) == recorded_exit(row) for x in c])
        edges = np.flatnonzero(np.diff(np.concatenate(([0], right.astype(int), [0]))))
        intervals[phase] = [(float(p[a]), float(p[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return intervals


# --- losses ------------------------------------------------------------------------------------


def side_terms(rows: pd.DataFrame) -> pd.Series:
    """The total loss's terms with known weights: cascade, order and distribution."""
    distribution = rows["loss_exit_distribution"].fillna(0)
    return CASCADE * rows["loss_cascade"] + ORDER * rows["loss_confidence_order"] + DISTRIBUTION * distribution


def loss_identity(rows: pd.DataFrame) -> pd.Series:
    """Recorded total minus the weighted sum of the recorded parts; zero when the weights are right."""
    full = pd.Series(LOSS_WEIGHTS[2], rows.index)
    full[rows.index == "1.9"] = FULL_WEIGHT_1_9
    parts = LOSS_WEIGHTS[0] * rows["loss_exit1"] + LOSS_WEIGHTS[1] * rows["loss_exit2"] + full * rows["loss_full"]
    return rows["loss_total"] - parts - side_terms(rows)


def recovered_weights(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Weights of exit1, exit2 and full by least squares over recorded final rows (three or more)."""
    parts = rows[["loss_exit1", "loss_exit2", "loss_full"]].to_numpy()
    answer, *_ = np.linalg.lstsq(parts, (rows["loss_total"] - side_terms(rows)).to_numpy(), rcond=None)
    return tuple(float(x) for x in answer)


def recovered_full_weight(rows: pd.DataFrame) -> pd.Series:
    """Weight of the full loss in each row, with exit1 and exit2 at 0.3 and 0.4."""
    early = LOSS_WEIGHTS[0] * rows["loss_exit1"] + LOSS_WEIGHTS[1] * rows["loss_exit2"]
    return (rows["loss_total"] - side_terms(rows) - early) / rows["loss_full"]


def column_pair_floor(reach_columns: int) -> float:
    """Least class loss of an all-background target read as column pairs, on shift-invariant images.

    A pair is solved only by a network that tells its two columns apart, and on such images the zero padding is all
    that tells them apart. Of the ten pairs those stay at ln 2 whose columns both lie ``reach_columns`` or more from
    either border.

    Source: the record, section B.1.
    """
    blind = sum(min(left, 18 - left) >= reach_columns for left in range(0, 20, 2))
    return blind / 10 * math.log(2)


# --- routing losses ----------------------------------------------------------------------------


def sampled_exit_rate(confidence_: np.ndarray | float, threshold: np.ndarray | float) -> np.ndarray:
    """Exit rate of the straight-through Gumbel sample of 1.7 to 1.9, whatever its temperature.

    The two logits are -10 (c - threshold) and 10 (c - threshold), and the difference of two
    Gumbel draws is logistic: P = 1 / (1 + exp(-20 (c - threshold))).

    Source: the record, section B.7.
    """
    return expit(20 * (np.asarray(confidence_) - np.asarray(threshold)))


def soft_fixed_point() -> tuple[float, float]:
    """Confidence minus threshold of exit1 and exit2 at which 1.6's soft rates meet their targets.

    All images share one confidence. Exit2 takes its share of what exit1 leaves: s1 = t1 and (1 - s1) s2 = t2, s the
    sigmoid of 10 times the gap.

    Source: the record, section B.6.
    """
    shares = (RATE_TARGETS[0], RATE_TARGETS[1] / (1 - RATE_TARGETS[0]))
    return tuple(math.log(s / (1 - s)) / 10 for s in shares)


def gate_factor(count: np.ndarray | int) -> np.ndarray:
    """1.9's gate: the sigmoid of a hard count of boxes, so smooth in nothing that has a gradient."""
    return expit(2.0 * (np.asarray(count) - 2))


def decayed_temperature(start: float, epochs: int) -> np.ndarray:
    """Means (epochs,) over the 1250 passes of an epoch of a scalar that AdamW's weight decay alone moves.

    Learning rate 1e-2 under the cosine schedule, weight decay 5e-4; ``start`` is the value before the first step.
    """
    value, means = start, []
    for epoch in range(epochs):
        factor = 1 - 5e-4 * 1e-2 * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        passes = value * factor ** np.arange(STEPS_PER_EPOCH)
        means.append(passes.mean())
        value = passes[-1] * factor
    return np.array(means)


# --- sampling ------------------------------------------------------------------------------------


def sampling_band(rate: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal 95 % band of a rate counted over ``draws``: low and high, clipped to [0, 1]."""
    rate = np.asarray(rate, dtype=float)
    half = 1.96 * np.sqrt(rate * (1 - rate) / draws)
    return np.clip(rate - half, 0, 1), np.clip(rate + half, 0, 1)


# --- the architecture ---------------------------------------------------------------------------


def receptive_fields(detector: RecordedDetector) -> list[int]:
    """Receptive field of each exit in pixels: the wider of the trunk's path and the context's, then the branch.

    Squeeze-excitation, of 1 x 1 convolutions, adds nothing: it sees the image through one mean a channel, which
    carries no place.
    """
    children, fields = list(detector.backbone.children()), []
    start, field, stride, context = 0, 1, 1, 0

    def widened(field: int, stride: int, modules: Sequence[nn.Module]) -> tuple[int, int]:
        for layer in (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)):
            field, stride = field + (layer.kernel_size[0] - 1) * layer.dilation[0] * stride, stride * layer.stride[0]
        return field, stride

    for name, stop in zip(EXIT_NAMES, (*CUTS, len(children)), strict=True):
        field, stride = widened(field, stride, children[start:stop])
        context, _ = widened(max(field, context), stride, [detector.heads.branches[name].trunk])
        fields.append(context)
        start = stop
    return fields


def architecture_table(detector: RecordedDetector) -> pd.DataFrame:
    """A row an exit: parameters of the trunk up to its cut and of its branch, cost, receptive field."""
    count = [sum(p.numel() for p in child.parameters()) for child in detector.backbone.children()]
    stops = (*CUTS, len(count))
    return pd.DataFrame({
        "exit": EXIT_NAMES,
        "trunk parameters": [sum(count[:stop]) for stop in stops],
        "branch parameters": [sum(p.numel() for p in detector.heads.branches[n].parameters()) for n in EXIT_NAMES],
        "million multiply-adds": [macs(detector, name) / 1e6 for name in EXIT_NAMES],
        "receptive field, px": receptive_fields(detector),
    })  # fmt: skip
