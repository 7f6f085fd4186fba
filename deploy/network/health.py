"""`python -m nufed.deploy.network.health HOST:PORT` ends with 0 if a server serves there: a container's health check.

It asks the port of `nufed server --health`, which speaks gRPC's health protocol without TLS.
"""

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT = 5.0


def check_health(address: str) -> str:
    """Return `SERVING`, `NOT_SERVING`, or why there was no answer within 5 seconds."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT)
        except grpc.RpcError as error:
            return f"no answer ({error.code().name})"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def main(arguments: Sequence[str]) -> int:
    """Print the health of the server at the one address given, and return the exit code."""
    (address,) = arguments
    health = check_health(address)
    print(f"{address}: {health}")
    return 0 if health == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
