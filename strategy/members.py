"""Who takes part: from Flower's node ids, which change with every run, to the clients' own stable ids."""

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from nufed.common.errors import LISTED, RunError, WireError
from nufed.common.events import Joined, Left
from nufed.common.examples import Group
from nufed.common.untrusted import printable
from nufed.common.wire import CONFIG, ClientDescription
from nufed.strategy.exchange import (
    admitted_name,
    busy_nodes,
    can_turn_away,
    connected_nodes,
    describe_error,
    iter_replies,
    listed_clients,
    note_member,
    poll,
    time_to_live,
    turn_away,
    wait_for_nodes,
)
from nufed.strategy.known_clients import ConnectedMembers, KnownClients, Member, Problem, Retry
from nufed.strategy.participation import Judges, Remaining
from nufed.strategy.results import EvaluatedGroup
from nufed.strategy.telling import Telling

QUERY_TIMEOUT = 30.0
"""Seconds that a node which comes or is doubted during a run has to say who it is; the others wait meanwhile."""

FIRST_RETRY = 60.0
"""Seconds after which a node that failed to say who it is is asked again."""

CLIENT_ID = "client-id"
_GROUPS: tuple[Group, ...] = ("participating", "new")
_CLIENTS_OWN_ERRORS = (1, 2)
"""Flower's numbers of errors that the client's app is the cause of; after others it may answer the next time."""

_ASKED_AT_ONCE = 500
"""Nodes: who waits behind thousands for a share of one machine may look as if it were gone."""

_LOOK_AGAIN = 1.0
_TOLD = 10
"""Clients turned away that an error tells of."""

_NO_HANDLER = "No query function registered"  # what flwr.clientapp.ClientApp raises

_log = logging.getLogger("nufed.strategy")


class Roster:
    """Holds the clients known so far, and keeps them in step with the nodes that are connected.

    Attributes:
        told: what nodes are sent with the question who they are.
    """

    def __init__(self, telling: Telling | None = None) -> None:
        """Start without clients; `telling` hears who comes and goes, and may end the waiting for clients."""
        self._known = KnownClients()
        self._telling = telling or Telling()
        self._gone: set[str] = set()  # members whose node is not connected
        self.told = ConfigRecord()
        self._names: dict[int, str] = {}  # what the client of a node was called last
        self._settled: set[int] = set()  # nodes that need not be asked
        self._all_settled: Set[int] | None = None  # the nodes that were there when all of them were settled
        self._problems: dict[int, Problem] = {}  # why a connected node is no member
        self._turned_away: dict[str, str] = {}  # who was sent home, and why
        self._retries: dict[int, Retry] = {}
        self._busy: set[str] = set()  # clients that were told of
        self._listed: set[str] = set()  # members whose names are known and who were never asked

    @property
    def members(self) -> Mapping[str, Member]:
        """The clients known so far, by id."""
        return self._known.members

    def discover(self, grid: Grid, expected: int, timeout: float) -> None:
        """Wait until `expected` clients that can take part are there, and know who they are.

        A client that cannot is turned away, and the others are waited for; where the grid cannot turn it away, as in
        a simulation, nothing would change by waiting.

        Raises:
            RunError: too few within `timeout` seconds, or too few that can take part.
        """
        self._take_listed(grid)
        deadline, is_first = time.monotonic() + timeout, True
        counted = f"{expected} client{'s' if expected != 1 else ''}"
        while is_first or time.monotonic() < deadline:
            self._telling.check()
            is_first, here = False, connected_nodes(grid)
            left = max(0.0, deadline - time.monotonic())
            self.refresh(grid, left if len(here) >= expected else min(left, QUERY_TIMEOUT))
            able, here = self.connected(grid, ["participating", "new"]), connected_nodes(grid)
            if len(able) >= expected:
                return
            if not can_turn_away(grid) and len(here) >= expected and self._problems.keys() & here:
                raise RunError(
                    f"Expected {counted}, but only {len(able)} of {len(here)} connected nodes can take part"
                    f"{self.explanation()}. Mend those clients and start again."
                )
            # Not for each one that comes: a look is work for all that are there.
            wait_for_nodes(grid, max(expected, len(here) + 1), min(_LOOK_AGAIN, deadline - time.monotonic()))
        raise RunError(
            f"Expected {counted} within {timeout:g} s, but {len(connected_nodes(grid))} nodes are connected"
            f"{self.explanation()}. Start the other clients, or expect fewer."
        )

    def refresh(self, grid: Grid, timeout: float = QUERY_TIMEOUT) -> None:
        """Ask the nodes that are not known yet who they are; cheap when there are none.

        A client that cannot take part is turned away. A node that fails to say, or cannot be turned away, is asked
        again after a minute, then after two, four, eight, so that it does not hold up every round.

        Args:
            grid: any Flower Grid.
            timeout: seconds.
        """
        here, now = connected_nodes(grid), time.monotonic()
        is_settled = here is self._all_settled or here == self._settled
        self._all_settled = here if is_settled else None
        if is_settled and not self._problems and not self._gone:
            return
        self._settled &= here
        self._tell_of_the_gone(grid, here)
        self._problems = {node: problem for node, problem in self._problems.items() if node in here}
        self._retries = {node: retry for node, retry in self._retries.items() if node in here}
        due = [node for node in here - self._settled if node not in self._retries or self._retries[node].at <= now]
        for newcomer in self._ask(grid, sorted(due), timeout):
            self._admit(grid, newcomer)
        for node in sorted(self._problems.keys() & set(due)):
            self._leave_out(grid, node)

    def reask(self, client_id: str) -> None:
        """Have a client asked again who it is at the next refresh, because what it said no longer holds."""
        self._settled.discard(self.members[client_id].node_id)
        self._all_settled = None

    def learn(self, client_id: str, num_examples: int) -> None:
        """Note how many examples a client has that did not say so before its first reply."""
        member = self.members[client_id]
        description = replace(member.description, num_support=num_examples)
        self._known.enter(Member(member.node_id, description))

    @property
    def announced(self) -> Collection[str]:
        """The clients that have said how many examples they have."""
        return self._known.announced

    def connected(self, grid: Grid, groups: Iterable[Group]) -> ConnectedMembers:
        """Return the members of some groups whose nodes are connected now, in the order of their ids; not a copy."""
        return self._known.connected(connected_nodes(grid), groups)

    def judges(self, grid: Grid, group: EvaluatedGroup, judges: Judges) -> dict[str, Member]:
        """Return the connected members of a group, or of each, that `judges` names, in the order of their ids."""
        found = [self.connected(grid, [each]) for each in (_GROUPS if group == "all" else (group,))]
        return dict(sorted((name, members[name]) for members in found for name in judges.of(members)))

    def idle(self, grid: Grid, members: Mapping[str, Member], *, is_usual: bool = False) -> Mapping[str, Member]:
        """Return the members that do not still work on a message of an earlier phase; all of them if all do.

        So a client that hangs costs the time of one phase, and not of each.

        Args:
            grid: knows who works.
            members: to look at.
            is_usual: whether phases end without the slowest, so that no warning is due of those.
        """
        if not (busy := busy_nodes(grid)):
            self._busy = set()
            return members
        idle = {client_id: member for client_id, member in members.items() if member.node_id not in busy}
        self._note_busy(members.keys() - idle.keys() if idle else set(), is_usual=is_usual)
        return idle or members

    def free(self, grid: Grid, members: ConnectedMembers, taken: Set[str]) -> Remaining:
        """Return the names of the members that are `idle`, without those that are taken; no work grows with them all.

        Args:
            grid: knows who works.
            members: in the order of their ids.
            taken: names that are not to be in it.
        """
        named = ((node, self._names.get(node, "")) for node in busy_nodes(grid))
        busy = {name for node, name in named if name in members and members[name].node_id == node} - taken
        idle = Remaining(members.names, taken | busy)
        self._note_busy(busy if idle else set(), is_usual=False)
        return idle or Remaining(members.names, taken)

    def _note_busy(self, busy: set[str], *, is_usual: bool) -> None:
        """Tell of those that are not asked because they still work, once of each."""
        for client_id in busy - self._busy:
            _log.log(
                logging.DEBUG if is_usual else logging.WARNING,
                "Client %s still works on an earlier message, and is not asked until it is back.",
                client_id,
            )
        self._busy = busy

    def described(self, grid: Grid, asked: Mapping[str, Member]) -> dict[str, Member]:
        """Return members that are about to be asked for something, after those that were listed said who they are."""
        unknown = sorted(asked[client_id].node_id for client_id in asked.keys() & self._listed)
        for newcomer in self._ask(grid, unknown, QUERY_TIMEOUT):
            self._admit(grid, newcomer)
        for node in unknown:
            self._problems.pop(node, None)  # a member all the same, which will fail at what it is asked for
        self._listed.difference_update(asked)  # `-=` would copy all that are left
        return {client_id: self.members[client_id] for client_id in asked}

    def wait_for_participants(self, grid: Grid, timeout: float) -> ConnectedMembers:
        """Return the connected participating clients; waits for one if there are none.

        Raises:
            RunError: none came within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        self.refresh(grid, min(timeout, QUERY_TIMEOUT))
        while not (found := self.connected(grid, ["participating"])):
            here = connected_nodes(grid)
            if not self._wait_for_change(grid, here, deadline - time.monotonic()):
                raise RunError(
                    f"Expected at least one participating client within {timeout:g} s, but {len(here)} nodes are "
                    f"connected and none of them is one{self.explanation()}. Start a client."
                )
            self.refresh(grid, min(max(0.0, deadline - time.monotonic()), QUERY_TIMEOUT))
        return found

    def _take_listed(self, grid: Grid) -> None:
        """Enter the clients that a grid can name; each says how many examples it has once it is asked for work."""
        for node_id, (name, group) in (listed_clients(grid) or {}).items():
            self._known.enter(Member(node_id, ClientDescription(name, group, 0, 0, 0), announced=False))
            self._names[node_id] = name
            self._settled.add(node_id)
            self._listed.add(name)

    def _ask(self, grid: Grid, nodes: Sequence[int], timeout: float) -> list[Member]:
        """Return those nodes that said who they are, or that cannot say and are taken as they come."""
        self._problems.update(dict.fromkeys(nodes, Problem(f"did not say who it is within {timeout:g} s")))
        found: dict[int, Member] = {}
        deadline = time.monotonic() + timeout
        for first in range(0, len(nodes), _ASKED_AT_ONCE):
            left = timeout if not first else max(0.0, deadline - time.monotonic())
            self._ask_some(grid, nodes[first : first + _ASKED_AT_ONCE], left, found)
        return sorted(found.values(), key=lambda member: (member.client_id, member.node_id))

    def _ask_some(self, grid: Grid, nodes: Sequence[int], timeout: float, found: dict[int, Member]) -> None:
        """Enter in `found` those of some nodes that answer in time."""
        for node_id, reply in iter_replies(grid, [query(node, timeout, self.told) for node in nodes], timeout):
            if node_id is None or node_id in found:
                continue
            try:
                found[node_id] = _read(node_id, reply, admitted_name(grid, node_id))
            except WireError as error:
                is_final = not reply.has_error() or reply.error.code in _CLIENTS_OWN_ERRORS
                self._problems[node_id] = Problem(printable(str(error)), is_final)
            else:
                self._problems.pop(node_id, None)

    def _admit(self, grid: Grid, newcomer: Member) -> None:
        """Enter a client, or its new node or description in place of the old; a living client keeps its name."""
        name = newcomer.client_id
        holder = self.members.get(name)
        if holder and holder.node_id != newcomer.node_id and _is_alive(grid, holder):
            reason = f"calls itself {name!r}, as node {holder.node_id} does; give one of them another name"
            self._problems[newcomer.node_id] = Problem(reason, is_final=True)
            return
        if holder and holder.node_id != newcomer.node_id:
            _log.info("Client %s is back, on node %d.", name, newcomer.node_id)
        other = self.members.get(self._names.get(newcomer.node_id, ""))
        if other is not None and other.client_id != name and other.node_id == newcomer.node_id:
            self._known.remove(other.client_id)  # one node is one client: under another name it is no second one
        self._names[newcomer.node_id] = name
        self._settled.add(newcomer.node_id)
        self._all_settled = None
        self._turned_away.pop(f"client {name}", None)
        self._known.enter(newcomer)
        note_member(grid, newcomer.node_id, name)
        self._tell_of(grid, newcomer)

    def _leave_out(self, grid: Grid, node: int) -> None:
        """Turn a node's client away if it can never take part, else have it asked again later."""
        problem, admitted = self._problems[node], admitted_name(grid, node)
        who = f"node {node}" if admitted is None else f"client {admitted}"
        if problem.is_final and turn_away(grid, node, f"it {problem.reason}"):
            del self._problems[node]
            self._turned_away[who] = problem.reason
            while len(self._turned_away) > _TOLD:
                del self._turned_away[next(iter(self._turned_away))]
            _log.warning("%s is turned away: it %s.", who[:1].upper() + who[1:], problem.reason)
            self._telling.events.tell(Left, client=admitted or f"node-{node}", reason=f"it {problem.reason}")
            return
        pause = 2 * self._retries[node].pause if node in self._retries else FIRST_RETRY
        self._retries[node] = Retry(time.monotonic() + pause, pause)
        _log.warning("%s takes no part for now: it %s.", who[:1].upper() + who[1:], problem.reason)

    def _tell_of(self, grid: Grid, member: Member) -> None:
        description = member.description
        self._telling.events.tell(
            Joined,
            client=member.client_id,
            group=description.group,
            key=admitted_name(grid, member.node_id) or "",
            num_support=description.num_support,
            num_validation=description.num_validation,
            num_test=description.num_test,
        )

    def _tell_of_the_gone(self, grid: Grid, here: frozenset[int]) -> None:
        """Tell which members have gone or come back, where the grid's own server does not (`can_turn_away`)."""
        if can_turn_away(grid):
            return
        gone = {name for name, member in self.members.items() if member.node_id not in here}
        for name in sorted(gone - self._gone):
            self._telling.events.tell(Left, client=name)
        for name in sorted(self._gone - gone & self.members.keys()):
            self._tell_of(grid, self.members[name])
        self._gone = gone

    def _wait_for_change(self, grid: Grid, before: frozenset[int], timeout: float) -> bool:
        def has_changed() -> bool:
            self._telling.check()
            return connected_nodes(grid) != before

        return poll(has_changed, timeout)

    def explanation(self) -> str:
        """Return why nodes that are connected, or were turned away, take no part: in brackets, or empty."""
        reasons = [f"node {node} {problem.reason}" for node, problem in sorted(self._problems.items())]
        reasons += [f"{name} was turned away, because it {reason}" for name, reason in self._turned_away.items()]
        if len(reasons) > LISTED:
            reasons[LISTED:] = [f"and {len(reasons) - LISTED} more"]
        return f" ({'; '.join(reasons)})" if reasons else ""


def _is_alive(grid: Grid, member: Member) -> bool:
    """Return whether a client's node still answers."""
    if member.node_id not in connected_nodes(grid):
        return False
    replies = iter_replies(grid, [query(member.node_id, QUERY_TIMEOUT)], QUERY_TIMEOUT)
    return any(not reply.has_error() for _, reply in replies)


def query(
    node_id: int, timeout: float, told: ConfigRecord | None = None, message_type: str = MessageType.QUERY
) -> Message:
    """Return a question to a node, outside of any round; `told` is copied."""
    content = RecordDict({CONFIG: ConfigRecord(dict(told or {}))})
    return Message(content, node_id, message_type, group_id="0", ttl=time_to_live(timeout))


def _read(node_id: int, reply: Message, admitted: str | None) -> Member:
    """Return who answered; an app that knows no such question is a participating client named after its key or node.

    Args:
        node_id: where the answer is from.
        reply: the answer.
        admitted: name of the node's key; None where no keys are in use.

    Raises:
        WireError: the client knows the question and failed to answer it, or calls itself otherwise than its key.
    """
    if reply.has_error():
        if _NO_HANDLER not in (reply.error.reason or ""):
            raise WireError(f"answered with {describe_error(reply)}")
        reason = "its app answers no query"
    elif reply.has_content():
        try:
            description = ClientDescription.from_records(reply.content)
        except WireError as error:
            if CLIENT_ID in reply.content.config_records.get(CONFIG, {}):
                raise WireError(f"does not say rightly who it is: {error}") from error
            reason = printable(str(error))
        else:
            if admitted is not None and description.client_id != admitted:
                raise WireError(
                    f"calls itself {description.client_id!r}, but has the key of {admitted!r}; a client's name is its "
                    "key's"
                )
            return Member(node_id, description)
    else:
        reason = "its answer is empty"
    name = admitted or f"node-{node_id}"
    _log.warning("Node %d does not describe itself (%s); it takes part as %s.", node_id, reason, name)
    return Member(node_id, ClientDescription(name, "participating", 0, 0, 0), announced=False)
