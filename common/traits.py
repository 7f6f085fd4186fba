"""What a model does beside computing outputs, as far as its losses must know."""

from dataclasses import dataclass
from typing import Literal

Draws = Literal["nothing", "torch", "anything"]


@dataclass(frozen=True)
class Traits:
    """What a model does in one of its two modes, training or evaluation.

    The defaults are what holds for any model; `nufed.common.models.examination` finds out more.

    Attributes:
        draws: whose global generators a forward pass draws from: no one's, torch's, or also NumPy's or Python's.
        math_attention: whether attention is computed without fused kernels, which cannot be differentiated twice.
        kinks: functions with kinks that a forward pass calls, such as `relu`, other than by modules of torch's own.
        most_rows: most examples that are evaluated at once, for the sake of memory; None for any number, as also where
            one example's outputs depend on the others of its batch.
    """

    draws: Draws = "anything"
    math_attention: bool = False
    kinks: tuple[str, ...] = ()
    most_rows: int | None = None


UNKNOWN = Traits()
"""Of a model that was not examined."""
