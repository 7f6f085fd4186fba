"""Participating clients held out of training as if they were new: who they are, and the data of such a simulation.

The clients are dealt once, with the seed of the run that is tuned for. They are divided at random into folds of equal
size. A trial's run has the clients of one fold as its new clients (nufed.common.data.as_new), all other participating
ones as participants, and none of the federation's own new clients, which so have no say.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.data import load_federation, shared_scaling
from nufed.common.data.as_new import Sizes, as_new, parts_of
from nufed.common.data.federation import hold_federation
from nufed.common.data.on_demand import MANY
from nufed.common.errors import ConfigError
from nufed.common.examples import Federation
from nufed.common.models import DTYPES
from nufed.common.rng import numpy_generator
from nufed.common.settings import process_settings
from nufed.server.options import ServerOptions

_FEWEST = 4


@dataclass(frozen=True)
class Folds:
    """A federation's participating clients in folds: by their positions in the order of their names.

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

    def fold_of(self, seed_number: int) -> int:
        """Return the fold of the final runs with one seed: never 0, which the search has looked at."""
        return 1 + seed_number % (len(self.folds) - 1)


@dataclass(frozen=True)
class SimulatedClients(Folds):
    """The clients of a simulation; holds their examples from the first use on.

    Attributes:
        engine: a key of `nufed.deploy.simulation.engines.ENGINES`.
    """

    engine: str = "auto"

    @cached_property
    def _loaded(self) -> tuple[Federation, Any]:
        config, settings = self.config, process_settings()
        dtype = DTYPES[config.model.dtype]
        federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
        return federation, shared_scaling(config.data, settings, seed=config.seed)

    def conduct(self, config: RunConfig, fold: int, options: ServerOptions) -> None:
        """Run the federation without a fold's clients in its training, and leave the run's folder.

        Args:
            config: options of the run, with a seed of its own; who has which examples does not depend on it.
            fold: which clients are held out.
            options: where to write and what to resume.

        Raises:
            NufedError: the run cannot start or go on, or has diverged.
        """
        from nufed.client.workplace import forget_workplaces
        from nufed.deploy.simulation.engines import prepare, simulate

        try:
            run = self.without(fold, config)
            prepare(run)
            # What clients keep between rounds is part of the checkpoint, which other runs leave at their end alone.
            keeps = run.method.client_state != "none"
            simulate(run, replace(options, is_disposable=not keeps), engine=self.engine)
        finally:
            forget_workplaces()

    def without(self, fold: int, config: RunConfig) -> RunConfig:
        """Return the options of a run in which a fold's clients are new, whose data this process has from now on.

        Args:
            fold: which clients are held out.
            config: options of the run, with a seed of its own; who has which examples does not depend on it.
        """
        federation, scaling = self._loaded
        participating = [client for client in federation.clients if client.group == "participating"]
        clients = sorted(participating, key=lambda client: client.client_id)
        held = set(self.folds[fold])
        training = [client for index, client in enumerate(clients) if index not in held]
        own = [clients[index] for index in self.folds[fold]]
        data, task, seed = self.config.data, federation.task, self.config.seed
        parts = parts_of([Sizes.of(client) for client in own], data, task)
        new = [
            as_new(client, part, data, task, seed=seed)
            for client, each in zip(own, parts, strict=True)
            for part in each
        ]
        sizes = {"data.num-clients": len(training), "data.num-new-clients": len(new)}
        changed = config.updated(sizes)
        hold_federation(changed.data, changed.seed, replace(federation, clients=(*training, *new)), scaling)
        return changed
