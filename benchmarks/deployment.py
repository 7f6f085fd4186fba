"""Seconds and memory that a deployment adds to trivial work: `nufed`'s two processes beside Flower's own path.

    python benchmarks/deployment.py                       2 and 10 clients, 0.3 and 5 MB, TLS and node keys
    python benchmarks/deployment.py --sizes 200 --clients 2 --phases 5
    python benchmarks/deployment.py --no-stock --clients 100 --phases 20 --clients-per-process 25

A phase is one message to every client and its reply. Both columns are measured in the same call, one after the other.
Memory is the largest sum over a side's processes, sampled four times a second, for one client process.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "benchmarks" / "deployment_app"
sys.path[:0] = [str(ROOT), str(APP)]
ENVIRONMENT = {
    **os.environ,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(APP)]),
}


@dataclass(frozen=True)
class Case:
    """What is measured: clients, size of the model in MB, phases, clients in one process (direct only)."""

    clients: int
    megabytes: float
    phases: int
    per_process: int = 1

    @property
    def floats(self):
        return int(self.megabytes * 1e6 / 4)


@dataclass(frozen=True)
class Measured:
    """Seconds per phase (median, largest), lost replies, MB of memory on both sides."""

    median: float
    largest: float
    lost: int
    server_memory: float
    client_memory: float


class Session:
    """Processes started together, and the largest memory that each of them and their children came to."""

    def __init__(self, folder):
        self.folder, self.started, self.peaks = folder, {}, {}
        self.over = threading.Event()
        self.sampler = threading.Thread(target=self._sample, daemon=True)
        self.sampler.start()

    def start(self, name, *command, **env):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **env},
                start_new_session=True,
                cwd=self.folder,
            )
        return self.started[name]

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self):
        self.over.set()
        self.sampler.join()
        for process in reversed(list(self.started.values())):
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(5)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue

    def _sample(self):
        page = os.sysconf("SC_PAGE_SIZE") / 1e6
        while not self.over.wait(0.25):
            parents, resident = {}, {}
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)], resident[int(entry.name)] = int(fields[1]), int(fields[21]) * page
                except (OSError, IndexError):
                    continue
            for name, process in self.started.copy().items():
                family = {process.pid}
                while more := {pid for pid, parent in parents.items() if parent in family} - family:
                    family |= more
                held = sum(resident.get(pid, 0.0) for pid in family)
                self.peaks[name] = max(self.peaks.get(name, 0.0), held)


def measure_direct(case, folder):
    session, result = Session(folder), folder / "result.json"
    try:
        from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority

        certificates = CertificateFolder(folder / "certs")
        create_authority(certificates, ["127.0.0.1"])
        names = [f"client-{index:03}" for index in range(case.clients)]
        keys = {name: add_client(certificates, name) for name in names}
        address = free_address()
        config = json.dumps(run_config(case, result))
        server = session.start("server", sys.executable, __file__, "serve", address, certificates.root, config)
        for first in range(0, case.clients, case.per_process):
            group = [f"{name}={keys[name]}" for name in names[first : first + case.per_process]]
            roots = certificates.authority_certificate
            session.start(f"client-{first}", sys.executable, __file__, "join", address, roots, *group)
        return await_result(session, result, server, "server")
    finally:
        session.close()


def measure_stock(case, folder):
    session, result = Session(folder), folder / "result.json"
    home = folder / "home"
    home.mkdir()
    control, fleet = free_address(), free_address()
    host, port = control.split(":")
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{control}"\ninsecure = true\n'
    )
    binaries, env = Path(sys.executable).parent, {"FLWR_HOME": str(home)}
    try:
        superlink = [binaries / "flower-superlink", "--insecure", "--host", host, "--port", port]
        session.start("server", *superlink, "--fleet-api-address", fleet, **env)
        await_port(control)
        await_port(fleet)
        for index in range(case.clients):
            own = free_address().split(":")
            supernode = [binaries / "flower-supernode", "--insecure", "--superlink", fleet]
            session.start(f"client-{index}", *supernode, "--host", own[0], "--port", own[1], **env)
        settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config(case, result).items())
        flwr = session.start("flwr", binaries / "flwr", "run", APP, "--run-config", settings, "--stream", **env)
        return await_result(session, result, flwr, "flwr")
    finally:
        session.close()


def run_config(case, result):
    return {"phases": case.phases, "clients": case.clients, "floats": case.floats, "result": str(result)}


def await_result(session, result, process, name):
    deadline = time.monotonic() + 1800
    while not (result.exists() and result.stat().st_size):
        if time.monotonic() > deadline or process.poll() not in (None, 0):
            raise SystemExit(f"no result:\n{session.log(name)[-3000:]}\n{session.log('server')[-3000:]}")
        time.sleep(0.1)
    time.sleep(0.2)
    measured = json.loads(result.read_text())
    client = max(peak for name, peak in session.peaks.items() if name.startswith("client"))
    seconds = measured["seconds"]
    return Measured(statistics.median(seconds), max(seconds), measured["lost"], session.peaks["server"], client)


def serve(address, certificates, config):
    from trivial_work import server_app

    from nufed.deploy.network.certificates import CertificateFolder
    from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity

    logging.getLogger("flwr").setLevel(logging.WARNING)
    folder = CertificateFolder(Path(certificates))
    security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    with DirectServer(ServerEndpoint(address, security), on_event=print) as server:
        server.run(server_app, json.loads(config))


def join(address, roots, *clients):
    from trivial_work import client_app

    from nufed.deploy.network.direct_client import ClientIdentity, DirectClient

    logging.getLogger("flwr").setLevel(logging.WARNING)
    threads = []
    for client in clients:
        name, _, key = client.partition("=")
        direct = DirectClient(
            client_app, address, ClientIdentity(name, Path(key)), root_certificates=Path(roots), on_event=print
        )
        threads.append(threading.Thread(target=direct.serve, kwargs={"until_finished": True}))
        threads[-1].start()
    for thread in threads:
        thread.join()


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def await_port(address, seconds=60):
    host, port = address.split(":")
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens on {address}")
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.272, 5.0], help="MB")
    parser.add_argument("--phases", type=int, default=30)
    parser.add_argument("--stock-phases", type=int, default=4)
    parser.add_argument("--clients-per-process", type=int, default=1)
    parser.add_argument("--no-stock", action="store_true")
    options = parser.parse_args()
    print("clients      MB    path  median s   max s  lost  server MB  client MB")
    for clients in options.clients:
        for megabytes in options.sizes:
            direct = Case(clients, megabytes, options.phases, options.clients_per_process)
            paths = [("direct", measure_direct, direct)]
            if not options.no_stock:
                paths.append(("stock", measure_stock, Case(clients, megabytes, options.stock_phases)))
            for name, measure, case in paths:
                with tempfile.TemporaryDirectory() as folder:
                    got = measure(case, Path(folder))
                print(
                    f"{clients:7} {megabytes:7g} {name:>7} {got.median:9.3f} {got.largest:7.3f} {got.lost:5} "
                    f"{got.server_memory:10.0f} {got.client_memory:10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] in (["serve"], ["join"]):
        {"serve": serve, "join": join}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
