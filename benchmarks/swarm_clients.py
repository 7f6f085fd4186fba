"""Cheap clients for `benchmarks/swarm.py`: thousands of connections in a process, each a client with a key of its own.

They speak what `nufed client` speaks, and answer at once: who they are, or the arrays that they were sent.
"""

import asyncio
import contextlib
import datetime as dt
import json
import random
import secrets
import sys
from pathlib import Path
from typing import ClassVar

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node

from nufed.common.wire import ClientDescription
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.file_limit import raise_file_limit
from nufed.deploy.network.message_bytes import message_parts, push_request
from nufed.deploy.network.pieces import CutBytes, assemble, piece_name

_SIGNATURE_LIFE = 240.0
_HEARTBEAT = 3.0
_TOGETHER = 40
"""Clients of a process that connect at a time, so that none of them waits for longer than a handshake may take."""


class CheapClient:
    """One connection with a key."""

    _fetched: ClassVar = {}

    def __init__(self, address, name, key, roots, joining):
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 3000),
            ("grpc.keepalive_time_ms", 20_000),
        ]
        if roots:
            self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)
        self._name, self._key, self._registers, self._joining = name, key, roots is None, joining
        self._public = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
        self._process, self._resign_at, self._metadata = secrets.token_hex(16), float("-inf"), ()
        self._node = Node()
        self._interval = _HEARTBEAT

    async def serve(self):
        """Answer for ever, connecting again whenever the connection is lost."""
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with self._joining:
                    await self._join()
                while True:
                    await self._answer_next()
            await asyncio.sleep(random.uniform(0.2, 2.0))

    async def _join(self):
        extra = ((headers.NAME, headers.quote_name(self._name)), (headers.WHOLE, "1"))
        if self._registers:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._call("RegisterNode", fleet.RegisterNodeFleetRequest(public_key=self._public))
        request = fleet.ActivateNodeRequest(public_key=self._public, heartbeat_interval=10.0)
        answer, head = await self._call("ActivateNode", request, extra)
        self._note_interval(head)
        self._node = Node(node_id=fleet.ActivateNodeResponse.FromString(answer).node_id)

    def _note_interval(self, head):
        self._interval = max(_HEARTBEAT, float(headers.header_text(head, headers.INTERVAL) or _HEARTBEAT))

    async def _answer_next(self):
        async with self._beating(self._interval):
            answer, head = await self._call("PullMessages", fleet.PullMessagesRequest(node=self._node))
        self._note_interval(head)
        proto = fleet.PullMessagesResponse.FromString(answer)
        if not proto.messages_list:
            return
        async with self._beating(_HEARTBEAT):
            message = message_from_proto(proto.messages_list[0])
            if count := headers.header_text(head, headers.PIECES):
                message.content = await self._fetch(message.metadata, int(count))
            await self._push(self._reply(message))

    def _reply(self, message):
        if message.metadata.message_type == "query":
            content = ClientDescription(self._name, "participating", 10, 0, 0).to_records()
        else:
            metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
            content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = secrets.token_hex(32)
        return reply

    async def _fetch(self, metadata, count):
        """Return a message's content; a process keeps one for all its clients, for the machine's memory."""
        parts, is_kept = [], count in self._fetched
        for number in range(count):
            name = piece_name(metadata.message_id, number)
            request = message_pb2.PullObjectRequest(node=self._node, run_id=metadata.run_id, object_id=name)
            answer, _ = await self._call("PullObject", request)
            if not is_kept:
                parts.append(message_pb2.PullObjectResponse.FromString(answer).object_content)
        if count not in self._fetched:
            self._fetched[count] = message_from_proto(assemble(parts)).content
        return self._fetched[count]

    async def _push(self, reply):
        envelope, extra = fleet.PushMessagesRequest(node=self._node), ((headers.WHOLE, "1"),)
        if headers.array_bytes(reply) <= headers.WHOLE_LIMIT:
            await self._call("PushMessages", push_request(envelope, reply), extra)
            return
        cut = CutBytes(message_parts(reply))
        for number in range(cut.count):
            name = piece_name(reply.metadata.reply_to_message_id, number)
            part = message_pb2.PushObjectRequest(
                node=self._node, run_id=reply.metadata.run_id, object_id=name, object_content=cut.piece(number)
            )
            await self._call("PushObject", part)
        envelope.messages_list.append(message_to_proto(remove_content_from_message(reply)))
        await self._call("PushMessages", envelope, (*extra, (headers.PIECES, str(cut.count))))

    @contextlib.asynccontextmanager
    async def _beating(self, interval):
        """Give a sign of life every so many seconds, also while a message of one part is on its way."""
        beats = asyncio.ensure_future(self._beat(interval))
        try:
            yield
        finally:
            beats.cancel()

    async def _beat(self, interval):
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=10.0)
        while True:
            await asyncio.sleep(interval)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._call("SendNodeHeartbeat", request)

    async def _call(self, method, request, extra=()):
        content = request if isinstance(request, bytes) else request.SerializeToString()
        call = self._channel.unary_unary(f"/flwr.proto.Fleet/{method}")(
            content, timeout=300, metadata=(*self._signed(), *extra)
        )
        answer = await call
        return answer, tuple(await call.initial_metadata())

    def _signed(self):
        now = asyncio.get_running_loop().time()
        if now > self._resign_at:
            # The first life is any part of a whole one: clients that joined together do not sign together ever after.
            life = _SIGNATURE_LIFE * (1.0 if self._metadata else random.random())
            stamp = dt.datetime.now(dt.UTC).isoformat()
            self._metadata = (
                ("flwr-public-key-bin", self._public),
                ("flwr-timestamp", stamp),
                ("flwr-signature-bin", self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))),
                (headers.SESSION, self._process),
            )
            self._resign_at = now + life
        return self._metadata


async def _serve_all(address, first, count, folder):
    raise_file_limit()
    roots = (folder / "ca.crt").read_bytes() if folder else None
    joining = asyncio.Semaphore(_TOGETHER)
    clients = []
    for number in range(first, first + count):
        name = client_name(number)
        if folder:
            key = ser.load_ssh_private_key((folder / "keys" / name).read_bytes(), None)
        else:
            key = ec.generate_private_key(ec.SECP384R1())
        clients.append(CheapClient(address, name, key, roots, joining))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.gather(*(client.serve() for client in clients))


def client_name(number):
    """Return the name of a client."""
    return f"client-{number:05d}"


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(
        _serve_all(given["address"], given["first"], given["count"], Path(given["folder"]) if given["folder"] else None)
    )
