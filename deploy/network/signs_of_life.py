"""How long nodes count as there: a few seconds while they work, longer while they wait, the more of them there are."""

from nufed.deploy.flower_runtime.state import LinkStateFactory
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.flower_state import num_online, shorten_life

LIVENESS_INTERVAL = 7.5
"""Seconds; Flower takes a node for gone after two of them without a sign of life (ours give one every 3 s at work)."""

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 3.0, 240.0
_SIGNS = 40.0
"""In a second, of all idle clients together: with more than 120 of them each gives one less often than every 3 s."""

_HELD = 0.8
"""Of that interval is what a request for messages is held: the next one is the next sign of life."""

_SLOWEST_LINE = 125_000.0
"""Bytes in a second that a client takes at least."""

_BEFORE_DEADLINE = 0.9
"""Of the time that a caller waits for an answer, where that is shorter: clients up to 0.3 wait for a minute."""


class SignsOfLife:
    """Notes in Flower's state for how long our own nodes count as there; any thread may call any method."""

    def __init__(self, states: LinkStateFactory) -> None:
        """Note it in a state."""
        self._states = states

    def interval(self) -> float:
        """Return the seconds between two signs of life of a client without work."""
        return min(_LONGEST_INTERVAL, max(_SHORTEST_INTERVAL, num_online(self._states.state()) / _SIGNS))

    def longest_hold(self, patience: float) -> float:
        """Return the seconds that a request for messages may be held, so that its end comes before its node's.

        Args:
            patience: seconds that the caller waits for an answer.
        """
        return min(_HELD * self.interval(), _BEFORE_DEADLINE * patience)

    def header(self) -> tuple[str, str]:
        """Return what tells a client how often to give a sign of life while it has no work."""
        return headers.INTERVAL, f"{self.interval():.1f}"

    def note(self, node_id: int, *, is_idle: bool = False) -> bool:
        """Note a sign of life, and return whether the node is known."""
        interval = max(LIVENESS_INTERVAL, 1.25 * self.interval()) if is_idle else LIVENESS_INTERVAL
        return bool(self._states.state().acknowledge_node_heartbeat(node_id, interval))

    def note_work(self, node_id: int, size: int = 0) -> None:
        """Note that a node has work, or that its connection is gone: it soon gives another sign, or is gone itself.

        Args:
            node_id: the node.
            size: bytes of a message that it is sent; until it has come it gives as few signs as an idle one.
        """
        shorten_life(self._states.state(), node_id, 2 * LIVENESS_INTERVAL + size / _SLOWEST_LINE)
