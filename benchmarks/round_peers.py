"""A round of meta federated learning as it is written with other libraries: one client after another, no messages.

Each loop takes the run's configuration and returns a function that runs the next round on the same clients. Choosing
batches, training and averaging are timed; there is no codec, no strategy and no check of what comes back, so the
comparison favors the loops.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.federations import initial_model
from benchmarks.peers import PEERS
from benchmarks.problems import Problem
from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.examples import Batch, ClientData
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.models import DTYPES, build_model
from nufed.common.params import Params
from nufed.common.rng import numpy_generator
from nufed.common.settings import Settings
from nufed.common.task import make_loss
from nufed.strategy.participation import num_chosen


def exact_loop(library: str, config: RunConfig) -> Callable[[], Params]:
    """Return rounds whose meta-gradients are the library's, on coupled batches."""
    clients, model, start = _setting(config)
    task = load_federation(config.data, seed=0, dtype=torch.float32, settings=Settings()).task
    problem = Problem(model, make_loss(model, task), start, task)
    method, draw = config.method, numpy_generator(0, "benchmark", "draw")

    def train(client: ClientData) -> Params:
        _put(model, start)
        for _ in range(method.num_local_steps):
            batches = _draw(client, method.num_inner_steps, method.batch_size, draw)
            here = replace(problem, params={name: p.detach() for name, p in model.named_parameters()})
            gradients = PEERS[library](here, batches, method.inner_lr)()
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), gradients, alpha=-method.local_lr)
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    return lambda: _mean([train(client) for client in _choose(clients, config, draw)])


class PerAvgOptimizer(torch.optim.Optimizer):
    """PFLlib's optimizer: p - lr g, or p - β g where β is given."""

    def __init__(self, params: list[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, beta: float = 0.0) -> None:  # type: ignore[override]
        """Move the parameters."""
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(other=p.grad.data, alpha=-(beta or group["lr"]))


def pfllib_like(config: RunConfig) -> Callable[[], Params]:
    """Return rounds of first-order Per-FedAvg in the structure of PFLlib's `clientperavg.py`.

    A module for each client, a DataLoader over a list of (x, y), a deep copy of the parameters in each step, an
    optimizer. PFLlib also reads the client's file in each round, trains twice and evaluates; that is left out.
    """
    clients, model, start = _setting(config)
    method, draw = config.method, numpy_generator(0, "benchmark", "draw")
    workers = [_PerAvgClient(model, client, config) for client in clients]

    def train(number: int) -> Params:
        worker = workers[number]
        _put(worker.model, start)
        worker.train(method.num_local_steps, method.num_inner_steps)
        return {name: p.detach().clone() for name, p in worker.model.named_parameters()}

    count = num_chosen(len(clients), config.federation.participation_fraction)
    return lambda: _mean([train(number) for number in draw.choice(len(clients), count, replace=False).tolist()])


class _PerAvgClient:
    """One client of PFLlib's structure; holds its module, its list of examples and its optimizer."""

    def __init__(self, model: nn.Module, client: ClientData, config: RunConfig) -> None:
        self.model = copy.deepcopy(model)
        self.data = list(zip(client.support.inputs, client.support.targets, strict=True))
        self.batch_size, self.beta = config.method.batch_size, config.method.local_lr
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = PerAvgOptimizer(list(self.model.parameters()), config.method.inner_lr)

    def train(self, num_local_steps: int, num_inner_steps: int) -> None:
        done, size = 0, self.batch_size
        while done < num_local_steps:
            for inputs, targets in DataLoader(self.data, size * (num_inner_steps + 1), shuffle=True, drop_last=True):
                if done == num_local_steps:
                    return
                done += 1
                kept = copy.deepcopy(list(self.model.parameters()))
                for j in range(num_inner_steps):
                    self._backward(inputs[j * size : (j + 1) * size], targets[j * size : (j + 1) * size])
                    self.optimizer.step()
                self._backward(inputs[num_inner_steps * size :], targets[num_inner_steps * size :])
                for p, before in zip(self.model.parameters(), kept, strict=True):
                    p.data = before.data.clone()
                self.optimizer.step(beta=self.beta)

    def _backward(self, inputs: Tensor, targets: Tensor) -> None:
        loss = self.loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()


def _setting(config: RunConfig) -> tuple[tuple[ClientData, ...], nn.Module, Params]:
    federation = load_federation(config.data, seed=config.seed, dtype=DTYPES[config.model.dtype], settings=Settings())
    return federation.clients, build_model(config.model, federation.task, seed=config.seed), initial_model(config)


def _choose(clients: tuple[ClientData, ...], config: RunConfig, draw) -> list[ClientData]:
    count = num_chosen(len(clients), config.federation.participation_fraction)
    return [clients[number] for number in draw.choice(len(clients), count, replace=False)]


def _draw(client: ClientData, num_inner: int, size: int, draw) -> MetaBatches:
    rows = torch.from_numpy(draw.integers(0, len(client.support), (num_inner + 1) * size))
    taken = client.support.take(rows)
    parts = zip(taken.inputs.split(size), taken.targets.split(size), strict=True)
    outer, *inner = [Batch(inputs, targets) for inputs, targets in parts]
    return MetaBatches(tuple(inner), outer, tuple(inner))


def _put(model: nn.Module, params: Params) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(params[name])


def _mean(models: list[Params]) -> Params:
    total = models[0]
    for model in models[1:]:
        torch._foreach_add_(list(total.values()), list(model.values()))
    torch._foreach_div_(list(total.values()), len(models))
    return total
