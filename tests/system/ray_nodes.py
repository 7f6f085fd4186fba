"""A Ray cluster on this machine, in a process of its own: `python ray_nodes.py NODE NODE…`, each as JSON.

The first node is the head. Prints the cluster's address; `remove N` ends a node as a power failure would, `add NODE`
starts one more, and both are answered by `done`. Ends with its standard input. Run as a file, so that its nodes
import nothing of this repository but what is sent to them.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

_ALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


class Nodes:
    """The cluster, seen from a test; holds the process that it belongs to."""

    def __init__(self, process):
        self.process = process
        self.address = process.stdout.readline().strip()

    def remove(self, number):
        """End a node at once, by its place in the order of their starts."""
        self._tell(f"remove {number}")

    def add(self, **node):
        """Start one more node."""
        self._tell(f"add {json.dumps(node)}")

    def _tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextmanager
def running(folder, *nodes):
    """Yield a cluster of nodes, whose working folder is `folder`; each has what `Cluster.add_node` takes."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, __file__, *map(json.dumps, nodes)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
        try:
            yield Nodes(process)
        finally:
            process.stdin.close()
            process.wait(60)


def main():
    """Start the nodes and do as told."""
    from ray.cluster_utils import Cluster

    said, sys.stdout = sys.stdout, sys.stderr
    head, *others = map(json.loads, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={**_ALL, **head})
    nodes = [cluster.head_node, *(cluster.add_node(wait=False, **_ALL, **each) for each in others)]
    cluster.wait_for_nodes()
    print(cluster.address, file=said, flush=True)
    for line in sys.stdin:
        word, argument = line.split(maxsplit=1)
        if word == "remove":
            cluster.remove_node(nodes[int(argument)], allow_graceful=False)
        else:
            nodes.append(cluster.add_node(wait=False, **_ALL, **json.loads(argument)))
        print("done", file=said, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
