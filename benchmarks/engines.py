"""What an engine costs: start-up, seconds per round and memory, with a client that does nothing.

50 nodes, of which 10 train and 10 evaluate in each round, under Flower's own FedAvg; each engine in a process of its
own. `python -m benchmarks.engines [--quick]`.
"""

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.harness import Report, in_fresh_process, parse_options
from nufed.deploy.simulation.in_process import simulate_in_process
from nufed.deploy.simulation.ray_simulation import simulate_with_ray

NUM_NODES, FRACTION = 50, 0.2
MODELS = {
    "68 k parameters": [(784, 80), (80,), (80, 60), (60,), (60, 10), (10,)],
    "1.25 M parameters": [(1024, 1024), (1024,), (1024, 192), (192,)],
}

client_app = ClientApp()


@client_app.train()
def send_back(message, context):  # noqa: ARG001 - Flower's signature
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@client_app.evaluate()
def say_nothing(message, context):  # noqa: ARG001 - Flower's signature
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5})}), reply_to=message)


def with_flower(server_app, client_app, *, num_nodes, run_config):  # noqa: ARG001 - the engines' signature
    """Run Flower's own simulation, which gives the apps an empty configuration, with the resources of ours."""
    from flwr.simulation import run_simulation

    resources = {"num_cpus": 1.0, "num_gpus": 0.0}
    run_simulation(server_app, client_app, num_nodes, backend_config={"client_resources": resources})


ENGINES = {"in process": simulate_in_process, "ray": simulate_with_ray, "flwr run_simulation": with_flower}


def measure(engine, model, num_rounds):
    """Print seconds until the first round is done, seconds per later round, and MiB of all processes."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    arrays = ArrayRecord([np.zeros(shape, np.float32) for shape in MODELS[model]])
    server_app, ends = ServerApp(), [time.perf_counter()]

    @server_app.main()
    def main(grid, context):  # noqa: ARG001 - Flower's signature
        def run(rounds):
            strategy = FedAvg(fraction_train=FRACTION, fraction_evaluate=FRACTION)
            strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)
            ends.append(time.perf_counter())

        run(1)
        run(num_rounds)
        ends.append(proportional_set_size())

    app = "benchmarks.engines:client_app" if engine == "ray" else client_app
    ENGINES[engine](server_app, app, num_nodes=NUM_NODES, run_config={"seed": 0})
    begun, first, last, memory = ends
    print(json.dumps({"start": first - begun, "round": (last - first) / num_rounds, "memory": memory}))


def proportional_set_size():
    """Return the MiB that this process and all below it hold, shared pages counted once."""
    kilobytes = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def main():
    options = parse_options(__doc__, repeats=3, clock="wall")
    report = Report.start("engines", options)
    num_rounds, repeats = (5, 1) if options.quick else (20, options.repeats)
    for model in list(MODELS)[: 1 if options.quick else None]:
        runs = {engine: [] for engine in ENGINES}
        for _ in range(repeats):
            for engine, done in runs.items():
                done.append(in_fresh_process("benchmarks.engines", "measure", engine, model, str(num_rounds)))
        best = {engine: {key: min(run[key] for run in done) for key in done[0]} for engine, done in runs.items()}
        rows = [[engine, numbers["start"], numbers["round"], numbers["memory"]] for engine, numbers in best.items()]
        report.add(
            f"{model}, best of {repeats} run(s)",
            ["engine", "first round done (s)", "s per round", "MiB of all processes"],
            rows,
        )
    report.write()


if __name__ == "__main__":
    # Under its own name, so that actors import the apps instead of unpickling copies of them.
    module = importlib.import_module("benchmarks.engines")
    if sys.argv[1:2] == ["measure"]:
        module.measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        module.main()
