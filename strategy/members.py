"""Who takes part: from Flower's node ids, which change with every run, to the clients' own stable ids."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from nufed.common.errors import LISTED, RunError, WireError
from nufed.common.examples import Group
from nufed.common.untrusted import printable
from nufed.common.wire import CONFIG, ClientDescription
from nufed.strategy.exchange import connected_nodes, describe_error, iter_replies, poll, time_to_live, wait_for_nodes

QUERY_TIMEOUT = 30.0
"""Seconds that a node which comes or is doubted during a run has to say who it is; the others wait meanwhile."""

FIRST_RETRY = 60.0
"""Seconds after which a node that failed to say who it is is asked again."""

CLIENT_ID = "client-id"
_NO_HANDLER = "No query function registered"  # what flwr.clientapp.ClientApp raises

_log = logging.getLogger("nufed.strategy")


@dataclass(frozen=True)
class Member:
    """A client and the node that it runs on now.

    Attributes:
        node_id: Flower's handle.
        description: who the client says it is; the sizes are 0 if it cannot say.
        announced: whether the client has said how many examples it has.
    """

    node_id: int
    description: ClientDescription
    announced: bool = True

    @property
    def client_id(self) -> str:
        """The client's stable name."""
        return self.description.client_id


@dataclass(frozen=True)
class Retry:
    """When a node is asked again (seconds on the monotonic clock), and the pause that led there (seconds)."""

    at: float
    pause: float


class Roster:
    """Holds the clients known so far, and keeps them in step with the nodes that are connected."""

    def __init__(self) -> None:
        """Start without clients."""
        self.members: dict[str, Member] = {}
        self._settled: set[int] = set()  # nodes that need not be asked
        self._problems: dict[int, str] = {}  # why a connected node is no member
        self._retries: dict[int, Retry] = {}

    def discover(self, grid: Grid, expected: int, timeout: float) -> None:
        """Wait until `expected` nodes are connected, and ask every node who it is.

        Raises:
            RunError: too few nodes within `timeout` seconds, too few that can take part, or one name twice.
        """
        deadline = time.monotonic() + timeout
        waiting = wait_for_nodes(grid, expected, timeout)
        while waiting:
            self.refresh(grid, max(0.0, deadline - time.monotonic()), strict=True)
            able = self.connected(grid, ["participating", "new"])
            if len(able) >= expected:
                return
            here = connected_nodes(grid)
            if len(here) >= expected and self._problems.keys() & here:
                raise RunError(
                    f"Expected {expected} clients, but only {len(able)} of {len(here)} connected nodes can take part"
                    f"{self._explanation()}. Mend those clients and start again."
                )
            waiting = _wait_for_change(grid, here, deadline - time.monotonic())
        raise RunError(
            f"Expected {expected} clients within {timeout:g} s, but {len(connected_nodes(grid))} nodes are connected"
            f"{self._explanation()}. Start the other clients, or expect fewer."
        )

    def refresh(self, grid: Grid, timeout: float = QUERY_TIMEOUT, *, strict: bool = False) -> None:
        """Ask the nodes that are not known yet who they are; cheap when there are none.

        A node that fails to say is asked again after a minute, then after two, four, eight, so that it does not hold
        up every round.

        Args:
            grid: any Flower Grid.
            timeout: seconds.
            strict: refuse two nodes with one name; otherwise the node that was there first and is alive keeps it.

        Raises:
            RunError: strict, and two nodes have one name.
        """
        here, now = connected_nodes(grid), time.monotonic()
        self._settled &= here
        self._problems = {node: problem for node, problem in self._problems.items() if node in here}
        self._retries = {node: retry for node, retry in self._retries.items() if node in here}
        due = [node for node in here - self._settled if node not in self._retries or self._retries[node].at <= now]
        for newcomer in self._ask(grid, sorted(due), timeout):
            self._admit(grid, newcomer, strict=strict)
        for node in self._problems:
            if node in due:
                pause = 2 * self._retries[node].pause if node in self._retries else FIRST_RETRY
                self._retries[node] = Retry(time.monotonic() + pause, pause)
                _log.warning("Node %d takes no part for now: it %s.", node, self._problems[node])

    def reask(self, client_id: str) -> None:
        """Have a client asked again who it is at the next refresh, because what it said no longer holds."""
        self._settled.discard(self.members[client_id].node_id)

    def learn(self, client_id: str, num_examples: int) -> None:
        """Note how many examples a client has that did not say so before its first reply."""
        member = self.members[client_id]
        description = replace(member.description, num_support=num_examples)
        self.members[client_id] = Member(member.node_id, description)

    def connected(self, grid: Grid, groups: Iterable[Group]) -> dict[str, Member]:
        """Return the members of some groups whose nodes are connected now, in the order of their ids."""
        here, wanted = connected_nodes(grid), set(groups)
        return {
            client_id: member
            for client_id, member in sorted(self.members.items())
            if member.node_id in here and member.description.group in wanted
        }

    def wait_for_participants(self, grid: Grid, timeout: float) -> dict[str, Member]:
        """Return the connected participating clients; waits for one if there are none.

        Raises:
            RunError: none came within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.refresh(grid, min(timeout, QUERY_TIMEOUT))
        while not (found := self.connected(grid, ["participating"])):
            here = connected_nodes(grid)
            if not _wait_for_change(grid, here, deadline - time.monotonic()):
                raise RunError(
                    f"Expected at least one participating client within {timeout:g} s, but {len(here)} nodes are "
                    f"connected and none of them is one{self._explanation()}. Start a client."
                )
            self.refresh(grid, min(max(0.0, deadline - time.monotonic()), QUERY_TIMEOUT))
        return found

    def _ask(self, grid: Grid, nodes: Sequence[int], timeout: float) -> list[Member]:
        """Return those nodes that said who they are, or that cannot say and are taken as they come."""
        found: dict[int, Member] = {}
        self._problems.update(dict.fromkeys(nodes, f"did not say who it is within {timeout:g} s"))
        for node_id, reply in iter_replies(grid, [_query(node, timeout) for node in nodes], timeout):
            if node_id is None or node_id in found:
                continue
            try:
                found[node_id] = _read(node_id, reply)
            except WireError as error:
                self._problems[node_id] = printable(str(error))
            else:
                self._problems.pop(node_id, None)
        return sorted(found.values(), key=lambda member: (member.client_id, member.node_id))

    def _admit(self, grid: Grid, newcomer: Member, *, strict: bool) -> None:
        """Enter a client, or its new node or description in place of the old."""
        name = newcomer.client_id
        holder = self.members.get(name)
        if holder and holder.node_id != newcomer.node_id and _is_alive(grid, holder):
            if strict:
                raise RunError(
                    f"Expected every client to have its own id, but nodes {holder.node_id} and {newcomer.node_id} "
                    f"both call themselves {name!r}. Give one of them another name."
                )
            self._problems[newcomer.node_id] = f"calls itself {name!r}, as node {holder.node_id} does"
            return
        if holder and holder.node_id != newcomer.node_id:
            _log.info("Client %s is back, on node %d.", name, newcomer.node_id)
        for other in [each for each in self.members.values() if each.node_id == newcomer.node_id]:
            del self.members[other.client_id]  # one node is one client: under another name it is no second one
        self._settled.add(newcomer.node_id)
        self.members[name] = newcomer

    def _explanation(self) -> str:
        reasons = [f"node {node} {problem}" for node, problem in sorted(self._problems.items())]
        if len(reasons) > LISTED:
            reasons[LISTED:] = [f"and {len(reasons) - LISTED} more"]
        return f" ({'; '.join(reasons)})" if reasons else ""


def _wait_for_change(grid: Grid, before: frozenset[int], timeout: float) -> bool:
    return poll(lambda: connected_nodes(grid) != before, timeout)


def _is_alive(grid: Grid, member: Member) -> bool:
    """Return whether a client's node still answers."""
    if member.node_id not in connected_nodes(grid):
        return False
    replies = iter_replies(grid, [_query(member.node_id, QUERY_TIMEOUT)], QUERY_TIMEOUT)
    return any(not reply.has_error() for _, reply in replies)


def _query(node_id: int, timeout: float) -> Message:
    content = RecordDict({CONFIG: ConfigRecord()})
    return Message(content, node_id, MessageType.QUERY, group_id="0", ttl=time_to_live(timeout))


def _read(node_id: int, reply: Message) -> Member:
    """Return who answered; an app that knows no such question is a participating client named after its node.

    Raises:
        WireError: the client knows the question and failed to answer it.
    """
    if reply.has_error():
        if _NO_HANDLER not in (reply.error.reason or ""):
            raise WireError(f"answered with {describe_error(reply)}")
        reason = "its app answers no query"
    elif reply.has_content():
        try:
            return Member(node_id, ClientDescription.from_records(reply.content))
        except WireError as error:
            if CLIENT_ID in reply.content.config_records.get(CONFIG, {}):
                raise WireError(f"does not say rightly who it is: {error}") from error
            reason = printable(str(error))
    else:
        reason = "its answer is empty"
    name = f"node-{node_id}"
    _log.warning("Node %d does not describe itself (%s); it takes part as %s.", node_id, reason, name)
    return Member(node_id, ClientDescription(name, "participating", 0, 0, 0), announced=False)
