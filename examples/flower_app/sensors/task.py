"""The model, and the data of a client."""

import torch
from torch import Tensor, nn


def build_model() -> nn.Module:
    """Return the model that server and clients agree on."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 1))


def batches(partition_id: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches (inputs [20, 3], targets [20, 1]) of a client, whose sensors have weights of their own."""
    generator = torch.Generator().manual_seed(partition_id)
    weights = torch.tensor([[2.0], [-1.0], [0.5]]) + torch.randn(3, 1, generator=generator)
    inputs = torch.randn(count, 20, 3, generator=generator)
    return [(part, part @ weights) for part in inputs]
