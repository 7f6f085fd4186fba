"""A container's health check tells a serving server from one that is closing or gone."""

import pytest

from nufed.deploy.network import health
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint
from tests.system.processes import free_address


@pytest.fixture
def server():
    with DirectServer(ServerEndpoint("127.0.0.1:0", health_address="127.0.0.1:0")) as server:
        yield server


def test_a_serving_server_is_healthy(server, capsys):
    assert health.main([server.health_address]) == 0
    assert "SERVING" in capsys.readouterr().out


def test_a_server_that_is_gone_is_not(capsys):
    assert health.main([free_address()]) == 1
    assert "no answer (UNAVAILABLE)" in capsys.readouterr().out


def test_a_server_that_takes_its_leave_is_not(server, capsys):
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    server._set_health(HealthCheckResponse.NOT_SERVING)

    assert health.main([server.health_address]) == 1
    assert "NOT_SERVING" in capsys.readouterr().out
