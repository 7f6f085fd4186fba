"""A ServerApp that times phases, and a ClientApp that adds one to the arrays it gets."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

NUM_ARRAYS = 6

server_app = ServerApp()
client_app = ClientApp()


@client_app.train()
def train(message, _context):
    arrays = ArrayRecord([array.numpy() + np.float32(1) for array in message.content["arrays"].values()])
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@server_app.main()
def main(grid, context):
    config = context.run_config
    deadline = time.monotonic() + 120
    while len(list(grid.get_node_ids())) < config["clients"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the clients did not come")
        time.sleep(0.1)
    generator = np.random.default_rng(0)
    model = [generator.standard_normal(config["floats"] // NUM_ARRAYS, dtype=np.float32) for _ in range(NUM_ARRAYS)]
    seconds, lost = [], 0
    for phase in range(config["phases"] + 1):
        started = time.perf_counter()
        record = ArrayRecord(model)
        messages = [
            Message(RecordDict({"arrays": record, "config": ConfigRecord({"server-round": phase})}), node, "train")
            for node in sorted(grid.get_node_ids())
        ]
        replies = 0
        if hasattr(grid, "stream_replies"):
            for reply in grid.stream_replies(messages, timeout=600):
                replies += reply.has_content() and bool(reply.content["arrays"]["0"].numpy().size)
        else:
            for reply in grid.send_and_receive(messages, timeout=600):
                replies += reply.has_content() and bool(reply.content["arrays"]["0"].numpy().size)
        seconds.append(time.perf_counter() - started)
        lost += config["clients"] - replies
    Path(config["result"]).write_text(json.dumps({"seconds": seconds[1:], "first": seconds[0], "lost": lost}))
