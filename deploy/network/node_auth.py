"""Node authentication that costs little: Flower's own check once per signature, and the admitted keys at every call."""

import datetime as dt
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm

from nufed.deploy.flower_runtime.signatures import bytes_to_public_key, verify_signature
from nufed.deploy.flower_runtime.state import LinkStateFactory
from nufed.deploy.flower_runtime.words import (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    ApiErrorCode,
    get_metadata_bytes,
    get_metadata_str,
)
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call, Refused
from nufed.deploy.network.node_keys import AdmittedKeys
from nufed.deploy.network.refusals import Refusals
from nufed.deploy.network.sessions import Caller, Sessions

REVOKED = "This node's key is not admitted, or not any more"
_REUSE = dt.timedelta(seconds=300)
"""How long a signature serves that was verified once; clients make a new one more often (`fleet_connection`)."""

_REMEMBERED = 20_000
_LONGEST_KEY = 1024
_UNREADABLE = (ValueError, TypeError, AttributeError, UnsupportedAlgorithm)
"""What Flower's check raises on a key, a signature or a time stamp that is none."""

_JOINING = frozenset({"RegisterNode", "ActivateNode"})


class NodeAuth:
    """Refuses keys that are not admitted and processes that were turned away, and remembers verified signatures.

    The signature covers a time stamp alone, so verifying the same one again tells nothing new; a client may use one for
    many calls and spare both sides the elliptic curve. Whom `signer` refuses has no request read.

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
        self._states, self._keys, self._sessions = states, keys, sessions
        self._refusals, self._on_event = refusals, on_event
        self._lock = threading.Lock()
        self._verified: OrderedDict[bytes, tuple[str, bytes, dt.datetime]] = OrderedDict()

    def signer(self, method: str, call: Call) -> bytes:
        """Return the public key that signed a call; to be asked before its request is read.

        Args:
            method: name of the call's method.
            call: its headers.

        Raises:
            Refused: the key is not admitted, or the signature does not hold.
        """
        metadata = call.invocation_metadata()
        public_key = get_metadata_bytes(metadata, PUBLIC_KEY_HEADER) or b""
        stamp = get_metadata_str(metadata, TIMESTAMP_HEADER) or ""
        signature = get_metadata_bytes(metadata, SIGNATURE_HEADER) or b""
        self._check_admitted(method, public_key)
        if not self._is_verified(public_key, stamp, signature):
            if reason := _what_is_wrong(public_key, stamp, signature):
                self._refusals.add("calls whose signature does not hold")
                raise Refused(grpc.StatusCode.UNAUTHENTICATED, reason)
            self._remember(public_key, stamp, signature)
        return public_key

    def check_node(self, method: str, request: Any, signer: bytes, call: Call) -> int:
        """Return the node that a request is of, 0 where it joins yet.

        Raises:
            Refused: the node has another key, or the process was turned away.
        """
        if method in _JOINING:
            return 0
        node_id = int(request.node.node_id if hasattr(request, "node") else request.node_id)
        if node_id != self._states.state().get_node_id_by_public_key(signer):
            self._refusals.add("calls of nodes with another's key")
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID")
        caller = Caller.of(call)
        if reason := self._sessions.refusal(node_id, caller):
            if reason == headers.REPLACED and self._sessions.is_first_refusal(node_id, caller):
                name = self._sessions.name(node_id)
                self._on_event(name, f"{name}: the process at {caller.peer} is turned away, because {reason}")
            self._refusals.add("calls of processes that were turned away")
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, headers.TURNED_AWAY + reason)
        return node_id

    def _check_admitted(self, method: str, public_key: bytes) -> None:
        """Refuse a key that is not admitted; in Flower's words where SuperNodes know them."""
        if len(public_key) > _LONGEST_KEY:
            self._refusals.add("calls with a key that is none")
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid signature")
        if self._keys is None or not (public_key or method in _JOINING):
            return
        if method != "RegisterNode" and self._keys.name_of(public_key) is not None:
            return
        self._refusals.add("calls without an admitted key")
        if method == "RegisterNode":
            message = "SuperNode authentication is enabled. All SuperNodes must be registered via the CLI."
            raise _as_flower(ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED, message)
        if method == "ActivateNode":
            raise _as_flower(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, "Failed to activate SuperNode.")
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, REVOKED)

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


def _what_is_wrong(public_key: bytes, stamp: str, signature: bytes) -> str:
    """Return what is wrong with a call's signature, in Flower's words; empty if nothing is."""
    if not (public_key and stamp and signature):
        return "Missing authentication metadata"
    try:
        if not verify_signature(bytes_to_public_key(public_key), stamp.encode("ascii"), signature):
            return "Invalid signature"
        age = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(stamp)).total_seconds()
    except _UNREADABLE:
        return "Invalid signature"
    is_recent = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
    return "" if is_recent else "Invalid timestamp"


def _as_flower(code: ApiErrorCode, message: str) -> Refused:
    details = json.dumps({"code": int(code), "public_message": message, "public_details": None})
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, details)
