"""Thresholds with a guarantee: with probability 1 - delta the mean loss stays below epsilon.

The loss of an image is what leaving early costs it against full: the drop of its F1, or of its recall, zero
where the early exit is as good or better, so in [0, 1]. The sequence of settings to test is fixed
before ``calibrate`` is looked at, from the one that risks least; testing stops at the first that
cannot be shown to be safe. mAP is not a mean over images, so no such statement is made on it.

Source: Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test: Calibrating Predictive
Algorithms to Achieve Risk Control", Annals of Applied Statistics 2025 (arXiv 2110.01052),
section 2 and Appendix; Bates et al., JACM 2021 (Hoeffding-Bentkus); Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting", JRSS B 2024.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binom

from eelib.calibrate import refuse_test
from eelib.deploy.evidence import logit
from eelib.files import InputError
from eelib.policies import fit_benefit
from eelib.routing import Setting, Split


class GuaranteeError(InputError):
    """No guarantee can be given; the message says what was expected."""


def check_level(name: str, value: float) -> None:
    """:class:`GuaranteeError` unless a level lies strictly between 0 and 1."""
    if not 0 < value < 1:  # NaN as well
        raise GuaranteeError(f"{name} is {value}; expected a number between 0 and 1, both excluded")


def smallest_set(epsilon: float, delta: float) -> int:
    """Images below which nothing can be certified, not even a setting that never lost anything."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def hoeffding_bentkus(losses: np.ndarray, epsilon: float) -> float:
    """p-value of "the mean loss is above epsilon" for losses in [0, 1], (n,)."""
    n, mean = len(losses), float(losses.mean())
    a = min(mean, epsilon)
    kl = (a * math.log(a / epsilon) if a > 0 else 0.0) + (1 - a) * math.log((1 - a) / (1 - epsilon))
    # a sum of decimals may stand a hair above a whole number, which must not count as one more loss
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, epsilon))
    return min(1.0, math.exp(-n * kl), bentkus)


def betting(losses: np.ndarray, epsilon: float, delta: float = 0.1) -> float:
    """p-value of the same by the capital of a bettor against the hypothesis.

    ``delta`` sizes the bets and nothing else: the p-value holds at any level. Bets shrink with
    the variance seen so far, so losses that are mostly zero certify with fewer
    images. The order of the images matters and is that of the set, fixed before the losses are known.
    """
    n = len(losses)
    index = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(losses)) / (index + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (index + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    bet = np.minimum(1 / (1 - epsilon), np.sqrt(2 * math.log(1 / delta) / (n * before)))
    capital = np.cumsum(np.log1p(-np.minimum(bet, 0.99 / (1 - epsilon)) * (losses - epsilon)))
    return float(min(1.0, np.exp(-capital.max(initial=0.0))))


def binomial(losses: np.ndarray, epsilon: float) -> float:
    """p-value of the same for losses that are 0 or 1: the binomial tail, the least that is valid for every mean."""
    lost = losses.sum()
    if not ((losses == 0) | (losses == 1)).all():
        raise GuaranteeError("bound 'binomial': expected losses of 0 or 1")
    return float(binom.cdf(lost, len(losses), epsilon))


BOUNDS: dict[str, Callable[[np.ndarray, float], float]] = {
    "hoeffding_bentkus": hoeffding_bentkus, "betting": betting, "binomial": binomial
}  # fmt: skip
Quality = Callable[[Split], np.ndarray]  # of every image at every exit, (N, E) in [0, 1]: what full may have more of


def f1_of(split: Split) -> np.ndarray:
    """F1 of every image at every exit, (N, E)."""
    return split.f1


def drops(quality: np.ndarray) -> np.ndarray:
    """Loss of each image at each exit: the drop of its quality (N, E) against full, in [0, 1]."""
    return np.maximum(0.0, quality[:, -1:] - quality)


def loss_against_full(quality: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The loss of :func:`drops` of each image where it leaves, (N,)."""
    return drops(quality)[np.arange(len(quality)), chosen]


def sequence(
    val: Split, steps: int = 50, evidence: Sequence[str] | None = None, quality: Quality = f1_of
) -> list[Setting]:
    """Settings to test, fixed on ``val``: one threshold for all exits, from the safest down.

    The confidence is one less the predicted loss against full, so that it means the same at
    every exit and one threshold serves all. Its regressor, the penalty of that and the steps come
    from ``val`` alone: ``calibrate`` must not have been seen. ``evidence`` is as in
    :func:`eelib.policies.fit_benefit`; ``quality`` is what the loss is the drop of.
    """
    refuse_test(val.name, "fixing the sequence")
    benefit, cross_fitted = fit_benefit([val], lambda split: drops(quality(split))[:, :-1], evidence)
    levels = np.unique(np.quantile(cross_fitted[val.images], np.linspace(0, 1, steps)))[::-1]
    return [Setting((float(level),) * (len(val.costs) - 1), benefit, cross_fitted) for level in levels]


def losses_of(settings: Sequence[Setting], split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Loss and time of every setting on every image: (S, N), (S, N)."""
    losses, times = [], []
    for setting in settings:
        chosen = setting.route(split)
        losses.append(loss_against_full(split.f1, chosen))
        times.append(split.paid(setting.confidence.reads_boxes)[chosen])
    return np.array(losses), np.array(times)


def fixed_sequence(
    losses: np.ndarray, epsilon: float, delta: float, bound: str = "hoeffding_bentkus"
) -> tuple[int, float]:
    """Walk the sequence until a setting cannot be shown to be safe.

    Args:
        losses: (S, n) in [0, 1], the settings in the order fixed beforehand.
        epsilon: mean loss to stay below.
        delta: probability of being wrong.
        bound: one of :data:`BOUNDS`; chosen beforehand, too.

    Returns:
        Index of the last safe setting, -1 when there is none and all images must take full, and
        its p-value (of the first setting when there is none).

    Raises:
        GuaranteeError: a level outside (0, 1), an unknown bound, losses outside [0, 1], or fewer
            images than could certify anything.
    """
    check_level("epsilon", epsilon)
    check_level("delta", delta)
    if bound not in BOUNDS:
        raise GuaranteeError(f"bound: {bound!r} is unknown; expected one of {', '.join(BOUNDS)}")
    if not ((losses >= 0) & (losses <= 1)).all():
        raise GuaranteeError("losses: expected numbers in [0, 1]")
    needed = smallest_set(epsilon, delta)
    if losses.shape[1] < needed:
        raise GuaranteeError(
            f"{losses.shape[1]} images cannot certify epsilon {epsilon} at delta {delta}; at least {needed} are needed"
        )
    last, p_value = -1, 1.0
    for index, row in enumerate(losses):
        p = BOUNDS[bound](row, epsilon)
        if p > delta:
            return last, p_value if last >= 0 else p
        last, p_value = index, p
    return last, p_value


def _check_unseen(calibrate: Split) -> None:
    """What a guarantee asks of its split: unseen, and images that do not depend on each other."""
    refuse_test(calibrate.name, "certifying thresholds")
    if calibrate.name in ("train", "val"):
        raise GuaranteeError(f"certifying on '{calibrate.name}': it shaped the detector or the sequence; use calibrate")
    scenes = len(np.unique(calibrate.scenes))
    if scenes < len(calibrate.records):
        raise GuaranteeError(
            f"'{calibrate.name}': {len(calibrate.records)} images of {scenes} scenes; expected one image a scene"
        )


def certified(
    calibrate: Split, settings: Sequence[Setting], epsilon: float, delta: float, bound: str = "hoeffding_bentkus"
) -> dict:
    """The certified setting of a sequence and what is stated with it.

    Returns:
        ``thresholds`` (None: all images take full), ``epsilon``, ``delta``, ``n``, ``p_value``,
        ``bound``, ``cuts`` (scores from which a box counts in the loss), ``risk`` and ``time_ratio`` on
        ``calibrate``, and ``index`` in the sequence.

    Raises:
        GuaranteeError: see :func:`fixed_sequence`; the detector or the sequence has seen the split; or
            scenes have several images, which are not independent.
        CalibrationError: the split is ``test``.
    """
    _check_unseen(calibrate)
    losses, times = losses_of(settings, calibrate)
    index, stated = _walked(losses, epsilon, delta, bound, cuts=calibrate.cuts.tolist())
    stated |= {"time_ratio": 1.0 if index < 0 else float(times[index].mean()), "index": index}
    return {"thresholds": None if index < 0 else list(settings[index].thresholds)} | stated


def _walked(losses: np.ndarray, epsilon: float, delta: float, bound: str, **more) -> tuple[int, dict]:
    """The step of :func:`fixed_sequence`, and what every certificate states."""
    index, p_value = fixed_sequence(losses, epsilon, delta, bound)
    stated = {"epsilon": epsilon, "delta": delta, "n": losses.shape[1], "p_value": p_value, "bound": bound} | more
    return index, stated | {"risk": 0.0 if index < 0 else float(losses[index].mean())}


def gate_sequence(val: Split, steps: int = 50, worst: float = 0.1) -> np.ndarray:
    """Thresholds of the blank gates to test, fixed on ``val``, from the safest on: (2 * steps, G).

    The first half ends no image of ``val`` that holds an object: it comes from far below to the least probability of
    such an image. In the second half each gate ends a rising share of them, up to ``worst``.
    """
    refuse_test(val.name, "fixing the sequence of the gates")
    with_objects = val.evaluator.positives > 0
    if not val.records.gates or not with_objects.any():
        raise GuaranteeError(f"'{val.name}': expected a detector with blank gates, and images with objects")
    holds = logit(val.holds[with_objects])
    margins = np.linspace(4, 0, steps, endpoint=False)[:, None]
    levels = np.concatenate((holds.min(0) - margins, np.quantile(holds, np.linspace(0, worst, steps), axis=0)))
    return 1 / (1 + np.exp(-levels))


def objects_lost(thresholds: np.ndarray, split: Split) -> np.ndarray:
    """Loss of each image that holds an object, for every row of gate thresholds: (S, n).

    It is the share of the image's objects that are lost. A gate ends an image as a whole, so the loss is 1 where one
    of the gates finds it blank and 0 elsewhere; every image counts as one that came to all gates. Images without
    objects have nothing to lose and do not count: the mean is over the images with objects.
    """
    holds = split.holds[split.evaluator.positives > 0]
    return (holds < thresholds[:, None]).any(2).astype(float)


def certified_gates(
    calibrate: Split, thresholds: np.ndarray, epsilon: float, delta: float, bound: str = "binomial"
) -> dict:
    """The last thresholds of a sequence by which the gates are certified to lose few objects.

    Args:
        thresholds: (S, G) of :func:`gate_sequence`.
        epsilon: mean loss of :func:`objects_lost`: of the images with objects, the share that are ended as blank.

    Returns:
        ``thresholds`` (0 for every gate where nothing is certified), ``epsilon``, ``delta``, ``n`` (images with
        objects), ``p_value``, ``bound``, ``risk``; ``objects`` is the share of all objects that are lost and
        ``blank_ended`` the share of the images without objects that are ended, all on ``calibrate``.

    Raises:
        GuaranteeError, CalibrationError: as :func:`certified`.
    """
    _check_unseen(calibrate)
    losses = objects_lost(thresholds, calibrate)
    index, stated = _walked(losses, epsilon, delta, bound)
    chosen = thresholds[index] if index >= 0 else np.zeros(thresholds.shape[1])
    return {"thresholds": chosen.tolist()} | stated | gate_effect(chosen, calibrate)


def gate_effect(thresholds: np.ndarray, split: Split) -> dict[str, float]:
    """Share of a split's objects that gates lose (``objects``), and of its empty images that they end."""
    ends, positives = (split.holds < thresholds).any(1), split.evaluator.positives
    return {
        "objects": float(positives[ends].sum() / max(1, positives.sum())),
        "blank_ended": float(ends[positives == 0].mean()) if (positives == 0).any() else 0.0,
    }
