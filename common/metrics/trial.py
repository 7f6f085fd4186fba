"""Trying metrics of the user's own before a run trains for hours towards them."""

import torch
from torch import nn

from nufed.common import trees
from nufed.common.config import EvaluationConfig
from nufed.common.examples import ClientData, TaskInfo
from nufed.common.metrics.judged import judged
from nufed.common.metrics.judging import compute_all, ignored_target, in_units, judging
from nufed.common.params import model_params
from nufed.common.rng import seeded_generators
from nufed.common.tasks import find_task

FEW = 4
"""Examples that metrics are tried on."""


@torch.no_grad()
def try_own_metrics(evaluation: EvaluationConfig, model: nn.Module, task: TaskInfo, data: ClientData) -> None:
    """Have metrics of the user's own judge the untrained model on a few of a client's test examples.

    Raises:
        ConfigError: there is no such function.
        ModelError: it raises an error, or returns no number.
    """
    named = ":" in evaluation.metrics + evaluation.primary_metric
    if not (named or find_task(task).own) or len(data.test) == 0:
        return
    from nufed.common.task import with_params

    by = judging(evaluation, task)
    few = data.test.take(torch.arange(min(FEW, len(data.test)), device=data.test.device))
    with seeded_generators(0, (trees.first_leaf(few.inputs).device,)):
        outputs = with_params(model)(model_params(model), few.inputs)
    scaling = data.target_scaling
    compute_all(by.computes, judged(in_units(outputs, scaling), in_units(few.targets, scaling), ignored_target(task)))
