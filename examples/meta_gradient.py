"""The method alone, in a plain training loop: no federation, no Flower, any model and loss.

A network learns to be adapted to a sine wave of unknown amplitude and phase in three gradient steps, the example of
Finn, Abbeel and Levine (ICML 2017).

    python examples/meta_gradient.py
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

import nufed

STEPS, INNER_LR = 3, 0.01
Batch = tuple[Tensor, Tensor]

model = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))


def loss_fn(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the mean squared error of the network with these parameters."""
    inputs, targets = batch
    return nn.functional.mse_loss(functional_call(model, dict(params), (inputs,)), targets)


def wave(generator: torch.Generator, num_batches: int) -> list[Batch]:
    """Return batches of 10 points of one random sine wave."""
    amplitude, phase = torch.rand(2, generator=generator) * torch.tensor([4.9, math.pi]) + torch.tensor([0.1, 0.0])
    inputs = torch.rand(num_batches, 10, 1, generator=generator) * 10 - 5
    return [(part, amplitude * torch.sin(part + phase)) for part in inputs]


def loss_after(steps: int) -> float:
    """Return the mean loss over 100 new waves after so many gradient steps on 10 points of each."""
    generator, total = torch.Generator().manual_seed(1), 0.0
    for _ in range(100):
        support, test = wave(generator, 2)
        params = {name: tensor.detach() for name, tensor in model.named_parameters()}
        for _ in range(steps):
            gradients = torch.func.grad(loss_fn)(params, support)
            params = {name: tensor - INNER_LR * gradients[name] for name, tensor in params.items()}
        total += loss_fn(params, test).item() / 100
    return total


def main(num_iterations: int = 500) -> None:
    """Descend by Adam, four waves in an iteration."""
    torch.manual_seed(0)
    for module in model:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    print(f"loss before training:  {loss_after(0):.2f}, after {STEPS} steps {loss_after(STEPS):.2f}")
    for _ in range(num_iterations):
        optimizer.zero_grad()
        for _ in range(4):
            estimate = nufed.meta_gradient(loss_fn, model, wave(generator, STEPS + 1), inner_lr=INNER_LR)
            for name, parameter in model.named_parameters():
                share = estimate.gradient[name] / 4
                parameter.grad = share if parameter.grad is None else parameter.grad + share
        optimizer.step()
    print(f"loss after training:   {loss_after(0):.2f}, after {STEPS} steps {loss_after(STEPS):.2f}")


if __name__ == "__main__":
    main()
