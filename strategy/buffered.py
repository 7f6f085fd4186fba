"""Buffered steps: clients are always at work, and the server steps after every b replies (Nguyen et al. 2022, FedBuff).

    while at work < concurrency:  send (w_k, k) to a client that has not counted in this step yet
    a reply w_i to the message of step j:  s = k - j,  fold w_k + (1 + s)^-a (w_i - w_j)
    after b of them:  w_{k+1} = the mean of what was folded, k <- k + 1

Which model a client was sent is known here, and not told by the client. Differs from FedBuff in that a client counts at
most once in a step, so that b attackers stay b; and that a mean by examples divides by the sum of the examples.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from nufed.common.errors import RunError
from nufed.common.events import Asked
from nufed.common.model_arrays import check_params, params_to_arrays
from nufed.common.params import Params
from nufed.common.rng import numpy_generator
from nufed.common.wire import ClientDescription, TrainReply
from nufed.strategy.buffer_options import BufferOptions, rebased
from nufed.strategy.exchange import simulated_now
from nufed.strategy.known_clients import Member
from nufed.strategy.members import Roster
from nufed.strategy.open_exchange import OpenExchange
from nufed.strategy.phase import AveragingRule, Outgoing, TrainingPhase, most_examples
from nufed.strategy.phase_record import array_bytes
from nufed.strategy.results import BufferOutcome, RoundResult
from nufed.strategy.telling import Telling

_LOOK_AGAIN = 1.0
"""Seconds after which it is looked for clients that have come, while fewer are at work than should be."""
_LEAST = 1e-6


@dataclass(frozen=True)
class Work:
    """What one client is at.

    Attributes:
        client_id: whose it is.
        round: k, the step whose model the client was sent.
        message: as it was sent.
        asked_at: seconds of the exchange's clock.
        begun: seconds of `time.perf_counter`.
        wire: bytes that had come from the node and gone to it; None where they are not known.
        due: when its reply comes, in simulated microseconds; None where that is not known.
    """

    client_id: str
    round: int
    message: Message
    asked_at: float
    begun: float
    wire: tuple[int, int] | None = None
    due: int | None = None


class BufferPhase(TrainingPhase):
    """Holds the replies of one buffered step; clients are counted in it when something comes of their work."""

    def __init__(
        self, outgoing: Outgoing, telling: Telling, rule: AveragingRule, sent: Params, options: BufferOptions
    ) -> None:
        """Open a step from the model `sent`, w_k."""
        self._options, self._models = options, {outgoing.round: sent}
        self._rounds: dict[str, int] = {}
        self._stale: list[int] = []
        super().__init__(outgoing, {}, telling, rule, sent)
        self.num_used = 0
        self._outcome: BufferOutcome | None = None

    @property
    def model(self) -> Params:
        """w_k, the very object that was given."""
        return self._sent

    @property
    def clients(self) -> frozenset[str]:
        """The clients that count in this step, whatever came of their work."""
        return self._record.clients

    def resolve(self, work: Work, member: Member, reply: Message, model: Params) -> None:
        """Take the reply to some work on `model`; nothing that a client sends makes this raise."""
        self._include(work, member)
        self._rounds[work.client_id], self._models[work.round] = work.round, model
        if self.take(member.node_id, reply):
            self.num_used += 1
            self._stale.append(self.round - work.round)

    def lose(self, work: Work, member: Member, reason: str) -> None:
        """Count a client that has not replied in time."""
        self._include(work, member)
        self._record.leave_out(work.client_id, "missing", reason)

    def drop(self, work: Work, member: Member, reason: str) -> None:
        """Count a client whose work is on a model that is too old."""
        self._include(work, member)
        self._record.drop(work.client_id, reason)

    def close_step(self, strays: int, simulated_seconds: float | None, at_work: int, models: int) -> None:
        """Note what the step's result says beside its counts."""
        self._record.strays += strays
        self._simulated_seconds = simulated_seconds
        mean, most = (fmean(self._stale), max(self._stale)) if self._stale else (0.0, 0)
        self._outcome = BufferOutcome(mean, most, at_work, models)

    def close(self) -> RoundResult:
        """Return the step's result; see `TrainingPhase.close`."""
        return replace(super().close(), buffer=self._outcome)

    def _include(self, work: Work, member: Member) -> None:
        self._record.include(member.node_id, work.client_id, work.begun, work.wire)
        self._asked[work.client_id], self._most[work.client_id] = member, most_examples(member)
        self._bytes_down += array_bytes(work.message.content)

    def _largest_weight(self, largest: int) -> int:
        return self._options.size * (1 if self._rule.weighting == "uniform" else largest)

    def _based(self, client_id: str, reply: TrainReply) -> TrainReply:
        check_params(reply.params, self._sent, self._aggregation.limits)
        round_sent = self._rounds[client_id]
        weight = self._options.weight(self.round - round_sent)
        params = rebased(reply.params, self._models[round_sent], self._sent, weight)
        return TrainReply(params, reply.num_examples, reply.metrics)


class BufferedSteps:
    """Holds, between the steps of a run, who is at work and the models that they work on.

    There are at most as many models as clients at work, and no more than `max_staleness` + 1.

    Attributes:
        options: of the run.
    """

    def __init__(self, options: BufferOptions, seed: int, telling: Telling) -> None:
        """Begin with nobody at work; clients are drawn by `seed`."""
        self.options, self._seed, self._telling = options, seed, telling
        self._exchange: OpenExchange | None = None
        self._grid: Grid | None = None
        self._work: dict[str, Work] = {}
        self._models: dict[int, Params] = {}
        self._drawn = 0
        self._restored: tuple[Mapping[str, Any], Mapping[int, Params]] | None = None

    @property
    def at_work(self) -> frozenset[str]:
        """The clients at work."""
        return frozenset(self._work)

    def run(self, grid: Grid, outgoing: Outgoing, phase: BufferPhase, roster: Roster, fraction: float) -> None:
        """Keep clients at work and fill a step's buffer; nothing that a client sends makes this raise.

        A step that nobody is left to ask for has fewer replies.

        Args:
            grid: the same in all steps of a run.
            outgoing: what clients are sent from now on.
            phase: of the step, w_k.
            roster: the clients.
            fraction: r, of the connected clients that are at work where no concurrency is given.
        """
        exchange = self._opened(grid, outgoing, roster)
        begun, strays = simulated_now(grid), exchange.strays
        self._models[outgoing.round] = phase.model
        self._drop_old(phase, roster, exchange)
        timeout = float("inf") if outgoing.timeout is None else outgoing.timeout
        while phase.num_used < self.options.size:
            is_short = self._ask(grid, outgoing, phase, roster, fraction)
            if not self._work:
                break
            waits_for = max(0.0, min(work.asked_at for work in self._work.values()) + timeout - exchange.now())
            is_waiting = is_short and begun is None
            answered = exchange.next_reply(min(waits_for, _LOOK_AGAIN) if is_waiting else waits_for)
            if answered is not None:
                self._take(phase, roster, *answered)
            self._lose_late(phase, roster, exchange, timeout)
            roster.refresh(grid)
        self._models = {k: self._models[k] for k in sorted({work.round for work in self._work.values()})}
        now = simulated_now(grid)
        elapsed = None if now is None or begun is None else (now - begun) / 1e6
        phase.close_step(exchange.strays - strays, elapsed, len(self._work), len(self._models))

    def end(self) -> int:
        """Take back all work, because no step is made any more; return how many clients were at it."""
        count = len(self._work)
        for work in self._work.values():
            if self._exchange:
                self._exchange.withdraw(work.message)
        self._work, self._models = {}, {}
        return count

    def snapshot(self) -> tuple[dict[str, Any], dict[int, Params]]:
        """Return what a checkpoint after a step holds of those at work, and the models that they work on.

        In simulated time a run that goes on from there is the same run. In real time nobody is at work any more when a
        server is started again: only how many were at work is of use then.
        """
        now = None if self._grid is None else simulated_now(self._grid)
        if now is None:
            return {"at_work": sorted(self._work)}, {}
        kept = [[work.client_id, work.round, work.due, work.asked_at] for work in self._work.values()]
        return {"at_work": kept, "drawn": self._drawn, "now": now}, dict(self._models)

    def restore(self, told: Mapping[str, Any], models: Mapping[int, Params]) -> int:
        """Go on from a snapshot at the next step; return how many clients' work is lost, none in simulated time.

        Raises:
            RunError: it is no snapshot.
        """
        if "now" not in told:
            return len(told.get("at_work", ()))
        try:
            works = [(str(name), int(k), int(due), float(at)) for name, k, due, at in told["at_work"]]
            models = {k: models[k] for _, k, _, _ in works}
            self._drawn, now = int(told["drawn"]), int(told["now"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"Expected in a checkpoint who was at work, and on what, but {error}. Put back a copy that is whole, "
                "or start a new run."
            ) from error
        self._restored = {"at_work": works, "now": now}, models
        return 0

    def _opened(self, grid: Grid, outgoing: Outgoing, roster: Roster) -> OpenExchange:
        """Return the exchange, on which those are at work again that were when the run was stopped."""
        if self._exchange is not None and self._grid is grid:
            return self._exchange
        self._exchange, self._grid = OpenExchange(grid), grid
        self._work = {}
        restored, self._restored = self._restored, None
        if restored is None:
            return self._exchange
        if simulated_now(grid) is None:
            raise RunError(
                "Expected simulated time, in which the run was stopped with clients at work, but this grid has none. "
                "Go on with it as a simulation."
            )
        told, models = restored
        grid.start_at(told["now"])  # type: ignore[attr-defined] # of grids with simulated time
        members = roster.described(grid, {name: roster.members[name] for name, *_ in told["at_work"]})
        for name, k, due, asked_at in told["at_work"]:
            of_model = Outgoing(
                outgoing.message_type, k, params_to_arrays(models[k]), outgoing.config, outgoing.timeout
            )
            (message,) = of_model.messages({name: members[name]})
            self._exchange.send(message, due)
            self._work[name] = Work(name, k, message, asked_at, time.perf_counter(), None, due)
        self._models = dict(models)
        return self._exchange

    def _ask(self, grid: Grid, outgoing: Outgoing, phase: BufferPhase, roster: Roster, fraction: float) -> bool:
        """Send the model to clients until enough are at work; return whether there were too few to ask."""
        participants = roster.connected(grid, ["participating"])
        wanted = self.options.num_at_work(len(participants), fraction)
        if len(self._work) >= wanted:
            return False
        free = roster.free(grid, participants, self._work.keys() | phase.clients)
        chosen: list[str] = []
        while free and len(self._work) + len(chosen) < wanted:
            drawn = numpy_generator(self._seed, "buffered", self._drawn).integers(len(free))
            chosen.append(free.pop(int(drawn)))
            self._drawn += 1
        asked = roster.described(grid, {name: participants[name] for name in chosen})
        for name, member in asked.items():
            self._send(outgoing, name, member)
        return len(self._work) < wanted

    def _send(self, outgoing: Outgoing, name: str, member: Member) -> None:
        assert self._exchange is not None  # noqa: S101 - opened before anybody is asked
        wire = self._telling.wire_bytes(member.node_id) if self._telling.wire_bytes else None
        (message,) = outgoing.messages({name: member})
        now, begun = self._exchange.now(), time.perf_counter()
        due = self._exchange.send(message)
        self._work[name] = Work(name, outgoing.round, message, now, begun, wire, due)
        self._telling.events.tell(
            Asked, clients=(name,), bytes_down=outgoing.num_bytes(), phase="training", round=outgoing.round
        )

    def _take(self, phase: BufferPhase, roster: Roster, message: Message, reply: Message) -> None:
        found = (work for work in self._work.values() if work.message is message)
        if (work := next(found, None)) is None:
            return
        del self._work[work.client_id]
        phase.resolve(work, self._member(work, roster), reply, self._models[work.round])

    def _drop_old(self, phase: BufferPhase, roster: Roster, exchange: OpenExchange) -> None:
        """Take back work on models that are too old: its replies would be dropped anyhow."""
        for work in list(self._work.values()):
            if (age := phase.round - work.round) > self.options.max_staleness:
                exchange.withdraw(self._work.pop(work.client_id).message)
                reason = f"worked on a model that is {age} steps old (max-staleness={self.options.max_staleness})"
                phase.drop(work, self._member(work, roster), reason)

    def _lose_late(self, phase: BufferPhase, roster: Roster, exchange: OpenExchange, timeout: float) -> None:
        for work in list(self._work.values()):
            if exchange.now() >= work.asked_at + timeout - _LEAST:
                exchange.withdraw(self._work.pop(work.client_id).message)
                phase.lose(work, self._member(work, roster), f"no reply within {timeout:g} s")

    def _member(self, work: Work, roster: Roster) -> Member:
        """Return the client as it was when it was asked: it may be on another node by now, or gone."""
        member = roster.members.get(work.client_id)
        node_id = work.message.metadata.dst_node_id
        if member is None or member.node_id != node_id:
            description = member.description if member else ClientDescription(work.client_id, "participating", 0, 0, 0)
            return Member(node_id, description, announced=member is not None and member.announced)
        return member
