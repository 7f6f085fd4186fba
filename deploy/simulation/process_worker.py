"""A worker process of the engine `processes`: takes (message, context), runs the ClientApp, returns its turn.

Started as `python -m nufed.deploy.simulation.process_worker FD MODULE:APP`, with one end of a socket pair as file
descriptor FD. Ends when the other end is closed.
"""

import importlib
import sys
from multiprocessing.connection import Connection

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nufed.common.errors import ConfigError, NufedError
from nufed.deploy.simulation.simulated_grid import ClientTurn, take_turn


def load_client_app(reference: str) -> ClientApp:
    """Return the ClientApp that `module:name` names.

    Raises:
        ConfigError: it is none.
    """
    module_name, _, name = reference.partition(":")
    try:
        app = getattr(importlib.import_module(module_name), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"Expected a ClientApp at {reference}, but {error}. Write module:name.") from error
    if not isinstance(app, ClientApp):
        raise ConfigError(f"Expected a ClientApp at {reference}, but found {type(app).__name__}. Write module:name.")
    return app


def serve(connection: Connection, reference: str) -> None:
    """Answer each (message, context) with a ClientTurn, or with what the app says is wrong, until nobody asks."""
    app: ClientApp | None = None
    while True:
        try:
            asked: tuple[Message, Context] = connection.recv()
        except (EOFError, ConnectionError):
            return
        answer: ClientTurn | NufedError
        try:
            app = app or load_client_app(reference)
            answer = take_turn(app, *asked)
        except NufedError as error:
            answer = error
        try:
            connection.send(answer)
        except ConnectionError:
            return


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as own_end:
        serve(own_end, sys.argv[2])
