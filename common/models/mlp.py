"""`mlp`: fully connected layers; with the widths 80 and 60 and ELU, the network of Per-FedAvg's experiments."""

import math
from itertools import pairwise

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.examples import TaskInfo
from nufed.common.models.layers import activated, hidden_sizes


def build(config: ModelConfig, task: TaskInfo) -> nn.Module:
    """Return flatten, hidden layers with activation and dropout, and a linear output layer."""
    widths = [math.prod(task.input_shape), *hidden_sizes(config)]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += activated(nn.Linear(before, after), config)
    return nn.Sequential(*layers, nn.Linear(widths[-1], task.num_outputs))
