"""What stands between gRPC and the Fleet API: bounds on requests, refusals that read none, responses made of bytes.

gRPC has one bound on requests for a whole server; here each method has its own, which is checked before protobuf makes
objects of the request, and `refuse` answers a call without taking its request off the connection at all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
from flwr.proto import fleet_pb2 as fleet

from nufed.deploy.network.fleet_headers import WHOLE_LIMIT
from nufed.deploy.network.refusals import Refusals

LARGEST_REQUEST = WHOLE_LIMIT + 16 * 2**20
"""Bytes of the largest request: a message that travels whole, its arrays' names, and its other records."""

_LARGEST_QUESTION = 64 * 2**10
_WITH_CONTENT = frozenset({"PushMessages", "PushObject"})


class _TooLarge(NamedTuple):
    size: int


class BoundedRequests(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses requests that are larger than their method needs; belongs outermost.

    Args:
        refusals: told of each.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """Wrap what reads the request and what answers it."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        largest = LARGEST_REQUEST if method in _WITH_CONTENT else _LARGEST_QUESTION

        def read(content: bytes) -> Any:
            return _TooLarge(len(content)) if len(content) > largest else handler.request_deserializer(content)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if isinstance(request, _TooLarge):
                self._refusals.add("calls that are too large")
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"a {method} request of {request.size} bytes is refused; expected at most {largest}",
                )
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)


def refuse(code: grpc.StatusCode, details: str) -> grpc.RpcMethodHandler:
    """Return a handler that refuses a call and leaves its request unread, whatever its size."""

    def abort(_requests: object, context: grpc.ServicerContext) -> None:
        context.abort(code, details)

    # The handler of a stream, because gRPC reads the one request of a plain call before it asks the handler.
    return grpc.stream_unary_rpc_method_handler(abort)


class RawResponses(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets `PullMessages` answer with bytes; belongs innermost."""

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """Replace what turns the response into bytes."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method != "/flwr.proto.Fleet/PullMessages":
            return handler
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, handler.request_deserializer, _as_bytes)


def _as_bytes(response: fleet.PullMessagesResponse | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()
