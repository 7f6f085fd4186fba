"""A run from its first round to its summary: the server's side of algorithm.md §2.1, written down round by round."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.errors import RunError, WireError
from nufed.common.examples import Group
from nufed.common.message_schema import NUM_EXAMPLES, CurveShape, MetricValue
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.objective import initial_params
from nufed.common.models import build_model
from nufed.common.params import Params, model_params
from nufed.common.settings import process_settings
from nufed.common.wire import FINAL, EvaluateReply
from nufed.server.adaptation_curves import ClientCurves, GroupCurves, group_curves, rounds_to_target
from nufed.server.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nufed.server.figures import draw_curves
from nufed.server.history import History
from nufed.server.observer import RunObserver, SilentObserver
from nufed.server.run_folder import RunFolder
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.results import EvaluatedGroup, EvaluationResult, RoundResult

GROUPS: tuple[Group, ...] = ("participating", "new")


@dataclass(frozen=True)
class ServerOptions:
    """Where a run is written and who watches it.

    Attributes:
        out: folder that the run's folder is made in.
        resume: an earlier run's folder to go on in; None starts a new one.
        observer: told of the progress.
        min_clients: clients to wait for before the first round; None waits for all that the configuration names.
        connect_timeout: seconds to wait for them.
        engine: what runs the clients, as environment.json shall say: an engine of the simulation, or `fleet`.
        is_disposable: whether the run is one of many that is started anew if it is cut short: it leaves a checkpoint
            at its end alone, does not wait for the disk, and draws nothing.
    """

    out: Path
    resume: Path | None = None
    observer: RunObserver = field(default_factory=SilentObserver)
    min_clients: int | None = None
    connect_timeout: float = 600.0
    engine: str = "fleet"
    is_disposable: bool = False


@dataclass(frozen=True)
class _State:
    """Where a run stands after `round` server updates, and the last evaluation of all or some of its clients."""

    round: int
    params: Params
    history: History
    curves: Sequence[ClientCurves] = ()


class Run:
    """One run; holds what does not change between rounds: options, grid, strategy and folder."""

    def __init__(self, grid: Grid, config: RunConfig, options: ServerOptions) -> None:
        """Prepare a run on the clients behind `grid`."""
        self.grid, self.config, self.options = grid, config, options
        self.strategy = MetaFedAvg(
            seed=config.seed,
            participation_fraction=config.federation.participation_fraction,
            weighting=config.federation.weighting,
            server_lr=config.federation.server_lr,
            max_weight=config.federation.max_weight,
            aggregation=config.federation.aggregation,
        )
        self._shape: CurveShape | None = None  # until the task is known

    def conduct(self) -> None:
        """Train, evaluate, and write everything down.

        Raises:
            NufedError: the run cannot start or go on; finished rounds are in the folder and can be resumed.
            KeyboardInterrupt: after what there is was written, marked as interrupted.
        """
        start = self._start()
        expected = self.config.data.num_clients + self.config.data.num_new_clients
        num_clients = expected if self.options.min_clients is None else self.options.min_clients
        self.strategy.discover(self.grid, expected=num_clients, timeout=self.options.connect_timeout)
        with self._folder() as folder:
            self.options.observer.on_start(self.config, folder.path, first_round=start.round + 1)
            state = start
            try:
                if state.round == 0 and self._num_rounds:
                    state = self._evaluated_at_start(state)
                while state.round < self._num_rounds:
                    state, record = self._advance(state, folder)
                    self.options.observer.on_round(record)
                state = self._evaluate(state, "all", state.round, final=True)[0]
            except KeyboardInterrupt:
                self._write(folder, state, status="interrupted")
                raise
            self._write(folder, state, status="complete")

    @property
    def _num_rounds(self) -> int:
        """The server updates to make; none where nothing is aggregated, and each client trains alone to be judged."""
        return 0 if self.config.federation.training == "local" else self.config.federation.num_rounds

    def _start(self) -> _State:
        """Return the seeded initial model, or where the folder to resume stands."""
        find_estimator(self.config.method.estimator)
        if (threads := process_settings().num_threads) != torch.get_num_threads():
            torch.set_num_threads(threads)
        task = describe_task(self.config.data, process_settings(), seed=self.config.seed)
        self._shape = CurveShape(self.config.evaluation.num_adapt_steps + 1, task.kind == "classification")
        initial = initial_params(
            model_params(build_model(self.config.model, task, seed=self.config.seed)), self.config.method
        )
        checkpoint = load_checkpoint(self.options.resume) if self.options.resume else None
        if checkpoint is None:
            return _State(0, initial, History())
        return _resumed(checkpoint, initial, self.config)

    def _folder(self) -> RunFolder:
        if self.options.resume:
            return RunFolder.open_existing(self.options.resume, config=self.config)
        return RunFolder.create(
            self.options.out, self.config, now=datetime.now().astimezone(), engine=self.options.engine
        )

    def _evaluated_at_start(self, state: _State) -> _State:
        """Return the state with the adaptation curves of the initial model, if there are evaluations on the way."""
        return self._evaluate(state, "participating", 0)[0] if self.config.evaluation.interval else state

    def _advance(self, state: _State, folder: RunFolder) -> tuple[_State, dict[str, Any]]:
        """Return the state after one more round and the round's record; by then both are on the disk.

        A disposable run is on the disk at its end.
        """
        started, timeout = time.perf_counter(), self.config.federation.round_timeout
        result = self.strategy.train_round(self.grid, state.params, state.round + 1, timeout=timeout)
        after, evaluation = _State(result.round, result.params, state.history, state.curves), None
        interval = self.config.evaluation.interval
        if interval and result.round % interval == 0:
            after, evaluation = self._evaluate(after, "participating", result.round)
        record = _round_record(result, evaluation, time.perf_counter() - started)
        after = _State(after.round, after.params, after.history.after_round(record), after.curves)
        is_durable = not self.options.is_disposable or after.round == self._num_rounds
        folder.append_round(record, durable=is_durable)
        if is_durable:
            save_checkpoint(folder.path, round=after.round, params=after.params, history=after.history.to_json())
        return after, record

    def _evaluate(
        self, state: _State, group: EvaluatedGroup, round_done: int, *, final: bool = False
    ) -> tuple[_State, dict[str, Any]]:
        """Return the state with fresh curves, and the evaluation's part of the round's record.

        Clients are told of a `final` evaluation: those that are to keep a personal model make it of this model.
        """
        result = self.strategy.evaluate_round(
            self.grid,
            state.params,
            round_done,
            group=group,
            timeout=self.config.federation.round_timeout,
            config=ConfigRecord({FINAL: 1} if final else {}),
            shape=self._shape,
        )
        curves, problems = self._client_curves(result)
        participating = group_curves(curves, "participating", primary_step=self.config.evaluation.primary_step)
        record = {"participating": _json(participating), "problems": problems, "seconds": result.seconds}
        history = state.history
        if participating and (not history.evaluations or history.evaluations[-1][0] != round_done):
            history = history.after_evaluation(round_done, participating.accuracy or participating.loss)
        return _State(state.round, state.params, history, curves), record

    def _client_curves(self, result: EvaluationResult) -> tuple[list[ClientCurves], dict[str, str]]:
        """Return the curves of the clients that answered with curves, and why the others did not, by client id."""
        curves, problems, steps = [], dict(result.problems), self.config.evaluation.num_adapt_steps
        for client_id, metrics in result.client_metrics.items():
            reply = EvaluateReply(int(cast("int", metrics[NUM_EXAMPLES])), metrics)
            try:
                description = self.strategy.members[client_id].description
                curves.append(ClientCurves.from_reply(description, reply, num_adapt_steps=steps))
            except WireError as error:
                problems[client_id] = str(error)
        return curves, problems

    def _write(self, folder: RunFolder, state: _State, *, status: str) -> None:
        """Write what a finished or interrupted run leaves."""
        groups = {group: self._group(state, group) for group in GROUPS}
        folder.write_clients(state.curves)
        folder.write_model(state.params, state.round)
        if not self.options.is_disposable:
            folder.write_figures(
                draw_curves(state.history.evaluations, groups["participating"], groups["new"], config=self.config)
            )
        summary = _summary(self.config, state, groups, status)
        folder.write_summary(summary)
        self.options.observer.on_finish(summary, folder.path)

    def _group(self, state: _State, group: Group) -> GroupCurves | None:
        return group_curves(state.curves, group, primary_step=self.config.evaluation.primary_step)


def _resumed(checkpoint: Checkpoint, initial: Params, config: RunConfig) -> _State:
    shapes = {name: tensor.shape for name, tensor in initial.items()}
    if {name: tensor.shape for name, tensor in checkpoint.params.items()} != shapes:
        raise RunError(
            f"Expected a checkpoint of model {config.model.name!r} (hidden-sizes {config.model.hidden_sizes!r}), but "
            "its arrays differ. Resume with the options of the run's config.json."
        )
    return _State(checkpoint.round, checkpoint.params, History.from_json(checkpoint.history))


def _round_record(result: RoundResult, evaluation: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Return a round's line of metrics.jsonl."""
    per_client = result.client_metrics
    return {
        "round": result.round,
        **vars(result.counts),
        "problems": dict(result.problems),
        "loss": result.mean_metrics.get("loss"),
        "diverged": result.num_diverged,
        "loss_weighted": result.weighted_metrics.get("loss"),
        "clients": {client_id: dict(metrics) for client_id, metrics in per_client.items()},
        "gradient_evaluations": _total(per_client, "gradient-evaluations"),
        "hvps": _total(per_client, "hvps"),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "seconds": seconds,
        "evaluation": evaluation,
    }


def _total(per_client: Mapping[str, Mapping[str, MetricValue]], key: str) -> int:
    """Return the sum of a count over clients; those of other apps may not report it."""
    return sum(count for metrics in per_client.values() if isinstance(count := metrics.get(key), int))


def _summary(
    config: RunConfig, state: _State, groups: Mapping[Group, GroupCurves | None], status: str
) -> dict[str, Any]:
    """Return the content of summary.json."""
    step, target = config.evaluation.primary_step, config.evaluation.target_accuracy
    at_step = [(done, curve[step]) for done, curve in state.history.evaluations]
    totals = vars(state.history.totals)
    return {
        "status": status,
        "rounds": state.round,
        "primary_step": step,
        "num_inner_steps": config.method.num_inner_steps,
        **{group: _json(curves) for group, curves in groups.items()},
        "target_accuracy": target or None,
        "rounds_to_target": rounds_to_target(at_step, target) if target else None,
        "costs": {name: totals[name] for name in ("gradient_evaluations", "hvps", "bytes_up", "bytes_down")},
        "problems": {name: totals[name] for name in ("rejected", "failed", "missing")},
        "seconds": totals["seconds"],
    }


def _json(curves: GroupCurves | None) -> dict[str, Any] | None:
    return curves.to_json() if curves else None
