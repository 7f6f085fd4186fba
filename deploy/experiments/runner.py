"""Running cells: in worker processes or on a cluster, skipping what is done, with the time that is left."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path

from nufed.common.durable_file import write_json, writing
from nufed.common.errors import RunError
from nufed.common.events import CellFinished, EventStream
from nufed.deploy.experiments.cells import CELLS, PLAN, Cell, Outcome, outcome_of, run_cell
from nufed.deploy.experiments.ray_cells import RayCells
from nufed.deploy.experiments.told import NO_TRACKERS, Trackers
from nufed.server.outcome import read_outcome
from nufed.server.progress_lines import duration
from nufed.server.round_record import group_metrics

Report = Callable[[str], None]


@dataclass(frozen=True)
class Workers:
    """How cells are run.

    Attributes:
        out: the suite's folder.
        jobs: processes at a time.
        engine: a key of `nufed.deploy.simulation.engines.ENGINES`.
        say: told of every finished cell in one line.
        events: takes what the experiment does.
        trackers: tracking tools that are told of the final runs.
        cluster: what runs cells instead of processes of this machine; None leaves them to those.
    """

    out: Path
    jobs: int
    engine: str
    say: Report
    events: EventStream = field(default_factory=EventStream)
    trackers: Trackers = NO_TRACKERS
    cluster: RayCells | None = None


def run_cells(cells: Sequence[Cell], workers: Workers, *, tracked: bool = False) -> dict[str, Outcome]:
    """Return what became of each cell, by its name; those that are done are not run again.

    Args:
        cells: what to run.
        workers: how.
        tracked: whether tracking tools are told of these runs.

    Raises:
        NufedError: a run cannot start; what else was finished by then stays.
        RunError: a worker process died, or there is no such cluster.
        KeyboardInterrupt: after the workers were ended; finished cells stay.
    """
    unique = {cell.name: cell for cell in cells}
    known = {name: outcome_of(cell, workers.out) for name, cell in unique.items()}
    outcomes = {name: outcome for name, outcome in known.items() if outcome is not None}
    pending = [cell for name, cell in unique.items() if name not in outcomes]
    if not pending:
        return outcomes
    if outcomes:
        workers.say(f"{len(outcomes)} of {len(unique)} runs are done already")
    at_a_time = workers.cluster.num_at_a_time() if workers.cluster else workers.jobs
    workers.say(f"{len(pending)} runs to do, {min(at_a_time, len(pending))} at a time")
    _write_plan(list(unique), len(outcomes), workers.out)
    clock = _Clock(pending, len(unique))
    with _started(pending, workers, workers.trackers if tracked else NO_TRACKERS) as finished:
        for cell, outcome in finished:
            outcomes[cell.name] = outcome
            workers.say(clock.line(cell, outcome))
            if workers.events.is_read:
                workers.events.publish(replace(clock.event(cell, outcome), run=workers.events.run))
    return outcomes


def _write_plan(names: Sequence[str], num_done: int, out: Path) -> None:
    """Leave which cells belong to this part of the experiment, for whoever looks on; nothing is computed from it."""
    with writing(out):
        (out / CELLS).mkdir(parents=True, exist_ok=True)
    cells = [{"cell": name} for name in names]
    write_json(out / CELLS / PLAN, {"started": time.time(), "done_before": num_done, "cells": cells})


class _Clock:
    """Tells how far the work is; holds what is left of it, in the unit of `Cell.weight`."""

    def __init__(self, pending: Sequence[Cell], total: int) -> None:
        self._weight_left, self._weight_done = sum(cell.weight for cell in pending), 0.0
        self._num_done, self._total = total - len(pending), total
        self._started, self._left = time.monotonic(), 0.0

    def line(self, cell: Cell, outcome: Outcome) -> str:
        """Return one line about a cell that has just finished."""
        self._num_done += 1
        self._weight_left -= cell.weight
        self._weight_done += cell.weight
        self._left = (time.monotonic() - self._started) * self._weight_left / self._weight_done
        method = cell.config.method
        what = f"{cell.entry}, α = {method.inner_lr:g}, β = {method.local_lr:g}, seed {cell.config.seed}"
        how = outcome.ending if outcome.folder is None else f"{outcome.seconds:.1f} s"
        return f"{self._num_done}/{self._total}  {what}: {how}; {duration(self._left)} left"

    def event(self, cell: Cell, outcome: Outcome) -> CellFinished:
        """Return the event of the cell that `line` was about."""
        return CellFinished(
            run="",
            cell=cell.name,
            entry=cell.entry,
            seed=cell.config.seed,
            done=self._num_done,
            total=self._total,
            ending="complete" if outcome.folder else outcome.ending,
            seconds=outcome.seconds,
            seconds_left=self._left,
            results=_results(outcome),
        )


def _results(outcome: Outcome) -> dict[str, dict[str, tuple[float, float]]]:
    """Return group -> metric -> mean before, and after s* fine-tuning steps."""
    summary = (read_outcome(outcome.folder) if outcome.folder else None) or {}
    step = summary.get("primary_step", -1)
    curves = {group: group_metrics(summary.get(group)) for group in ("participating", "new")}
    return {
        group: {metric: (curve[0], curve[step]) for metric, curve in metrics.items()}
        for group, metrics in curves.items()
        if metrics
    }


@contextmanager
def _started(cells: Sequence[Cell], workers: Workers, trackers: Trackers) -> Iterator[Iterator[tuple[Cell, Outcome]]]:
    """Offer the cells as they finish; what is not finished at the end of the block is ended."""
    if workers.cluster:
        with workers.cluster.started(cells, workers.out, trackers, workers.say) as finished:
            yield finished
        return
    with _processes(workers, len(cells)) as executor:
        yield _finished(
            {executor.submit(run_cell, cell, workers.out, workers.engine, trackers): cell for cell in cells}
        )


def _finished(futures: Mapping[Future[Outcome], Cell]) -> Iterator[tuple[Cell, Outcome]]:
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "Expected every worker process to finish its runs, but one was ended from outside, perhaps for want of "
            "memory. Give the command again to go on, with fewer --jobs."
        ) from error


@contextmanager
def _processes(workers: Workers, num_pending: int) -> Iterator[ProcessPoolExecutor]:
    """Offer worker processes; whatever ends the block early ends them at once, in the middle of their runs."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(min(workers.jobs, num_pending), mp_context=context, initializer=_start_worker)
    try:
        yield executor
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)
        raise
    executor.shutdown(wait=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settle()


def settle() -> None:
    """Let this process compute with as many threads as the settings say: part of what makes runs bit-identical.

    Settings of the machine come through the environment (`nufed.common.settings`).
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

    import torch

    from nufed.common.settings import process_settings

    torch.set_num_threads(process_settings().num_threads)


def _end_with_parent() -> None:
    """End this process when its parent is gone, also if that was killed: its unfinished run is started anew."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
