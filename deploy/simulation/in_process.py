"""Simulation in this process: no Ray, no SuperLink, no start-up; the clients take their turns one after another."""

from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from nufed.common.config import Scalar
from nufed.deploy.simulation.simulated_grid import ClientTurn, SimulatedGrid, take_turn


class InProcessGrid(SimulatedGrid):
    """A Grid that runs the ClientApp here, in the order of the messages; holds the clients' states."""

    computes_ahead = False

    def __init__(self, client_app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Scalar]) -> None:
        """Serve `num_nodes` clients that all run `client_app`.

        Raises:
            RunError: there is no node.
        """
        super().__init__(num_nodes, run_config)
        self._client_app = client_app

    def _turns(self, messages: list[Message]) -> Iterator[tuple[Message, ClientTurn]]:
        for message in messages:
            yield message, take_turn(self._client_app, message, self._context(message.metadata.dst_node_id))


def simulate_in_process(
    server_app: ServerApp, client_app: ClientApp, *, num_nodes: int, run_config: Mapping[str, Scalar]
) -> None:
    """Run a ServerApp with `num_nodes` clients in this process.

    Both apps find `run_config` in their Context; client i has `partition-id` i in its node config.

    Raises:
        NufedError: raised by either app.
        RunError: there is no node.
    """
    grid = InProcessGrid(client_app, num_nodes=num_nodes, run_config=run_config)
    server_app(grid=grid, context=grid.server_context())
