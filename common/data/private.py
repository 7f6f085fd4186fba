"""A deployed client's own data, named by a SPEC on its command line; it is read here and goes nowhere.

digits#3/20    client 3 (from 0) of the 20 participating ones of a named source, for trials: it has the client id
               and the examples that `nufed simulate --clients 20` gives it; 20 and above are new clients
"""

import re

import torch

from common.config import RunConfig
from common.data.federation import describe_task, load_client
from common.errors import ConfigError, DataError
from common.examples import ClientData, TaskInfo
from common.settings import Settings

_SLICE = re.compile(r"(?P<source>.+)#(?P<index>\d+)/(?P<count>\d+)")


def load_private(spec: str, config: RunConfig, settings: Settings) -> tuple[TaskInfo, ClientData]:
    """Return the task and this client's splits.

    Raises:
        ConfigError: the spec is not one, or contradicts the run's options.
        DataError: the data cannot be had.
    """
    if not (match := _SLICE.fullmatch(spec)):
        raise ConfigError(f"Expected --data like digits#3/20, got {spec!r}.")
    source, index, count = match["source"], int(match["index"]), int(match["count"])
    if (source, count) != (config.data.source, config.data.num_clients):
        raise ConfigError(
            f"--data {spec} is a slice of {source!r} dealt to {count} clients, but the server runs "
            f"{config.data.source!r} with {config.data.num_clients}. "
            f"Type --data {config.data.source}#{index}/{config.data.num_clients}."
        )
    total = count + config.data.num_new_clients
    if index >= total:
        raise DataError(
            f"--data {spec} names client {index}, but the run has clients 0 to {total - 1} ({count} participating, "
            f"{config.data.num_new_clients} new). Choose one of them."
        )
    dtype = getattr(torch, config.model.dtype)
    data = load_client(config.data, index, seed=config.seed, dtype=dtype, settings=settings)
    return describe_task(config.data, settings, seed=config.seed), data
