"""One `nufed` server and up to ten thousand connected clients: memory, processor, joining, rounds, storms and floods.

    python -m benchmarks.swarm                      all of it, about 8 minutes; written into docs/performance.md
    python -m benchmarks.swarm --clients 100 1000   fewer clients; nothing is written into the documentation
    python -m benchmarks.swarm --no-floods --no-plain

Clients are cheap ones (`swarm_clients.py`), each with a connection and a key of its own, in two processes on the same
machine: what they cost is in the times, and not in the server's processor time and memory. Of N clients a round asks
100. A storm is the server killed and started again at once, until all clients are known again.
"""

import argparse
import contextlib
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.swarm_clients import client_name
from benchmarks.swarm_floods import FLOODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- swarm: begin -->", "<!-- swarm: end -->"
ASKED, PROCESSES, IDLE, PATIENCE = 100, 2, 15.0, 280.0
SMALL, LARGE, HUGE = 0.1, 5.0, 40.0
_ABOUT = """`python -m benchmarks.swarm` on {cores} cores, which the clients share: two processes with a connection and
a key for each client. A round asks 100 of them. The server is one process; it has torch loaded. A storm is the server
killed and started again, until the run knows all clients again."""
ENVIRONMENT = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Remote:
    """A process that is told things on its input, a line each, and answers each with a line."""

    def __init__(self, module, given):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        command = [sys.executable, "-m", module, json.dumps(given)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT,
            env=ENVIRONMENT,
        )  # fmt: skip

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read()[-2000:]
            raise SystemExit(f"{self.process.args[2]} ended with exit code {self.process.wait()}:\n{said}")
        return line.strip()

    def ask(self, *words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.hear())

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.wait()


class Swarm:
    """A server and its clients.

    Args:
        count: clients.
        folder: certificates and keys; None for neither.
    """

    def __init__(self, count, folder):
        self.count, self._folder = count, folder
        self._port = _free_port()
        self.server = self._start_server()
        self.before = self.state()
        each = count // PROCESSES
        self.clients = [
            Remote("benchmarks.swarm_clients", {"address": self.address, "first": number * each, "count": each,
                                                "folder": str(folder) if folder else ""})
            for number in range(PROCESSES)
        ]  # fmt: skip
        for client in self.clients:
            client.hear()

    @property
    def address(self):
        return f"127.0.0.1:{self._port}"

    def _start_server(self):
        server = Remote("benchmarks.swarm_server", {"address": self.address, "folder": str(self._folder or "")})
        server.hear()
        return server

    def join(self):
        """Return the seconds until all clients are connected, and until the run knows all of them."""
        for client in self.clients:
            client.go()
        return self.server.ask("discover", self.count, PATIENCE)

    def storm(self):
        """Return the same for clients whose server was killed and started again."""
        self.server.kill()
        self.server = self._start_server()
        return self.server.ask("discover", self.count, PATIENCE)

    def rounds(self, megabytes, number):
        """Return the seconds of each round, and of the server's processor time."""
        return self.server.ask("rounds", ASKED, megabytes, number)

    def state(self):
        """Return the server's memory (MB), processor time (s), and largest memory since the last question (MB)."""
        return self.server.ask("state")

    def idle(self, seconds):
        """Return the share of one core that the server takes while nothing happens."""
        before, started = self.state(), time.monotonic()
        time.sleep(seconds)
        return (self.state()["cpu"] - before["cpu"]) / (time.monotonic() - started)

    def close(self):
        for remote in (*self.clients, self.server):
            remote.kill()


def measure(count, folder):
    """Return one row: what `count` clients cost."""
    swarm = Swarm(count, folder)
    try:
        connected, known = swarm.join()
        swarm.rounds(SMALL, 2)  # warm
        now = swarm.state()
        idle = swarm.idle(IDLE)
        small, small_cpu = swarm.rounds(SMALL, 7)
        large, _ = swarm.rounds(LARGE, 3)
        _, storm = swarm.storm()
    finally:
        swarm.close()
    row = {
        "clients": count,
        "TLS, keys": "yes" if folder else "no",
        "server, MB": round(now["memory"]),
        "KB a client": 1000 * (now["own"] - swarm.before["own"]) / count,
        "idle, % of a core": 100 * idle,
        "connected, s": connected,
        "known, s": known,
        "round of 0.1 MB, s": statistics.median(small),
        "its processor time, s": statistics.median(small_cpu),
        "round of 5 MB, s": statistics.median(large),
        "storm, s": storm,
    }
    print(json.dumps(row), flush=True)
    return row


def measure_floods(count, folder):
    """Return a row for each flood: rounds' speed under it, as a share of that before, and the memory that it took."""
    swarm, rows = Swarm(count, folder), []
    try:
        swarm.join()
        swarm.rounds(SMALL, 5)
        for name, flood in FLOODS.items():
            quiet, _ = swarm.rounds(SMALL, 15)
            before = swarm.state()["memory"]
            with flood(swarm.address, (folder / "ca.crt").read_bytes()):
                time.sleep(2)
                flooded, _ = swarm.rounds(SMALL, 15)
            peak = swarm.state()["peak"]
            rows.append({"flood": name, "speed of rounds": statistics.median(quiet) / statistics.median(flooded),
                         "memory, MB more": max(0.0, peak - before)})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    finally:
        swarm.close()
    return rows


def measure_backpressure():
    """Return a row: 100 replies of 40 MB at once."""
    swarm = Swarm(ASKED, None)
    try:
        swarm.join()
        swarm.rounds(SMALL, 2)
        before = swarm.state()["memory"]
        seconds, _ = swarm.rounds(HUGE, 1)
        more = swarm.state()["peak"] - before
    finally:
        swarm.close()
    row = {"replies at once": ASKED, "MB each": HUGE, "seconds": seconds[0], "memory of the server, MB more": more}
    print(json.dumps(row), flush=True)
    return [row]


def exponents(rows):
    """Return the growth exponents in N of a round's latency and of its processor time (least squares of logarithms)."""
    rows = [row for row in rows if row["TLS, keys"] == "yes" and row["clients"] >= ASKED]
    if len(rows) < 2:
        return {}
    return {
        name: statistics.linear_regression(
            [math.log(row["clients"]) for row in rows], [math.log(row[name]) for row in rows]
        ).slope
        for name in ("round of 0.1 MB, s", "its processor time, s")
    }


def make_certificates(folder, count):
    """Write an authority, and a key for each client, admitted."""
    from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority

    certificates = CertificateFolder(folder)
    create_authority(certificates, ["127.0.0.1"])
    for number in range(count):
        add_client(certificates, client_name(number))


def section(rows, floods, replies):
    """Return the section of the documentation."""
    from benchmarks.harness import table

    lines = [BEGIN, "## Connected clients", "", _ABOUT.format(cores=os.cpu_count()), ""]
    lines += [table(list(rows[0]), [list(row.values()) for row in rows]), ""]
    lines += [f"Growth with N, exponent of {name}: {value:.2f}." for name, value in exponents(rows).items()]
    if floods:
        lines += ["", "Floods from the same machine, 1,000 clients connected; speed of rounds beside that just before:",
                  "", table(list(floods[0]), [list(row.values()) for row in floods])]  # fmt: skip
        lines += ["", "Replies that come faster than they are folded wait at the clients:", ""]
        lines += [table(list(replies[0]), [list(row.values()) for row in replies])]
    return "\n".join([*lines, END])


def write_page(text):
    """Put the section in place of the one before, or at the page's end."""
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN in page:
        page = page[: page.index(BEGIN)] + text + page[page.index(END) + len(END) :]
    else:
        page = page.rstrip() + "\n\n" + text + "\n"
    PAGE.write_text(page, encoding="utf-8")


def _free_port():
    with contextlib.closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 5000, 10_000])
    parser.add_argument("--no-plain", action="store_true", help="only with TLS and node keys")
    parser.add_argument("--no-floods", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder), max(*given.clients, 1000))
        rows = [measure(count, Path(folder)) for count in given.clients]
        rows += [] if given.no_plain else [measure(count, None) for count in given.clients if count != 5000]
        floods = [] if given.no_floods else measure_floods(1000, Path(folder))
        replies = [] if given.no_floods else measure_backpressure()
    text = section(rows, floods, replies)
    print(text)
    if given.clients == parser.get_default("clients") and floods:
        write_page(text)


if __name__ == "__main__":
    main()
