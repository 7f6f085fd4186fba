"""Node authentication that costs little: Flower's own check once per signature, and the admitted keys at every call."""

import datetime as dt
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import (
    MAX_TIMESTAMP_DIFF,
    MIN_TIMESTAMP_DIFF,
    NodeAuthServerInterceptor,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.utils import get_metadata_bytes, get_metadata_str

from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.interceptors import refuse
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.refusals import Refusals
from nufed.deploy.network.sessions import Caller, Sessions

REVOKED = "This node's key is not admitted, or not any more"
_REUSE = dt.timedelta(seconds=120)
_REMEMBERED = 4096
_LONGEST_KEY = 1024
_UNREADABLE = (ValueError, TypeError, AttributeError, UnsupportedAlgorithm)
"""What Flower's check raises on a key, a signature or a time stamp that is none."""


class FleetAuthInterceptor(NodeAuthServerInterceptor):
    """Refuses keys that are not admitted and processes that were turned away, and remembers verified signatures.

    The signature covers a time stamp alone, so verifying the same one again tells nothing new; a client may use one for
    many calls and spare both sides the elliptic curve. Who is refused here is refused before the request is read.

    Args:
        states: Flower's state.
        keys: admitted keys; None admits whoever registers.
        sessions: who is connected as what.
        refusals: told of each refused call.
        on_event: called with a client's name and a line of text when a process calls whose place another took.
    """

    def __init__(
        self,
        states: LinkStateFactory,
        keys: AdmittedKeys | None,
        sessions: Sessions,
        *,
        refusals: Refusals,
        on_event: Callable[[str, str], None] = lambda _name, _line: None,
    ) -> None:
        super().__init__(states)
        self._keys, self._sessions, self._refusals, self._on_event = keys, sessions, refusals, on_event
        self._lock = threading.Lock()
        self._verified: OrderedDict[bytes, tuple[str, bytes, dt.datetime]] = OrderedDict()

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
        if refusal := self._unadmitted(handler_call_details.method.rpartition("/")[2], public_key):
            return refusal
        if self._is_verified(public_key, stamp, signature):
            return self._wrap_method_handler(continuation(handler_call_details), public_key)
        accepted: list[grpc.RpcMethodHandler] = []

        def accept(details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            self._remember(public_key, stamp, signature)
            accepted.append(continuation(details))
            return accepted[0]

        try:
            handler = super().intercept_service(accept, handler_call_details)
        except _UNREADABLE:
            handler = None
        if accepted and handler is not None:
            return handler
        self._refusals.add("calls whose signature does not hold")
        return refuse(grpc.StatusCode.UNAUTHENTICATED, _what_is_wrong(public_key, stamp, signature))

    def _unadmitted(self, method: str, public_key: bytes) -> grpc.RpcMethodHandler | None:
        """Return the refusal of a key that is not admitted, or None; in Flower's words where SuperNodes know them."""
        is_joining = method in ("RegisterNode", "ActivateNode")
        if len(public_key) > _LONGEST_KEY:
            self._refusals.add("calls with a key that is none")
            return refuse(grpc.StatusCode.UNAUTHENTICATED, "Invalid signature")
        if self._keys is None or not (public_key or is_joining):
            return None
        if method != "RegisterNode" and self._keys.name_of(public_key) is not None:
            return None
        self._refusals.add("calls without an admitted key")
        if method == "RegisterNode":
            message = "SuperNode authentication is enabled. All SuperNodes must be registered via the CLI."
            return _refuse_as_flower(ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED, message)
        if method == "ActivateNode":
            return _refuse_as_flower(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "Failed to activate SuperNode.")
        return refuse(grpc.StatusCode.UNAUTHENTICATED, REVOKED)

    def _is_verified(self, public_key: bytes, stamp: str, signature: bytes) -> bool:
        with self._lock:
            seen = self._verified.get(public_key)
        return seen is not None and seen[:2] == (stamp, signature) and dt.datetime.now(dt.UTC) < seen[2]

    def _remember(self, public_key: bytes, stamp: str, signature: bytes) -> None:
        with self._lock:
            self._verified[public_key] = (stamp, signature, dt.datetime.now(dt.UTC) + _REUSE)
            self._verified.move_to_end(public_key)
            while len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)

    def _wrap_method_handler(
        self, method_handler: grpc.RpcMethodHandler, received_public_key: bytes
    ) -> grpc.RpcMethodHandler:
        """Check after Flower, which compares key and node id, that the process was not turned away."""

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            node_id = request.node.node_id if hasattr(request, "node") else getattr(request, "node_id", 0)
            caller = Caller.of(context)
            if node_id and (reason := self._sessions.refusal(node_id, caller)):
                if reason == headers.REPLACED and self._sessions.is_first_refusal(node_id, caller):
                    name = self._sessions.name(node_id)
                    self._on_event(name, f"{name}: the process at {caller.peer} is turned away, because {reason}")
                self._refusals.add("calls of processes that were turned away")
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, headers.TURNED_AWAY + reason)
            return method_handler.unary_unary(request, context)

        current = grpc.unary_unary_rpc_method_handler(
            answer, method_handler.request_deserializer, method_handler.response_serializer
        )
        return super()._wrap_method_handler(current, received_public_key)


def _what_is_wrong(public_key: bytes, stamp: str, signature: bytes) -> str:
    """Return Flower's words for a call that its check refused."""
    if not (public_key and stamp and signature):
        return "Missing authentication metadata"
    try:
        age = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(stamp)).total_seconds()
    except (ValueError, TypeError):
        return "Invalid signature"
    return "Invalid signature" if MIN_TIMESTAMP_DIFF < age < MAX_TIMESTAMP_DIFF else "Invalid timestamp"


def _refuse_as_flower(code: ApiErrorCode, message: str) -> grpc.RpcMethodHandler:
    details = json.dumps({"code": int(code), "public_message": message, "public_details": None})
    return refuse(grpc.StatusCode.FAILED_PRECONDITION, details)
