"""A federation of clients that are connected to this process, some of which are held out of each run.

Clients are ordinary ones, which stay connected while one trial follows another. Each trial is a run of its own: its
options go to the clients as those of any run do, and clients refuse it as they would refuse any. What differs is told
beside the options: by which seed examples are divided (`nufed.common.data.as_new.Trial`), and with each message to
a client that is held out, which part of its examples it is about. No client keeps a trial's model.

Who takes part is settled when as many clients as the options name are there for the first time, and is kept in the
search's folder (`clients.json`): every trial is a run of the same clients.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from nufed.common.config import RunConfig
from nufed.common.data import shared_scaling
from nufed.common.data.as_new import Sizes, Trial, parts_of
from nufed.common.data.federation import describe_task, hold_federation
from nufed.common.data.private.simulated import is_own_file
from nufed.common.data.private.task import awaits_statistics
from nufed.common.durable_file import write_json
from nufed.common.errors import ConfigError, RunError
from nufed.common.examples import Federation
from nufed.common.json_text import parse_object
from nufed.common.settings import process_settings
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint
from nufed.deploy.network.fleet_grid import FleetGrid
from nufed.deploy.tuning.held_out import Folds
from nufed.deploy.tuning.trial_grid import TrialGrid, TrialNode, listed, look_again, missing_of
from nufed.server.options import ServerOptions
from nufed.server.run import Run
from nufed.strategy.exchange import connected_nodes
from nufed.strategy.members import QUERY_TIMEOUT, Roster

CLIENTS = "clients.json"
TUNED = "tuned"
"""How a search ends for its clients, in the server's words."""


@dataclass(frozen=True)
class Listening:
    """Where a search's clients connect.

    Attributes:
        endpoint: address, certificates and keys.
        patience: seconds to wait for all clients, at the start and whenever one has gone.
        say: told who comes and goes.
    """

    endpoint: ServerEndpoint
    patience: float
    say: Callable[[str], None]


class ConnectedClients:
    """Holds the server that the clients are connected to, from the first run on.

    Args:
        config: of the run that is tuned for.
        share: of the participating clients that is held out of each run.
        out: the search's folder.
        listening: where clients connect.

    Raises:
        ConfigError: the options have no meaning for trials of connected clients.
    """

    def __init__(self, config: RunConfig, share: float, out: Path, listening: Listening) -> None:
        check_connected(config)
        self._config, self._out, self._listening = config, out, listening
        self._folds = Folds(config, share)
        self._trial = Trial(config.seed, secrets.token_hex(8))
        self._server: DirectServer | None = None

    def __enter__(self) -> Self:
        """Return the federation; it listens when the first run is due."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Tell the clients how the search has ended, and stop listening."""
        if self._server:
            self._server.ending = "interrupted" if kind else TUNED
            self._server.close()

    @property
    def folds(self) -> Sequence[Sequence[int]]:
        """Return positions of the participating clients of each fold, in the order of their names."""
        return self._folds.folds

    def fold_of(self, seed_number: int) -> int:
        """Return the fold of the final runs with one seed."""
        return self._folds.fold_of(seed_number)

    def conduct(self, config: RunConfig, fold: int, options: ServerOptions) -> None:
        """Run the federation without a fold's clients in its training, and leave the run's folder.

        Args:
            config: options of the run, with a seed of its own; who has which examples does not depend on it.
            fold: which clients are held out.
            options: where to write and what to resume.

        Raises:
            NufedError: clients are missing, or the run cannot start or go on, or has diverged.
        """
        with self._listens().grid_of(self._trial.beside(config.flat())) as grid:
            roster = Roster()
            names = self._gathered(grid, roster)
            held = {names[position] for position in self.folds[fold]}
            nodes = [TrialNode(name) for name in names if name not in held]
            num_training = len(nodes)
            nodes += self._parts([name for name in names if name in held], roster)
            sizes = {"data.num-clients": num_training, "data.num-new-clients": len(nodes) - num_training}
            changed, patience = config.updated(sizes), self._listening.patience
            self._hold(changed)
            trial = TrialGrid(grid, roster, nodes, patience)
            Run(trial, changed, replace(options, connect_timeout=patience)).conduct()

    def _parts(self, held: Sequence[str], roster: Roster) -> list[TrialNode]:
        """Return the nodes that the held-out clients stand for."""
        said = [roster.members[name].description for name in held]
        sizes = [Sizes(each.num_support, each.num_validation, each.is_grouped) for each in said]
        data, seed = self._config.data, self._config.seed
        parts = parts_of(sizes, data, describe_task(data, process_settings(), seed=seed))
        return [TrialNode(name, part) for name, each in zip(held, parts, strict=True) for part in each]

    def _hold(self, changed: RunConfig) -> None:
        """Have the run scale what the clients scale, who divide their examples by the search's seed."""
        data, seed, settings = self._config.data, self._config.seed, process_settings()
        scaling = shared_scaling(data, settings, seed=seed)
        task = describe_task(data, settings, seed=seed)
        hold_federation(changed.data, changed.seed, Federation(task, ()), scaling)

    def _listens(self) -> DirectServer:
        if self._server is None:
            endpoint, say = self._listening.endpoint, self._listening.say
            self._server = DirectServer(endpoint, on_event=say)
            unprotected = "" if endpoint.security else " without TLS and node keys"
            say(f"listening on {self._server.address}{unprotected}")
            who = f"{self._config.data.num_clients} participating clients"
            say(f"waiting for {who}, for {self._listening.patience:g} s at most")
        return self._server

    def _gathered(self, grid: FleetGrid, roster: Roster) -> list[str]:
        """Return the names of the search's clients, all of which are connected, in order.

        Raises:
            RunError: they did not come in time, or the record of who they are is torn.
        """
        deadline, told = time.monotonic() + self._listening.patience, ""
        self._look(grid, roster, deadline)
        while not (names := self._settled(grid, roster)) or missing_of(names, grid, roster):
            who = listed(missing_of(names, grid, roster)) if names else self._wanted(grid, roster)
            why = roster.explanation()
            if time.monotonic() >= deadline:
                raise RunError(
                    f"Expected {who} within {self._listening.patience:g} s{why}. Start what is missing, and give the "
                    "command again to go on."
                )
            if why != told:
                told = why
                self._listening.say(f"waiting for {who}{why}")
            look_again(grid)
            self._look(grid, roster, deadline)
        return names

    def _look(self, grid: FleetGrid, roster: Roster, deadline: float) -> None:
        """Ask who has come, all the time that is left once enough are there: they may have a lot of data to read."""
        left, enough = deadline - time.monotonic(), len(connected_nodes(grid)) >= self._config.data.num_clients
        roster.refresh(grid, max(QUERY_TIMEOUT, left) if enough else QUERY_TIMEOUT)

    def _wanted(self, grid: FleetGrid, roster: Roster) -> str:
        here = len(roster.connected(grid, ["participating"]))
        return f"{self._config.data.num_clients} participating clients (here: {here})"

    def _settled(self, grid: FleetGrid, roster: Roster) -> list[str]:
        """Return who takes part in the search, which the first run settles; empty while too few are there."""
        path, total = self._out / CLIENTS, self._config.data.num_clients
        if path.is_file():
            return _names(path, total)
        here = list(roster.connected(grid, ["participating"]))
        if len(here) < total:
            return []
        names = here[:total]
        write_json(path, {"names": names})
        if others := here[total:]:
            self._listening.say(f"{listed(others)}: more than the {total} that were asked for, and left out")
        return names


def check_connected(config: RunConfig) -> None:
    """Refuse options under which trials of connected clients cannot be compared, or tell of what they should not.

    Raises:
        ConfigError: naming the option.
    """
    federation, privacy = config.federation, config.privacy
    if privacy.dp != "none":
        raise ConfigError(
            f"privacy.dp={privacy.dp} is refused with --listen: every trial would spend ε of the same records or "
            "clients. Tune on data that may be looked at, without --listen, and train with the ε there is."
        )
    if privacy.secure_aggregation:
        raise ConfigError(
            "privacy.secure-aggregation is refused with --listen: trials begin at the same model and hold out "
            "different clients, so that the difference of two sums would tell of single ones. Tune without it, on data "
            "that may be looked at."
        )
    if federation.mode == "buffered" or federation.over_selection or federation.min_reply_fraction < 1:
        key = (
            "mode=buffered" if federation.mode == "buffered" else "over-selection above 0 or min-reply-fraction below 1"
        )
        raise ConfigError(
            f"federation.{key} is refused with --listen: who is counted would depend on who is fast at the time, and "
            "trials could not be compared. Leave it out of the search; best.toml takes it."
        )
    if is_own_file(config.data):
        raise ConfigError(
            f"data.source={config.data.source!r} is data on this machine, and with --listen the clients have them. Set "
            "data.source to private and say what its examples are (docs/your-own-data.md), or leave --listen out."
        )
    if awaits_statistics(config.data):
        raise ConfigError(
            "data.scale=federated needs means and scales, which a search does not ask for. Have `nufed server "
            "--statistics` ask (its config.json has them), and give data.feature-means and data.feature-scales."
        )


def _names(path: Path, total: int) -> list[str]:
    try:
        record: Mapping[str, object] = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Expected who takes part in a search in {path}, but {error}. Name another --out.") from error
    names = record.get("names")
    if not (isinstance(names, list) and len(names) == total and all(isinstance(name, str) for name in names)):
        raise RunError(f"Expected the names of {total} clients in {path}, but it holds others. Name another --out.")
    return list(names)
