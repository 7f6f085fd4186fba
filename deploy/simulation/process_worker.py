"""A worker process of the engine `processes`: takes jobs of (message, context), runs the ClientApp, returns its turns.

Started as `python -m nufed.deploy.simulation.process_worker FD MODULE:APP [together]`, with one end of a socket pair as
file descriptor FD. Ends when the other end is closed. `together` computes the clients of a job at once.
"""

import importlib
import sys
from multiprocessing.connection import Connection

from flwr.clientapp import ClientApp

from nufed.common.errors import ConfigError, NufedError
from nufed.deploy.simulation.actor_turns import ActorTurns, Done, Job


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


TOGETHER = ("together",)


def serve(connection: Connection, reference: str, *, together: bool = False) -> None:
    """Answer each job with what became of it, or with what the app says is wrong, until nobody asks."""
    turns: ActorTurns | None = None
    while True:
        try:
            job: Job = connection.recv()
        except (EOFError, ConnectionError):
            return
        answer: Done | NufedError
        try:
            turns = turns or ActorTurns(load_client_app(reference), together=together)
            answer = turns.do(job)
        except NufedError as error:
            answer = error
        try:
            connection.send(answer)
        except ConnectionError:
            return


if __name__ == "__main__":
    with Connection(int(sys.argv[1])) as own_end:
        serve(own_end, sys.argv[2], together=sys.argv[3:] == [*TOGETHER])
