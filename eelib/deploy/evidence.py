"""From the evidence of an exit to the decision to leave there, and from raw to calibrated scores: numpy alone.

What is fitted elsewhere is plain data here, so that a deployed session decides exactly as the study did.
"""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eelib.files import InputError, shorten

SCORE_CUTS = (0.1, 0.3, 0.5)  # scores above which boxes are counted
# Evidence of an exit on an image that is read from the scores of all its default boxes, before suppression. It comes
# out of the exit's graph in this order, then one `class_K` a class (its best score) where there are several.
OF_RAW_SCORES = (
    "top_score", "raw_second", "box_certainty", "raw_sum", *(f"raw_count_{round(100 * cut)}" for cut in SCORE_CUTS)
)  # fmt: skip
# Evidence that is read from the boxes which suppression leaves: an exit that is passed must suppress for it, too.
# `agreement` compares with the exit before, which has run by then.
OF_BOXES = (
    "second_score", "top5_mean", "score_sum", "undecided",
    *(f"count_{round(100 * cut)}" for cut in SCORE_CUTS), "log_size", "agreement",
)  # fmt: skip
# What every detector has. One with blank gates has their probability that the image holds an object, too: `blank1`, …
EVIDENCE = (*OF_RAW_SCORES, *OF_BOXES)
_OF_SOME_DETECTORS = re.compile("(blank|class_)[1-9][0-9]*")
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "value": lambda values: values,
    "complement": lambda values: 1 - values,
    "inverse": lambda values: 1 / (1 + values),
}


class RouterError(InputError):
    """A router, or what one is made of, is not what it should be; the message names the key."""


class Confidence(ABC):
    """How sure an exit is that an image may leave, in [0, 1], from its evidence and that of the exits before.

    Attributes:
        evidence: names of the columns that it reads, in the order in which it wants them.
    """

    evidence: tuple[str, ...]

    @abstractmethod
    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """Confidence of each image at one exit.

        Args:
            evidence: (N, index + 1 or more, F), the columns :attr:`evidence`; later exits are not looked at.
            index: of the exit.

        Returns:
            (N,) in [0, 1].
        """

    def __call__(self, evidence: np.ndarray) -> np.ndarray:
        """Confidence of each image at every exit but the last: (N, E, F) to (N, E - 1)."""
        values = [self.at(evidence, index) for index in range(evidence.shape[1] - 1)]
        return np.stack(values, 1) if values else np.zeros((len(evidence), 0))

    @property
    def reads_boxes(self) -> bool:
        """Whether an exit that is passed must suppress its boxes for this evidence, which takes time."""
        return not set(self.evidence).isdisjoint(OF_BOXES)


@dataclass(frozen=True)
class Column(Confidence):
    """One evidence of the exit: its ``value``, the ``complement`` 1 - v, or the ``inverse`` 1 / (1 + v)."""

    name: str
    form: str = "value"

    def __post_init__(self):
        check_evidence("name", (self.name,))
        if self.form not in FORMS:
            raise RouterError(f"form is {shorten(self.form)}; expected one of {', '.join(FORMS)}")

    @property
    def evidence(self) -> tuple[str, ...]:
        return (self.name,)

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        return FORMS[self.form](evidence[:, index, 0])


@dataclass(frozen=True)
class Never(Confidence):
    """The confidence by which no image leaves early: 0."""

    @property
    def evidence(self) -> tuple[str, ...]:
        return ()

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        return np.zeros(len(evidence))


@dataclass(frozen=True)
class Regressor:
    """Linear regression on standardised features, which are held within five standard deviations.

    Attributes:
        mean, spread, weights: of each of P features.
        constant: the prediction where every feature has its mean.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    constant: float

    def __post_init__(self):
        for key in ("spread", "weights"):
            if len(getattr(self, key)) != len(self.mean):
                raise RouterError(f"{key} has {len(getattr(self, key))} numbers; expected {len(self.mean)}, as mean")
        for position, value in enumerate(self.spread):
            if not value > 0:
                raise RouterError(f"spread[{position}] is {value}; expected a number above 0")

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [np.array(values) for values in (self.mean, self.spread, self.weights)]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predictions for rows of features, (N, P) to (N,)."""
        mean, spread, weights = self._arrays
        scaled = np.minimum(np.maximum((features - mean) / spread, -5), 5)  # a third of np.clip's time for one image
        return self.constant + scaled @ weights


def features_at(evidence: np.ndarray, index: int) -> np.ndarray:
    """Evidence (N, E, F) of an exit and of all before it, and its squares: (N, 2 * F * (index + 1))."""
    values = evidence[:, : index + 1].reshape(len(evidence), -1)
    return np.concatenate((values, values**2), 1)


@dataclass(frozen=True)
class Benefit(Confidence):
    """Near 1 where full is predicted to gain nothing on an image, near 0 where it is to gain most.

    Attributes:
        evidence: names of the columns that the regressors read.
        regressors: of the gain, one an early exit, on :func:`features_at`.
        centre, scale: of the gains of all exits, so that a threshold stands for the same gain at each.
    """

    evidence: tuple[str, ...]
    regressors: tuple[Regressor, ...]
    centre: float
    scale: float

    def __post_init__(self):
        check_evidence("evidence", self.evidence)
        if not self.scale > 0:
            raise RouterError(f"scale is {self.scale}; expected a number above 0")
        for index, regressor in enumerate(self.regressors):
            expected = 2 * len(self.evidence) * (index + 1)
            if len(regressor.mean) != expected:
                raise RouterError(f"regressors[{index}].mean has {len(regressor.mean)} numbers; expected {expected}")

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        return self.of_gain(self.regressors[index](features_at(evidence, index)))

    def of_gain(self, gain: np.ndarray) -> np.ndarray:
        """The confidence that stands for a gain of any shape."""
        return 1 / (1 + np.exp(np.minimum(np.maximum(4 * (gain - self.centre) / self.scale, -30), 30)))


@dataclass(frozen=True)
class Function(Confidence):
    """A confidence of the user's own: a Python function that the machine can import.

    Attributes:
        name: ``module:function``. It is called with evidence (N, index + 1, F) of an exit and of all before it, and
            answers (N,) in [0, 1].
        evidence: names of the columns that it is given.
    """

    name: str
    evidence: tuple[str, ...]

    def __post_init__(self):
        check_evidence("evidence", self.evidence)

    @cached_property
    def _function(self) -> Callable[[np.ndarray], np.ndarray]:
        module, _, function = self.name.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise RouterError(f"confidence {self.name!r}: {error}; expected module:function to import") from None
        if not callable(found):
            raise RouterError(f"confidence {self.name!r} is of type {type(found).__name__}; expected a function")
        return found

    def at(self, evidence: np.ndarray, index: int) -> np.ndarray:
        """As in :class:`Confidence`; :class:`RouterError` where the function is missing or answers anything else."""
        answer, count = np.asarray(self._function(evidence[:, : index + 1]), float), len(evidence)
        wrong = answer[~((answer >= 0) & (answer <= 1))]
        if answer.shape != (count,) or len(wrong):
            shown = answer.shape if answer.shape != (count,) else wrong[0]
            raise RouterError(f"confidence {self.name!r} gave {shown}; expected {count} numbers in [0, 1]")
        return answer


def columns_of(classes: int, gates: int) -> tuple[str, ...]:
    """The evidence that a detector with K classes and some blank gates has, in the order of the columns of records."""
    return (*raw_columns(classes), *OF_BOXES, *(f"blank{k + 1}" for k in range(gates)))


def raw_columns(classes: int) -> tuple[str, ...]:
    """What comes out of the graph of an exit with K classes: :data:`OF_RAW_SCORES` and the best score of each class."""
    return (*OF_RAW_SCORES, *(f"class_{k + 1}" for k in range(classes) if classes > 1))


def check_evidence(key: str, names: Sequence[str]) -> None:
    """:class:`RouterError` unless every name is an evidence that some detector has, and none stands twice."""
    for position, name in enumerate(names):
        if name in names[:position] or not (name in EVIDENCE or _OF_SOME_DETECTORS.fullmatch(name)):
            expected = f"{', '.join(EVIDENCE)}, blank1, class_1, …"
            raise RouterError(f"{key}: evidence {shorten(name)} is unknown or stands twice; expected of {expected}")


def first_exit(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """First exit whose confidence reaches its threshold; the last one takes the rest.

    Args:
        confidences: (N, E - 1 or more), one column an exit in order.
        thresholds: E - 1 values, one for each exit but the last.

    Returns:
        Exit index of each image, int64, shape (N,).

    Raises:
        RouterError: a confidence is NaN.
    """
    if np.isnan(confidences).any():
        image, index = np.argwhere(np.isnan(confidences))[0].tolist()
        raise RouterError(f"confidence of image {image} at exit {index + 1} is NaN")
    chosen = np.full(len(confidences), len(thresholds))
    for index in reversed(range(len(thresholds))):
        chosen[confidences[:, index] >= thresholds[index]] = index
    return chosen


def logit(scores: np.ndarray) -> np.ndarray:
    """Log odds of scores of any shape, held finite."""
    q = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(q / (1 - q))


@dataclass(frozen=True)
class Raw:
    """Scores as they are. Like every calibrator it maps an array of any shape."""

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return scores


@dataclass(frozen=True)
class Isotonic:
    """Straight lines through points that rise from (0, 0) to (1, 1).

    A share of the score is added where they are level: it keeps the order of scores, which AP needs.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self):
        for key, rises in (("x", np.greater), ("y", np.greater_equal)):
            values = np.array(getattr(self, key))
            if len(values) < 2 or values[0] != 0 or values[-1] != 1 or not rises(values[1:], values[:-1]).all():
                raise RouterError(f"{key}: expected numbers that rise from 0 to 1")
        if len(self.x) != len(self.y):
            raise RouterError(f"y has {len(self.y)} numbers; expected {len(self.x)}, as x")

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return (1 - 1e-5) * np.interp(scores, self.x, self.y) + 1e-5 * scores  # told apart in float32, too


@dataclass(frozen=True)
class Platt:
    """A logistic map of the log odds of the score, with a slope above 0."""

    slope: float
    shift: float

    def __post_init__(self):
        if not self.slope > 0:
            raise RouterError(f"slope is {self.slope}; expected a number above 0")

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.slope * logit(scores) + self.shift)))


Calibrator = Raw | Isotonic | Platt
