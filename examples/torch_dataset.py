"""A PyTorch Dataset for each client, and a model of one's own.

Eight wind turbines tell by three sensors whether a bearing wears out; each has been mounted in its own way, so that one
model for all is poor, and a model that adapts in a few steps is good.

    python examples/torch_dataset.py
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import nufed


class Turbine(Dataset[tuple[Tensor, int]]):
    """Readings of one turbine; yours come from files, which `__getitem__` may open one by one."""

    def __init__(self, number: int, num_readings: int = 80) -> None:
        """Draw the readings at random."""
        generator = torch.Generator().manual_seed(number)
        mounting = torch.tensor([2.0, -1.0, 0.5]) + torch.randn(3, generator=generator)
        self.readings = torch.randn(num_readings, 3, generator=generator)
        self.worn = (self.readings @ mounting > 0).long()

    def __len__(self) -> int:
        """Return how many readings there are."""
        return len(self.readings)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (reading [3], 1 if the bearing is worn)."""
        return self.readings[index], int(self.worn[index])


class Net(nn.Module):
    """Any module without running statistics will do."""

    def __init__(self, num_outputs: int) -> None:
        """Make the layers."""
        super().__init__()
        self.hidden, self.last = nn.Linear(3, 16), nn.Linear(16, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits [B, num_outputs] of inputs [B, 3]."""
        logits: Tensor = self.last(torch.nn.functional.silu(self.hidden(inputs)))
        return logits


def main() -> None:
    """Train over six turbines; two are new."""
    turbines = {f"turbine-{number}": Turbine(number) for number in range(8)}
    run = nufed.simulate(
        turbines,
        lambda task: Net(task.num_outputs),
        new_clients=["turbine-6", "turbine-7"],
        num_inner_steps=3,
        inner_lr=0.3,
        num_rounds=15,
    )
    print(run)


if __name__ == "__main__":
    main()
