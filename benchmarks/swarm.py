"""One `nufed` server and up to ten thousand connected clients: memory, processor, joining, rounds, storms and floods.

    python -m benchmarks.swarm                   what is not measured yet; written into docs/performance.md at the end
    python -m benchmarks.swarm --clients 10000   that number alone
    python -m benchmarks.swarm --fresh           all of it anew, about 20 minutes
    python -m benchmarks.swarm --no-floods --no-plain

Each row is kept in `benchmarks/results/swarm.json` as soon as it is measured, and not measured again without `--fresh`.
Clients are cheap ones (`swarm_clients.py`), each with a connection and a key of its own, in two processes on the same
machine: what they cost is in the seconds, and not in the server's processor time and memory. Of N clients a round asks
100. A storm is the server killed and started again at once, until all clients are known again. Times called "of the
processor" are the server's, and change little on a busy machine; the others do.
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
from functools import partial
from pathlib import Path

from benchmarks.swarm_clients import client_name
from benchmarks.swarm_floods import FLOODS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results" / "swarm.json"
BEGIN, END = "<!-- swarm: begin -->", "<!-- swarm: end -->"
ASKED, PROCESSES, IDLE, PATIENCE = 100, 2, 60.0, 900.0
COUNTS = (100, 1000, 5000, 10_000)
FILES = 300
"""That a process has open beside its connections."""
SMALL, LARGE, HUGE = 0.1, 5.0, 40.0
_ABOUT = """`python -m benchmarks.swarm` on {cores} cores, which the clients share: two processes with a connection and
a key for each client. A round asks 100 of them. The server is one process, of 620 to 650 MB before the first client:
torch for CUDA, with what it loads, takes 520 of them. A storm is the server killed and started again, until the run
knows all clients again. Processor times are the server's alone."""
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
        say(f"{count} clients: the server is there ({self.before['memory']:.0f} MB)")
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
        self.before = self.state()
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
        say("the clients have their keys and join")
        connected, known = swarm.join()
        joining = swarm.state()["cpu"] - swarm.before["cpu"]
        say(f"all are known after {known:.1f} s")
        swarm.rounds(SMALL, 2)  # warm
        idle = swarm.idle(IDLE)
        now = swarm.state()
        say(f"{now['memory']:.0f} MB; idle: {100 * idle:.1f} % of a core")
        small, small_cpu = swarm.rounds(SMALL, 7)
        say(
            f"round of {SMALL} MB: {statistics.median(small):.2f} s, {statistics.median(small_cpu):.2f} of the server's"
        )
        large, large_cpu = swarm.rounds(LARGE, 3)
        say(f"round of {LARGE} MB: {statistics.median(large):.2f} s; the server is killed")
        _, storm = swarm.storm()
        storm_cpu = swarm.state()["cpu"] - swarm.before["cpu"]
    finally:
        swarm.close()
    return {
        "clients": count,
        "TLS, keys": "yes" if folder else "no",
        "server, MB": round(now["memory"]),
        "KB a client": 1000 * (now["own"] - swarm.before["own"]) / count,
        "idle, % of a core": 100 * idle,
        "connected, s": connected,
        "known, s": known,
        "joining, s of the processor": joining,
        "round of 0.1 MB, s": statistics.median(small),
        "of the processor": statistics.median(small_cpu),
        "round of 5 MB, s": statistics.median(large),
        "of the processor (5 MB)": statistics.median(large_cpu),
        "storm, s": storm,
        "storm, s of the processor": storm_cpu,
    }


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
            say(json.dumps(rows[-1]))
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
    return [{"replies at once": ASKED, "MB each": HUGE, "seconds": seconds[0], "memory of the server, MB more": more}]


def exponents(rows):
    """Return the growth exponents in N of what the goal names, with keys and TLS (least squares of logarithms)."""
    rows = [row for row in rows if row["TLS, keys"] == "yes" and row["clients"] >= ASKED]
    if len(rows) < 2:
        return {}
    names = {"round of 0.1 MB, s": "seconds of a round", "of the processor": "its processor time",
             "idle, % of a core": "processor time of idle clients"}  # fmt: skip
    sizes = [math.log(row["clients"]) for row in rows]
    return {
        told: statistics.linear_regression(sizes, [math.log(row[name]) for row in rows]).slope
        for name, told in names.items()
    }


class Results:
    """Keeps what was measured in a file, so that a benchmark that was ended goes on where it was."""

    def __init__(self, *, fresh):
        self._rows = {} if fresh or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))

    def measured(self, key, measure):
        """Return what is kept under a key, measured first if there is nothing."""
        if key not in self._rows:
            say(f"--- {key}")
            self._rows[key] = measure()
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(self._rows, indent=1) + "\n", encoding="utf-8")
        say(f"{key}: {json.dumps(self._rows[key])}")
        return self._rows[key]


def say(line):
    """Print a line with the time."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


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


def check_files(count):
    """End where this machine does not allow a process as many connections."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + FILES:
        raise SystemExit(f"{count} clients need {count + FILES} open files in the server; the limit is {hard} (ulimit)")


def main():
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--no-plain", action="store_true", help="only with TLS and node keys")
    parser.add_argument("--no-floods", action="store_true")
    given = parser.parse_args()
    check_files(max(given.clients))
    results = Results(fresh=given.fresh)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("keys are made")
        make_certificates(folder, max(*given.clients, 1000))
        kinds = [(folder, "TLS and keys")] + ([] if given.no_plain else [(None, "neither")])
        rows = [
            results.measured(f"{count} clients, {kind}", partial(measure, count, each))
            for each, kind in kinds
            for count in given.clients
        ]
        floods, replies = [], []
        if not given.no_floods and tuple(given.clients) == COUNTS:
            floods = results.measured("floods", partial(measure_floods, 1000, folder))
            replies = results.measured("replies at once", measure_backpressure)
    text = section(rows, floods, replies)
    print(text)
    if floods:
        write_page(text)


if __name__ == "__main__":
    main()
