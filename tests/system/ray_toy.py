"""What test_ray_simulation.py runs: toy apps, and commands that run them on an engine and write down what they saw.

Run by `python -c` under the module's own name, so that actors import the apps instead of unpickling copies of them, and
in processes of their own, because a process that had Ray in it keeps files and processes open that Python warns of
when they are collected, in any test that comes later.
"""

import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from nufed.common.errors import DataError, NufedError
from nufed.deploy.simulation import ray_simulation
from nufed.deploy.simulation.in_process import simulate_in_process
from nufed.deploy.simulation.ray_simulation import simulate_with_ray
from tests.system.process_tree import descendants

RUN_CONFIG = {"seed": 3, "method.inner-lr": 0.1, "name": "toy"}
NUM_NODES = 5

client_app = ClientApp()


@client_app.query()
def describe(message, context):
    seen = {
        **context.node_config,
        **context.run_config,
        "root": os.environ.get("NUFED_DATA_ROOT", ""),
        "pid": os.getpid(),
    }
    return Message(RecordDict({"config": ConfigRecord(seen)}), reply_to=message)


@client_app.train()
def count(message, context):
    turn = context.state["turns"]["n"] + 1 if "turns" in context.state else 1
    context.state["turns"] = MetricRecord({"n": turn})
    if message.content["config"]["round"] == 2 and context.node_config["partition-id"] == 1:
        raise ValueError("boom in client")
    arrays = ArrayRecord([message.content["arrays"]["0"].numpy() + turn])
    return Message(RecordDict({"arrays": arrays, "turns": MetricRecord({"n": turn})}), reply_to=message)


@client_app.evaluate()
def explain(message, context):
    raise DataError("client-003 has no examples; lower data.num-clients")


@client_app.train("slowly")
def take_ten_minutes(message, context):
    time.sleep(600)


@client_app.train("die")
def die(message, context):
    os._exit(1)


def request(node_id, message_type, **config):
    records = RecordDict({"arrays": ArrayRecord([np.arange(3.0)]), "config": ConfigRecord(config)})
    return Message(records, dst_node_id=node_id, message_type=message_type)


def observe(grid, context):
    """Return what a ServerApp sees in a few phases."""
    nodes = grid.get_node_ids()
    seen = {"config": dict(context.run_config), "rounds": []}
    seen["contexts"] = contexts(grid)
    for k in (1, 2, 3):
        replies = grid.stream_replies([request(node, "train", round=k) for node in nodes])
        seen["rounds"].append({reply.metadata.src_node_id: outcome(reply) for reply in replies})
    for _ in range(os.cpu_count() + 1):  # once more than there are actors
        next(grid.stream_replies([request(node, "query") for node in nodes]))
    seen["after phases cut short"] = contexts(grid)
    deadline, actors = time.monotonic() + 20, set()
    while time.monotonic() < deadline and len(actors) < len({context["pid"] for context in seen["contexts"]}):
        actors |= {context["pid"] for context in contexts(grid)}
    seen["actors after phases cut short"] = actors
    seen["processes"] = descendants(os.getpid())
    return seen


def contexts(grid):
    """Return what every client sees of itself."""
    replies = grid.send_and_receive([request(node, "query") for node in grid.get_node_ids()])
    return [dict(reply.content["config"]) for reply in replies]


def outcome(reply):
    """Return what a `train` reply says in plain values."""
    if reply.has_error():
        return reply.error.code, reply.error.reason
    return reply.content["arrays"]["0"].numpy().tolist(), reply.content["turns"]["n"]


def run(engine, main, num_nodes=NUM_NODES, **options):
    """Return what `main` returns in a run of the toy ClientApp on an engine."""
    server_app, results = ServerApp(), []
    server_app.main()(lambda grid, context: results.append(main(grid, context)))
    app = "tests.system.ray_toy:client_app" if engine is simulate_with_ray else client_app
    engine(server_app, app, num_nodes=num_nodes, run_config=RUN_CONFIG, **options)
    return results[0]


def record(path):
    """Write down what the apps see with Ray and in process, and what is left of the environment."""
    handler, seen = signal.getsignal(signal.SIGTERM), {}
    environment = dict(os.environ)
    seen["ray"] = run(simulate_with_ray, observe)
    seen["changed variables"] = {name for name, _ in os.environ.items() ^ environment.items()}
    seen["handler is as before"] = signal.getsignal(signal.SIGTERM) is handler
    seen["in process"] = run(simulate_in_process, observe)
    seen["pid"] = os.getpid()
    Path(path).write_bytes(pickle.dumps(seen))


def sleep_until_interrupted():
    """Print the errors that a run ends with, then its processes; wait for clients that take ten minutes.

    Exits with 130 if interrupted.
    """
    ray_simulation.TRIES = 2
    try:
        run(simulate_with_ray, fail_and_sleep, 2)
    except KeyboardInterrupt:
        sys.exit(130)


def fail_and_sleep(grid, context):
    nodes = grid.get_node_ids()
    for fail in (
        lambda: grid.send_and_receive([request(node, "evaluate") for node in nodes]),
        lambda: run(simulate_with_ray, observe, 2),
        lambda: grid.send_and_receive([request(nodes[0], "train.die")]),
    ):
        try:
            fail()
        except NufedError as error:
            print(type(error).__name__, error, sep=": ")
    try:
        print(*descendants(os.getpid()), flush=True)  # from here on the test may interrupt
        grid.send_and_receive([request(node, "train.slowly") for node in nodes])
    except KeyboardInterrupt:
        print("the interrupted run is written down", flush=True)
        raise


COMMANDS = {"record": record, "sleep": sleep_until_interrupted}
