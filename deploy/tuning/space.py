"""What a search looks through: numbers of inner steps, ranges of α and β, and on request estimator and τ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nufed.common.config import RunConfig, Scalar
from nufed.common.errors import ConfigError

ESTIMATORS = ("exact", "first-order")
LOCAL_STEPS = (1, 2, 5, 10)
GRID_VALUES = 6
"""Values of α and of β in the full grid that a search is held against: half a decade apart in the default ranges."""
SEARCHABLE = ("estimator", "local-steps")
INNER, ALPHA, BETA = "method.num-inner-steps", "method.inner-lr", "method.local-lr"
ESTIMATOR, TAU = "method.estimator", "method.num-local-steps"


@dataclass(frozen=True)
class Range:
    """A step size's smallest and largest value; values between are drawn evenly in their logarithm."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str, flag: str) -> "Range":
        """Return the range that `LOW:HIGH` names.

        Raises:
            ConfigError: it names none.
        """
        low, _, high = text.partition(":")
        try:
            found = cls(float(low), float(high))
        except ValueError:
            found = cls(math.nan, math.nan)
        if not 0 < found.low < found.high <= 1000:
            raise ConfigError(f"{flag}={text!r} is refused: expected LOW:HIGH with 0 < LOW < HIGH <= 1000.")
        return found

    def inside(self, value: float) -> float:
        """Return the value, or the end that is nearest to it."""
        return min(max(value, self.low), self.high)

    @property
    def middle(self) -> float:
        """Return the geometric mean of the ends."""
        return math.sqrt(self.low * self.high)

    def is_at_edge(self, value: float) -> bool:
        """Return whether a value lies within a twentieth of the range, in logarithms, from an end."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return not 0.05 < share < 0.95


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        nus: numbers of inner steps, 0 (FedAvg + fine-tuning) first.
        inner_lr: range of α.
        local_lr: range of β.
        searched: names of `SEARCHABLE` to choose as well.
    """

    nus: tuple[int, ...]
    inner_lr: Range
    local_lr: Range
    searched: tuple[str, ...] = ()

    def choices(self, nu: int) -> dict[str, Sequence[Scalar]]:
        """Return option -> values of what is chosen among few, for one ν."""
        found: dict[str, Sequence[Scalar]] = {}
        if "estimator" in self.searched and nu > 0:
            found[ESTIMATOR] = ESTIMATORS
        if "local-steps" in self.searched:
            found[TAU] = LOCAL_STEPS
        return found

    def ranges(self, config: RunConfig, nu: int) -> dict[str, Range]:
        """Return option -> range; α is none where ν = 0 and the step size at test time is given."""
        found = {ALPHA: self.inner_lr, BETA: self.local_lr}
        if nu == 0 and config.evaluation.adapt_lr:
            del found[ALPHA]
        return found

    def grid_size(self) -> int:
        """Return the runs of the full grid: every ν at `GRID_VALUES` values of each step size, and every choice."""
        choices = [math.prod(len(values) for values in self.choices(nu).values()) for nu in self.nus]
        return GRID_VALUES**2 * sum(choices)


def parse_nus(text: str) -> tuple[int, ...]:
    """Return numbers of inner steps, in rising order, 0 among them: FedAvg is what a lead is measured against.

    Raises:
        ConfigError: a part is no such number, or there is none but 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) <= 1000 for part in parts):
        raise ConfigError(f"--nu={text!r} is refused: expected whole numbers from 0 to 1000. Give for example 0,1,2,5.")
    nus = tuple(sorted({0, *map(int, parts)}))
    if len(nus) == 1:
        raise ConfigError(f"--nu={text!r} leaves nothing to compare FedAvg with. Give for example 0,1,2,5.")
    return nus


def parse_searched(text: str) -> tuple[str, ...]:
    """Return what is to be searched beside ν, α and β.

    Raises:
        ConfigError: a name is unknown.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in SEARCHABLE:
            raise ConfigError(f"--search={text!r} is refused: expected some of {', '.join(SEARCHABLE)}. Correct it.")
    return names


def name_of(nu: int) -> str:
    """Return what a reader knows an objective by: `FedAvg + fine-tuning`, or `ν = 2`."""
    return f"ν = {nu}" if nu else "FedAvg + fine-tuning"
