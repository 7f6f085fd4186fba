"""A cell is one run of a suite: a configuration that decides its numbers, and a folder of its own.

A finished cell is known by `done.json`; a folder without it was cut short and is run again from the start.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.durable_file import write_json
from nufed.common.errors import BudgetSpentError, ConfigError, DivergedError, NothingTrainedError, RunError
from nufed.common.events import EventStream
from nufed.common.json_text import parse_object
from nufed.common.meta.estimators import find_estimator
from nufed.common.privacy.publishing import Publication
from nufed.deploy.experiments.told import NO_TRACKERS, Trackers

CELLS, DONE, PLAN = "cells", "done.json", "plan.json"
ENDINGS = {DivergedError: "diverged", NothingTrainedError: "trained nothing"}
"""How a run ended that has no results."""


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        entry: key of the method in its setting.
        config: the run's options, the seed among them.
        attack: name and number of attackers; None for an honest federation.
    """

    entry: str
    config: RunConfig
    attack: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        """Return the name of the cell's folder; equal options give equal names, whatever the suite is called.

        Options that have their default do not count, so that new options of NuFed leave names as they were.
        """
        defaults = RunConfig().flat()
        changed = {key: value for key, value in self.config.flat().items() if value != defaults[key] and key != "name"}
        if changed.pop("federation.training", None) == "local":
            changed["federation.aggregation"] = "none"  # as NuFed 0.1 had it, whose finished cells keep their names
        if self.attack:
            changed["attack"] = " ".join(map(str, self.attack))
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.entry}-{self.config.seed}-{digest}"

    @property
    def weight(self) -> float:
        """Return about how long the run takes, in an arbitrary unit; small models cost calls rather than arithmetic."""
        method, data, federation = self.config.method, self.config.data, self.config.federation
        gradients = method.num_local_steps * step_cost(self.config)
        clients = max(1.0, federation.participation_fraction * data.num_clients)
        return 1000.0 + federation.num_rounds * (36.0 + 0.05 * clients * gradients)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        folder: the run folder; None if the run diverged or trained nothing, so that it has no results.
        problem: how it ended and why, then.
        seconds: wall time.
    """

    folder: Path | None
    problem: str
    seconds: float

    @property
    def ending(self) -> str:
        """Return `diverged` or `trained nothing` for a run without results."""
        return ending_of(self.problem)


def ending_of(problem: str) -> str:
    """Return how a run without results ended; before NuFed 0.2 all that were recorded had diverged."""
    return next((name for name in ENDINGS.values() if problem.startswith(f"{name}: ")), "diverged")


def step_cost(config: RunConfig) -> float:
    """Return c(ν), the gradient equivalents of one meta step."""
    nu, estimator = config.method.num_inner_steps, config.method.estimator
    if nu == 0:
        return 1.0
    if config.method.objective == "moreau":
        return nu + 1.0
    return find_estimator(estimator).step_cost(nu)


def outcome_of(cell: Cell, out: Path) -> Outcome | None:
    """Return what a finished cell left, or None if it is still to be run, or was run with other options.

    Raises:
        RunError: its record is torn.
    """
    path = out / CELLS / cell.name / DONE
    if not path.is_file():
        return None
    try:
        record: Mapping[str, Any] = parse_object(path.read_text(encoding="utf-8"))
        folder = record["folder"]
        if RunConfig.parse(record["options"]).updated({"name": cell.config.name}) != cell.config:
            return None
        if record.get("attack") != (list(cell.attack) if cell.attack else None):
            return None
        return Outcome(folder and path.parent / folder, str(record["problem"]), float(record["seconds"]))
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise RunError(f"Expected the record of a finished run in {path}, but {error}. Delete it and go on.") from error


@contextmanager
def silent() -> Iterator[None]:
    """Log errors alone inside the block: what each of many runs has to say is in its folder."""
    loggers = [logging.getLogger(name) for name in ("nufed", "flwr")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@silent()
def run_cell(cell: Cell, out: Path, engine: str, trackers: Trackers = NO_TRACKERS) -> Outcome:
    """Run a cell from the start and record it.

    A run that diverges, or of which no reply can be used, is an outcome without results, not an error of the suite.

    Args:
        cell: what to run.
        out: the suite's folder.
        engine: a key of `nufed.deploy.simulation.engines.ENGINES`.
        trackers: tracking tools that are told of the run.

    Raises:
        NufedError: the run cannot start.
    """
    from nufed.client.workplace import forget_workplaces
    from nufed.deploy.simulation.engines import attacked, prepare, simulate
    from nufed.server.run import ServerOptions

    place = out / CELLS / cell.name
    if place.exists():
        shutil.rmtree(place)
    started, problem = time.perf_counter(), ""
    federation = prepare(cell.config)
    try:
        with EventStream() as events, trackers.told(events, out, cell.name):
            options = ServerOptions(out=place, is_disposable=True, events=events)
            if cell.attack:
                options = attacked(options, cell.attack, cell.config, federation)
            simulate(cell.config, options, engine=engine)
    except (DivergedError, NothingTrainedError) as error:
        problem = f"{ENDINGS[type(error)]}: {error}"
    except BudgetSpentError:
        pass  # it has results, of fewer rounds
    finally:
        forget_workplaces()
    seconds = time.perf_counter() - started
    folder = next(iter(sorted(place.glob("*/summary.json"))), None)
    outcome = Outcome(folder.parent if folder and not problem else None, problem, seconds)
    place.mkdir(parents=True, exist_ok=True)
    name = outcome.folder.name if outcome.folder else None
    record = {"folder": name, "problem": problem, "seconds": seconds, "options": cell.config.flat()}
    write_json(place / DONE, {**record, **({"attack": list(cell.attack)} if cell.attack else {})})
    return outcome


NEEDED = ("evaluation", "client-curves", "participants", "examples")
"""What reports and tuning are made of, by its names in `privacy.publish`."""


def check_published(cells: list[Cell]) -> None:
    """Check before anything runs that the runs will show what they are to be compared by.

    Raises:
        ConfigError: differential privacy withholds it.
    """
    for config in (cell.config for cell in cells):
        if missing := [name for name in NEEDED if name not in Publication.of(config).shown]:
            raise ConfigError(
                f"privacy.dp={config.privacy.dp} withholds {', '.join(missing)}, which runs are tuned and compared by; "
                f"ε covers neither. Set privacy.publish to {','.join(NEEDED)} where the data may be looked at, and "
                "tune on other data than a model is published of."
            )


def check_estimators(cells: list[Cell]) -> None:
    """Check before anything runs that every estimator that is named exists."""
    for name in {cell.config.method.estimator for cell in cells}:
        find_estimator(name)
