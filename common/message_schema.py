"""What each reply may say: names, types, ranges and sizes of its metrics. What does not fit is refused with a reason.

The schemas are the reference (docs/decisions/0011-messages.md shows them). Metrics that no schema names are kept as
long as they are few and small: apps of others report their own, and a newer client may know more than this server.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from nufed.common.errors import WireError
from nufed.common.metrics import SPLITS, further_metrics
from nufed.common.statistics import LARGEST
from nufed.common.untrusted import shown, shown_names

MetricValue = int | float | list[int] | list[float]
Schema = Mapping[str, "Quantity"]

NUM_EXAMPLES = "num-examples"
MOST_EXAMPLES = 2**31 - 1
MOST_EVALUATIONS = 2**53
"""Most gradient evaluations or Hessian-vector products of one reply; JSON's readers keep integers up to here."""

LONGEST_CURVE = 10_001
"""Elements; a curve has S + 1 of them, and S is at most 10,000."""

LONGEST_NAME = 64
"""Characters of a metric's name."""

LONGEST_CLIENT_ID = 128
"""Characters of a client's name."""

MOST_OTHER_METRICS, MOST_OTHER_NUMBERS = 32, 256
"""Metrics beside those of the schema, and numbers in all of them together."""

_INT64 = 2**63
_FORMULA = ("=", "+", "-", "@")  # what spreadsheets take a cell for a formula by
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)  # what Python calls printable and no screen shows: joiners, fillers and variation selectors
_LOWEST_LOSS = -1e-3  # of cross-entropy and squared errors, which are at least 0 but for rounding


@dataclass(frozen=True)
class Quantity:
    """What one metric may be.

    Attributes:
        meaning: what it is, in words.
        low: smallest value.
        high: largest value.
        is_whole: whether it is an integer; 3.0 is read as 3.
        may_diverge: whether NaN and infinities are allowed: they tell of a model that diverged.
        is_curve: whether it is a list over s = 0..S; where no length is expected, one number will do.
        length: elements of a curve; None allows any number up to `LONGEST_CURVE`.
        is_required: whether a reply without it is refused.
    """

    meaning: str
    low: float = -math.inf
    high: float = math.inf
    is_whole: bool = False
    may_diverge: bool = False
    is_curve: bool = False
    length: int | None = None
    is_required: bool = False

    def __str__(self) -> str:
        """Return what is expected, e.g. `a whole number from 0 to 1`."""
        noun = "a whole number" if self.is_whole else "a number"
        if self.is_curve:
            noun = f"a list of {f'at most {LONGEST_CURVE}' if self.length is None else self.length} numbers"
        if math.isfinite(self.high):
            noun += f" from {self.low:.17g} to {self.high:.17g}"
        elif math.isfinite(self.low):
            noun += f" of at least {self.low:g}"
        return noun + (", NaN or infinite where the model diverged" if self.may_diverge else "")


@dataclass(frozen=True)
class CurveShape:
    """What the curves of an evaluation must be.

    Attributes:
        length: S + 1.
        has_accuracy: whether there are accuracies: for classification, and not for regression.
        shots: numbers of support examples that there may be curves of their own for (nufed.common.shots).
    """

    length: int
    has_accuracy: bool
    shots: tuple[int, ...] = ()


_EXAMPLES = Quantity("examples", 0, MOST_EXAMPLES, is_whole=True, is_required=True)
_LOSS = Quantity("mean loss over examples", may_diverge=True)
_LOSSES = replace(_LOSS, is_curve=True)
_ACCURACIES = Quantity(
    "share of examples classified rightly; NaN only where the loss is not finite", 0, 1, is_curve=True
)
_COST = Quantity("", 0, MOST_EVALUATIONS, is_whole=True)

QUERY_REPLY: Schema = {
    "num-support": replace(_EXAMPLES, meaning="examples for training and adaptation"),
    "num-validation": replace(_EXAMPLES, meaning="examples for choosing hyper-parameters"),
    "num-test": replace(_EXAMPLES, meaning="examples for judging"),
}
TRAIN_REPLY: Schema = {
    NUM_EXAMPLES: replace(_EXAMPLES, meaning="N_i, examples in the support split"),
    "loss": replace(_LOSS, meaning="mean over the local steps"),
    "growth": Quantity("largest ‖∇F_i‖ / ‖∇f_i(w_ν)‖ over the local steps", 0, may_diverge=True),
    "gradient-evaluations": replace(_COST, meaning="gradients computed"),
    "hvps": replace(_COST, meaning="Hessian-vector products computed"),
    "with-replacement": Quantity("1 if examples were drawn with replacement", 0, 1, is_whole=True),
    "seconds": Quantity("time that training took", 0, 1e9),
}
EVALUATE_REPLY: Schema = {
    NUM_EXAMPLES: replace(_EXAMPLES, meaning="examples in the test split"),
    "test-loss": replace(_LOSSES, meaning="mean over the test split after s steps"),
    "test-accuracy": _ACCURACIES,
    "validation-loss": replace(_LOSSES, meaning="as `test-loss`; absent without a validation split"),
    "validation-accuracy": replace(_ACCURACIES, meaning="as `test-accuracy`"),
}
EVALUATE_REPLY = {
    **EVALUATE_REPLY,
    **{
        f"{split}-{name}": Quantity(metric.meaning, metric.low, metric.high, may_diverge=True, is_curve=True)
        for name, metric in further_metrics().items()
        for split in SPLITS
    },
}
STATISTICS_REPLY: Schema = {
    NUM_EXAMPLES: replace(_EXAMPLES, meaning="examples in the support split"),
    "counts": Quantity(
        "of each column, values that are told of; 0 keeps the column back", 0, MOST_EXAMPLES, is_whole=True
    ),
    "means": Quantity("of each column of numbers", -LARGEST, LARGEST),
    "deviations": Quantity("of each column of numbers, from the site's own mean", 0, LARGEST),
    "categories": Quantity(
        "examples by category, column after column; -1 keeps one back", -1, MOST_EXAMPLES, is_whole=True
    ),
    "classes": Quantity("examples by class; -1 keeps one back", -1, MOST_EXAMPLES, is_whole=True),
}
STATISTICS_REPLY = {
    name: each if name == NUM_EXAMPLES else replace(each, is_curve=True) for name, each in STATISTICS_REPLY.items()
}
SCHEMAS: dict[str, Schema] = {
    "query": QUERY_REPLY,
    "train": TRAIN_REPLY,
    "evaluate": EVALUATE_REPLY,
    "query.statistics": STATISTICS_REPLY,
}


def checked_metrics(metrics: Mapping[str, object], schema: Schema) -> dict[str, MetricValue]:
    """Return metrics that fit a schema, whole numbers as integers, in the order that they came.

    Args:
        metrics: what came; may come from anybody.
        schema: what is expected.

    Raises:
        WireError: with the first metric that does not fit.
    """
    if missing := [name for name, quantity in schema.items() if quantity.is_required and name not in metrics]:
        raise WireError(f"expected {missing[0]!r} among the metrics, got {shown_names(metrics) or 'none'}")
    others = {name: value for name, value in metrics.items() if name not in schema}
    _check_others(others)
    return {
        name: _other(name, value) if name in others else _read(name, value, schema[name])
        for name, value in metrics.items()
    }


def checked_curves(metrics: Mapping[str, object], shape: CurveShape | None) -> dict[str, MetricValue]:
    """Return the metrics of an evaluation.

    Args:
        metrics: what came; may come from anybody.
        shape: what the curves must be; None where any curves, or none, will do.

    Raises:
        WireError: with the first metric that does not fit.
    """
    schema = EVALUATE_REPLY
    if shape is not None:
        if not shape.has_accuracy and (found := [name for name in metrics if name.endswith("-accuracy")]):
            raise WireError(f"{shown(found[0])} was not expected: the run's task is regression")
        schema = {name: _shaped(name, quantity, shape) for name, quantity in schema.items()}
    accuracies = {name for name in schema if name.endswith("-accuracy")}
    relaxed = {name: replace(each, may_diverge=name in accuracies or each.may_diverge) for name, each in schema.items()}
    checked = checked_metrics(metrics, relaxed)
    for name in sorted(accuracies & checked.keys()):
        _check_divergence(name, checked[name], checked.get(name.replace("accuracy", "loss")), schema[name])
    return checked


def checked_statistics(metrics: Mapping[str, object], lengths: Mapping[str, int]) -> dict[str, MetricValue]:
    """Return the numbers of a site's statistics.

    Args:
        metrics: what came; may come from anybody.
        lengths: elements of each list; lists of none do not come.

    Raises:
        WireError: with the first that is missing, has another length or is out of range, or was not asked for.
    """
    schema = {NUM_EXAMPLES: STATISTICS_REPLY[NUM_EXAMPLES]} | {
        name: replace(STATISTICS_REPLY[name], length=length, is_required=True)
        for name, length in lengths.items()
        if length
    }
    if strange := [name for name in metrics if name not in schema]:
        raise WireError(f"{shown(strange[0])} was not expected among the statistics")
    return checked_metrics(metrics, schema)


def check_client_id(client_id: object) -> str:
    """Return a client's name if it can stand in a line of text and in a cell of a table.

    Raises:
        WireError: it is empty, too long, begins like a formula, has characters that cannot be printed or seen, or
            is written otherwise than in Unicode's composed form, so that it looks like another name and is none.
    """
    if isinstance(client_id, str) and 0 < len(client_id) <= LONGEST_CLIENT_ID:
        # Spreadsheets in East Asian languages take the full-width forms of these signs for the signs themselves.
        is_formula = unicodedata.normalize("NFKC", client_id).startswith(_FORMULA) and not _is_number(client_id)
        is_seen = client_id.isprintable() and client_id == client_id.strip() and not _UNSEEN.search(client_id)
        if is_seen and unicodedata.is_normalized("NFC", client_id) and not is_formula:
            return client_id
    came = _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode(), shown(client_id))
    raise WireError(
        f"client-id={came} is refused: expected a name of 1 to {LONGEST_CLIENT_ID} printable, visible characters, "
        f"accents composed (NFC), without space at its ends, that does not begin with {' '.join(_FORMULA)}; give the "
        "client another name"
    )


def _shaped(name: str, quantity: Quantity, shape: CurveShape) -> Quantity:
    if not quantity.is_curve:
        return quantity
    is_required = name == "test-loss" or (name == "test-accuracy" and shape.has_accuracy)
    low = _LOWEST_LOSS if name.endswith("-loss") else quantity.low
    return replace(quantity, low=low, length=shape.length, is_required=is_required)


def _check_others(others: Mapping[str, object]) -> None:
    """Refuse metrics that no schema names if there are too many, or have names that are none."""
    if len(others) > MOST_OTHER_METRICS:
        raise WireError(f"expected at most {MOST_OTHER_METRICS} metrics beside those agreed on, got {len(others)}")
    for name in others:
        if not (0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise WireError(
                f"the metric's name {shown(name)} is refused: expected 1 to {LONGEST_NAME} printable characters"
            )
    numbers = sum(len(value) if isinstance(value, list) else 1 for value in others.values())
    if numbers > MOST_OTHER_NUMBERS:
        raise WireError(
            f"expected at most {MOST_OTHER_NUMBERS} numbers in metrics beside those agreed on, got {numbers}"
        )


def _other(name: str, value: object) -> MetricValue:
    quantity = Quantity("", may_diverge=True)
    return _read(name, value, replace(quantity, is_curve=True) if isinstance(value, list) else quantity)


def _read(name: str, value: object, expected: Quantity) -> MetricValue:
    if not expected.is_curve or (expected.length is None and not isinstance(value, list)):
        return _number(name, value, expected)
    most = LONGEST_CURVE if expected.length is None else expected.length
    if not isinstance(value, list) or len(value) > most or (expected.length is not None and len(value) < most):
        raise WireError(f"{name}={shown(value)} is refused: expected {expected}; use the server's options and version")
    return cast("list[float]", [_number(name, each, expected) for each in value])


def _number(name: str, value: object, expected: Quantity) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if expected.is_whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, float) and not math.isfinite(value):
            fits = expected.may_diverge
        else:
            fits = expected.low <= value <= expected.high and (isinstance(value, float) or abs(value) <= _INT64)
        if fits and (isinstance(value, int) or not expected.is_whole):
            return value
    raise WireError(f"{name}={shown(value)} is refused: expected {expected}")


def _check_divergence(name: str, accuracy: MetricValue, loss: MetricValue | None, expected: Quantity) -> None:
    """Refuse an accuracy that is no number where the loss is finite."""
    accuracies = accuracy if isinstance(accuracy, list) else [accuracy]
    losses = loss if isinstance(loss, list) else [loss]
    for step, value in enumerate(accuracies):
        has_diverged = step < len(losses) and (at := losses[step]) is not None and not math.isfinite(at)
        if not math.isfinite(value) and not (has_diverged and math.isnan(value)):
            raise WireError(f"{name}[{step}]={value!r} is refused: expected {expected}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
