"""Policies that the dissertation tries and no user should deploy: add them by ``POLICIES.update(EXPERIMENTS)``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from eelib.calibrate import outcomes
from eelib.deploy.evidence import Confidence, logit
from eelib.policies import BEST_SCORE, Policy
from eelib.routing import Setting, Split
from studies.routing.published import branchynet, dynamic_det

# Of the gates that are trained by gradient.
TEMPERATURES = (1.0, 0.05)  # of the relaxation, from first to last step
DECAY = 1.0e-3  # of the weights
PENALTY = 50.0  # of the squared excess of time


def fit_temperature(scores: np.ndarray, right: np.ndarray, clamp: tuple[float, float]) -> float:
    """Temperature of least negative log-likelihood inside a clamp."""
    values = logit(scores)

    def loss(log_t: float) -> float:
        z = values / np.exp(log_t)
        return float((np.logaddexp(0, z) - right * z).mean())

    fit = minimize_scalar(loss, bounds=np.log(clamp), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(fit.x))


@dataclass(frozen=True)
class Tempered(Confidence):
    """The best score under a temperature of each early exit."""

    temperatures: tuple[float, ...]
    evidence = ("top_score",)

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """As in :class:`eelib.deploy.evidence.Confidence`."""
        return 1 / (1 + np.exp(-logit(evidence[:, index, 0]) / self.temperatures[index]))


def progressive(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Phase 1.7 repaired: its rising thresholds, on a confidence that can fall below them.

    The record's confidence never was below 0.5, so nothing could stay, and its temperature was
    moved by the routing loss and ran away. Here it is the best score under a temperature that
    is fitted to right and wrong boxes inside a clamp, and the schedule goes on up to a cap.
    """
    schedule, early = options["progressive"], range(len(calibrate.costs) - 1)
    clamp = tuple(schedule["temperature"])
    tempered = Tempered(tuple(fit_temperature(*outcomes(calibrate.evaluator, k), clamp) for k in early))
    start, step = np.array(schedule["start"]), np.array(schedule["step"])
    rows = [np.minimum(start + epoch * step, schedule["cap"]) for epoch in range(schedule["epochs"])]
    return [Setting(tuple(map(float, row)), tempered) for row in rows]


def train_exit_gates(
    features: np.ndarray,
    value: np.ndarray,
    costs: np.ndarray,
    budgets: Sequence[float],
    steps: int = 300,
    lr: float = 0.05,
    noise: bool = False,
    slope: bool = True,
) -> np.ndarray:
    """Train one gate an early exit for each budget, all budgets side by side: a relaxation, annealed to a decision.

    A gate opens with probability sigmoid((w . x + b) / temperature), and the temperature falls in geometric steps
    between :data:`TEMPERATURES`. The loss is the value lost beside full plus a penalty on the mean time over the
    budget: linear, with a multiplier that rises while the budget is exceeded, and quadratic. The linear part alone
    ends at all or nothing wherever the gain is not concave in time.

    Args:
        features: standardised, (N, E - 1, F).
        value: worth of each exit on each image beside full, (N, E).
        costs: (E,) time of each exit / full.
        budgets: B mean times to reach.
        steps: of Adam.
        lr: its learning rate.
        noise: Gumbel noise with a hard straight-through decision; without it the gate is soft.
        slope: train w; False keeps it at 1, so that b alone is a threshold.

    Returns:
        (B, E - 1, F + 1): w, then b.

    Source: Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, v, c, b = (torch.tensor(np.asarray(a), dtype=torch.float32) for a in (features, value, costs, budgets))
        v = v / v.std().clamp(min=1e-9)
        generator = torch.Generator().manual_seed(0)
        weights = torch.ones(len(b), *x.shape[1:]) if not slope else torch.zeros(len(b), *x.shape[1:])
        weights.requires_grad_(slope)
        shift = torch.zeros(len(b), x.shape[1], requires_grad=True)
        optimizer = torch.optim.AdamW([t for t in (weights, shift) if t.requires_grad], lr, weight_decay=DECAY)
        multiplier = torch.zeros(len(b))
        for step in range(steps):
            heat = TEMPERATURES[0] * (TEMPERATURES[1] / TEMPERATURES[0]) ** (step / max(1, steps - 1))
            logits = torch.einsum("nef,bef->bne", x, weights) + shift[:, None]
            if noise:
                u = torch.rand(logits.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
                logits = logits + (u / (1 - u)).log()  # the difference of two Gumbel variables is logistic
            open_ = torch.sigmoid(logits / heat)  # (B, N, E - 1)
            if noise:
                open_ = (open_ > 0.5).float() + open_ - open_.detach()
            stay = torch.cumprod(1 - open_, 2)
            before = torch.cat((torch.ones_like(stay[..., :1]), stay[..., :-1]), 2)
            share = torch.cat((before * open_, stay[..., -1:]), 2)  # (B, N, E)
            over = (share * c).sum(2).mean(1) - b
            excess = PENALTY * over.clamp(min=0) ** 2
            loss = (multiplier * over.clamp(min=0) + excess - (share * v).sum(2).mean(1)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            multiplier = (multiplier + over.detach() * 2).clamp(min=0)
        return torch.cat((weights, shift[..., None]), 2).detach().double().numpy()


def learned(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Thresholds on the best score by a soft relaxation that is annealed, one pair a budget."""
    confidence = Setting((), BEST_SCORE).on(calibrate)
    mean, spread = confidence.mean(0), confidence.std(0) + 1e-9
    features = ((confidence - mean) / spread)[..., None]  # (N, E - 1, 1)
    weights = train_exit_gates(features, calibrate.value, calibrate.costs, **options["exit_gates"], slope=False)
    thresholds = mean - spread * weights[..., -1]  # the gate opens where feature + shift > 0
    return [Setting(tuple(map(float, np.clip(row, 0, 1))), BEST_SCORE) for row in thresholds]


@dataclass(frozen=True)
class ExitGate(Confidence):
    """The probability of a linear gate on all the evidence of an exit; an open gate is 0.5 and more.

    Attributes:
        mean, spread: of the evidence at each early exit, (E - 1, F).
        weights: (E - 1, F + 1), the constant last.
        evidence: names of the F columns.
    """

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    evidence: tuple[str, ...]

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """As in :class:`eelib.deploy.evidence.Confidence`."""
        scaled, weights = (evidence[:, index] - self.mean[index]) / self.spread[index], self.weights[index]
        return 1 / (1 + np.exp(-np.clip((scaled * weights[:-1]).sum(-1) + weights[-1], -30, 30)))


def gumbel(calibrate: Split, _: Split, options: Mapping) -> list[Setting]:
    """Linear gates on all the evidence but that of blank gates, which take time; trained through Gumbel noise."""
    names = tuple(name for name in calibrate.records.evidence_names if name not in calibrate.records.gates)
    evidence = calibrate.columns(names)[:, :-1]
    mean, spread = evidence.mean(0), evidence.std(0) + 1e-6
    features, costs = (evidence - mean) / spread, calibrate.paid(True)
    weights = train_exit_gates(features, calibrate.value, costs, **options["exit_gates"], noise=True)
    return [Setting((0.5,) * len(row), ExitGate(mean, spread, row, names)) for row in weights]


EXPERIMENTS: dict[str, Policy] = {
    "branchynet": branchynet, "dynamic_det": dynamic_det, "learned": learned, "gumbel": gumbel,
    "progressive": progressive,
}  # fmt: skip
# Policies that learn more than thresholds from data, or train these by gradient: the complex ones. All others compare
# a number that an exit has at hand with thresholds: the simple ones.
COMPLEX = ("benefit", "dynamic_det", "gumbel", "learned", "progressive")
