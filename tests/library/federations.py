"""Small federations in memory, and models for them."""

import numpy as np
import torch
from torch import nn

NUM_FEATURES = 3


def sites(num_sites=6, num_examples=24, dtype="float64"):
    """Return {name: (inputs [N, 3], classes [N])}, two classes divided by a line of each site's own."""
    rng = np.random.default_rng(0)
    clients = {}
    for number in range(num_sites):
        inputs = rng.normal(size=(num_examples, NUM_FEATURES)).astype(dtype)
        clients[f"site-{number}"] = inputs, (inputs @ rng.normal(size=NUM_FEATURES) > 0).astype(np.int64)
    return clients


def build(config, task):
    return nn.Sequential(nn.Linear(*task.input_shape, 4), nn.Tanh(), nn.Linear(4, task.num_outputs))


class Squashed(nn.Module):
    """Has the parameters of any other one, and a forward pass by `squash` that its structure does not show."""

    def __init__(self, squash):
        super().__init__()
        self.linear = nn.Linear(NUM_FEATURES, 2)
        self.forward = lambda inputs: squash(self.linear(inputs))


class Site(torch.utils.data.Dataset):
    """A map-style dataset."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.from_numpy(self.inputs[index]), int(self.targets[index])


def same_model(*runs):
    """Return whether runs have left the same model, byte for byte, whatever their options are called."""
    first, *others = [{name: tensor.numpy().tobytes() for name, tensor in run.params.items()} for run in runs]
    return all(other == first for other in others)
