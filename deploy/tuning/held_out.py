"""Participating clients held out of training as if they were new, and the data of such a run.

The clients are dealt once, with the seed of the run that is tuned for. They are divided at random into folds of equal
size. A trial's run has the clients of one fold as its new clients, all other participating ones as participants, and
none of the federation's own new clients, which so have no say.

A few clients have few validation examples, and one of them then moves a trial's number by points. So each held-out
client may stand for several, whose validation splits are other parts of its support and validation examples (cross
validation; Stone 1974): its number is their mean. Its test split stays out of it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from nufed.common.config import RunConfig
from nufed.common.data import load_federation, shared_scaling
from nufed.common.data.federation import hold_federation
from nufed.common.data.few_examples import few_examples
from nufed.common.data.on_demand import MANY
from nufed.common.data.target_scaling import target_scale
from nufed.common.errors import ConfigError
from nufed.common.examples import ClientData, Examples, Federation
from nufed.common.models import DTYPES
from nufed.common.rng import numpy_generator
from nufed.common.settings import process_settings
from nufed.common.trees import cat

_FEWEST = 4
ENOUGH_EXAMPLES, MOST_PARTS = 500, 5
"""Validation examples up to which clients are divided anew, and how often at most."""
_PART = re.compile(r" \(\d+ of \d+\)$")


@dataclass(frozen=True)
class Clients:
    """A federation's participating clients in folds; holds their examples from the first use on.

    Attributes:
        config: of the run that is tuned for.
        share: of the participating clients in each fold.
    """

    config: RunConfig
    share: float

    def __post_init__(self) -> None:
        """Refuse federations of too few clients, and of so many that their examples are not kept."""
        data = self.config.data
        if not data.num_clients >= _FEWEST or data.num_clients + data.num_new_clients > MANY:
            raise ConfigError(
                f"data.num-clients={data.num_clients} is refused for tuning, which holds out some of the clients: "
                f"expected {_FEWEST} or more, and at most {MANY} with the new ones. Tune on a part of the federation."
            )

    @cached_property
    def folds(self) -> tuple[tuple[int, ...], ...]:
        """Return positions of the participating clients of each fold; two folds or more."""
        total = self.config.data.num_clients
        size = min(max(1, round(self.share * total)), total // 2)
        order = numpy_generator(self.config.seed, "tune", "folds").permutation(total)
        return tuple(tuple(sorted(map(int, order[i * size : (i + 1) * size]))) for i in range(total // size))

    @cached_property
    def _loaded(self) -> tuple[Federation, Any]:
        config, settings = self.config, process_settings()
        dtype = DTYPES[config.model.dtype]
        federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
        return federation, shared_scaling(config.data, settings, seed=config.seed)

    def fold_of(self, seed_number: int) -> int:
        """Return the fold of the final runs with one seed: never 0, which the search has looked at."""
        return 1 + seed_number % (len(self.folds) - 1)

    def without(self, fold: int, config: RunConfig) -> RunConfig:
        """Return the options of a run in which a fold's clients are new, whose data this process has from now on.

        Args:
            fold: which clients are held out.
            config: options of the run, with a seed of its own; who has which examples does not depend on it.
        """
        federation, scaling = self._loaded
        clients = [client for client in federation.clients if client.group == "participating"]
        held = set(self.folds[fold])
        training = [client for index, client in enumerate(clients) if index not in held]
        own = [clients[index] for index in self.folds[fold]]
        num_parts = self._num_parts(own, federation)
        new = [part for client in own for part in self._as_new(client, federation, num_parts)]
        sizes = {"data.num-clients": len(training), "data.num-new-clients": len(new)}
        changed = config.updated(sizes)
        hold_federation(changed.data, changed.seed, replace(federation, clients=(*training, *new)), scaling)
        return changed

    def _num_parts(self, clients: Sequence[ClientData], federation: Federation) -> int:
        """Return how many each held-out client stands for: one where examples belong together, or there are enough."""
        belong = any(client.support.groups is not None for client in clients)
        if belong or target_scale(self.config.data, federation.task) == "local":
            return 1
        num_judged = sum(len(client.validation) for client in clients)
        room = (MANY - self.config.data.num_clients) // len(clients)  # so that all of them are kept
        return max(1, min(MOST_PARTS, room, math.ceil(ENOUGH_EXAMPLES / max(1, num_judged))))

    def _as_new(self, client: ClientData, federation: Federation, num_parts: int) -> Iterator[ClientData]:
        """Yield a client once for each part that it is judged on, with as many examples to adapt to as new clients."""
        number, size = self.config.data.new_support_examples, len(client.validation)
        possible = 1 + (len(client.support) - 1) // size if size else 1
        total = min(num_parts, possible)
        whole = _joined(client.validation, client.support)
        order = numpy_generator(self.config.seed, "tune", "parts", client.client_id).permutation(len(client.support))
        rows = torch.cat([torch.arange(size), size + torch.from_numpy(order)])
        for part in range(total):
            judged_on = rows[part * size : (part + 1) * size]
            rest = torch.cat([rows[: part * size], rows[(part + 1) * size :]]).sort().values
            own = client.support if part == 0 else whole.take(rest)
            name = f"{client.client_id} ({part + 1} of {total})"
            seed, task = self.config.seed, federation.task
            support, _ = few_examples(own, number, task, seed=seed, client_id=client.client_id)
            yield replace(client, client_id=name, group="new", support=support, validation=whole.take(judged_on))


def client_of(name: str) -> str:
    """Return the client that is judged under a name, without which part of its examples it is judged on.

    >>> client_of("ward 3 (2 of 5)")
    'ward 3'
    """
    return _PART.sub("", name)


def _joined(first: Examples, second: Examples) -> Examples:
    weights = None
    if first.weights is not None and second.weights is not None:
        weights = torch.cat([first.weights, second.weights])
    return Examples(cat([first.inputs, second.inputs]), cat([first.targets, second.targets]), weights)
