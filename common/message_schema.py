"""What each reply may say: names, types, ranges and sizes of its metrics. What does not fit is refused with a reason.

The schemas are the reference (docs/decisions/0011-messages.md shows them). Metrics that no schema names are kept as
long as they are few and small: apps of others report their own, and a newer client may know more than this server.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from nufed.common.config import EvaluationConfig
from nufed.common.config.data import TASK_KINDS
from nufed.common.errors import ConfigError, WireError
from nufed.common.examples import TaskInfo
from nufed.common.metric_looks import LOSS, Look
from nufed.common.metrics import METRICS, SPLITS, judging
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

BASELINE, INTERVAL, CONFUSION = "baseline-", "interval-", "test-confusion"
"""What the last evaluation says beside curves: for each metric what the same answer to every example gets, and a 95 %
interval of what the model got after s* steps; and, where the run asks for it, how many test examples of each class were
taken for each, a row for each class."""

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
    """What an evaluation must report.

    Attributes:
        length: S + 1.
        kind: the run's task.
        looks: how numbers of the loss and of the run's metrics are read.
        primary: what a reply must have beside the loss; may be `loss`.
        shots: numbers of support examples that there may be curves of their own for (nufed.common.shots).
        num_classes: C where counts of C² kinds of right and wrong answers are asked for, else 0.
    """

    length: int
    kind: str
    looks: Mapping[str, Look]
    primary: str = LOSS
    shots: tuple[int, ...] = ()
    num_classes: int = 0

    @cached_property
    def schemas(self) -> tuple[Schema, Schema]:
        """Return what a reply may say, and the same with curves that may be NaN, which is looked at afterwards."""
        schema = _shaped(self)
        return schema, _relaxed(schema, self.looks)


def curve_shape(evaluation: EvaluationConfig, task: TaskInfo) -> CurveShape:
    """Return what the evaluations of a run must report.

    Raises:
        ConfigError: a metric is unknown or not for the task, or counts are asked for that there are not.
    """
    by, num_classes = judging(evaluation, task), 0
    if evaluation.report_counts:
        num_classes = task.num_outputs if task.kind == "classification" else 0
        if not 0 < num_classes**2 <= LONGEST_CURVE:
            raise ConfigError(
                f"evaluation.report-counts=true expects a classification of at most {math.isqrt(LONGEST_CURVE)} "
                f"classes, and the task is {task.kind} with {task.num_outputs} outputs. Leave it false."
            )
    length = evaluation.num_adapt_steps + 1
    return CurveShape(length, task.kind, by.looks, by.primary, evaluation.shot_sizes, num_classes)


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
    "cg-residual": Quantity("largest ‖A v - g‖ / ‖g‖ of the systems solved (iMAML)", 0, may_diverge=True),
    "inner-gradient": Quantity("largest share of its slope that is left at a minimum (iMAML)", 0, may_diverge=True),
    "gradient-evaluations": replace(_COST, meaning="gradients computed"),
    "hvps": replace(_COST, meaning="Hessian-vector products computed"),
    "with-replacement": Quantity("1 if examples were drawn with replacement", 0, 1, is_whole=True),
    "seconds": Quantity("time that training took", 0, 1e9),
    "epsilon": Quantity("ε of each record of the client so far in this run (privacy.dp record)", 0),
}
EVALUATE_REPLY: Schema = {
    NUM_EXAMPLES: replace(_EXAMPLES, meaning="examples in the test split"),
    "test-loss": replace(_LOSSES, meaning="mean over the test split after s steps"),
    "test-accuracy": _ACCURACIES,
    "validation-loss": replace(_LOSSES, meaning="as `test-loss`; absent without a validation split"),
    "validation-accuracy": replace(_ACCURACIES, meaning="as `test-accuracy`"),
}
_ANY_CURVES = {
    **{
        f"{split}-{name}": Quantity(metric.meaning, metric.look.low, metric.look.high, may_diverge=True, is_curve=True)
        for name, metric in METRICS.items()
        for split in SPLITS
    },
    **EVALUATE_REPLY,
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
    if shape is None:
        looks = {"accuracy": METRICS["accuracy"].look}
        return _checked(metrics, (_ANY_CURVES, _relaxed(_ANY_CURVES, looks)), looks)
    for name in metrics:
        split, _, metric = name.partition("-")
        is_strange = metric in METRICS and metric not in shape.looks and shape.kind not in METRICS[metric].computes
        if split in SPLITS and is_strange:
            raise WireError(f"{shown(name)} was not expected: the run's task is {shape.kind}")
    checked = _checked(metrics, shape.schemas, shape.looks)
    for name, value in checked.items():
        if name.startswith(INTERVAL) and isinstance(value, list) and not value[0] <= value[1]:
            raise WireError(f"{shown(name)}={value} is refused: expected its lower end first")
    counts = checked.get(CONFUSION)
    if isinstance(counts, list) and shape.num_classes and sum(counts) != checked[NUM_EXAMPLES]:
        raise WireError(f"{CONFUSION} sums to {sum(counts)}, expected {NUM_EXAMPLES}={checked[NUM_EXAMPLES]}")
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


def _relaxed(schema: Schema, looks: Mapping[str, Look]) -> Schema:
    """Return a schema whose curves of metrics may be NaN."""
    curves = _curves_of(looks)
    return {name: replace(each, may_diverge=True) if name in curves else each for name, each in schema.items()}


def _curves_of(looks: Mapping[str, Look]) -> dict[str, Look]:
    return {f"{split}-{name}": look for split in SPLITS for name, look in looks.items() if name != LOSS}


def _checked(
    metrics: Mapping[str, object], schemas: tuple[Schema, Schema], looks: Mapping[str, Look]
) -> dict[str, MetricValue]:
    """Return metrics that fit a schema, whose curves are no numbers only where they may be."""
    (schema, relaxed), curves = schemas, _curves_of(looks)
    checked = checked_metrics(metrics, relaxed)
    for name in sorted(curves.keys() & checked.keys()):
        loss = checked.get(f"{name.partition('-')[0]}-{LOSS}")
        _check_divergence(name, checked[name], loss, curves[name], schema[name])
    return checked


def _shaped(shape: CurveShape) -> Schema:
    """Return what a reply of an evaluation may say in a run."""
    schema: dict[str, Quantity] = {NUM_EXAMPLES: EVALUATE_REPLY[NUM_EXAMPLES]}
    for name, look in shape.looks.items():
        own = shape.kind not in TASK_KINDS  # whose loss may be a likelihood of any sign
        low = look.low if name != LOSS else -math.inf if own else _LOWEST_LOSS
        curve = Quantity(name, low, look.high, may_diverge=name == LOSS, is_curve=True, length=shape.length)
        for split in SPLITS:
            is_required = split == "test" and name in (LOSS, shape.primary)
            schema[f"{split}-{name}"] = replace(curve, is_required=is_required)
        schema[BASELINE + name] = Quantity(name, low, look.high, may_diverge=True)
        schema[INTERVAL + name] = Quantity(name, low, look.high, is_curve=True, length=2)
    if shape.num_classes:
        cells = shape.num_classes**2
        schema[CONFUSION] = Quantity("", 0, MOST_EXAMPLES, is_whole=True, is_curve=True, length=cells)
    return schema


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


def _check_divergence(name: str, curve: MetricValue, loss: MetricValue | None, look: Look, expected: Quantity) -> None:
    """Refuse a metric that is no number where the loss is one, unless it may be undefined there."""
    numbers = curve if isinstance(curve, list) else [curve]
    losses = loss if isinstance(loss, list) else [loss]
    for step, value in enumerate(numbers):
        if math.isfinite(value):
            continue
        has_diverged = step < len(losses) and (at := losses[step]) is not None and not math.isfinite(at)
        if math.isnan(value):
            fits = has_diverged or look.may_be_undefined
        else:
            fits = has_diverged and math.isinf(look.high if value > 0 else look.low)
        if not fits:
            raise WireError(f"{name}[{step}]={value!r} is refused: expected {expected}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
