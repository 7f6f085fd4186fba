"""What a Ray cluster gains: clients of 1 s work on k actors, times several clients in each, and a node that is lost.

    python -m benchmarks.ray_cluster                    what is not measured yet; about 4 minutes on two idle cores
    python -m benchmarks.ray_cluster --actors 4 8       these numbers of actors alone
    python -m benchmarks.ray_cluster --no-computing     only clients that wait
    python -m benchmarks.ray_cluster --fresh            all of it anew

Wall time. Each number is kept in `benchmarks/results/ray_cluster_rows.json` as soon as it is measured, so that what was
ended goes on where it was. The cluster is one of nodes on this machine, so that work of 1 s is waiting and not
computing: what is measured is what spreading costs, with more actors than processors too. Starting a node takes
seconds of a processor, which is most of the time. The second table computes: digits, a network of linear layers, on two
actors of two processors and the engine `cohort` in them. With the fewest actors, a node is also ended while a third of
the clients have answered; the run then needs the turns that were lost again.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from benchmarks.harness import Report, in_fresh_process, parse_options
from nufed.common.config import RunConfig
from nufed.common.events import EventStream, Phase
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.engines import simulate_checked
from nufed.deploy.simulation.ray_simulation import simulate_with_ray
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID
from nufed.server.options import ServerOptions

WORK, CLIENTS_EACH = 1.0, 4
COMPUTED = {
    "data.num-clients": 40,
    "data.num-new-clients": 0,
    "federation.participation-fraction": 1.0,
    "evaluation.interval": 0,
    "method.num-local-steps": 10,
    "method.num-inner-steps": 3,
}

client_app = ClientApp()


@client_app.train()
def wait_a_second(message, context):  # noqa: ARG001 - Flower's signature
    time.sleep(WORK)
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@client_app.query()
def answer(message, context):  # noqa: ARG001 - Flower's signature
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def waiting(num_actors, num_clients, loses_a_node):
    """Print seconds of a round of clients that wait, on nodes of one actor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(num_actors - 1)]
    server_app, seconds = ServerApp(), []

    @server_app.main()
    def main(grid, context):  # noqa: ARG001 - Flower's signature
        def asked(kind):
            return [Message(RecordDict(), FIRST_NODE_ID + number, kind) for number in range(num_clients)]

        grid.send_and_receive(asked("query"))  # actors start, which is not the round's
        started = time.perf_counter()
        for number, reply in enumerate(grid.stream_replies(asked("train"))):
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            if loses_a_node and number == num_clients // 3:
                cluster.remove_node(others[-1], allow_graceful=False)
        seconds.append(time.perf_counter() - started)

    told = EngineOptions(ray_address=cluster.address)
    app = "benchmarks.ray_cluster:client_app"
    simulate_with_ray(server_app, app, num_nodes=num_clients, run_config={"seed": 0}, options=told)
    cluster.shutdown()
    print(json.dumps({"seconds": seconds[0]}))


def computing(engine, clients_per_actor, num_rounds):
    """Print seconds per round, the fastest of them."""
    phases = []

    def note(event):
        if isinstance(event, Phase) and event.phase == "training":
            phases.append(time.perf_counter())

    config = RunConfig().updated({**COMPUTED, "federation.num-rounds": num_rounds})
    told = EngineOptions(clients_per_actor=clients_per_actor)
    with tempfile.TemporaryDirectory() as folder, EventStream() as events:
        events.listen(note)
        options = ServerOptions(Path(folder), events=events)
        simulate_checked(config, options, engine=engine, engine_options=told)
    rounds = [end - start for start, end in zip(phases[::2], phases[1::2], strict=True)]
    print(json.dumps({"seconds": min(rounds)}))


def main():
    """Measure, print the tables and write the result."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--no-computing", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    given, others = parser.parse_known_args()
    options = parse_options(__doc__, repeats=1, clock="wall", arguments=others)
    kept = options.out / "ray_cluster_rows.json"
    if given.fresh:
        kept.unlink(missing_ok=True)
    report = Report.start("ray_cluster", options)
    rows = []
    for actors in given.actors[:1] if options.quick else given.actors:
        clients = actors * CLIENTS_EACH
        for is_lost in (False, True) if actors == min(given.actors) else (False,):
            found = _measured(kept, "waiting", actors, clients, int(is_lost))
            speedup = clients * WORK / found
            rows.append([actors, clients, "one lost" if is_lost else "", found, speedup, speedup / actors])
    header = ["actors", "clients", "nodes", "s per round", "times faster", "÷ actors (goal 0.9 without a loss)"]
    report.add(f"Clients that wait {WORK:g} s each, on nodes of one actor", header, rows)
    if not given.no_computing:
        _add_computing(report, kept, 3 if options.quick else 8)
    report.write()


def _add_computing(report, kept, num_rounds):
    rows = []
    for engine, each in (("local", 1), ("cohort", 1), ("ray", 1), ("ray", 10), ("ray", 20)):
        rows.append([engine, each, _measured(kept, "computing", engine, each, num_rounds)])
    slowest = rows[0][-1]
    header = ["engine", "clients per actor", "s per round", "times faster than local"]
    report.add(
        f"{COMPUTED['data.num-clients']} clients of digits that compute, {num_rounds} rounds, the fastest",
        header,
        [[*row, slowest / row[-1]] for row in rows],
    )


def _measured(kept, *arguments):
    """Return the seconds that were kept of these arguments, measured first if there are none."""
    rows = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if (name := " ".join(map(str, arguments))) not in rows:
        started = time.perf_counter()
        rows[name] = in_fresh_process("benchmarks.ray_cluster", *map(str, arguments))["seconds"]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {rows[name]:.2f} s; measured in {time.perf_counter() - started:.0f} s", flush=True)
    return rows[name]


if __name__ == "__main__":
    # Under its own name, so that actors import the app instead of unpickling copies of it.
    module = importlib.import_module("benchmarks.ray_cluster")
    if sys.argv[1:2] == ["waiting"]:
        module.waiting(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")
    elif sys.argv[1:2] == ["computing"]:
        module.computing(sys.argv[2], 1 if sys.argv[2] in ("local", "cohort") else int(sys.argv[3]), int(sys.argv[4]))
    else:
        module.main()
