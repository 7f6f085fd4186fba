"""Federations and grids that rounds are timed on; `data.source` names the functions here."""

from collections.abc import Callable
from typing import Any

import torch
from flwr.serverapp import Grid

from nufed.client.app import app as client_app
from nufed.common.config import DataConfig, RunConfig, Scalar
from nufed.common.data import describe_task
from nufed.common.examples import ClientData, Examples, Federation, TaskInfo
from nufed.common.meta.objective import initial_params
from nufed.common.models import build_model
from nufed.common.params import Params, model_params
from nufed.common.rng import numpy_generator, torch_generator
from nufed.common.settings import process_settings
from nufed.deploy.simulation.cohort import CohortGrid
from nufed.deploy.simulation.in_process import InProcessGrid
from nufed.strategy.meta_fedavg import MetaFedAvg

GRIDS = {"cohort": CohortGrid, "local": InProcessGrid}


def mnist_like(config: DataConfig, seed: int) -> Federation:
    """Return clients with 80 to 400 images of 28 x 28 noise for training and a fifth as many for the test."""
    return _noise(config, seed, (1, 28, 28), (80, 400))


def digits_like(config: DataConfig, seed: int) -> Federation:
    """Return clients with 20 to 100 images of 8 x 8 noise for training and a fifth as many for the test."""
    return _noise(config, seed, (1, 8, 8), (20, 100))


def _noise(config: DataConfig, seed: int, shape: tuple[int, ...], sizes: tuple[int, int]) -> Federation:
    generator, total = torch_generator(seed, "benchmark", "data"), config.num_clients + config.num_new_clients
    counts = numpy_generator(seed, "benchmark", "sizes").integers(*sizes, total).tolist()

    def examples(count: int) -> Examples:
        inputs = torch.rand(count, *shape, generator=generator)
        return Examples(inputs, torch.randint(0, 10, (count,), generator=generator))

    clients = [
        ClientData(f"client-{number:04d}", "participating", examples(count), examples(0), examples(count // 5))
        for number, count in enumerate(counts)
    ]
    return Federation(TaskInfo("classification", shape, 10, tuple("0123456789")), tuple(clients))


def paper_config(source: str = "mnist_like", **changes: Scalar) -> RunConfig:
    """Return 10 of 50 clients, τ = 10, batches of 40, MLP 80-60-10, ELU; `changes` as for `RunConfig.replace`."""
    options: dict[str, Scalar] = {
        "data__source": f"python:benchmarks.federations:{source}",
        "data__num_clients": 50,
        "data__num_new_clients": 0,
        "federation__participation_fraction": 0.2,
        "method__num_local_steps": 10,
        "method__batch_size": 40,
        "method__inner_lr": 0.03,
        "method__local_lr": 0.03,
    }
    return RunConfig().replace(**{**options, **changes})


def initial_model(config: RunConfig) -> Params:
    """Return the run's initial model, with step sizes where the method has them travel with it."""
    task = describe_task(config.data, process_settings(), seed=config.seed)
    return initial_params(model_params(build_model(config.model, task, seed=config.seed)), config.method)


def make_grid(engine: str, config: RunConfig) -> Grid:
    """Return a grid of all the run's clients; its processes use the threads of `NUFED_NUM_THREADS`."""
    return GRIDS[engine](client_app, num_nodes=config.data.num_clients, run_config=config.flat())


def rounds(engine: str, config: RunConfig) -> Callable[[], Params]:
    """Return a function that runs the next round, from choosing clients to the mean, and returns the model."""
    grid, strategy, params = make_grid(engine, config), _strategy(config), initial_model(config)
    strategy.discover(grid, expected=config.data.num_clients)
    number = iter(range(1, 1_000_000))
    return lambda: strategy.train_round(grid, params, next(number)).params


def evaluations(engine: str, config: RunConfig) -> Callable[[], dict[str, dict[str, Any]]]:
    """Return a function that has all clients judge the model and returns each one's metrics."""
    grid, strategy, params = make_grid(engine, config), _strategy(config), initial_model(config)
    strategy.discover(grid, expected=config.data.num_clients)
    return lambda: strategy.evaluate_round(grid, params, 1).client_metrics


def _strategy(config: RunConfig) -> MetaFedAvg:
    return MetaFedAvg(seed=config.seed, participation_fraction=config.federation.participation_fraction)
