"""Node authentication that costs little: Flower's own check once per signature, and the admitted keys at every call."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import grpc
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.utils import get_metadata_bytes, get_metadata_str

from nufed.deploy.network.node_keys import AdmittedKeys

REVOKED = "This node's key is not admitted, or not any more"
_REUSE = dt.timedelta(seconds=120)


class FleetAuthInterceptor(NodeAuthServerInterceptor):
    """Refuses keys that are not admitted, and remembers the last signature verified for each key.

    The signature covers a time stamp alone, so verifying the same one again tells nothing new; a client may use one for
    many calls and spare both sides the elliptic curve.

    Args:
        states: Flower's state.
        keys: admitted keys; None admits whoever registers.
    """

    def __init__(self, states: LinkStateFactory, keys: AdmittedKeys | None) -> None:
        super().__init__(states)
        self._keys = keys
        self._verified: dict[bytes, tuple[str, bytes, dt.datetime]] = {}

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        """Check the node's key and signature, then go on with the call."""
        if not handler_call_details.method.startswith("/flwr.proto.Fleet/"):
            return continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata
        public_key = get_metadata_bytes(metadata, PUBLIC_KEY_HEADER) or b""
        stamp = get_metadata_str(metadata, TIMESTAMP_HEADER) or ""
        signature = get_metadata_bytes(metadata, SIGNATURE_HEADER) or b""
        joining = handler_call_details.method.rpartition("/")[2] in ("RegisterNode", "ActivateNode")
        if public_key and not joining and self._keys is not None and self._keys.name_of(public_key) is None:
            return _refuse(REVOKED)
        now = dt.datetime.now(dt.UTC)
        seen = self._verified.get(public_key)
        if seen is not None and seen[:2] == (stamp, signature) and now < seen[2]:
            return self._wrap_method_handler(continuation(handler_call_details), public_key)

        def accept(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            self._verified[public_key] = (stamp, signature, now + _REUSE)
            return continuation(details)

        return super().intercept_service(accept, handler_call_details)


def _refuse(reason: str) -> grpc.RpcMethodHandler:
    def abort(_request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    return grpc.unary_unary_rpc_method_handler(abort)
