"""What `MetaFedAvg` needs where a loop that is not ours sends the messages of its phases."""

from collections.abc import Iterable
from typing import TypeVar

from flwr.app import Message

from nufed.common.errors import RunError
from nufed.strategy.exchange import sender_of
from nufed.strategy.phase import Phase

AnyPhase = TypeVar("AnyPhase", bound=Phase)


def take_all(phase: Phase, replies: Iterable[Message]) -> None:
    """Enter the replies that such a loop has collected."""
    sender = sender_of(phase.messages)
    for reply in replies:
        phase.take(sender(reply), reply)


def configured(kind: str, server_round: int, phase: AnyPhase | None) -> AnyPhase:
    """Return the phase that replies of a round belong to.

    Raises:
        RunError: it was not opened; with what to call first.
    """
    if phase is None or phase.round != server_round:
        called = f"was called for round {phase.round}" if phase else "was not called"
        raise RunError(
            f"Expected configure_{kind} before aggregate_{kind} of round {server_round}, but it {called}. Call it "
            "first."
        )
    return phase


def check_opens(*, is_secure: bool) -> None:
    """Refuse to open a round that such a loop cannot carry out.

    Raises:
        RunError: with secure aggregation, whose rounds are several exchanges.
    """
    if is_secure:
        raise RunError(
            "Expected `start` or `train_round` with secure aggregation, whose rounds are five exchanges, got "
            "`configure_train`, which opens one. Call one of the two."
        )
