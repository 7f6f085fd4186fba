"""Events that are about single clients: who is there, who is asked, and what they answer.

There may be very many of them: `is_minor` records are the first to go where space or time is short.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from nufed.common.events.event import Event, PhaseName
from nufed.common.privacy.publishing import IN_THE_LOG, Publication


@dataclass(frozen=True, kw_only=True)
class OfClients(Event):
    """A record about single clients, which is withheld together with who takes part."""

    is_minor: ClassVar[bool] = True

    def within(self, publication: Publication) -> Self | None:
        """Return the record, or None where who takes part is withheld."""
        return self if publication.participants else None


@dataclass(frozen=True, kw_only=True)
class Joined(OfClients):
    """A client is there; told again, with its group and sizes, once it has said who it is.

    Attributes:
        client: its stable name.
        group: `participating` or `new`; empty before it has said so.
        key: name of the key that it proved to have; empty without node keys and in simulations.
        num_support: examples to train and adapt on; 0 before it has said so.
        num_validation: examples of its validation split.
        num_test: examples that it judges on.
    """

    kind: ClassVar[str] = "joined"

    client: str
    group: str = ""
    key: str = ""
    num_support: int = 0
    num_validation: int = 0
    num_test: int = 0

    def within(self, publication: Publication) -> Self | None:
        """Return the record without numbers of examples, unless they are shown."""
        told = super().within(publication)
        if told is None or publication.examples:
            return told
        return replace(told, num_support=0, num_validation=0, num_test=0)


@dataclass(frozen=True, kw_only=True)
class Left(OfClients):
    """A client is no longer connected, or was turned away.

    Attributes:
        client: its name.
        reason: why it was turned away; empty if it went or fell silent.
    """

    kind: ClassVar[str] = "left"

    client: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked(OfClients):
    """Clients were sent a message.

    Attributes:
        phase: `training` or `evaluation`.
        round: k.
        clients: their names.
        bytes_down: array content sent to each.
    """

    kind: ClassVar[str] = "asked"

    phase: PhaseName
    round: int
    clients: tuple[str, ...]
    bytes_down: int

    def reduced(self) -> Self:
        """Return the record without the clients' names."""
        return replace(self, clients=())


@dataclass(frozen=True, kw_only=True)
class Replied(OfClients):
    """A client's reply was taken.

    Attributes:
        client: its name.
        phase: `training` or `evaluation`.
        round: k.
        bytes_up: received from the client; what was on the wire where there is one, else array content.
        bytes_down: sent to it, likewise.
        seconds: from the sending of the phase's messages until the reply was here.
        client_seconds: that the client says it has worked; None if it does not say.
        num_examples: that it has trained or judged on.
        loss: mean training loss of its local steps; None in evaluations.
        before: metric -> value before fine-tuning, in evaluations.
        after: metric -> value after s* fine-tuning steps, in evaluations.
    """

    kind: ClassVar[str] = "replied"

    client: str
    phase: PhaseName
    round: int
    bytes_up: int
    bytes_down: int
    seconds: float
    client_seconds: float | None = None
    num_examples: int = 0
    loss: float | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def within(self, publication: Publication) -> Self | None:
        """Return the record without the client's numbers that are withheld."""
        told = super().within(publication)
        if told is None:
            return None
        if not publication.examples:
            told = replace(told, num_examples=0, client_seconds=None)
        if not publication.training_loss:
            told = replace(told, loss=None)
        return told if publication.client_curves else replace(told, before={}, after={})


@dataclass(frozen=True, kw_only=True)
class Rejected(OfClients):
    """A client that was asked has given no reply that was used.

    Attributes:
        client: its name.
        phase: `training` or `evaluation`.
        round: k.
        outcome: `rejected` (refused), `failed` (an error in place of a reply), `missing` (none in time) or `dropped`
            (not waited for, because enough others had replied, or work on a model that is too old).
        reason: one line of printable text, of at most some hundred characters.
        bytes_up: received from the client.
        bytes_down: sent to it.
        seconds: from the sending of the phase's messages until it was clear.
    """

    kind: ClassVar[str] = "rejected"

    client: str
    phase: PhaseName
    round: int
    outcome: Literal["rejected", "failed", "missing", "dropped"]
    reason: str
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0

    def within(self, publication: Publication) -> Self | None:
        """Return the record without the reason, which may quote numbers of the client's, unless these are shown."""
        told = super().within(publication)
        return told if told is None or publication.examples else replace(told, reason=IN_THE_LOG)
