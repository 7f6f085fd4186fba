"""Fifty admitted clients that answer everything wrongly leave no trace but their count, over gRPC with TLS and keys."""

import contextlib
import csv
import io
import json
import logging
import resource
import threading
import time

import pytest
from prometheus_client import generate_latest
from rich.console import Console

from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.common.events import EventStream
from nufed.deploy.commands.terminal import TerminalObserver
from nufed.deploy.monitoring.logs import LogContext, LogSink
from nufed.deploy.monitoring.prometheus_metrics import PrometheusMetrics
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.server.app import build_server_app
from nufed.server.events_file import EVENTS, read_events
from nufed.server.observer import ObserverSink
from nufed.server.run import ServerOptions
from tests.system.hostile_clients import QUERIES, hostile_clients
from tests.system.processes import round_records, run_folder

pytestmark = pytest.mark.system

RUN = RunConfig().updated(
    {
        "data.num-clients": 2,
        "data.num-new-clients": 0,
        "model.name": "linear",
        "federation.num-rounds": 3,
        "federation.participation-fraction": 1.0,
        "evaluation.interval": 1,
        "evaluation.num-adapt-steps": 2,
        "evaluation.primary-step": 1,
    }
)
HONEST = {f"client-{index:03d}": {"partition-id": index} for index in range(2)}
LONGEST_LINE = 10_000
"""Characters: the closing line lists twenty clients that were left out with their reasons."""

MOST_MEMORY = 700 * 2**10
"""KiB; the hostile clients live in the same process, and hold some hundred megabytes of what they send."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Certificates, and a key for everybody."""
    folder = CertificateFolder(tmp_path_factory.mktemp("tls") / "certs")
    create_authority(folder, ["127.0.0.1"])
    for name in (*HONEST, *(name for group in hostile_clients() for name in group)):
        add_client(folder, name)
    return folder


class Clients:
    """Holds the threads that clients run in, until the server has told them that the run is over."""

    def __init__(self, folder, address):
        self.folder, self.address = folder, address
        self.threads = []

    def start(self, apps):
        for name, app in apps.items():
            identity = ClientIdentity(name, self.folder.client_key(name), HONEST.get(name, {}), RUN.flat())
            client = DirectClient(app, self.address, identity, root_certificates=self.folder.authority_certificate)
            self.threads.append(threading.Thread(target=self.serve, args=(client,), daemon=True))
            self.threads[-1].start()

    @staticmethod
    def serve(client):
        with contextlib.suppress(NufedError):  # turned away
            client.serve(until_finished=True, patience=30)

    def join(self):
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a client hangs"


class Watching(TerminalObserver):
    """Lets more clients in when the run has begun, and waits until they are connected."""

    def __init__(self, console):
        super().__init__(console)
        self.then = lambda: None

    def on_start(self, config, folder, *, first_round):
        super().on_start(config, folder, first_round=first_round)
        self.then()


def federation(folder, out, asked, unknown):
    """Run a federation of the honest clients and some others; return the screen, the log and the metrics."""
    screen, log, metrics = io.StringIO(), io.StringIO(), PrometheusMetrics()
    observer = Watching(Console(file=screen, force_terminal=False, width=160))
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    endpoint, events = ServerEndpoint("127.0.0.1:0", security), EventStream()
    with events, DirectServer(endpoint, on_event=observer.say, events=events) as server:
        clients = Clients(folder, server.address)

        def let_in():
            clients.start(unknown)
            deadline = time.monotonic() + 60
            while server.num_connected() < len(HONEST) + len(asked) + len(unknown) and time.monotonic() < deadline:
                time.sleep(0.05)

        observer.then = let_in
        clients.start({**dict.fromkeys(HONEST, client_app), **asked})
        with observer:
            events.listen(ObserverSink(observer).handle)
            events.listen(LogSink("json", "debug", LogContext(), log).handle)
            events.attach(metrics)
            options = ServerOptions(out=out, events=events, min_clients=len(HONEST) + len(asked), connect_timeout=120)
            server.run(build_server_app(options), RUN.flat())
    clients.join()
    return screen.getvalue(), log.getvalue(), generate_latest(metrics.registry).decode()


def test_clients_that_answer_everything_wrongly_leave_no_trace_but_their_count(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    asked, unknown = hostile_clients()
    federation(folder, tmp_path / "without", {}, {})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    screen, log, metrics = federation(folder, tmp_path / "with", asked, unknown)

    spoilt, clean = run_folder(tmp_path / "with"), run_folder(tmp_path / "without")
    for name in ("model.safetensors", "clients.csv"):
        assert (spoilt / name).read_bytes() == (clean / name).read_bytes()
    check_counts(tmp_path, asked)
    check_what_is_seen(screen + caplog.text, spoilt)
    check_readers(log, metrics, spoilt, asked)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_MEMORY


def check_counts(tmp_path, asked):
    """Every round has every client that was asked, with a reason for each that was left out."""
    summaries = [json.loads((run_folder(tmp_path / name) / "summary.json").read_text()) for name in ("with", "without")]
    assert summaries[0]["participating"] == summaries[1]["participating"]
    assert summaries[0]["status"] == summaries[1]["status"] == "complete"
    for record, reference in zip(round_records(tmp_path / "with"), round_records(tmp_path / "without"), strict=True):
        assert (record["sampled"], record["replied"], record["missing"]) == (len(HONEST) + len(asked), len(HONEST), 0)
        assert record["rejected"] + record["failed"] == len(asked)
        assert record["problems"].keys() == record["evaluation"]["problems"].keys() == asked.keys()
        for key in ("loss", "gradient_evaluations", "hvps"):
            assert record[key] == reference[key]
        assert record["evaluation"]["participating"] == reference["evaluation"]["participating"]


def check_readers(log, metrics, folder, asked):
    """The JSON log, events.jsonl and the metrics have every reply of the hostile clients, and no byte that acts."""
    told = [json.loads(line) for line in log.splitlines()]
    assert {line["client"] for line in told if line["event"] == "rejected"} == asked.keys()
    content = (folder / EVENTS).read_bytes()
    for text in (log.encode(), content, metrics.encode()):
        assert text.isascii()
        assert not set(text) & (set(range(32)) - {10})
    assert max(map(len, [*log.splitlines(), *content.splitlines()])) < 30_000
    events = list(read_events(folder))
    replied = [event for event in events if event.kind == "replied" and event.phase == "training"]
    assert {event.client for event in replied} == HONEST.keys()
    array_bytes = sum(record["bytes_down"] for record in round_records(folder.parent)) / (3 * len({*HONEST, *asked}))
    assert all(array_bytes < event.bytes_down < array_bytes + 20_000 for event in replied)
    assert {event.key for event in events if event.kind == "joined"} >= HONEST.keys()
    assert f'nufed_replies_total{{outcome="replied",phase="training"}} {3.0 * len(HONEST)}' in metrics
    assert len(metrics) < 30_000
    assert not [name for name in (*HONEST, *asked) if name in metrics]


def check_what_is_seen(shown, folder):
    """What operators and files are told is printable, short, and no formula."""
    log = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    reasons = [reason for line in log.splitlines() for reason in json.loads(line)["problems"].values()]
    assert len(log) < 100_000
    assert all(reason.isprintable() for reason in reasons)
    assert [line for line in shown.split("\n") if not line.isprintable() or len(line) > LONGEST_LINE] == []
    assert (
        shown.count("client-id=") >= len([name for name in QUERIES if "size" not in name and "group" not in name]) - 1
    )
    cells = [cell for row in csv.reader((folder / "clients.csv").read_text().splitlines()) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
