"""A server and clients in one process, talking over the loopback interface: toy apps and a context to run them in."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from nufed.common.errors import NufedError
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint

LOOPBACK = ServerEndpoint("127.0.0.1:0")


def adding_app(amount=1.0):
    """A ClientApp that answers with the arrays it got plus `amount`."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict(added(message.content, amount)), reply_to=message)

    return app


def added(content, amount):
    arrays = ArrayRecord([array.numpy() + np.float32(amount) for array in content["arrays"].values()])
    return {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}


def request(node_id, values, *, server_round=1):
    content = RecordDict({"arrays": ArrayRecord([values]), "config": ConfigRecord({"server-round": server_round})})
    return Message(content, node_id, "train", group_id=str(server_round))


def server_app(function):
    """A ServerApp that calls `function(grid)` and keeps what it returns in its `result`."""
    app = ServerApp()

    @app.main()
    def main(grid, context):
        app.result = function(grid)

    return app


def call(server, function, run_config=None):
    """Run `function(grid)` as a ServerApp and return its result."""
    app = server_app(function)
    server.run(app, run_config or {"seed": 0})
    return app.result


@dataclass
class Client:
    """A DirectClient in a thread, with what it said and how it ended."""

    client: DirectClient
    said: list = field(default_factory=list)
    error: NufedError | None = None

    def run(self):
        try:
            self.client.serve(until_finished=True, patience=30)
        except NufedError as error:
            self.error = error


@contextmanager
def clients(server, *apps, address=None, names=None, key=None, root_certificates: Path | None = None):
    """Clients that serve `apps` until the server closes; they must end within 20 s then."""
    started, threads = [], []
    for index, app in enumerate(apps):
        said = []
        identity = ClientIdentity(names[index] if names else f"client-{index}", key=key)
        client = DirectClient(
            app, address or server.address, identity, root_certificates=root_certificates, on_event=said.append
        )
        started.append(Client(client, said))
        threads.append(threading.Thread(target=started[-1].run))
        threads[-1].start()
    try:
        yield started
    finally:
        if server is not None:
            server.close()
        for client, thread in zip(started, threads, strict=True):
            client.client.stop()
            thread.join(20)
            assert not thread.is_alive(), "a client hangs"


@contextmanager
def federation(*apps, endpoint=LOOPBACK, on_event=lambda _line: None):
    """A server with one client per app, all connected."""
    with DirectServer(endpoint, on_event=on_event) as server, clients(server, *apps) as started:
        yield server, started
