"""A run from its first round to its summary: the server's side of docs/theory.md, section 1, round by round."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from nufed.common.config import RunConfig
from nufed.common.data import shared_scaling, task_of_run
from nufed.common.data.private.task import check_is_scaled
from nufed.common.durable_file import write_text
from nufed.common.errors import BudgetSpentError, DivergedError, NothingTrainedError, NufedError, RunError
from nufed.common.examples import Group
from nufed.common.message_schema import CurveShape, curve_shape
from nufed.common.meta.estimators import find_estimator
from nufed.common.metric_looks import Look
from nufed.common.privacy.publishing import Publication
from nufed.common.privacy.rules import check_privacy
from nufed.common.settings import process_settings
from nufed.common.shots import shots_request
from nufed.common.wire import ALL_METRICS, FINAL, FROZEN
from nufed.server.adaptation_curves import GroupCurves, group_curves
from nufed.server.at_work import ended_work, kept_state, restore_state
from nufed.server.client_curves import ACCURACY, ClientCurves, curves_of_replies
from nufed.server.client_privacy import begun, client_privacy, of_round, of_run
from nufed.server.client_states import ClientStates, told_of
from nufed.server.hostile import check_same_attack
from nufed.server.options import ServerOptions
from nufed.server.outcome import (
    MOST_DIVERGED,
    Status,
    commonest_reason,
    earlier_curves,
    final_evaluation,
    lacks_answers,
    nothing_trained,
    share_diverged,
)
from nufed.server.pictures import leave_pictures
from nufed.server.record_privacy import record_summary, with_record_costs
from nufed.server.round_record import round_record
from nufed.server.run_events import RunEvents
from nufed.server.run_folder import RunFolder
from nufed.server.run_state import RunState
from nufed.server.shots import shots_summary
from nufed.server.starting import starting_point
from nufed.server.strategy_of_run import strategy_of_run
from nufed.server.summary import curves_json, progress_curve, run_summary
from nufed.server.withholding import (
    lines_of_publication,
    shown_clients,
    shown_group,
    shown_reason,
    shown_record,
    shown_summary,
)
from nufed.strategy.buffer_options import check_buffer, check_speeds
from nufed.strategy.results import EvaluatedGroup
from nufed.strategy.robust_options import check_config

__all__ = ["Run", "ServerOptions"]

_log = logging.getLogger(__name__)

GROUPS: tuple[Group, ...] = ("participating", "new")


class Run:
    """One run; holds what does not change between rounds: options, grid, strategy and folder."""

    def __init__(self, grid: Grid, config: RunConfig, options: ServerOptions) -> None:
        """Prepare a run on the clients behind `grid`."""
        check_config(config)
        check_privacy(config)
        check_buffer(config.federation, config.data.num_clients)
        self.grid, self.config, self.options = grid, config, options
        self.publication, self._privacy = Publication.of(config), client_privacy(config, options.resume)
        self._spent: BudgetSpentError | None = None
        self.strategy = strategy_of_run(config, self._privacy)
        self._shape = CurveShape(config.evaluation.num_adapt_steps + 1, "", {}, ACCURACY)  # until the task is known
        self.events = RunEvents(options.events, config, self._num_rounds)
        told = self.strategy.telling
        told.events, told.check = options.events, self._check_goes_on
        told.primary_step, told.wire_bytes = config.evaluation.primary_step, getattr(grid, "wire_bytes", None)
        check_speeds(config.federation, grid)
        self._frozen, self._notes = "", list[str]()  # until the model is built
        self._client_states = ClientStates.of(grid, config, is_disposable=options.is_disposable)

    def conduct(self) -> None:
        """Train, evaluate, and write everything down.

        Raises:
            NothingTrainedError: no round had a reply that could be used.
            DivergedError: the model, or most clients' fine-tuning, left the finite numbers.
            BudgetSpentError: one more round would reveal more than ε allows; the model that there is was evaluated.
            NufedError: the run cannot start or go on; finished rounds are in the folder and can be resumed.
            KeyboardInterrupt: after what there is was written, marked as interrupted.
        """
        with self.events.recorded():
            self._conduct()

    def _conduct(self) -> None:
        state = self._start()
        expected = self.config.data.num_clients + self.config.data.num_new_clients
        num_clients = expected if self.options.min_clients is None else self.options.min_clients
        self.strategy.discover(
            self.grid, expected=num_clients, timeout=self.options.connect_timeout, config=self._told()
        )
        if self.options.resume and state.round == self._num_rounds and lacks_answers(self.options.resume):
            self._repeat_final_evaluation(state, self.options.resume)
            return
        with self._folder(state.round) as folder:
            self._tell_start(folder, state)
            if self.config.model.init and state.round == 0 and not self.options.is_disposable:
                self._save(folder, state)  # so that the file is not needed again
            try:
                for reached in self._rounds(state, folder):
                    state = reached
                self._say(ended_work(self.strategy))
                self._check_trained(state)
                state = self._evaluated_at_end(state)
            except KeyboardInterrupt as stop:
                self._write(folder, state, "interrupted", stop)
                raise
            except (NothingTrainedError, DivergedError) as error:
                self._write(folder, state, "diverged" if isinstance(error, DivergedError) else "nothing-trained", error)
                raise
            except NufedError as error:
                with suppress(RunError):  # what is wrong with the disk now is not what ended the run
                    self._write(folder, state, "interrupted", error)
                raise
            self._finish(folder, state)

    def _check_goes_on(self) -> None:
        """End the run, as Ctrl-C does, if somebody has asked for that.

        Raises:
            KeyboardInterrupt: with the reason.
        """
        if reason := self.options.control.stop_reason:
            raise KeyboardInterrupt(reason)

    def _tell_start(self, folder: RunFolder, state: RunState) -> None:
        engine, private = self.options.engine, self.strategy.private
        self.events.started(folder, state.round + 1, state.params, engine=engine, measure=self.measure)
        self._say([*begun(private, folder.ledger, self._num_rounds), *lines_of_publication(self.config), *self._notes])

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.options.events.say(line)

    @property
    def _num_rounds(self) -> int:
        """The server updates to make; none where nothing is aggregated, and each client trains alone to be judged."""
        return 0 if self.config.federation.training == "local" else self.config.federation.num_rounds

    @property
    def _interval(self) -> int:
        """Rounds between evaluations; 0 where there are none on the way, or nobody would see them."""
        return self.config.evaluation.interval if self.publication.evaluation else 0

    @property
    def measure(self) -> str:
        """The primary metric, once the task is known."""
        return self._shape.primary

    @property
    def _looks(self) -> Mapping[str, Look]:
        return self._shape.looks

    def _start(self) -> RunState:
        """Return the initial model, or where the folder to resume stands."""
        find_estimator(self.config.method.estimator)
        check_is_scaled(self.config.data)
        if (threads := process_settings().num_threads) != torch.get_num_threads():
            torch.set_num_threads(threads)
        task = task_of_run(self.config, process_settings())
        self._shape = curve_shape(self.config.evaluation, task)
        if self.options.resume:
            check_same_attack(self.options.resume, self.options.hostile)
        start = starting_point(self.config, task, self.options.resume)
        self.config, self._frozen = start.config, start.frozen
        self._notes = restore_state(self.strategy, start)
        self._client_states.restore(self.options.resume, start.client_states, start.round)
        return RunState(start.round, start.params, start.history)

    def _told(self, *, final: bool = False) -> ConfigRecord:
        """Return what clients are told with a message: the frozen part's hash, and whether the model is the last."""
        told = ConfigRecord({FROZEN: self._frozen} if self._frozen else {})
        told.update(self._client_states.told)
        if final:
            told.update({FINAL: 1 - self.options.is_trial, ALL_METRICS: 1, **shots_request(self.config.evaluation)})
        return told

    def _folder(self, at_round: int) -> RunFolder:
        if self.options.resume:
            return RunFolder.open_existing(self.options.resume, config=self.config, at_round=at_round)
        now, options = datetime.now().astimezone(), self.options
        described: dict[str, Any] = {"engine": options.engine, "hostile": options.hostile}
        folder = RunFolder.create(options.out, self.config, now=now, privacy=self._privacy, **described)
        for name, content in options.attachments.items():
            write_text(folder.path / name, content)
        self._client_states.told = told_of(folder.path)
        return folder

    def _rounds(self, state: RunState, folder: RunFolder) -> Iterator[RunState]:
        """Yield the state after the first evaluation, and after each round, which was told by then."""
        if state.round == 0 and self._num_rounds:
            yield (state := self._evaluated_at_start(state))
        while state.round < self._num_rounds:
            self._check_goes_on()
            try:
                state, record = self._advance(state, folder)
            except BudgetSpentError as error:  # before anybody was asked
                self._spent = error
                return
            yield state
            self.events.round_closed(record)

    def _check_trained(self, state: RunState) -> None:
        if self.strategy.private and not self.publication.participants:
            return  # whether anybody has answered is nothing that ε covers; the model is another in any case
        known = state.history.totals.rounds_without_reply if self.publication.participants else state.num_idle
        if state.round and known == state.round:
            raise nothing_trained(state.round, state.problems, is_private=self.config.data.source == "private")

    def _evaluated_at_start(self, state: RunState) -> RunState:
        """Return the state with the adaptation curves of the initial model, if there are evaluations on the way."""
        return self._evaluate(state, "participating", 0)[0] if self._interval else state

    def _evaluated_at_end(self, state: RunState) -> RunState:
        """Return the state with the curves of all clients; those that keep a personal model make it of this model.

        Raises:
            RunError: nobody answered.
        """
        after, record = self._evaluate(state, "all", state.round, final=True)
        if not after.answered:
            raise RunError(
                f"Expected clients to judge the final model, but none did ({commonest_reason(record['problems'])}). "
                "The rounds are done: resume the run to repeat the evaluation alone."
            )
        return after

    def _repeat_final_evaluation(self, state: RunState, path: Path) -> None:
        """Judge the final model again; of those that do not answer, the curves that they gave before are kept.

        Until it is done the old results stay, so that it can be cut short without harm.
        """
        with RunFolder.open_existing(path, config=self.config, at_round=state.round, keep_results=True) as folder:
            self._tell_start(folder, state)
            earlier = earlier_curves(folder.path) if self.publication.client_curves else []
            state, _ = self._evaluate(state, "all", state.round, final=True)
            kept = [client for client in earlier if client.client_id not in state.answered]
            state = replace(state, answered=state.answered | {client.client_id for client in kept})
            self._finish(folder, self._judged(state, state.round, [*state.curves, *kept], state.problems))

    def _advance(self, state: RunState, folder: RunFolder) -> tuple[RunState, dict[str, Any]]:
        """Return the state after one more round and the round's record; by then both are on the disk.

        A disposable run is on the disk at its end.
        """
        started, timeout = time.perf_counter(), self.config.federation.round_timeout
        with self.events.phase("training", state.round + 1):
            result = self.strategy.train_round(
                self.grid, state.params, state.round + 1, timeout=timeout, config=self._told()
            )
        after, evaluation = replace(state, round=result.round, params=result.params, problems=result.problems), None
        after = replace(after, num_idle=state.num_idle + (result.counts.replied == 0))
        if self._interval and result.round % self._interval == 0:
            after, evaluation = self._evaluate(after, "participating", result.round)
            after = replace(after, problems=result.problems)
        record = round_record(result, evaluation, time.perf_counter() - started)
        record = {**shown_record(record, self.publication), **of_round(result)}
        after = replace(after, history=with_record_costs(after.history.after_round(record), self.config, result))
        is_durable = not self.options.is_disposable or after.round == self._num_rounds
        folder.append_round(record, durable=is_durable)
        if is_durable:
            self._save(folder, after)
            self.events.checkpoint_saved(after.round)
        return after, record

    def _save(self, folder: RunFolder, state: RunState) -> None:
        kept = kept_state(self.strategy, state.history.to_json())
        with self._client_states.written(folder.path) as kept["client_states"]:
            folder.save_checkpoint(round=state.round, params=state.params, frozen=self._frozen, **kept)

    def _evaluate(
        self, state: RunState, group: EvaluatedGroup, round_done: int, *, final: bool = False
    ) -> tuple[RunState, dict[str, Any]]:
        """Return the state with fresh curves, and the evaluation's part of the round's record.

        Clients are told of a `final` evaluation: those that are to keep a personal model make it of this model.
        """
        with self.events.phase("evaluation", round_done):
            result = self.strategy.evaluate_round(
                self.grid,
                state.params,
                round_done,
                group=group,
                timeout=self.config.federation.round_timeout,
                config=self._told(final=final),
                shape=self._shape if self.publication.evaluation else None,
            )
        described = {name: self.strategy.members[name].description for name in result.client_metrics}
        if self.publication.evaluation:
            curves, problems = curves_of_replies(result, described, self._shape)
        else:  # clients answer that they have the model, and no more
            curves, problems = [], result.problems
        groups = {name: curves_json(self._group(curves, name)) for name in GROUPS}
        self.events.evaluated(round_done, groups, curves, seconds=result.seconds, final=final)
        record = {"participating": groups["participating"], "problems": problems, "seconds": result.seconds}
        answered = {client.client_id for client in curves} if self.publication.evaluation else result.client_metrics
        state = replace(state, answered=frozenset(answered))
        return self._judged(state, round_done, curves, problems), record

    def _judged(
        self, state: RunState, round_done: int, curves: Sequence[ClientCurves], problems: Mapping[str, str]
    ) -> RunState:
        """Return the state with the curves of an evaluation, and its mean in the history."""
        participating, history = self._group(curves, "participating"), state.history
        if participating:
            history = history.after_evaluation(round_done, progress_curve(participating))
        return replace(state, history=history, curves=curves, problems=problems)

    def _finish(self, folder: RunFolder, state: RunState) -> None:
        """Write what a run leaves whose final evaluation is done.

        Raises:
            BudgetSpentError: the rounds have ended early.
            DivergedError: fine-tuning has diverged for most clients.
        """
        step = self.config.evaluation.primary_step
        if share_diverged(state.curves, step) > MOST_DIVERGED:
            number = sum(client.has_diverged(step) for client in state.curves)
            error = DivergedError(
                f"Expected fine-tuning to stay finite, but {number} of {len(state.curves)} clients have diverged after "
                f"{step} steps. Lower --inner-lr (or evaluation.adapt-lr), or --local-lr, in a new run."
            )
            self._write(folder, state, "diverged", error)
            raise error
        self._write(folder, state, "budget-spent" if self._spent else "complete", self._spent)
        if self._spent:
            raise self._spent

    def _write(self, folder: RunFolder, state: RunState, status: Status, cause: BaseException | None = None) -> None:
        """Write what a run leaves: its results first, the picture of them last."""
        curves = [] if status == "nothing-trained" else state.curves
        groups = {group: self._group(curves, group) for group in GROUPS}
        evaluation = None
        if status == "nothing-trained":
            folder.remove_results()
        else:
            shown = shown_clients(curves, self.publication)
            table = folder.write_clients(shown) if self.publication.client_curves else b""
            scaling = shared_scaling(self.config.data, process_settings(), seed=self.config.seed)
            folder.write_model(state.params, state.round, scaling, self._frozen)
            is_at_end = state.round == self._num_rounds or status == "budget-spent"
            if status in ("complete", "diverged", "budget-spent") and is_at_end:
                known = {name: member.description.group for name, member in self.strategy.members.items()}
                known |= {client.client_id: client.group for client in curves}
                evaluation = final_evaluation(self.config, known, state.answered, state.problems, table)
        summary = run_summary(self.config, state.round, state.history, groups, evaluation)
        summary |= {"status": status, "reason": shown_reason(cause, self.publication) or None}
        summary |= record_summary(self.config, state.history, self.strategy.members) | of_run(self.strategy.private)
        if evaluation:
            summary |= shots_summary(
                self._honest(curves),
                self.config.evaluation,
                self.measure,
                lower_is_better=self._looks[self.measure].better == "lower",
            )
        summary = shown_summary(summary, self.config, self.publication)
        folder.write_summary(summary)
        if status != "nothing-trained" and not (self.options.is_disposable or self.options.is_trial):
            leave_pictures(folder, state.history.evaluations, groups, summary)
        self.events.ended(status, cause, summary)

    def _group(self, curves: Sequence[ClientCurves], group: Group) -> GroupCurves | None:
        found = group_curves(
            self._honest(curves),
            group,
            primary_step=self.config.evaluation.primary_step,
            measure=self.measure,
            betters={name: look.better for name, look in self._looks.items()},
            max_weight=self.config.federation.max_weight,
        )
        return shown_group(found, self.publication)

    def _honest(self, curves: Sequence[ClientCurves]) -> list[ClientCurves]:
        attackers = self.options.hostile.clients.values() if self.options.hostile else ()
        return [client for client in curves if client.client_id not in attackers]
