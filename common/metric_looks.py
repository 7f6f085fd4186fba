"""How numbers of each metric are read: their range, and whether more of them is better. Known without PyTorch."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
LOSS = "loss"
GLOBAL = "global-"
"""What the names of metrics begin with that are of everybody's test examples."""


@dataclass(frozen=True)
class Look:
    """How numbers of a metric are read.

    Attributes:
        better: whether more is better or less.
        is_share: whether it is a share, shown in percent.
        low: smallest value.
        high: largest value.
        may_be_undefined: whether it is NaN for some examples, whatever the model.
    """

    better: Better = "higher"
    is_share: bool = False
    low: float = -float("inf")
    high: float = float("inf")
    may_be_undefined: bool = False

    @property
    def sign(self) -> float:
        """Return 1 where more is better, -1 where less is."""
        return sign_of(self.better)


_SHARE = Look("higher", True, 0.0, 1.0, may_be_undefined=True)
_ERROR = Look("lower", low=0.0)
LOSS_LOOK = Look("lower")
UNKNOWN_LOOK = Look("higher", may_be_undefined=True)

LOOKS: dict[str, Look] = {
    "accuracy": Look("higher", True, 0.0, 1.0),
    "balanced-accuracy": _SHARE,
    "f1": _SHARE,
    "auroc": _SHARE,
    "average-precision": _SHARE,
    "sensitivity": _SHARE,
    "specificity": _SHARE,
    "brier": Look("lower", low=0.0, high=2.0),
    "calibration-error": Look("lower", True, 0.0, 1.0),
    "log-loss": _ERROR,
    "mae": _ERROR,
    "rmse": _ERROR,
    "r2": Look("higher", high=1.0, may_be_undefined=True),
    "deviance": _ERROR,
    "dice": _SHARE,
    "iou": _SHARE,
    "perplexity": Look("lower", low=1.0, may_be_undefined=True),
}


def sign_of(better: str) -> float:
    """Return 1 for `higher`, -1 for `lower`: what numbers are multiplied by so that more is better."""
    return 1.0 if better == "higher" else -1.0


def global_name(name: str) -> str:
    """Return what a metric is called where it is of everybody's test examples, e.g. `global-accuracy`."""
    return GLOBAL + name


def look_of(name: str) -> Look:
    """Return how numbers of the loss or of a metric are read; of one that does not come along nothing is known."""
    if name.startswith(GLOBAL):
        return look_of(name.removeprefix(GLOBAL))
    if name == LOSS:
        return LOSS_LOOK
    if name in LOOKS:
        return LOOKS[name]
    base, _, number = name.rpartition("-")
    return LOOKS[base] if base in LOOKS and number.isdigit() else UNKNOWN_LOOK
