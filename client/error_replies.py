"""What a client says of its own errors: enough to mend them, and nothing of its data.

Whatever goes wrong while a message is answered, its words may quote what it failed on, and Flower's runtimes send an
exception's words to the server. So a client with data of its own sends the words of those errors alone that are made to
be sent (`NufedError.sendable`); of all others it sends the kind and the place in public code, and keeps the words in
its log.
"""

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message

from nufed.common.errors import NufedError, RunError

Handler = Callable[[Message, Context], Message]

_log = logging.getLogger("nufed.private")

_PUBLIC = frozenset({"nufed", "numpy", "torch", "pandas", "pyarrow", "PIL", "flwr", "safetensors", "pydantic"})
"""Packages whose exceptions and files have names that everybody knows."""


def without_data(handler: Handler) -> Handler:
    """Return `handler`, with what it raises told without quoting data where the client has data of its own."""

    @functools.wraps(handler)
    def handle(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            if "data" not in context.node_config or (isinstance(error, NufedError) and error.sendable):
                raise
            _tell_here(message.metadata.message_type, error)
            told = RunError(
                f"expected to answer the {message.metadata.message_type} message, but {_kind(error)} was raised"
                f"{_place(error)}; this client's own log says more"
            )
            told.sendable = True
            raise told from error

    return handle


def _tell_here(message_type: str, error: Exception) -> None:
    """Log the words; our own errors need no traceback."""
    if isinstance(error, NufedError):
        _log.error("the %s message failed: %s", message_type, error)
    else:
        _log.error("the %s message failed", message_type, exc_info=error)


def _kind(error: Exception) -> str:
    """Return the class of an exception, unless its name was given by this client's own code."""
    package = type(error).__module__.partition(".")[0]
    return type(error).__name__ if package in _PUBLIC | sys.stdlib_module_names else "an exception of its own code"


def _place(error: Exception) -> str:
    """Return the innermost file and line of a public package that the exception came through."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _PUBLIC:
            return f" ({Path(frame.f_code.co_filename).name}, line {line})"
    return ""
