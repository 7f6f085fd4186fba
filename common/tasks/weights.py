"""Class weights, as weights of examples: how much each one of a client's support split counts in its loss."""

from dataclasses import replace

import torch

from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.tasks.options import CLASS_WEIGHTS, given_weights
from nufed.common.trees import one_tensor


def weighted_client(client: ClientData, info: TaskInfo) -> ClientData:
    """Return a client whose support split has the weights that the options ask for; nobody is judged by weights."""
    return replace(client, support=weighted(client.support, info))


def weighted(support: Examples, info: TaskInfo) -> Examples:
    """Return examples with their weights: none, or 1 on average over these.

    `balanced` gives each of the C classes that these N examples have the same total, N / (C N_c) to each of the N_c of
    a class; numbers give an example its class's, divided by their mean over the examples.
    """
    chosen = dict(info.options).get(CLASS_WEIGHTS, "none")
    if chosen == "none" or not len(support):
        return support
    classes = one_tensor(support.targets, "targets")
    if chosen == "balanced":
        counts = torch.bincount(classes, minlength=info.num_outputs).double()
        each = len(classes) / (int((counts > 0).sum()) * counts[classes])
    else:
        each = torch.tensor(given_weights(info), dtype=torch.float64, device=classes.device)[classes]
        each = each / each.mean()
    dtype = one_tensor(support.inputs).dtype if isinstance(support.inputs, torch.Tensor) else torch.float32
    return replace(support, weights=each.to(dtype if dtype.is_floating_point else torch.float32))
