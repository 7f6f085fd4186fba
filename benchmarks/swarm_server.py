"""The server of `benchmarks/swarm.py`: a `nufed` server whose run does what it is told, a line of JSON at a time."""

import json
import sys
import time
from pathlib import Path

import torch
from flwr.serverapp import ServerApp

from nufed.deploy.network.certificates import CertificateFolder
from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint, ServerSecurity
from nufed.strategy import MetaFedAvg


def _state():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark (proc(5))
    memory, own, peak = (int(fields[name].split()[0]) / 1000 for name in ("VmRSS", "RssAnon", "VmHWM"))
    return {"memory": memory, "own": own, "peak": peak, "cpu": time.process_time()}


def _discover(grid, strategy, count, patience):
    started = time.monotonic()
    grid.wait_for_nodes(count, patience)
    connected = time.monotonic() - started
    strategy.discover(grid, expected=count, timeout=patience)
    return connected, time.monotonic() - started


def _rounds(grid, strategy, asked, megabytes, number):
    strategy.participation_fraction = min(1.0, asked / len(strategy.members))
    params = {"w": torch.zeros(int(megabytes * 1e6 / 4))}
    wall, cpu = [], []
    for _ in range(number):
        started, used = time.monotonic(), time.process_time()
        result = strategy.train_round(grid, params, 1, timeout=200)
        if result.counts.replied != min(asked, len(strategy.members)):
            raise SystemExit(f"replies are missing: {result.counts}")
        wall.append(time.monotonic() - started)
        cpu.append(time.process_time() - used)
    return wall, cpu


def _obey(grid):
    strategy = MetaFedAvg()
    for line in sys.stdin:
        match json.loads(line):
            case ["discover", count, patience]:
                answer = _discover(grid, strategy, count, patience)
            case ["rounds", asked, megabytes, number]:
                answer = _rounds(grid, strategy, asked, megabytes, number)
            case _:
                answer = _state()
        print(json.dumps(answer), flush=True)


def main(given):
    """Serve until the input ends."""
    security = None
    if given["folder"]:
        folder = CertificateFolder(Path(given["folder"]))
        security = ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)
    app = ServerApp()

    @app.main()
    def run(grid, _context):
        print("ready", flush=True)
        _obey(grid)

    with DirectServer(ServerEndpoint(given["address"], security)) as server:
        server.run(app, {"seed": 0})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
