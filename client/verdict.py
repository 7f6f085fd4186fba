"""How good a model is on labelled examples: its loss as it was trained, its metrics in the units of the data."""

from collections.abc import Mapping

from torch import Tensor, nn

from nufed.common.data.target_scaling import TargetScaling
from nufed.common.examples import Examples, TaskInfo
from nufed.common.metrics import evaluate_metrics
from nufed.common.metrics.judging import default_metrics
from nufed.common.task import answers, make_loss


def judged_in_units(
    model: nn.Module,
    task: TaskInfo,
    params: Mapping[str, Tensor],
    examples: Examples,
    scaling: TargetScaling | None,
) -> dict[str, float]:
    """Return `loss` and the task's usual metrics by name.

    Args:
        model: in evaluation mode; its own parameters are not used.
        task: what it is for.
        params: the model's parameters.
        examples: values to predict as they are scaled.
        scaling: how they are; None where they are in their own unit.
    """
    outputs, loss = answers(make_loss(model, task), params, examples.as_batch())
    return {"loss": float(loss), **evaluate_metrics(default_metrics(task)[0], task, outputs, examples.targets, scaling)}
