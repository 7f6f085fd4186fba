"""What every simulation on one machine shares: stable node ids, kept client state, one turn of a client at a time.

A simulated node is a number: node `FIRST_NODE_ID + i` holds partition i. Flower's own simulation draws random node
ids; stable ones make a run that samples by node id repeatable.
"""

import copy
import hashlib
import itertools
import json
import logging
import math
import traceback
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from nufed.client.client_state import kept_arrays, kept_round, node_records
from nufed.common.config import Scalar
from nufed.common.errors import NufedError, RunError
from nufed.common.examples import Group
from nufed.common.params import Params
from nufed.deploy.flower_runtime.wire import make_message
from nufed.deploy.flower_runtime.words import (
    NUM_PARTITIONS_KEY,
    PARTITION_ID_KEY,
    SUPERLINK_NODE_ID,
    ErrorCode,
    Run,
    TaskIdentity,
    UserConfig,
)
from nufed.deploy.run_grid import RunGrid
from nufed.deploy.simulation.simulated_time import MessagesUnderway, SimulatedClock, microseconds
from nufed.strategy.exchange import Quorum

FIRST_NODE_ID = 1000
"""Node ids 0 and 1 have a meaning of their own in Flower (nobody, the SuperLink)."""

_log = logging.getLogger("nufed.simulation")


@dataclass(frozen=True)
class ClientTurn:
    """What one call of a ClientApp left behind.

    Attributes:
        reply: its reply, or an error reply if it raised.
        state: what the node keeps for its next turn; what it was before if the app raised.
        traceback: of the exception behind an error reply.
    """

    reply: Message
    state: RecordDict
    traceback: str | None = None


def copy_records(records: RecordDict) -> RecordDict:
    """Return new containers around the same array contents, which are immutable bytes."""
    return RecordDict({name: _copy_record(record) for name, record in records.items()})


def take_turn(app: ClientApp, message: Message, context: Context) -> ClientTurn:
    """Run a ClientApp on one message, as a SuperNode does: what it raises becomes an error reply.

    The app sees its own containers: nothing that it changes reaches the sender's message or, if it raises, its state.

    Raises:
        NufedError: raised by the app; a client's bad data or option ends a simulation with its own explanation.
    """
    kept = context.state
    try:
        reply = app(_own_copy(message), own_context(context, state := copy_records(kept)))
        _check_reply(reply, message)
    except NufedError:
        raise
    except Exception as error:  # noqa: BLE001 - the app is the user's code, and a SuperNode answers for it likewise
        reason = f"{type(error)}:<'{error}'>"
        failed = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return ClientTurn(failed, kept, traceback.format_exc())
    if reply.has_content():
        reply.content = copy_records(reply.content)
    return ClientTurn(reply, state)


class Adversary(Protocol):
    """What some of a simulation's clients are and send instead of honest ones (nufed.deploy.simulation.attacks)."""

    def node_options(self, partition: int) -> UserConfig:
        """Return what a client's node is told beside its partition."""

    def corrupted(self, turns: Iterator[tuple[Message, ClientTurn]]) -> Iterator[tuple[Message, ClientTurn]]:
        """Yield all turns, some of them with other replies."""


class SimulatedGrid(RunGrid):
    """A Flower Grid over clients of this machine; holds their states and the messages under way.

    Message ids are numbers in the order of sending, run ids follow from the run's configuration: nothing is drawn.
    Real time decides nothing: simulated clients share the machine. Where they have speeds, replies come in the order of
    simulated time, and who is late is late in it.

    Attributes:
        adversary: speaks for clients that attack; None without any.
        clock: simulated time; without speeds of the clients, nobody needs any.
        clients: names and groups in the order of the partitions, where they are many, so that only those that are asked
            for work are asked who they are; empty otherwise.
    """

    takes_quorum = True
    computes_ahead = True
    """Whether all clients that are at work run at once when the reply of one is asked for, and not one by one."""

    def __init__(self, num_nodes: int, run_config: Mapping[str, Scalar]) -> None:
        """Make the grid this process's only sender of Flower messages.

        Raises:
            RunError: there is no node.
        """
        if num_nodes < 1:
            raise RunError(f"Expected at least one simulated client, got {num_nodes}. Raise data.num-clients.")
        self.adversary: Adversary | None = None
        self.clock = SimulatedClock()
        self._underway = MessagesUnderway()
        self._computed: dict[str, ClientTurn] = {}
        self.clients: Sequence[tuple[str, Group]] = ()
        self._num_nodes = num_nodes
        self._nodes = frozenset(range(FIRST_NODE_ID, FIRST_NODE_ID + num_nodes))
        self._run_config = dict(run_config)
        super().__init__(Run.create_empty(_run_id(num_nodes, run_config)))
        self._states: dict[int, RecordDict] = {}
        self._sent: dict[str, Message] = {}
        self._message_numbers = itertools.count(1)
        self._reported: set[str] = set()
        # A Message takes its run and its sender from here when the ServerApp makes it.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self._run.run_id, SUPERLINK_NODE_ID, 1

    @abstractmethod
    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        """Yield each message with what its client made of it, as soon as it is known."""

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(range(FIRST_NODE_ID, FIRST_NODE_ID + self._num_nodes))

    def node_set(self) -> frozenset[int]:
        """Return the ids of all nodes."""
        return self._nodes

    def listed_clients(self) -> dict[int, tuple[str, Group]] | None:
        """Return names and groups by node id, where there are many clients; None elsewhere."""
        return dict(enumerate(self.clients, FIRST_NODE_ID)) if self.clients else None

    def kept_rounds(self) -> dict[int, int]:
        """Return partition -> the round of what its client keeps, of clients that keep something between rounds."""
        rounds = {node - FIRST_NODE_ID: kept_round(state) for node, state in self._states.items()}
        return {partition: number for partition, number in sorted(rounds.items()) if number is not None}

    def kept_state(self, partition: int) -> Params:
        """Return what a client keeps between rounds."""
        return kept_arrays(self._states[FIRST_NODE_ID + partition])

    def restore_state(self, partition: int, round_number: int, kept: Params) -> None:
        """Give a client what it kept after a round, as a run that goes on must."""
        self._states[FIRST_NODE_ID + partition] = node_records(round_number, kept)

    def wait_for_nodes(self, count: int, timeout: float | None = None) -> bool:  # noqa: ARG002 - the grids' signature
        """Return at once whether there are at least `count` nodes: all are here from the start."""
        return count <= self._num_nodes

    def server_context(self) -> Context:
        """Return the context to call the ServerApp with."""
        return Context(self._run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(self._run_config))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Address messages and return their ids; their clients run when the replies are pulled."""
        addressed = [self._address(message) for message in messages]
        self._sent.update(addressed)
        return [message_id for message_id, _ in addressed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the clients of these messages and return their replies; each reply is given out once."""
        asked = [self._sent.pop(message_id) for message_id in message_ids if message_id in self._sent]
        return list(self._replies(asked))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to all messages."""
        return list(self.stream_replies(messages, timeout=timeout))

    def stream_replies(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        quorum: Quorum | None = None,
    ) -> Iterator[Message]:
        """Yield each reply as soon as its client has run, so that the caller can hold one model at a time.

        The messages have their ids when this returns. When the caller stops early, clients whose turn has not come
        do not run.

        Args:
            messages: what to send.
            timeout: simulated seconds; who takes longer does not run.
            quorum: how many replies are enough, counted by the caller; who is later in simulated time does not run.

        Raises:
            NufedError: a client's own explanation of what is wrong with its data or options.
        """
        return self._in_time([message for _, message in map(self._address, messages)], timeout, quorum)

    def _in_time(self, messages: list[Message], timeout: float | None, quorum: Quorum | None) -> Iterator[Message]:
        """Yield the replies that come in time, and set the clock to when the last of them is waited for."""
        durations = {id(message): self._duration(message) for message in messages}
        limit: float = microseconds(timeout) if self.clock.is_set else math.inf
        waiting = deque(sorted(messages, key=lambda each: durations[id(each)]))
        spent = 0
        while waiting and not (quorum and quorum.is_full):
            # Of those that come next, as many as are needed whatever the others answer: they can run together.
            most: float = len(waiting)
            if quorum and (self.clock.is_set or not math.isinf(quorum.room)):
                most = min(quorum.room, quorum.missing if quorum.missing > 0 else math.inf)
            batch: list[Message] = []
            while waiting and len(batch) < most and durations[id(waiting[0])] <= limit:
                batch.append(waiting.popleft())
            if not batch:
                break
            was_met = quorum is None or quorum.is_met
            yield from self._replies(batch)
            spent = durations[id(batch[-1])]
            if quorum and quorum.is_met and not was_met:
                limit = min(limit, spent + (microseconds(quorum.grace) if self.clock.is_set else math.inf))
        is_cut_short = waiting and not (quorum and quorum.is_full) and not math.isinf(limit)
        self.clock.now += int(limit) if is_cut_short else spent

    def _duration(self, message: Message) -> int:
        return self.clock.duration(message, message.metadata.dst_node_id - FIRST_NODE_ID)

    @property
    def simulated_now(self) -> int | None:
        """Simulated microseconds so far; None where clients have no speeds."""
        return self.clock.now if self.clock.is_set else None

    def start_at(self, now: int) -> None:
        """Set the clock, of a run that goes on."""
        self.clock.now = now

    def send_one(self, message: Message, due: int | None = None) -> int:
        """Send a message, and return when its reply is due, in simulated microseconds."""
        _, addressed = self._address(message)
        due = self.clock.now + self._duration(addressed) if due is None else due
        self._underway.add(addressed, due)
        return due

    def next_reply(self, message_ids: Set[str], timeout: float) -> Message | None:  # noqa: ARG002 - of all under way
        """Return the reply that is due next; None if that is later than `timeout` simulated seconds."""
        due = self._underway.first_due()
        if due is None:
            return None
        if due - self.clock.now > microseconds(timeout):
            self.clock.now += int(microseconds(timeout))
            return None
        self.clock.now = max(self.clock.now, due)
        message = self._underway.pop()
        if not self._is_known(message):
            return next(self._replies([message]))
        turn = self._computed_turn(message)
        turns = iter([(message, turn)])
        return next(self._sent_back(self.adversary.corrupted(turns) if self.adversary else turns))

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Take back messages that nobody waits for any more: their clients are free, and do not run."""
        for message_id in message_ids:
            self._underway.withdraw(message_id)
            self._computed.pop(message_id, None)

    def _computed_turn(self, message: Message) -> ClientTurn:
        """Return what a client made of a message; its state is what it was when the reply is given out."""
        message_id = message.metadata.message_id
        if message_id not in self._computed:
            others = self._underway.all() if self.computes_ahead else []
            new = [each for each in others if each.metadata.message_id not in self._computed and self._is_known(each)]
            for each, turn in self._turns([message, *new]):
                self._computed[each.metadata.message_id] = turn
        return self._computed.pop(message_id)

    def _address(self, message: Message) -> tuple[str, Message]:
        # Messages take these two from the process, which may hold several grids; there are no setters.
        message.metadata.__dict__.update(_run_id=self._run.run_id, _src_node_id=SUPERLINK_NODE_ID)
        return self._numbered(message).metadata.message_id, message

    def _numbered(self, message: Message) -> Message:
        """Return the message with an id of its own; without one a reply would not say what it replies to."""
        message.metadata.__dict__["_message_id"] = f"{next(self._message_numbers):032x}"
        return message

    def _replies(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            if not self._is_known(message):
                reason = f"There is no node {message.metadata.dst_node_id}; nodes are {FIRST_NODE_ID} and up."
                yield self._numbered(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=message))
        turns = self._turns([message for message in messages if self._is_known(message)])
        yield from self._sent_back(self.adversary.corrupted(turns) if self.adversary else turns)

    def _sent_back(self, turns: Iterator[tuple[Message, ClientTurn]]) -> Iterator[Message]:
        """Yield the replies of clients' turns, whose states are kept from then on."""
        for message, turn in turns:
            self._states[message.metadata.dst_node_id] = turn.state
            self._report(message, turn)
            yield self._numbered(turn.reply)

    def _is_known(self, message: Message) -> bool:
        return 0 <= message.metadata.dst_node_id - FIRST_NODE_ID < self._num_nodes

    def _context(self, node_id: int) -> Context:
        """Return a node's context, with the state that its last turn left."""
        node_config: UserConfig = {PARTITION_ID_KEY: node_id - FIRST_NODE_ID, NUM_PARTITIONS_KEY: self._num_nodes}
        if self.adversary:
            node_config |= self.adversary.node_options(node_id - FIRST_NODE_ID)
        state = self._states.get(node_id, RecordDict())
        return Context(self._run.run_id, node_id, node_config, state, dict(self._run_config))

    def _report(self, message: Message, turn: ClientTurn) -> None:
        """Log the traceback of a failed client, once per reason: twenty clients often fail alike."""
        if turn.traceback is None or (reason := str(turn.reply.error.reason)) in self._reported:
            return
        self._reported.add(reason)
        _log.error("The client on node %d failed:\n%s", message.metadata.dst_node_id, turn.traceback)


def _copy_record(record: ArrayRecord | ConfigRecord | MetricRecord) -> ArrayRecord | ConfigRecord | MetricRecord:
    if isinstance(record, ArrayRecord):
        return ArrayRecord(dict(record))  # makes new Arrays around the same bytes
    duplicate = record.copy()
    for key, value in duplicate.items():
        if isinstance(value, list):
            duplicate[key] = value.copy()  # type: ignore[assignment] # of the type that it had
    return duplicate


def _own_copy(message: Message) -> Message:
    """Return a message of the same metadata whose content can be changed freely."""
    return make_message(copy.copy(message.metadata), copy_records(message.content))


def own_context(context: Context, state: RecordDict) -> Context:
    """Return a context with containers of its own, and another state."""
    return Context(context.run_id, context.node_id, dict(context.node_config), state, dict(context.run_config))


def _check_reply(reply: object, message: Message) -> None:
    if not isinstance(reply, Message):
        raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a flwr.app.Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("the ClientApp returned a message that is no reply to its own; use Message(…, reply_to=…)")


def _run_id(num_nodes: int, run_config: Mapping[str, Scalar]) -> int:
    """Return a 63-bit id that equal runs share."""
    text = json.dumps([num_nodes, dict(run_config)], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
