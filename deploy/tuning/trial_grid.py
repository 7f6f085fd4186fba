"""A trial's nodes, on the nodes of the clients that are connected.

A trial of a search is a run in which some participating clients are held out as if they were new. So it has a node for
each client that trains, and one for each part of a held-out client's examples (nufed.common.data.as_new), and a message
to such a node says which part it is about. Its results may not depend on who was away: a client that is gone is waited
for, and what it was asked is asked again, wherever it is then.
"""

import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from nufed.common.data.as_new import Part
from nufed.common.errors import LISTED, RunError
from nufed.common.wire import CONFIG, HELD_OUT
from nufed.deploy.network.fleet_grid import FleetGrid
from nufed.deploy.run_grid import RunGrid
from nufed.strategy.exchange import connected_nodes, iter_replies
from nufed.strategy.members import QUERY_TIMEOUT, Roster

_FIRST_NODE = 1000
_CLIENTS_OWN_ERRORS = (1, 2)
"""Flower's numbers of errors that a client's app is the cause of: answers, which asking again would not change."""
_MOST_LOSSES = 3
"""Times that a client may end over one message."""
_LOOK_AGAIN = 1.0


@dataclass(frozen=True)
class TrialNode:
    """One client of a trial.

    Attributes:
        client: whose node it is.
        part: of the client's examples, where it is held out; None trains.
    """

    client: str
    part: Part | None = None

    @property
    def name(self) -> str:
        """Return what the trial's client is called."""
        return self.part.name(self.client) if self.part else self.client


class TrialGrid(RunGrid):
    """Sends a trial's messages to the clients that its nodes stand for; all nodes are there all the time.

    Args:
        grid: of the connected clients.
        roster: knows on which node each client is now.
        nodes: the trial's, in the order of their ids.
        patience: seconds to wait for a client that is gone.
    """

    def __init__(self, grid: FleetGrid, roster: Roster, nodes: Sequence[TrialNode], patience: float) -> None:
        super().__init__(grid.run)
        self._grid, self._roster, self._patience = grid, roster, patience
        self._nodes = dict(enumerate(nodes, _FIRST_NODE))
        self._ids = frozenset(self._nodes)
        self._pushed: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        """Return the ids of the trial's nodes."""
        return list(self._nodes)

    def node_set(self) -> frozenset[int]:
        """Return the ids of the trial's nodes, as a set."""
        return self._ids

    def admitted_name(self, node_id: int) -> str | None:
        """Return what the client of a node that has proved its key is called; None where no keys are in use."""
        node = self._nodes[node_id]
        admitted = self._grid.admitted_name(self._roster.members[node.client].node_id)
        return None if admitted is None else node.name

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages and return their ids; they are sent when the replies are pulled."""
        taken = {_with_id(message): message for message in messages}
        self._pushed.update(taken)
        return list(taken)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Send these messages and return their replies; each is given out once."""
        return list(self.stream_replies([self._pushed.pop(each) for each in message_ids if each in self._pushed]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies to all messages; see `stream_replies`."""
        return list(self.stream_replies(messages, timeout=timeout))

    def stream_replies(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the reply to each message as it arrives; a client is asked about one part of its examples at a time.

        Args:
            messages: what to send.
            timeout: seconds that a client which is there may take for an answer; None waits for ever.

        Raises:
            RunError: a client was away for too long, took too long, or ended over a message again and again.
        """
        left = list(messages)
        while left:
            wave: dict[str, Message] = {}
            for message in left:
                wave.setdefault(self._client_of(message), message)
            taken = {id(message) for message in wave.values()}
            left = [message for message in left if id(message) not in taken]
            yield from self._answers(wave, float("inf") if timeout is None else timeout)

    def _answers(self, wave: dict[str, Message], timeout: float) -> Iterator[Message]:
        """Yield the replies to one message for each client, asking those again that were lost over it."""
        waiting, losses = dict(wave), dict.fromkeys(wave, 0)
        while waiting:
            self._wait_for(waiting)
            asked = {self._roster.members[name].node_id: name for name in waiting}
            lost = set()
            for node_id, reply in iter_replies(
                self._grid, [self._addressed(message) for message in waiting.values()], timeout
            ):
                name = asked.get(-1 if node_id is None else node_id)
                if name is None or name not in waiting:
                    continue
                if reply.has_error() and reply.error.code not in _CLIENTS_OWN_ERRORS:
                    lost.add(name)
                    continue
                yield _answering(reply, waiting.pop(name))
                del reply  # a model; it need not outlive the wait for the next one
            for name in waiting:
                losses[name] += 1
                self._check(name, losses[name], timeout, is_lost=name in lost)

    def _check(self, name: str, num_losses: int, timeout: float, *, is_lost: bool) -> None:
        if not is_lost:
            raise RunError(
                f"Expected an answer of client {name!r} within {timeout:g} s (federation.round-timeout), but there is "
                "none, and a trial without it is no trial of the same clients. See to it, and give the command again "
                "to go on."
            )
        if num_losses >= _MOST_LOSSES:
            raise RunError(
                f"Expected an answer of client {name!r}, but it was lost {num_losses} times over the same message, "
                "perhaps for want of memory. See to it, and give the command again to go on."
            )

    def _wait_for(self, names: Collection[str]) -> None:
        """Return when these clients are connected.

        Raises:
            RunError: one of them did not come back in time.
        """
        deadline = time.monotonic() + self._patience
        while missing := missing_of(names, self._grid, self._roster):
            if time.monotonic() >= deadline:
                raise RunError(
                    f"Expected {listed(missing)} to come back within {self._patience:g} s, but "
                    f"{'it has' if len(missing) == 1 else 'they have'} not{self._roster.explanation()}. Start them "
                    "again, and give the command again to go on."
                )
            look_again(self._grid)
            self._roster.refresh(self._grid, max(QUERY_TIMEOUT, deadline - time.monotonic()))

    def _client_of(self, message: Message) -> str:
        return self._nodes[message.metadata.dst_node_id].client

    def _addressed(self, message: Message) -> Message:
        """Return a message to the node that the client is on, which says what part of its examples it is about."""
        metadata, content = message.metadata, message.content
        node = self._nodes[metadata.dst_node_id]
        if node.part:
            said = {**content.config_records.get(CONFIG, {}), HELD_OUT: [node.part.number, node.part.total]}
            content = RecordDict({**dict(content.items()), CONFIG: ConfigRecord(said)})
        real = self._roster.members[node.client].node_id
        return Message(content, real, metadata.message_type, ttl=metadata.ttl, group_id=metadata.group_id)


def missing_of(names: Iterable[str], grid: FleetGrid, roster: Roster) -> list[str]:
    """Return those of some participating clients that are not connected."""
    here = roster.connected(grid, ["participating"])
    return [name for name in names if name not in here]


def look_again(grid: FleetGrid) -> None:
    """Return when one more client is connected, or after a second."""
    grid.wait_for_nodes(len(connected_nodes(grid)) + 1, _LOOK_AGAIN)


def listed(names: Sequence[str]) -> str:
    """Return names of clients for a sentence, the first of many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{'client' if len(names) == 1 else 'clients'} {', '.join(names[:LISTED])}{more}"


def _with_id(message: Message) -> str:
    """Return a message's id, which it gets if it has none."""
    if not message.metadata.message_id:
        message.metadata.__dict__["_message_id"] = secrets.token_hex(32)
    return str(message.metadata.message_id)


def _answering(reply: Message, message: Message) -> Message:
    """Return a reply as the one of the trial's node that a message went to."""
    reply.metadata.__dict__["_reply_to_message_id"] = _with_id(message)
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
    return reply
