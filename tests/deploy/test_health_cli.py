"""A probe tells a serving server from none by its exit code."""

import typer
from typer.testing import CliRunner

from common.errors import ConfigError, PeerError
from deploy import health_cli
from deploy.flower_runtime.direct_server import DirectServer, ServerEndpoint


def probe(*arguments):
    app = typer.Typer()
    health_cli.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_a_serving_server_answers():
    with DirectServer(ServerEndpoint("127.0.0.1:0", health_address="127.0.0.1:0")) as server:
        result = probe(server.health_address)

    assert (result.exit_code, result.output) == (0, "serving\n")


def test_a_closed_server_does_not():
    with DirectServer(ServerEndpoint("127.0.0.1:0", health_address="127.0.0.1:0")) as server:
        address = server.health_address

    result = probe(address, "--timeout", "0.3")

    assert isinstance(result.exception, PeerError)
    assert "started with --health" in str(result.exception)


def test_what_is_no_address_is_refused():
    assert isinstance(probe("somewhere").exception, ConfigError)
