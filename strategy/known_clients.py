"""The clients known so far, and which of them are connected: looked up anew only when that has changed.

A round asks who is there several times, of a hundred thousand clients perhaps, of which it then asks a hundred.
"""

from collections.abc import Iterable, Mapping, Set
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
        self._found: dict[frozenset[Group], dict[str, Member]] = {}

    @property
    def members(self) -> Mapping[str, Member]:
        """The members by client id, in the order in which they came; not a copy."""
        return self._members

    def enter(self, member: Member) -> None:
        """Enter a member, in place of the one with its id."""
        before = self._members.get(member.client_id)
        self._members[member.client_id] = member
        if before is None or _place(before) != _place(member):
            self._found = {}
            return
        for found in self._found.values():
            if member.client_id in found:
                found[member.client_id] = member

    def remove(self, client_id: str) -> None:
        """Forget a member."""
        del self._members[client_id]
        self._found = {}

    def connected(self, here: Set[int], groups: Iterable[Group]) -> dict[str, Member]:
        """Return the members of some groups whose nodes are among those that are here, in the order of their ids."""
        if here is not self._here and here != self._here:
            self._found = {}
        self._here, wanted = here, frozenset(groups)
        if wanted not in self._found:
            self._found[wanted] = {
                client_id: member
                for client_id, member in sorted(self._members.items())
                if member.node_id in here and member.description.group in wanted
            }
        return dict(self._found[wanted])


def _place(member: Member) -> tuple[int, Group]:
    return member.node_id, member.description.group
