"""`sensors`: each client is a device with sensors of its own, worn by a person of their own; a mixed-effects model.

Six activities are seen through twelve channels. What all clients share is each activity's pattern m_c. A client i has
effects of its own, drawn once: a gain for each channel g_i = exp(0.5 N), an offset b_i = N, cross-talk between
channels C_i = I + 0.25 N, and a manner of doing each activity p_ic = N. An example of activity c is

    x = g_i ∘ C_i (m_c + p_ic + 0.7 N) + b_i ,

with all N independent standard normal, and a client does activities as often as a Dirichlet(3) draw says. Such effects
(calibration, placement, manner) are what makes wearables' data differ by device and person; the sizes were chosen so
that a shared model is of some use and a client's own examples are of much more. No units, no licence (made from the
run's seed).
"""

from functools import partial

import numpy as np
import torch

from nufed.common.data.dealt_client import DealtClient, client_name, split_client
from nufed.common.data.pool import Array, DealtFederation, SourceRequest, Table
from nufed.common.examples import ClientData, TaskInfo
from nufed.common.rng import NumpyGenerator, numpy_generator

CHANNELS, NUM_EXAMPLES = 12, 180
ACTIVITIES = ("sitting", "standing", "walking", "running", "climbing", "cycling")
_TASK = TaskInfo("classification", (CHANNELS,), len(ACTIVITIES), ACTIVITIES)


def describe(_request: SourceRequest) -> TaskInfo:
    """Return the task."""
    return _TASK


def load(request: SourceRequest) -> DealtFederation:
    """Return clients with `NUM_EXAMPLES` examples each, split by the configured fractions."""
    patterns = numpy_generator(request.seed, "data", "sensors", "patterns").standard_normal((len(ACTIVITIES), CHANNELS))

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        name, group = client_name(partition_id, request.config)
        table = Table(*_recorded(patterns, numpy_generator(request.seed, "data", "sensors", name)))
        dealt = DealtClient(name, group, table, np.arange(NUM_EXAMPLES))
        return split_client(dealt, _TASK, request.config, request.seed, dtype)

    return DealtFederation(_TASK, request.num_total, make_client, identify=partial(client_name, config=request.config))


def _recorded(patterns: Array, rng: NumpyGenerator) -> tuple[Array, Array]:
    """Return (inputs [N, channels], activities [N]) of a client whose effects and examples `rng` draws."""
    gain, offset = np.exp(0.5 * rng.standard_normal(CHANNELS)), rng.standard_normal(CHANNELS)
    cross_talk = np.eye(CHANNELS) + 0.25 * rng.standard_normal((CHANNELS, CHANNELS))
    manners = rng.standard_normal(patterns.shape)
    activities = rng.choice(len(ACTIVITIES), NUM_EXAMPLES, p=rng.dirichlet(np.full(len(ACTIVITIES), 3.0)))
    noise = 0.7 * rng.standard_normal((NUM_EXAMPLES, CHANNELS))
    moved = (patterns + manners)[activities] + noise
    return gain * (moved @ cross_talk.T) + offset, activities
