"""An experiment from its suite to its tables: data, tuning, final runs, and a record of how it was done."""

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nufed.common.config import Scalar
from nufed.common.durable_file import write_json, writing
from nufed.common.errors import ConfigError, RunError, nearest_match_hint
from nufed.common.events import Phase
from nufed.common.events.event import PhaseName
from nufed.common.json_text import parse_object
from nufed.deploy.experiments.archive import PREPARATIONS
from nufed.deploy.experiments.cells import Cell, Outcome, check_estimators, check_published
from nufed.deploy.experiments.finished import FinishedRun, read_run
from nufed.deploy.experiments.runner import Workers, run_cells
from nufed.deploy.experiments.suite import Suite, checked, find_archive
from nufed.deploy.experiments.tables import has_parquet, write_tables
from nufed.deploy.experiments.tuning import Choice, tune

RECORD = "experiment.json"


@dataclass(frozen=True)
class Experiment:
    """What an experiment left in memory; its folder holds the same.

    Attributes:
        suite: as it was run.
        choices: entry -> chosen step sizes.
        runs: finished final runs.
        diverged: entry and seed of each final run that diverged or trained nothing, and why.
        record: how it was done: command, machine, time.
    """

    suite: Suite
    choices: Mapping[str, Choice]
    runs: list[FinishedRun]
    diverged: Mapping[str, str]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Changes:
    """How an experiment differs from its suite.

    Attributes:
        seeds: number of final seeds; None leaves the suite's.
        options: run options, which win over those of suite, setting and method.
        methods: names of the methods to keep; empty keeps all.
        settings: names of the settings to keep, with those that an attack of them was made of; empty keeps all.
    """

    seeds: int | None = None
    options: Mapping[str, Scalar] = field(default_factory=dict)
    methods: Sequence[str] = ()
    settings: Sequence[str] = ()


def with_changes(suite: Suite, changes: Changes) -> Suite:
    """Return a suite with changes.

    Raises:
        ConfigError: an option is unknown or out of range, a name is unknown, or a method that others need is left out.
    """
    for kind, wanted, known in (
        ("--method", changes.methods, [method.name for method in suite.methods]),
        ("--setting", changes.settings, [setting.name for setting in suite.settings]),
    ):
        for name in set(wanted) - set(known):
            raise ConfigError(f"{kind} {name!r} is not in suite {suite.name}.{nearest_match_hint(name, known)}")
    methods = [each for each in suite.methods if not changes.methods or each.name in changes.methods]
    chosen = {*changes.settings, *(each.honest for each in suite.settings if each.name in changes.settings)}
    settings = [each for each in suite.settings if not chosen or each.name in chosen]
    names = {method.name for method in methods}
    for role, name in (("reference", suite.reference), ("baseline", suite.baseline)):
        if name not in names:
            raise ConfigError(
                f"--method leaves out {name!r}, the {role} that the suite {suite.name} compares with. Add --method "
                f"{name}."
            )
    for method in methods:
        if method.follows and method.follows not in names:
            raise ConfigError(
                f"--method {method.name} takes its step sizes from {method.follows!r}, which is left out. Add --method "
                f"{method.follows}."
            )
    changed = suite.model_copy(
        update={
            "seeds": changes.seeds or suite.seeds,
            "overrides": {**suite.overrides, **changes.options},
            "methods": methods,
            "settings": settings,
        }
    )
    return checked(changed.model_dump(by_alias=True), suite.name)


def located(suite: Suite, out: Path, data_root: Path | None) -> Suite:
    """Return the suite with the path of its archive as `data.source`, prepared in `out` if the suite asks for that.

    Raises:
        DataError: the archive is missing.
    """
    if suite.archive is None:
        return suite
    path = find_archive(suite.archive.file, data_root)
    if suite.archive.prepare != "none":
        path = PREPARATIONS[suite.archive.prepare](path, out / "data" / path.name)
    return suite.model_copy(update={"options": {**suite.options, "data.source": f"npz:{path}"}})


def conduct(suite: Suite, workers: Workers, *, command: str) -> Experiment:
    """Tune, run and tabulate a located suite; what is done already in `workers.out` is not done again.

    Args:
        suite: what to run.
        workers: where and how.
        command: what was typed, for the record.

    Raises:
        NufedError: a run cannot start, or a whole method diverged.
        KeyboardInterrupt: finished runs stay.
    """
    first = [Cell(entry.key, entry.config(entry.points()[0])) for entry in suite.entries()]
    check_estimators(first)
    check_published(first)
    for note in dict.fromkeys(note for entry in suite.entries() for note in entry.notes()):
        workers.say(note)
    with writing(workers.out):
        workers.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _phase(workers, "tuning"):
        choices = tune(suite, workers)
    cells = {
        (entry.key, seed): Cell(entry.key, choices[entry.key].config.updated({"seed": seed}), entry.attack)
        for entry in suite.entries()
        for seed in range(suite.seeds)
    }
    with _phase(workers, "training"):
        outcomes = run_cells(list(cells.values()), workers, tracked=True)
    experiment = _collect(suite, choices, cells, outcomes)
    record = {
        **_machine(workers, command),
        "elapsed_seconds": time.monotonic() - started,
        "final_run_seconds": sum(outcome.seconds for outcome in outcomes.values()),
    }
    experiment = replace(experiment, record=record)
    _write(experiment, workers.out)
    if not has_parquet():
        workers.say("tables are written as CSV alone; pip install 'nufed[parquet]' for Parquet")
    return experiment


@contextmanager
def _phase(workers: Workers, name: PhaseName) -> Iterator[None]:
    started = time.monotonic()
    workers.events.tell(Phase, phase=name)
    yield
    workers.events.tell(Phase, phase=name, seconds=time.monotonic() - started)


def read_experiment(out: Path) -> Experiment:
    """Read an experiment back from its folder.

    Raises:
        RunError: the folder holds no finished experiment.
    """
    path = out / RECORD
    try:
        stored = parse_object(path.read_text(encoding="utf-8"))
        suite = Suite.model_validate(stored["suite"])
        folders = [(out / each["folder"], each["method"], each["setting"]) for each in stored["runs"]]
        choices = {key: _choice_from_json(key, value) for key, value in stored["choices"].items()}
        diverged, record = stored["diverged"], stored["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"Expected an experiment that has run to its end in {out}, but {error}. Give `nufed experiment` again; it "
            "goes on where it stopped."
        ) from error
    runs = [read_run(folder, method=method, setting=setting) for folder, method, setting in folders]
    return Experiment(suite, choices, runs, diverged, record)


def _collect(
    suite: Suite,
    choices: Mapping[str, Choice],
    cells: Mapping[tuple[str, int], Cell],
    outcomes: Mapping[str, Outcome],
) -> Experiment:
    runs, diverged = [], {}
    for entry in suite.entries():
        for seed in range(suite.seeds):
            outcome = outcomes[cells[entry.key, seed].name]
            if outcome.folder is None:
                diverged[f"{entry.key}, seed {seed}"] = outcome.problem
                continue
            runs.append(read_run(outcome.folder, method=entry.method.name, setting=entry.setting.name))
    if not runs:
        reason = next(iter(diverged.values()))
        raise RunError(f"Expected a run of the suite to have results, but none has. The first {reason}")
    return Experiment(suite, choices, runs, diverged, {})


def _write(experiment: Experiment, out: Path) -> None:
    write_tables(out, experiment.runs, experiment.choices)
    write_json(
        out / RECORD,
        {
            "suite": experiment.suite.model_dump(by_alias=True),
            "choices": {key: _choice_to_json(choice) for key, choice in experiment.choices.items()},
            "runs": [
                {"folder": str(run.folder.relative_to(out)), "method": run.method, "setting": run.setting}
                for run in experiment.runs
            ],
            "diverged": experiment.diverged,
            "record": experiment.record,
        },
    )


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    return {
        "config": choice.config.flat(),
        "point": choice.point,
        "at_edge": choice.at_edge,
        "scored": [{"point": each.point, "score": each.score} for each in choice.scored],
    }


def _choice_from_json(key: str, stored: Mapping[str, Any]) -> Choice:
    from nufed.common.config import RunConfig
    from nufed.deploy.experiments.tuning import Scored

    scored = tuple(
        Scored(each["point"], -float("inf") if each["score"] is None else each["score"]) for each in stored["scored"]
    )
    return Choice(key, RunConfig.parse(stored["config"]), scored, stored["point"], tuple(stored["at_edge"]))


def _machine(workers: Workers, command: str) -> dict[str, Any]:
    from nufed.server.run_folder import environment

    return {
        "command": command,
        "engine": workers.engine,
        "jobs": "ray" if workers.cluster else workers.jobs,
        "processors": os.cpu_count(),
        "processor": _processor_name(),
        **{name: value for name, value in environment().items() if name not in ("num_threads", "processor")},
    }


def _processor_name() -> str:
    """Return the processor's model where the system tells it (Linux), else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
