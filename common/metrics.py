"""What a model's outputs are judged by beside the loss: the registry of metrics, by task.

Both ways of evaluating (one client, several at once) read it, and what it names goes through replies, summary.json,
clients.csv and the terminal. `accuracy` is the measure that classification is reported by throughout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nufed.common.examples import TaskKind
from nufed.common.trees import Tree

SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Metric:
    """A mean over examples.

    Attributes:
        meaning: one line.
        of_each: (outputs [..., K], targets [...] class numbers or [..., K] values) -> what each example counts, [...].
        low: smallest value.
        high: largest value.
        is_share: whether it is a share of examples, shown in percent.
    """

    meaning: str
    of_each: Callable[[Tensor, Any], Tensor]
    low: float
    high: float
    is_share: bool = False


ACCURACY = Metric(
    "share of examples classified rightly",
    lambda outputs, targets: outputs.argmax(-1) == targets,
    low=0.0,
    high=1.0,
    is_share=True,
)
METRICS: dict[TaskKind, dict[str, Metric]] = {"classification": {"accuracy": ACCURACY}, "regression": {}}


def measured(kind: TaskKind, outputs: Tensor, targets: Tree) -> dict[str, float]:
    """Return each metric of a task for outputs [N, K] and their targets."""
    return {
        name: float(metric.of_each(outputs, targets).double().mean()) for name, metric in METRICS.get(kind, {}).items()
    }


def further_metrics() -> Mapping[str, Metric]:
    """Return the metrics of all tasks but accuracy, by name."""
    return {name: metric for known in METRICS.values() for name, metric in known.items() if name != "accuracy"}


def further_curves() -> list[str]:
    """Return the names of their curves, e.g. `test-top-5` and `validation-top-5`."""
    return [f"{split}-{name}" for name in further_metrics() for split in SPLITS]
