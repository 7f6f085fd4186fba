"""A Ray cluster of several nodes on this machine, in a process of its own that is told what to do line by line.

`python -m tests.system.ray_three_nodes`: prints the address; `add`, `remove` and `end` each print a line when done.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


def main():
    from ray.cluster_utils import Cluster

    said, sys.stdout = sys.stdout, sys.stderr
    head = {**NODE, "resources": {"slot": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**NODE, resources={"slot": 1})
    cluster.add_node(**NODE)
    print(cluster.address, file=said, flush=True)
    for line in sys.stdin:
        if line == "remove\n":
            cluster.remove_node(second, allow_graceful=False)
        if line == "add\n":
            cluster.add_node(**NODE)
        if line == "end\n":
            break
        print("done", file=said, flush=True)
    cluster.shutdown()


class Nodes:
    """The cluster, seen from a test; holds its process."""

    def __init__(self, process):
        self.process = process
        self.address = process.stdout.readline().strip()

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextlib.contextmanager
def three_nodes(folder):
    """Start three nodes of one CPU each, whose working folder is `folder`; two of them have a `slot`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.system.ray_three_nodes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
        try:
            yield Nodes(process)
        finally:
            process.stdin.write("end\n")
            process.stdin.flush()
            process.wait(60)


if __name__ == "__main__":
    main()
