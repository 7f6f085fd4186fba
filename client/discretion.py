"""What a client says of its own errors: enough to mend them, and nothing of its data.

Our own errors are worded so (common/data/private/rows.py). What a library raises may quote the values it failed on,
and Flower's runtimes send an exception's words to the server; so a client with data of its own sends the kind and
the place alone and keeps the words in its log.
"""

import functools
import logging
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message

from nufed.common.errors import NufedError, RunError

Handler = Callable[[Message, Context], Message]

_log = logging.getLogger("nufed.private")


def discreet(handler: Handler) -> Handler:
    """Return `handler`, with what it raises told without quoting data where the client has data of its own."""

    @functools.wraps(handler)
    def handle(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except NufedError:
            raise
        except Exception as error:
            if "data" not in context.node_config:
                raise
            _log.exception("a %s message failed", message.metadata.message_type)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise RunError(
                f"expected to answer a {message.metadata.message_type} message, but {type(error).__name__} was raised "
                f"({Path(frame.filename).name}, line {frame.lineno}); this client's own log says more"
            ) from error

    return handle
