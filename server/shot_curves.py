"""What one client has answered of fine-tuning on few examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nufed.common.message_schema import NUM_EXAMPLES, MetricValue
from nufed.common.shots import SHORT, split_shots

_TEST = "test-"


@dataclass(frozen=True)
class ShotCurves:
    """One client's curves after fine-tuning on k examples: element s is after s steps.

    Attributes:
        num_support: examples that were adapted on.
        is_short: whether the client has fewer than asked for, of one of its classes or in all.
        curves: by name, `loss` and the primary metric, [S+1] on the test split; NaN where it diverged.
    """

    num_support: int
    is_short: bool
    curves: Mapping[str, tuple[float, ...]]


def shots_of_reply(metrics: Mapping[str, MetricValue]) -> dict[int, ShotCurves]:
    """Return the shots of a reply that was checked; none of a client that does not know of them."""
    found = {}
    for size, own in split_shots(metrics)[1].items():
        curves = {
            name.removeprefix(_TEST): tuple(float(number) for number in values)
            for name, values in own.items()
            if name.startswith(_TEST) and isinstance(values, list)
        }
        number = own[NUM_EXAMPLES]
        found[size] = ShotCurves(int(number) if isinstance(number, int) else 0, own.get(SHORT) == 1, _finite(curves))
    return found


def _finite(curves: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Return curves with NaN where the loss is no number: what is counted there tells of nothing."""
    loss = curves.get("loss", ())
    return {
        name: tuple(
            value if step >= len(loss) or math.isfinite(loss[step]) else math.nan for step, value in enumerate(curve)
        )
        for name, curve in curves.items()
    }
