"""What a client says of the messages that it has answered: one line for each round that it took part in."""

from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord

from nufed.common.events import Event, Rejected, Replied
from nufed.common.events.event import PhaseName
from nufed.common.message_schema import NUM_EXAMPLES
from nufed.common.untrusted import printable
from nufed.common.wire import SERVER_ROUND


def describe_answer(message: Message, reply: Message, seconds: float) -> str | None:
    """Return one line about an answer; None where there is nothing to say of it.

    Args:
        message: what the server asked.
        reply: what is answered.
        seconds: that it took.
    """
    kind = message.metadata.message_type.partition(".")[0]
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return None
    done = f"round {_number(message, SERVER_ROUND)}" if kind == MessageType.TRAIN else "evaluation"
    if reply.has_error():
        return f"{done}: not done, and the server was told why: {printable(reply.error.reason or '')}"
    if kind == MessageType.EVALUATE:
        on = _on(reply, "test examples")
        return (
            f"{done} of the server's model{on}, {seconds:.1f} s" if on else f"the run's model is here, {seconds:.1f} s"
        )
    loss = _number(reply, "loss")
    shown = f", loss {loss:.4g}" if isinstance(loss, float) else ""
    return f"{done}: trained{_on(reply, 'examples')}{shown}, {seconds:.1f} s"


def _on(reply: Message, what: str) -> str:
    """Return on how many examples; nothing where a run withholds that, so that the reply does not say."""
    number = _number(reply, NUM_EXAMPLES)
    return f" on {number} {what}" if number else ""


def answer_event(message: Message, reply: Message, seconds: float, client: str) -> Event | None:
    """Return the event of an answer as its client sees it; None where there is nothing to tell.

    Args:
        message: what the server asked.
        reply: what is answered.
        seconds: that it took.
        client: who answers.
    """
    kind = message.metadata.message_type.partition(".")[0]
    if kind not in (MessageType.TRAIN, MessageType.EVALUATE):
        return None
    round_number = _number(message, SERVER_ROUND)
    phase: PhaseName = "training" if kind == MessageType.TRAIN else "evaluation"
    about: dict[str, Any] = {
        "client": client,
        "phase": phase,
        "round": round_number if isinstance(round_number, int) else 0,
        "bytes_down": _array_bytes(message),
        "seconds": seconds,
    }
    if reply.has_error():
        return Rejected(outcome="failed", reason=printable(reply.error.reason or ""), **about)
    loss, examples = _number(reply, "loss"), _number(reply, NUM_EXAMPLES)
    return Replied(
        bytes_up=_array_bytes(reply),
        client_seconds=seconds,
        loss=loss if isinstance(loss, float) else None,
        num_examples=examples if isinstance(examples, int) else 0,
        **about,
    )


def _array_bytes(message: Message) -> int:
    records = message.content.array_records.values() if message.has_content() else ()
    return sum(len(array.data) for record in records for array in record.values())


def _number(message: Message, name: str) -> object:
    """Return the value of this name in a message's records; `?` where there is none."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord | MetricRecord) and name in record:
            return record[name]
    return "?"
