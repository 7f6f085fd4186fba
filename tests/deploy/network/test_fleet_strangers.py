"""Who is not admitted costs little: what strangers send is bounded, is not shown as they wrote it, and stops nobody."""

import contextlib
import datetime as dt
import logging
import resource
import secrets
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2 as fleet
from flwr.proto import message_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network import refusals
from nufed.deploy.network.call_failures import RunOver
from nufed.deploy.network.certificates import CertificateFolder, create_authority
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.deploy.network.fleet_connection import FleetConnection
from nufed.deploy.network.refusals import PrintableRecords, Refusals
from nufed.deploy.network.server_probe import ServerAddress
from tests.deploy.network.loopback import LOOPBACK, added, adding_app, call, clients, request

MIB = 2**20


@pytest.fixture(scope="module")
def server():
    """One without node keys: whoever signs a call gets as far as its handler."""
    events = []
    with DirectServer(LOOPBACK, on_event=events.append) as server:
        server.events = events
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """One with node keys, none of which a stranger has."""
    folder = CertificateFolder(tmp_path_factory.mktemp("certs"))
    create_authority(folder, ["127.0.0.1"])
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    with DirectServer(ServerEndpoint("127.0.0.1:0", security)) as server:
        server.roots = folder.authority_certificate.read_bytes()
        yield server


@contextmanager
def stub(server, **options):
    size = [("grpc.max_send_message_length", -1), *options.pop("options", [])]
    if hasattr(server, "roots"):
        channel = grpc.secure_channel(server.address, grpc.ssl_channel_credentials(server.roots), size, **options)
    else:
        channel = grpc.insecure_channel(server.address, size, **options)
    with channel:
        yield FleetStub(channel)


def signed(key=None, *, public=None, stamp=None):
    key = key or ec.generate_private_key(ec.SECP384R1())
    stamp = stamp or dt.datetime.now(dt.UTC).isoformat()
    public = public or key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return (("flwr-public-key-bin", public), ("flwr-timestamp", stamp), ("flwr-signature-bin", signature))


def _announcing(filler):
    reply = message_pb2.Message(error={"reason": filler.decode()})
    return fleet.PushMessagesRequest(messages_list=[reply])


def refusal(method, message, metadata=()):
    with pytest.raises(grpc.RpcError) as caught:
        method(message, metadata=metadata, timeout=20)
    return caught.value


def rss():
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", ["RegisterNode", "ActivateNode", "PushMessages"])
def test_a_strangers_request_is_refused_before_it_is_read(guarded, name):
    """By its headers: of 64 MiB nothing but what was on its way is ever in the server's memory."""
    filler = bytes(64 * MIB)
    message = {
        "RegisterNode": lambda: fleet.RegisterNodeFleetRequest(public_key=filler),
        "ActivateNode": lambda: fleet.ActivateNodeRequest(public_key=filler),
        "PushMessages": lambda: _announcing(filler),
    }[name]()

    with stub(guarded) as fleet_stub:
        refusal(getattr(fleet_stub, name), message, signed())
        before = rss()
        error = refusal(getattr(fleet_stub, name), message, signed())

    assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED)
    assert rss() - before < 24 * MIB


def test_a_key_of_another_size_or_owner_is_not_registered_and_not_shown(server, caplog):
    with stub(server) as fleet_stub:
        large = refusal(
            fleet_stub.RegisterNode, fleet.RegisterNodeFleetRequest(public_key=b"MARK\x1b[31m" * 10_000), signed()
        )
        foreign = refusal(fleet_stub.RegisterNode, fleet.RegisterNodeFleetRequest(public_key=b"MARK\x1b[31m"), signed())
        beyond = refusal(fleet_stub.ActivateNode, fleet.ActivateNodeRequest(public_key=b"MARK\x1b[31m"), signed())

    assert large.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 65536" in large.details()
    assert {foreign.code(), beyond.code()} == {grpc.StatusCode.FAILED_PRECONDITION}
    assert "MARK" not in caplog.text
    assert max(len(line) for line in caplog.text.splitlines()) < 1000


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("flwr-public-key-bin", b"\xff" * 2000), ("flwr-timestamp", "x"), ("flwr-signature-bin", b"y")),
        (("flwr-public-key-bin", b"no key"), ("flwr-timestamp", "x"), ("flwr-signature-bin", b"y")),
        signed(stamp="yesterday"),
        signed(stamp="2026-01-01T00:00:00"),
        signed(stamp="1970-01-01T00:00:00+00:00"),
        signed(public=signed()[0][1]),
    ],
    ids=["none", "long key", "no key", "no time", "no zone", "old", "another's signature"],
)
def test_what_is_no_signature_is_refused_without_an_error_of_the_servers(server, caplog, metadata):
    with stub(server) as fleet_stub:
        error = refusal(fleet_stub.PullMessages, fleet.PullMessagesRequest(), metadata)

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "Traceback" not in caplog.text
    assert not caplog.records or max(record.levelno for record in caplog.records) < logging.ERROR


def test_a_small_compressed_request_does_not_unfold(server):
    with stub(server, compression=grpc.Compression.Gzip) as fleet_stub:
        error = refusal(fleet_stub.RegisterNode, fleet.RegisterNodeFleetRequest(public_key=bytes(16 * MIB)), signed())

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_told_but_not_watched_where_strangers_call(server):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        status = health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        with pytest.raises(grpc.RpcError) as caught:
            next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))

    assert status == health_pb2.HealthCheckResponse.SERVING
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class _Hostile:
    """An admitted node that answers its message with what no client of ours would send."""

    def __init__(self, server):
        self.key = ec.generate_private_key(ec.SECP384R1())
        host, port = server.address.split(":")
        self.process = secrets.token_hex(8)
        address = ServerAddress(host, int(port))
        self.connection = FleetConnection(address, self.key, registers=True, name="hostile", process=self.process)

    def push(self, fleet_stub, message, *extra, spoil=lambda head: None):
        reply = Message(RecordDict(added(message.content, 1)), reply_to=message)
        reply.metadata.__dict__["_message_id"] = "f" * 64
        head = message_to_proto(remove_content_from_message(reply))
        spoil(head)
        pushed = fleet.PushMessagesRequest(node=self.connection._node, messages_list=[head])
        metadata = (*signed(self.key), (headers.SESSION, self.process), (headers.WHOLE, "1"), *extra)
        _, done = fleet_stub.PushMessages.with_call(pushed, metadata=metadata, timeout=20)
        return dict(done.initial_metadata())


@pytest.mark.parametrize("count", ["40000000", "9" * 4000, "-1", "0", "1e3", "0x10"])
def test_a_number_of_pieces_that_did_not_come_costs_nothing(server, count):
    hostile = _Hostile(server)

    def main(grid):
        messages = [request(hostile.connection.node_id, np.zeros(1, np.float32))]
        grid.push_messages(messages)
        message = hostile.connection.receive()
        before = rss()
        with stub(server) as fleet_stub:
            answer = hostile.push(
                fleet_stub, message, (headers.PIECES, count.encode("ascii", "ignore").decode() or "x")
            )
        return headers.LATE in answer, rss() - before

    with hostile.connection:
        is_late, grown = call(server, main)

    assert is_late
    assert grown < 32 * MIB


@pytest.mark.parametrize(
    "said", [{"run_id": 0}, {"run_id": 2**64 - 1}, {"message_type": "\x1b[2J"}, {"message_type": "query"}]
)
def test_an_answer_of_another_run_or_type_is_nobodys(server, said, caplog):
    hostile = _Hostile(server)

    def lie(head):
        for field, value in said.items():
            setattr(head.metadata, field, value)

    def main(grid):
        grid.push_messages([request(hostile.connection.node_id, np.zeros(1, np.float32))])
        message = hostile.connection.receive()
        with stub(server) as fleet_stub:
            return [
                headers.LATE in hostile.push(fleet_stub, message, spoil=spoil) for spoil in (lie, lambda _head: None)
            ]

    with hostile.connection:
        answers = call(server, main)

    assert answers == [True, False]
    assert "UnexpectedError" not in caplog.text


def test_a_reply_that_is_no_message_is_an_error_of_its_client(server):
    hostile = _Hostile(server)

    def push_nothing(fleet_stub):
        hostile.push(fleet_stub, hostile.connection.receive(), spoil=lambda head: head.ClearField("content"))

    def main(grid):
        with stub(server) as fleet_stub:
            replies = grid.stream_replies([request(hostile.connection.node_id, np.zeros(1, np.float32))], timeout=20)
            thread = threading.Thread(target=lambda: push_nothing(fleet_stub))
            thread.start()
            found = list(replies)
            thread.join(20)
        return found

    with hostile.connection:
        (reply,) = call(server, main)

    assert "makes up no message" in reply.error.reason


def test_a_reply_larger_than_its_message_can_need_is_refused(server, monkeypatch):
    """Whatever way it comes: whole, in pieces, or as Flower's objects."""
    values = np.zeros(1, np.float32)
    huge = np.arange(24 * MIB // 4, dtype=np.float32)
    refused = []

    def main(grid):
        for announces in (True, False):
            monkeypatch.setattr(FleetConnection, "ANNOUNCES_WHOLE", announces)
            with _Hostile(server).connection as connection:
                grid.push_messages([request(connection.node_id, values)])
                message = connection.receive()
                content = {"arrays": {"0": huge}}
                reply = Message(RecordDict(added({"arrays": ArrayRecord([huge])}, 0)), reply_to=message)
                del content
                try:
                    connection.send(reply, 0.0)
                except RunOver:
                    refused.append(announces)

    call(server, main)

    assert refused == [True, False]


def test_what_libraries_log_of_others_is_printable_and_bounded(caplog):
    logger = logging.getLogger("nufed.test-printable")
    logger.addFilter(PrintableRecords())

    try:
        int("\x1b[31m" * 100_000)
    except ValueError:
        logger.exception("failed for %s", "key\n\x1b[2J" * 100_000)

    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(caplog.text) < 2000
    assert "ValueError" in caplog.text


def test_refusals_are_counted_and_told_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(refusals.time, "monotonic", lambda: now[0])
    counted = Refusals()
    lines = []

    for now[0] in range(0, 130, 10):
        counted.add("calls without an admitted key")
        lines.append(counted.take_line())

    assert [line for line in lines if line] == [
        "refused: 1 calls without an admitted key",
        "refused: 6 calls without an admitted key",
        "refused: 6 calls without an admitted key",
    ]


def test_a_client_that_calls_wrongly_and_comes_back_again_and_again_fills_no_screen(caplog, monkeypatch):
    """Both are told for a while, and then counted."""
    monkeypatch.setattr(refusals, "_MOST_LINES", 5)
    monkeypatch.setattr(refusals, "_MOST_RECORDS", 7)
    now, lines = [0.0], []
    monkeypatch.setattr(refusals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    logger = logging.getLogger("nufed.test-many")
    logger.addFilter(PrintableRecords())

    with DirectServer(LOOPBACK, on_event=lines.append) as server:
        host, port = server.address.split(":")
        key = ec.generate_private_key(ec.SECP384R1())
        for now[0] in [0.0] * 12 + [61.0]:
            FleetConnection(ServerAddress(host, int(port)), key, registers=True, name="restless").drop()
            logger.error("wrong")

    assert len([line for line in lines if "restless" in line]) <= 5 + 1 + 5
    assert any("more lines about restless were left out" in line for line in lines)
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == [
        *["wrong"] * 7,
        "wrong (5 more were left out)",
    ]


SERVER_WITH_FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
from nufed.deploy.network import direct_server, serving
serving._HANDSHAKE, direct_server._COUNT_FILES = 2.0, 0.0
endpoint = direct_server.ServerEndpoint("127.0.0.1:0")
with direct_server.DirectServer(endpoint, on_event=lambda line: print(line, flush=True)) as server:
    print("address", server.address, flush=True)
    for line in sys.stdin:
        files = [open("/dev/null") for _ in range(20)]
        print("opened", len(files), flush=True)
"""


@pytest.mark.parametrize("said_first", [b"", b"P"], ids=["silent", "one byte"])
def test_silent_connections_neither_end_the_server_nor_keep_clients_out(said_first):
    """Who says nothing costs nothing; of more than it may have open it refuses the rest, and hangs up on the others."""
    silent = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVER_WITH_FEW_FILES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            address = process.stdout.readline().split()[1]
            host, port = address.split(":")
            silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(500)]
            for connection in silent:
                with contextlib.suppress(OSError):
                    connection.send(said_first)
            process.stdin.write("x\n")
            process.stdin.flush()
            said = [process.stdout.readline() for _ in range(1)]
            with clients(None, adding_app(), address=address) as (started,):
                while not any("joined" in line for line in said):
                    said.append(process.stdout.readline())
                    assert process.poll() is None, said
        finally:
            process.kill()
            for connection in silent:
                connection.close()

    assert any("opened 20" in line for line in said)
    assert any("nearly all of" in line for line in said) == bool(said_first)
    assert started.error is None
