"""The project's ClientApp in real client processes, with faults.

    python -m tests.system.faulty_clients --server HOST:PORT 0 1:nan 2:die@2

    PARTITION[:FAULT[@ROUND]]    FAULT: raise nan inf shape names huge die sleep; without ROUND in every round

All clients of one command share its process, so `die` takes them all.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord

from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.deploy.network.direct_client import ClientIdentity, DirectClient

SLEEP = 12.0
"""Seconds that the fault `sleep` takes."""


def with_values(record, change):
    return ArrayRecord({name: Array(change(array.numpy())) for name, array in record.items()})


SPOILT = {
    "nan": lambda record: with_values(record, lambda values: values * np.nan),
    "inf": lambda record: with_values(record, lambda values: values + np.inf),
    "huge": lambda record: with_values(record, lambda values: values + np.float32(1e30)),
    "shape": lambda record: with_values(record, lambda values: values[..., None]),
    "names": lambda record: ArrayRecord({f"other.{name}": array for name, array in record.items()}),
}


class Faulty:
    """The ClientApp with a fault."""

    def __init__(self, fault):
        self.fault, _, at = fault.partition("@")
        self.round = int(at) if at else None

    def __call__(self, message, context):
        spoils = self.applies(message)
        if spoils and self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if spoils and self.fault == "sleep":
            time.sleep(SLEEP)
        if spoils and self.fault == "raise":
            raise ValueError("this client is broken")
        reply = client_app(message=message, context=context)
        if spoils and self.fault in SPOILT:
            reply.content["arrays"] = SPOILT[self.fault](reply.content["arrays"])
        return reply

    def applies(self, message):
        if not self.fault or message.metadata.message_type != "train":
            return False
        return self.round in (None, message.content["config"]["server-round"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--start-when", type=Path)
    parser.add_argument("specs", nargs="+")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    while arguments.start_when and not arguments.start_when.exists():
        time.sleep(0.02)
    threads = [threading.Thread(target=serve, args=(arguments, spec), daemon=True) for spec in arguments.specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)


def serve(arguments, spec):
    partition, _, fault = spec.partition(":")
    node_config = {"partition-id": int(partition)}
    identity = ClientIdentity(f"client-{int(partition):03d}", arguments.key, node_config, RunConfig().flat())
    client = DirectClient(
        Faulty(fault),
        arguments.server,
        identity,
        root_certificates=arguments.root_certificates,
        on_event=lambda line: print(line, flush=True),
    )
    try:
        client.serve(until_finished=True)
    except NufedError as error:
        print(f"error: {error}", flush=True)


if __name__ == "__main__":
    main()
