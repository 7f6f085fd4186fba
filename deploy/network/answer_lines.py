"""What a client says of the messages that it has answered: one line for each round that it took part in."""

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord

from nufed.common.message_schema import NUM_EXAMPLES
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
        return f"{done}: not done, and the server was told why: {reply.error.reason}"
    if kind == MessageType.EVALUATE:
        return f"{done} of the server's model on {_number(reply, NUM_EXAMPLES)} test examples, {seconds:.1f} s"
    loss = _number(reply, "loss")
    shown = f", loss {loss:.4g}" if isinstance(loss, float) else ""
    return f"{done}: trained on {_number(reply, NUM_EXAMPLES)} examples{shown}, {seconds:.1f} s"


def _number(message: Message, name: str) -> object:
    """Return the value of this name in a message's records; `?` where there is none."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord | MetricRecord) and name in record:
            return record[name]
    return "?"
