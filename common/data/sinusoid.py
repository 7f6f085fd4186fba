"""`sinusoid`: each client is a sine wave of its own; the regression task that MAML was introduced with.

Finn, Abbeel and Levine 2017, section 5.1: y = A sin(x - φ) with A uniform in [0.1, 5], φ uniform in [0, π] and x
uniform in [-5, 5]; no noise, no units, no licence (made from the run's seed). The mean over clients, -1.6 cos x,
explains less than a third of y², so that a shared model is poor until it is adapted.
"""

import math

import numpy as np
import torch

from nufed.common.data.dealt_client import DealtClient, client_name, split_client
from nufed.common.data.pool import DealtFederation, SourceRequest, Table
from nufed.common.examples import ClientData, TaskInfo
from nufed.common.rng import numpy_generator

NUM_EXAMPLES = 40
_TASK = TaskInfo("regression", (1,), 1)


def describe(_request: SourceRequest) -> TaskInfo:
    """Return the task."""
    return _TASK


def load(request: SourceRequest) -> DealtFederation:
    """Return clients with `NUM_EXAMPLES` examples each, split by the configured fractions."""

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        name, group = client_name(partition_id, request.config)
        rng = numpy_generator(request.seed, "data", "sinusoid", name)
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, math.pi)
        inputs = rng.uniform(-5.0, 5.0, (NUM_EXAMPLES, 1))
        dealt = DealtClient(name, group, Table(inputs, amplitude * np.sin(inputs - phase)), np.arange(NUM_EXAMPLES))
        return split_client(dealt, _TASK, request.config, request.seed, dtype)

    return DealtFederation(
        _TASK, request.num_total, make_client, identify=lambda index: client_name(index, request.config)
    )
