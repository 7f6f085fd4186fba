"""The clients known so far, and which of them are connected: looked up anew only when that has changed.

A round asks who is there several times, of a hundred thousand clients perhaps, of which it then asks a hundred.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from nufed.common.examples import Group
from nufed.common.wire import ClientDescription


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


@dataclass(frozen=True)
class Problem:
    """Why a node takes no part.

    Attributes:
        reason: a phrase that goes on from the node's name.
        is_final: whether asking again is of no use: the client must be mended and started again.
    """

    reason: str
    is_final: bool = False


class ConnectedMembers(Mapping[str, Member]):
    """Holds members by their ids, in the order of these; `KnownClients` alone changes it.

    Attributes:
        names: the ids, in order.
    """

    def __init__(self, members: dict[str, Member]) -> None:
        """Take members in the order of their ids."""
        self._members, self.names = members, tuple(members)

    def __getitem__(self, client_id: str) -> Member:
        """Return a member."""
        return self._members[client_id]

    def __iter__(self) -> Iterator[str]:
        """Go through the ids, in order."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def __contains__(self, client_id: object) -> bool:
        """Return whether a client is among them."""
        return client_id in self._members


class KnownClients:
    """Holds the members by client id, and those of some groups that were connected when this was asked last.

    Examples:
        >>> known = KnownClients()
        >>> known.enter(Member(7, ClientDescription("anna", "participating", 10, 0, 0)))
        >>> list(known.connected({7, 8}, ["participating"])), list(known.connected({8}, ["participating"]))
        (['anna'], [])
    """

    def __init__(self) -> None:
        """Start without clients."""
        self._members: dict[str, Member] = {}
        self._here: Set[int] = frozenset()
        self._found: dict[frozenset[Group], tuple[dict[str, Member], ConnectedMembers]] = {}
        self._announced: dict[str, None] = {}

    @property
    def members(self) -> Mapping[str, Member]:
        """The members by client id, in the order in which they came; not a copy."""
        return self._members

    @property
    def announced(self) -> Collection[str]:
        """The members that have said how many examples they have; not a copy."""
        return self._announced.keys()

    def enter(self, member: Member) -> None:
        """Enter a member, in place of the one with its id."""
        before = self._members.get(member.client_id)
        self._members[member.client_id] = member
        if member.announced:
            self._announced[member.client_id] = None
        else:
            self._announced.pop(member.client_id, None)
        if before is None or _place(before) != _place(member):
            self._found = {}
            return
        for found, _ in self._found.values():
            if member.client_id in found:
                found[member.client_id] = member

    def remove(self, client_id: str) -> None:
        """Forget a member."""
        del self._members[client_id]
        self._announced.pop(client_id, None)
        self._found = {}

    def connected(self, here: Set[int], groups: Iterable[Group]) -> ConnectedMembers:
        """Return the members of some groups whose nodes are among those that are here; not a copy."""
        if here is not self._here and here != self._here:
            self._found = {}
        self._here, wanted = here, frozenset(groups)
        if wanted not in self._found:
            found = {
                client_id: member
                for client_id, member in sorted(self._members.items())
                if member.node_id in here and member.description.group in wanted
            }
            self._found[wanted] = found, ConnectedMembers(found)
        return self._found[wanted][1]


def _place(member: Member) -> tuple[int, Group]:
    return member.node_id, member.description.group
