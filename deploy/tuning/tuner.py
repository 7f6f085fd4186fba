"""A whole search: plan, trials, final runs, and what it leaves in its folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nufed.common.config import RunConfig
from nufed.common.durable_file import write_json, writing
from nufed.common.errors import ConfigError
from nufed.common.events import EventStream
from nufed.common.json_text import json_ready, parse_object
from nufed.deploy.experiments.cells import Cell, check_estimators, check_published, silent
from nufed.deploy.experiments.runner import Workers, settle
from nufed.deploy.tuning.finals import Verdict, decide, final_config, finalists_of
from nufed.deploy.tuning.held_out import SimulatedClients
from nufed.deploy.tuning.judged_run import Clients, Runs, gradients_per_round
from nufed.deploy.tuning.search import Search, Trial, check_optuna, rungs_of
from nufed.deploy.tuning.space import ESTIMATORS, INNER, Space
from nufed.server.run_lock import locked

if TYPE_CHECKING:
    from nufed.deploy.tuning.connected import ConnectedClients

RECORD = "tune.json"
CONNECTED, SIMULATED = "connected", "simulated"
"""Whose clients a search is of; what is not said to be connected is simulated."""
_GRID_SHARE = 5


@dataclass(frozen=True)
class Plan:
    """How much a search may spend, and on what.

    Attributes:
        budget: runs of full length, as rounds: trials that are pruned count for the rounds they had.
        finalists: numbers of inner steps that go into the final runs, FedAvg + fine-tuning among them.
        seeds: final runs of each.
        held_out: share of the participating clients that is held out of each run.
    """

    budget: int
    finalists: int
    seeds: int
    held_out: float

    def share(self, space: Space, num_rounds: int) -> int:
        """Return the rounds that the trials of each ν may spend.

        Raises:
            ConfigError: the budget is too small for one full run of each ν and the final runs.
        """
        final = self.finalists * self.seeds
        least = final + len(space.nus)
        if self.budget < least:
            raise ConfigError(
                f"--budget={self.budget} is refused: {self.finalists} finalists with {self.seeds} seeds are {final} "
                f"runs, and each of {len(space.nus)} numbers of inner steps needs one more. Expected {least} or more; "
                "raise it, or lower --finalists or --seeds."
            )
        return (self.budget - final) * num_rounds // len(space.nus)


@dataclass(frozen=True)
class Cost:
    """What a search has spent.

    Attributes:
        runs: of full length, as rounds.
        gradients: gradient equivalents of all clients.
        seconds: of wall time in runs.
        grid: runs of the full grid of the same space, with one seed.
        grid_gradients: their gradient equivalents.
    """

    runs: float
    gradients: float
    seconds: float
    grid: int
    grid_gradients: float


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        config: options of the run that was tuned for, with what was chosen.
        verdict: the final runs.
        trials: ν -> its trials.
        cost: of all runs.
        plan: as it was asked for.
        space: what was searched.
        folds: clients held out at a time, and of how many.
    """

    config: RunConfig
    verdict: Verdict
    trials: Mapping[int, Sequence[Trial]]
    cost: Cost
    plan: Plan
    space: Space
    folds: tuple[int, int]


def default_budget(space: Space, finalists: int, seeds: int) -> int:
    """Return a fifth of the full grid, or what the final runs and three runs of each ν need if that is more."""
    return max(space.grid_size() // _GRID_SHARE, finalists * seeds + 3 * len(space.nus))


def tune(
    config: RunConfig, space: Space, plan: Plan, workers: Workers, connected: "ConnectedClients | None" = None
) -> Tuned:
    """Search, or go on with the search in a folder.

    Args:
        config: of the run that is tuned for.
        space: what is searched.
        plan: what it may cost.
        workers: the search's folder, the engine, and who is told of every run; all is done in this process.
        connected: a federation whose clients connect to this process; None simulates one.

    Raises:
        NufedError: options contradict each other or those of the search in the folder, or a run cannot start.
        KeyboardInterrupt: what is done stays, and the same call goes on.
    """
    check_optuna()
    check_tunable(config, space, is_connected=connected is not None)
    share = plan.share(space, config.federation.num_rounds)
    out = workers.out
    settled = config if connected else _with_names(config, out)
    clients: Clients = connected or SimulatedClients(settled, plan.held_out, workers.engine)
    federation = {"clients": CONNECTED} if connected else {}
    _keep(out, {"options": config.flat(), "space": asdict(space), "plan": asdict(plan), "federation": federation})
    settle()
    runs = Runs(clients, out)
    with locked(out), silent():
        trials = Search(settled, space, runs, share, workers.say).trials()
        finalists = finalists_of(trials, plan.finalists)
        verdict = decide(settled, finalists, plan.seeds, runs, workers.say)
    best = config.updated({INNER: verdict.chosen.trial.nu, **verdict.chosen.trial.options})
    cost = _cost(settled, space, trials, verdict)
    return Tuned(best, verdict, trials, cost, plan, space, (len(clients.folds[0]), config.data.num_clients))


def check_tunable(config: RunConfig, space: Space, *, is_connected: bool = False) -> None:
    """Refuse what has no ν, α or β to tune, or nothing to judge them on, before anything runs.

    Raises:
        ConfigError: naming the option.
    """
    if config.federation.training == "local":
        raise ConfigError(
            "federation.training=local contradicts tuning a federation: nothing is shared. Leave it at federated."
        )
    if config.data.source == "private" and not is_connected:
        raise ConfigError(
            "data.source=private is refused: its data lie with the clients. Have them connect (--listen HOST:PORT), "
            "or give data that are on this machine, for example --dataset csv:FILE?label=COLUMN&user=COLUMN."
        )
    if config.data.validation_fraction == 0:
        raise ConfigError("data.validation-fraction=0 leaves nothing to judge trials on. Set it to 0.15, for example.")
    if config.federation.num_rounds < 1:
        raise ConfigError("federation.num-rounds=0 leaves nothing to train. Ask for more: --rounds.")
    cells = [Cell("tune", config.updated({INNER: nu})) for nu in space.nus]
    check_published(cells)
    check_estimators(cells)


def _with_names(config: RunConfig, out: Path) -> RunConfig:
    """Return the options with what follows from files of the user's own: names of columns and classes, and means."""
    from nufed.deploy.simulation.engines import settled
    from nufed.server.run import ServerOptions

    with EventStream() as events:
        return settled(config, ServerOptions(out=out, events=events))[0]


def _keep(out: Path, search: Mapping[str, Any]) -> None:
    """Write what is searched into the folder, or refuse to go on with another search there."""
    path = out / RECORD
    asked: dict[str, Any] = json_ready(search)
    if not path.is_file():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"--out {out} holds something other than a search. Name a folder that is new or empty.")
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asked, "started": time.time()})
        return
    try:
        there = parse_object(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected the record of a search in {path}, but {error}. Name another --out.") from error
    for part, values in asked.items():
        known = there.get(part) or {}
        for key in {**known, **values}:
            if _plain(values.get(key)) != _plain(known.get(key)):
                raise ConfigError(
                    f"--out {out} holds a search with {key}={known.get(key, SIMULATED)!r}, and this one has "
                    f"{values.get(key, SIMULATED)!r}. Leave that as it was to go on with it, or name another --out."
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cost(config: RunConfig, space: Space, trials: Mapping[int, Sequence[Trial]], verdict: Verdict) -> Cost:
    rounds, gradients, seconds = 0, 0.0, 0.0
    for trial in (trial for each in trials.values() for trial in each):
        rounds += trial.rounds
        gradients += trial.rounds * gradients_per_round(trial.config)
        seconds += trial.seconds
    length = config.federation.num_rounds
    for finalist in verdict.finalists:
        for seed, judged in finalist.judged.items():
            rounds += length
            gradients += length * gradients_per_round(final_config(config, finalist.trial, seed))
            seconds += judged.seconds
    each = [gradients_per_round(config.updated({INNER: nu, "method.estimator": ESTIMATORS[0]})) for nu in space.nus]
    grid = space.grid_size()
    return Cost(rounds / length, gradients, seconds, grid, length * grid * sum(each) / len(each))


def describe_plan(config: RunConfig, space: Space, plan: Plan) -> list[str]:
    """Return in words what is going to be done."""
    length = config.federation.num_rounds
    rungs = ", ".join(map(str, rungs_of(length)))
    nus = ", ".join(map(str, space.nus))
    ranges = f"α from {space.inner_lr.low:g} to {space.inner_lr.high:g}, β from {space.local_lr.low:g} to "
    final, per_nu = plan.finalists * plan.seeds, space.grid_size() // len(space.nus)
    budget = f"budget: {plan.budget} runs of {length} rounds, {final} of them final ones ({plan.finalists} finalists, "
    grid = f"{plan.seeds} seeds); a full grid of {per_nu} points for each ν would take {space.grid_size()}"
    return [f"ν of {nus}; {ranges}{space.local_lr.high:g}; trials judged after {rungs} rounds", budget + grid]
