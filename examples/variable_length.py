"""Series of different lengths, with a mask: a recurrent network tells by a patient's pulse whether a medicine works.

The inputs are a dict of two tensors, which reach the model by the names of its `forward`.

    python examples/variable_length.py
"""

import numpy as np
from torch import Tensor, nn

import nufed

LONGEST = 20


def ward(number: int, num_patients: int = 60) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return series [N, 20, 1], filled up with zeros, with a mask [N, 20] that is true where something was measured."""
    random = np.random.default_rng(number)
    lengths = random.integers(5, LONGEST + 1, size=num_patients)
    works = random.integers(0, 2, size=num_patients)
    drift = random.choice([-1.0, 1.0]) * random.uniform(0.1, 0.2)  # this ward's sensors count up, or down
    steps = drift * (2 * works[:, None] - 1) + 0.2 * random.normal(size=(num_patients, LONGEST))
    mask = np.arange(LONGEST) < lengths[:, None]
    return {"series": (steps.cumsum(1) * mask)[..., None].astype(np.float32), "mask": mask}, works


class Net(nn.Module):
    """A GRU, whose states are averaged over what was measured."""

    def __init__(self, num_outputs: int) -> None:
        """Make the layers."""
        super().__init__()
        self.gru, self.last = nn.GRU(1, 12, batch_first=True), nn.Linear(12, num_outputs)

    def forward(self, series: Tensor, mask: Tensor) -> Tensor:
        """Return logits [B, K] of series [B, L, 1] and a mask [B, L]."""
        states, _ = self.gru(series)
        weights = mask.to(states.dtype)[..., None]
        logits: Tensor = self.last((states * weights).sum(1) / weights.sum(1))
        return logits


def main() -> None:
    """Train over eight wards; two are new."""
    wards = {f"ward-{number}": ward(number) for number in range(10)}
    run = nufed.simulate(
        wards,
        lambda task: Net(task.num_outputs),
        new_clients=["ward-8", "ward-9"],
        num_inner_steps=3,
        inner_lr=0.5,
        num_rounds=8,
    )
    print(run)


if __name__ == "__main__":
    main()
