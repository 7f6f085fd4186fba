"""Who is connected as what: one session for each node, and none for a process whose place another took.

A node is a key; behind it is one process at a time. Our clients name their process in every call
(`fleet_headers.SESSION`), a stock SuperNode is told apart by the connection that it calls from.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from nufed.common.untrusted import printable
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call
from nufed.deploy.network.network_loop import LoopWakeup

_REMEMBERED_REFUSALS = 40_000


@dataclass(frozen=True)
class Caller:
    """Where a call comes from.

    Attributes:
        process: random name of the calling process; empty for a stock SuperNode.
        peer: its address and port, as gRPC writes them.
    """

    process: str
    peer: str

    @classmethod
    def of(cls, context: Call) -> "Caller":
        """Return the caller of a call."""
        process = headers.header_text(context.invocation_metadata(), headers.SESSION)
        return cls(process[: headers.LONGEST_SESSION], context.peer())

    @property
    def key(self) -> str:
        """What tells two processes apart."""
        return self.process or self.peer


@dataclass
class _Session:
    name: str
    caller: Caller
    whole: bool


@dataclass(frozen=True)
class Opened:
    """What came of opening a session.

    Attributes:
        refusal: why the process may not take part; empty if it may.
        displaced: nodes of the same name whose sessions ended with this; they are to be deactivated.
        replaces: whether another process held this node's session, or one of the same name.
    """

    refusal: str = ""
    displaced: tuple[int, ...] = ()
    replaces: bool = False


@dataclass
class _Waiting:
    """A node's requests for messages: only the newest is held."""

    wakeup: LoopWakeup = field(default_factory=LoopWakeup)
    newest: int = 0
    is_held: bool = False


class Sessions:
    """Holds every node's session; any thread may call any method.

    Args:
        unique_names: whether names are told by the clients themselves (no node keys), so that the newest process of a
            name ends the session of the one before, as with one key.
    """

    def __init__(self, *, unique_names: bool) -> None:
        self._unique_names = unique_names
        self._lock = threading.Lock()
        self._sessions: dict[int, _Session] = {}
        self._by_name: dict[str, int] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._untold: set[int] = set()
        self._busy: set[int] = set()
        self._refusals: OrderedDict[tuple[int, str], str] = OrderedDict()
        self._reported: OrderedDict[tuple[int, str], str] = OrderedDict()

    def open(self, node_id: int, name: str, caller: Caller, *, whole: bool) -> Opened:
        """Give a node's session to a process; the newest one has it, and one that lost it cannot take it back.

        Args:
            node_id: the node.
            name: what the client is called; empty for a node that has no name of its own.
            caller: the process.
            whole: whether it takes messages whole.
        """
        with self._lock:
            if not caller.process:
                self._refusals.pop((node_id, caller.key), None)  # a new process may call from an old one's port
            elif refusal := self._refusals.get((node_id, caller.key)):
                return Opened(refusal)
            before = self._sessions.get(node_id)
            replaces = before is not None and before.caller.key != caller.key
            if before is not None and replaces:
                self._refuse(node_id, before.caller, headers.REPLACED)
            displaced: tuple[int, ...] = ()
            if before is not None and before.name != name and self._by_name.get(before.name) == node_id:
                del self._by_name[before.name]
            if self._unique_names and name:
                holder = self._by_name.get(name, node_id)
                if holder != node_id:
                    self._refuse(holder, self._sessions.pop(holder).caller, headers.REPLACED)
                    displaced = (holder,)
            if name:
                self._by_name[name] = node_id
            self._sessions[node_id] = _Session(name or f"node-{node_id}", caller, whole)
            self._busy.difference_update((node_id, *displaced))
            self._untold.difference_update(displaced)
            if whole:
                self._untold.add(node_id)
            else:
                self._untold.discard(node_id)
        for ended in (node_id, *displaced):
            self.wake(ended)
        return Opened(displaced=displaced, replaces=replaces or bool(displaced))

    def refusal(self, node_id: int, caller: Caller) -> str:
        """Return why a call is refused, or an empty text; a stock SuperNode may have a new connection."""
        with self._lock:
            if reason := self._refusals.get((node_id, caller.key)):
                return reason
            session = self._sessions.get(node_id)
            if session is None or session.caller.key == caller.key:
                return ""
            if session.caller.process:
                return headers.REPLACED
            session.caller = caller
            return ""

    def is_first_refusal(self, node_id: int, caller: Caller) -> bool:
        """Return whether a refused process calls for the first time, so that this is told once."""
        with self._lock:
            key = node_id, caller.key
            is_first = key not in self._reported
            _remember(self._reported, key, "")
            return is_first

    def turn_away(self, node_id: int, reason: str) -> bool:
        """Refuse a node's process from now on; False for a stock SuperNode, which could not be told why."""
        with self._lock:
            session = self._sessions.get(node_id)
            if session is None or not session.whole:
                return False
            self._refuse(node_id, session.caller, printable(reason))
        self.wake(node_id)
        return True

    def end(self, node_id: int) -> None:
        """Note that a node left: nothing is known of its work any more."""
        with self._lock:
            self._busy.discard(node_id)

    def name(self, node_id: int) -> str:
        """Return what a node's client is called."""
        with self._lock:
            session = self._sessions.get(node_id)
            return session.name if session else f"node-{node_id}"

    def node_of(self, name: str) -> int:
        """Return the node whose client has a name; 0 if there is none."""
        with self._lock:
            return self._by_name.get(name, 0)

    def takes_whole(self, node_id: int) -> bool:
        """Return whether a node takes messages whole."""
        with self._lock:
            session = self._sessions.get(node_id)
            return session is not None and session.whole

    def to_be_told(self) -> set[int]:
        """Return the nodes that take messages whole and were not told that the run is over."""
        with self._lock:
            return set(self._untold)

    def note_told(self, node_id: int) -> None:
        """Note that a node was told that the run is over."""
        with self._lock:
            self._untold.discard(node_id)

    def note_busy(self, node_id: int) -> None:
        """Note that a node let a message's time run out: it works on until it asks for the next one."""
        with self._lock:
            if node_id in self._sessions:
                self._busy.add(node_id)

    def busy(self) -> frozenset[int]:
        """Return the nodes that still work on a message whose time is over."""
        with self._lock:
            return frozenset(self._busy)

    def begin_wait(self, node_id: int) -> tuple[LoopWakeup, int]:
        """Note that a node asks for a message: return its wakeup, and the number of this request."""
        with self._lock:
            waiting = self._waiting.setdefault(node_id, _Waiting())
            waiting.newest += 1
            waiting.is_held = True
            self._busy.discard(node_id)
            wakeup, number = waiting.wakeup, waiting.newest
        wakeup.notify()
        return wakeup, number

    def end_wait(self, node_id: int, number: int) -> bool:
        """Note that a request is answered or gone; return whether it was the node's newest."""
        with self._lock:
            waiting = self._waiting[node_id]
            is_newest = waiting.newest == number
            waiting.is_held &= not is_newest
            return is_newest

    def is_waiting(self, node_id: int) -> bool:
        """Return whether a node's request for a message is held."""
        with self._lock:
            waiting = self._waiting.get(node_id)
            return waiting is not None and waiting.is_held

    def is_newest_wait(self, node_id: int, number: int) -> bool:
        """Return whether a node has not asked for a message again since."""
        with self._lock:
            return self._waiting[node_id].newest == number

    def wake(self, node_id: int) -> None:
        """Let a node that waits for a message look again."""
        with self._lock:
            wakeup = self._waiting.setdefault(node_id, _Waiting()).wakeup
        wakeup.notify()

    def _refuse(self, node_id: int, caller: Caller, reason: str) -> None:
        _remember(self._refusals, (node_id, caller.key), reason)


def _remember(kept: OrderedDict[tuple[int, str], str], key: tuple[int, str], value: str) -> None:
    """Keep an entry, and let go of the oldest beyond a bound."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _REMEMBERED_REFUSALS:
        kept.popitem(last=False)
