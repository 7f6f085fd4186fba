"""A Ray cluster on this machine, in a process of its own: `python -m tests.system.ray_nodes CPUS CPUS…`.

The first node is the head. Prints the cluster's address; a line with a node's number ends that node as a power failure
would, and is answered by `gone`. Ends with its standard input.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Nodes:
    """Holds the process that the cluster belongs to."""

    def __init__(self, process):
        self._process = process
        self.address = process.stdout.readline().strip()

    def kill(self, number):
        """End a node at once."""
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == "gone"


@contextmanager
def running(*cpus):
    """Yield a cluster of nodes with so many CPUs each."""
    command = [sys.executable, "-m", "tests.system.ray_nodes", *map(str, cpus)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()
            process.wait(60)


def main():
    """Start the nodes and do as told."""
    from ray.cluster_utils import Cluster

    sizes = list(map(int, sys.argv[1:]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": sizes[0], "include_dashboard": False})
    nodes = [cluster.head_node, *(cluster.add_node(num_cpus=size) for size in sizes[1:])]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        cluster.remove_node(nodes[int(line)], allow_graceful=False)
        print("gone", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
