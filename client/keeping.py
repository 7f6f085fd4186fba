"""Which model a client keeps: its personal one, or the shared one where that is better on validation examples.

The test split has no part in the choice, so that what is reported of it stays honest. The number of steps is what was
asked for: a choice among all steps by a few validation examples would mostly follow chance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nufed.client.personalize import judge_split
from nufed.client.workplace import Workplace
from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.metric_looks import LOSS
from nufed.common.params import Params

Keep = Literal["best", "always"]
Kept = Literal["personal", "shared"]
KEEP: dict[str, Keep] = {"best": "best", "always": "always"}
"""`best` keeps the shared model where the personal one is worse on validation examples, `always` the personal one."""

NOT_JUDGED = (
    "there are no validation examples, so that it cannot be judged whether the personal model is better than the "
    "shared one"
)


@dataclass(frozen=True)
class Judged:
    """How good a model is on some examples.

    Attributes:
        loss: mean over examples, of values to predict as they were scaled.
        metrics: by name, in the units of the data; NaN where undefined.
    """

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Return the share of examples classified rightly; None where the task has no classes."""
        return self.metrics.get("accuracy")

    def of(self, measure: str) -> float:
        """Return the loss, or a metric; NaN where it is unknown."""
        return self.loss if measure == LOSS else self.metrics.get(measure, math.nan)

    def to_json(self) -> dict[str, float]:
        """Return JSON values."""
        return {LOSS: self.loss, **self.metrics}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Judged":
        """Return what `to_json` wrote; null stands for what is no number, and for an accuracy that there is not."""
        values = {name: math.nan if value is None else float(value) for name, value in stored.items()}
        loss = values.pop(LOSS)
        if stored.get("accuracy", 0) is None:
            del values["accuracy"]
        return cls(loss, values)


@dataclass(frozen=True)
class Choice:
    """Which model is kept.

    Attributes:
        kept: the personal one or the shared one.
        before: the shared model on the validation split; None without validation examples.
        after: the personal model, on the same examples.
        num_examples: of the validation split.
        told: what the client must know of it, without a full stop; empty where the personal model is no worse.
    """

    kept: Kept = "personal"
    before: Judged | None = None
    after: Judged | None = None
    num_examples: int = 0
    told: str = ""


UNJUDGED = Choice(told=NOT_JUDGED)


@dataclass(frozen=True)
class Primary:
    """The measure that a choice goes by."""

    name: str = LOSS
    lower_is_better: bool = True


def judged(place: Workplace, point: Params, split: Literal["test", "validation"], step: int) -> Judged:
    """Return how good a model is on a split of the client, after so many steps."""
    found = judge_split(place, point, split, step)
    return Judged(found[LOSS], {name: value for name, value in found.items() if name != LOSS})


def choose(before: Judged, after: Judged, num_examples: int, primary: Primary, keep: Keep) -> Choice:
    """Return which of two models is kept.

    Args:
        before: the shared model on the validation examples.
        after: the personal model on the same.
        num_examples: how many these are.
        primary: what they are compared by; the loss where it is undefined.
        keep: what is done where the personal model is worse.
    """
    if math.isnan(before.of(primary.name)) or math.isnan(after.of(primary.name)):
        primary = Primary()
    old, new = before.of(primary.name), after.of(primary.name)
    is_worse = not (new <= old if primary.lower_is_better else new >= old)
    if not is_worse:
        return Choice("personal", before, after, num_examples)
    kept: Kept = "shared" if keep == "best" else "personal"
    what = "the shared model is kept" if keep == "best" else "it is kept all the same"
    told = (
        f"the personal model is worse than the shared one on {num_examples} validation examples "
        f"({primary.name} {old:.4g} before, {new:.4g} after): {what}"
    )
    return Choice(kept, before, after, num_examples, told)


def find_keep(name: str) -> Keep:
    """Return what `--keep` names.

    Raises:
        ConfigError: it is neither `best` nor `always`.
    """
    if name not in KEEP:
        raise ConfigError(f"--keep={name!r} is unknown. Type best or always.{nearest_match_hint(name, KEEP)}")
    return KEEP[name]
