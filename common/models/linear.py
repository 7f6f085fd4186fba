"""`linear`: one linear layer; logistic regression for classes, least squares through the origin for values.

Without bias for regression, so that the source `quadratic` is exactly quadratic in the parameters.
"""

import math

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.examples import TaskInfo


def build(_config: ModelConfig, task: TaskInfo) -> nn.Module:
    """Return flatten and one linear layer."""
    bias = task.kind == "classification"
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.input_shape), task.num_outputs, bias=bias))
