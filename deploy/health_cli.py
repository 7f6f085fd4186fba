"""The command `nufed health`: is a server serving? For container probes that cannot speak gRPC themselves."""

from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.errors import ConfigError, PeerError


def register(app: typer.Typer) -> None:
    """Mount the command on the program's."""
    app.command("health")(health_command)


def health_command(
    address: Annotated[str, typer.Argument(help="what `nufed server --health` was given", metavar="HOST:PORT")],
    timeout: Annotated[float, typer.Option(help="seconds to wait for the answer", min=0.01)] = 5.0,
) -> None:
    """Ask a server's health port whether it serves; exit code 0 if it does."""
    if not address.rpartition(":")[2].isdigit():
        raise ConfigError(f"Expected HOST:PORT, got {address!r}; for example 127.0.0.1:9093.")
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest()
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout, wait_for_ready=True).status
        except grpc.RpcError as error:
            raise PeerError(
                f"No health service answers at {address} ({error.code().name.lower()}): check the address, and that "
                "the server was started with --health."
            ) from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise PeerError(f"The server at {address} does not serve; it is closing, or was not started.")
    typer.echo("serving")
