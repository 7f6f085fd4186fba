"""Curves after fine-tuning on few examples: their names in messages, and what of them is refused.

Beside its curves, a reply to the final evaluation holds for each number k of `evaluation.shots`, here 5:

shot-5-num-examples   support examples that were adapted on
shot-5-short          1 where the client has fewer than asked for: of one of its classes, or in all; else 0
shot-5-test-loss      as `test-loss`; and likewise the primary metric

A client that does not know of shots answers without them, and is counted as one.
"""

import re
from collections.abc import Mapping, Sequence
from typing import cast

from nufed.common.config import EvaluationConfig
from nufed.common.config.evaluation import MOST_SHOTS
from nufed.common.errors import WireError
from nufed.common.message_schema import NUM_EXAMPLES, CurveShape, MetricValue, checked_curves
from nufed.common.untrusted import shown

SHOTS = "shots"
"""Key of the request's config: the numbers of examples."""

SHORT = "short"
LARGEST_SHOT = 9_999_999

_NAME = re.compile(r"shot-([1-9][0-9]{0,6})-(.+)", re.ASCII)


def shot_name(size: int, name: str) -> str:
    """Return what a number of a shot is called in a reply, e.g. `shot-5-test-loss`."""
    return f"shot-{size}-{name}"


def shots_request(evaluation: EvaluationConfig) -> dict[str, list[int]]:
    """Return what a request says of the numbers of examples that a run's options ask for; nothing without any."""
    return {SHOTS: list(evaluation.shot_sizes)} if evaluation.shot_sizes else {}


def split_shots(metrics: Mapping[str, MetricValue]) -> tuple[dict[str, MetricValue], dict[int, dict[str, MetricValue]]]:
    """Return a reply's metrics without those of shots, and those of each shot by their names in it."""
    plain: dict[str, MetricValue] = {}
    shots: dict[int, dict[str, MetricValue]] = {}
    for name, value in metrics.items():
        if isinstance(name, str) and (match := _NAME.fullmatch(name)):
            shots.setdefault(int(match[1]), {})[match[2]] = value
        else:
            plain[name] = value
    return plain, dict(sorted(shots.items()))


def checked_evaluation(metrics: Mapping[str, MetricValue], shape: CurveShape | None) -> dict[str, MetricValue]:
    """Return the metrics of an evaluation, shots among them.

    Args:
        metrics: what came; may come from anybody.
        shape: what the curves must be; None where any curves, or none, will do.

    Raises:
        WireError: with the first metric that does not fit.
    """
    plain, shots = split_shots(metrics)
    checked = checked_curves(plain, shape)
    if len(shots) > MOST_SHOTS:
        raise WireError(f"expected at most {MOST_SHOTS} shots, got {len(shots)}")
    for size, own in shots.items():
        if shape is not None and size not in shape.shots:
            raise WireError(f"{shot_name(size, next(iter(own)))} was not expected: the run asks for no such shot")
        try:
            found = checked_curves(own, shape)
        except WireError as error:
            raise WireError(f"shot {size}: {error}") from error
        if (short := found.get(SHORT)) not in (0, 1):
            raise WireError(f"{shot_name(size, SHORT)}={shown(short)} is refused: expected 0 or 1")
        if not cast("int", found[NUM_EXAMPLES]) > 0:
            raise WireError(f"{shot_name(size, NUM_EXAMPLES)}=0 is refused: expected at least 1 example")
        checked |= {shot_name(size, name): value for name, value in found.items()}
    return checked


def checked_sizes(values: object) -> tuple[int, ...]:
    """Return the numbers of examples that a request asks for.

    Raises:
        WireError: they are no distinct whole numbers above 0, or too many.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) > MOST_SHOTS:
        raise WireError(f"{SHOTS}={shown(values)} is refused: expected at most {MOST_SHOTS} whole numbers")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_SHOT:
            raise WireError(f"{SHOTS} holds {shown(value)}: expected whole numbers from 1 to {LARGEST_SHOT}")
    if len(set(values)) < len(values):
        raise WireError(f"{SHOTS}={shown(values)} is refused: expected each number once")
    return tuple(sorted(values))
