"""What watching a run costs: its time and its memory with everything that reads its events, and without.

    python -m benchmarks.observability [--rounds 200] [--clients 50] [--repeats 5] [--engine cohort] [--page]

Each run has a process of its own; runs with and without alternate, so that both meet the same machine. Off: nobody
reads the stream. On: events.jsonl is written, Prometheus's metrics are kept and asked for once a second, and with
`--page` the page is served as well. The parent compares medians; the bounds are 1.02 in time and 60 MB in memory. On a
machine that does other work, processor time tells more than the clock.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

MOST_TIME, MOST_MEMORY = 1.02, 60e6


def main() -> int:
    """Compare, print a table, and return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", default="cohort")
    parser.add_argument("--page", action="store_true", help="serve the page as well")
    parser.add_argument("--one", choices=("on", "off"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(options)))
        return 0
    found: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for repeat in range(options.repeats):
        for mode in ("off", "on") if repeat % 2 == 0 else ("on", "off"):
            typed = [sys.executable, "-m", "benchmarks.observability", *sys.argv[1:], "--one", mode]
            done = subprocess.run(typed, capture_output=True, text=True, check=True)
            found[mode].append(json.loads(done.stdout.splitlines()[-1]))
    return report(found, options)


def report(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> int:
    """Print medians and their ratio, and return 1 if a bound is broken."""
    medians = {
        mode: {name: statistics.median(each[name] for each in runs) for name in runs[0]} for mode, runs in found.items()
    }
    ratio = medians["on"]["seconds"] / medians["off"]["seconds"]
    more = medians["on"]["peak_bytes"] - medians["off"]["peak_bytes"]
    print(f"{options.rounds} rounds, {options.clients} clients, engine {options.engine}, {options.repeats} runs each")
    for mode, runs in found.items():
        times = ", ".join(f"{each['seconds']:.2f}" for each in runs)
        of = medians[mode]
        print(
            f"{mode:>3}: median {of['seconds']:.2f} s ({times}), {of['processor_seconds']:.2f} s of processor time, "
            f"{of['peak_bytes'] / 1e6:.0f} MB"
        )
    processor = medians["on"]["processor_seconds"] / medians["off"]["processor_seconds"]
    print(f"on / off: {ratio:.3f} by the clock (bound {MOST_TIME}), {processor:.3f} in processor time,")
    print(f"          {more / 1e6:+.0f} MB (bound +{MOST_MEMORY / 1e6:.0f} MB)")
    return int(ratio > MOST_TIME or more > MOST_MEMORY)


def one_run(options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds and the peak memory of a run in this process; what is imported first is not counted."""
    from nufed.common.config import RunConfig
    from nufed.common.events import EventStream
    from nufed.deploy.simulation.engines import simulate_checked
    from nufed.server.options import ServerOptions
    from nufed.server.run_events import RunEvents

    changes = {
        "data.num-clients": options.clients,
        "data.num-new-clients": 0,
        "federation.num-rounds": options.rounds,
        "federation.participation-fraction": 1.0,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        events = held.enter_context(EventStream())
        if options.one == "on":
            held.enter_context(watched(events, Path(folder), page=options.page))
        else:
            RunEvents.recorded = lambda _self: contextlib.nullcontext()  # type: ignore[method-assign]
        started, processor = time.perf_counter(), time.process_time()
        where = ServerOptions(out=Path(folder), events=events, is_disposable=True)
        simulate_checked(RunConfig().updated(changes), where, engine=options.engine)
        events.flush()
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


@contextlib.contextmanager
def watched(events, folder: Path, *, page: bool):
    """Keep and serve metrics, ask for them once a second, and serve the page if asked for."""
    from nufed.deploy.monitoring.metrics_server import served
    from nufed.deploy.monitoring.prometheus_metrics import kept_metrics

    over = threading.Event()
    with kept_metrics(events) as registry, served(registry, "0") as url, contextlib.ExitStack() as held:
        if page:
            from nufed.deploy.commands.dashboard import DashboardOptions
            from nufed.server.control import RunControl

            held.enter_context(DashboardOptions(dashboard="0").shown(events, RunControl(), folder, resume=None))

        def scrape() -> None:
            while not over.wait(1.0):
                urllib.request.urlopen(url, timeout=5).read()

        thread = threading.Thread(target=scrape, daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
