"""The actors of one run on the nodes of a Ray cluster: as many as fit, also on nodes that join later."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nufed.common.errors import NufedError, RunError
from nufed.deploy.simulation.ray_actors import ClientActor
from nufed.deploy.simulation.ray_cluster import RayCluster, RayNode

TRIES = 4
"""Actors that a client's turn, or a node, may cost before the run ends with an error."""
LOOK = 2.0
"""Seconds between two looks at which nodes there are."""
PATIENCE = 60.0
"""Seconds that a run goes on without a node on which a client fits, and between two lines about waiting."""


@dataclass(eq=False)
class Actor:
    """An actor and where it lives."""

    handle: Any
    node: RayNode


class ActorPool:
    """The actors of a run; holds which of them are idle, which still start, and where all are.

    Actors are bound to nodes, so that those of a node that was found unfit get none.
    """

    def __init__(
        self, cluster: RayCluster, setup: Any, per_client: Mapping[str, float], most: int, say: Callable[[str], None]
    ) -> None:
        """Start as many actors as fit, at most `most`.

        Args:
            cluster: where.
            setup: a reference to the `Setup`.
            per_client: what each actor takes of Ray's resources, by name, e.g. {"CPU": 1}.
            most: actors that could be busy at once.
            say: told in one line of what there is, and of what changes.

        Raises:
            RunError: no node has what one actor takes.
        """
        import ray

        self._cluster, self._setup, self._per_client, self._most, self._say = cluster, setup, per_client, most, say
        options: dict[str, Any] = {name: value for name, value in per_client.items() if name not in ("CPU", "GPU")}
        self._options = {
            "num_cpus": per_client.get("CPU", 0),
            "num_gpus": per_client.get("GPU", 0),
            "resources": options,
            "max_restarts": 0,
        }
        self._class: Any = ray.remote(ClientActor)
        self._idle: list[Actor] = []
        self._all: set[Actor] = set()
        self.starting: dict[Any, Actor] = {}
        self._looked = self._told = self._had_room = time.monotonic()
        self._failed_starts = 0
        self._nodes = self._fitting()
        if not self._nodes:
            raise RunError(_too_small(cluster, per_client))
        self._fill()
        self._say(f"Ray: {self._count()}, each with {_listed(per_client)}")

    @property
    def size(self) -> int:
        """Return how many actors there are, those that still start among them."""
        return len(self._all)

    def take(self) -> Actor | None:
        """Return an idle actor, which is then busy; None if there is none."""
        return self._idle.pop() if self._idle else None

    def give_back(self, actor: Actor) -> None:
        """Take an actor that has finished its turn."""
        if actor in self._all:
            self._idle.append(actor)

    def started(self, reference: Any) -> None:
        """Take what became of a start.

        Raises:
            NufedError: what the actor says is wrong.
            RunError: actors end as soon as they start, again and again.
        """
        import ray

        actor = self.starting.pop(reference)
        try:
            problem = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise RunError(f"Expected to start on node {actor.node.host} of the Ray cluster, but {error}") from error
        except ray.exceptions.RayError as error:
            if actor.node.node_id in self._fresh():
                self._failed_starts += 1
            self.lose(actor)
            if self._failed_starts >= TRIES:
                raise RunError(
                    f"Expected actors to start on node {actor.node.host} of the Ray cluster, but {TRIES} have ended as "
                    f"they started ({first_line(error)}), often for want of memory. Give each client more with "
                    "--cpus-per-client, or see Ray's logs there."
                ) from error
            return
        if isinstance(problem, NufedError):
            raise problem
        self._failed_starts = 0
        self._idle.append(actor)

    def lose(self, actor: Actor) -> None:
        """Forget an actor that has ended; another one takes its place where there is room."""
        self._all.discard(actor)
        if actor in self._idle:
            self._idle.remove(actor)
        self._looked = 0.0

    def look(self) -> None:
        """See which nodes there are, now and then, and have actors on all of them.

        Raises:
            RunError: there has been no node for some time.
        """
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        before, self._nodes = self._nodes, self._fitting()
        gone, new = before.keys() - self._nodes.keys(), self._nodes.keys() - before.keys()
        for actor in [actor for actor in self._all if actor.node not in self._nodes]:
            self.lose(actor)
        self._fill()
        self._looked = now
        for node in sorted(gone, key=lambda node: node.host):
            self._say(f"Ray: node {node.host} is lost, its clients' turns are taken elsewhere; {self._count()}")
        for node in sorted(new, key=lambda node: node.host):
            self._say(f"Ray: node {node.host} has joined; {self._count()}")
        if self._nodes:
            self._had_room = now
        elif now - self._had_room > PATIENCE:
            raise RunError(_too_small(self._cluster, self._per_client))

    def tell_of_waiting(self) -> None:
        """Say now and then that all actors wait for resources that others hold."""
        if self._all - set(self.starting.values()):
            self._told = time.monotonic()
        elif time.monotonic() - self._told > PATIENCE / 4:
            self._told = time.monotonic() + PATIENCE * 3 / 4
            self._say(
                f"Ray: waiting for {_listed(self._per_client)}, which the cluster has but others use, or which is on "
                "its way; Ctrl-C gives up"
            )

    def _fill(self) -> None:
        """Start actors where there is room, on the nodes in turn."""
        import ray

        room = {
            node: capacity - sum(actor.node == node for actor in self._all) for node, capacity in self._nodes.items()
        }
        while len(self._all) < self._most and any(left > 0 for left in room.values()):
            for node in [node for node, left in room.items() if left > 0]:
                if len(self._all) < self._most:
                    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.node_id, soft=False)
                    actor = Actor(self._class.options(scheduling_strategy=strategy, **self._options).remote(), node)
                    self._all.add(actor)
                    self.starting[actor.handle.prepare.remote(self._setup)] = actor
                    room[node] -= 1

    def _fitting(self) -> dict[RayNode, int]:
        """Return how many actors fit on each node, had they it for themselves; nodes without room are left out."""
        rooms = {node: _room(dict(node.resources), self._per_client) for node in self._cluster.nodes()}
        return {node: room for node, room in rooms.items() if room > 0}

    def _fresh(self) -> set[str]:
        return {node.node_id for node in self._fitting()}

    def _count(self) -> str:
        counts = {"node": len({actor.node for actor in self._all}), "actor": len(self._all)}
        return ", ".join(f"{count} {name if count == 1 else name + 's'}" for name, count in counts.items())


def first_line(error: BaseException) -> str:
    """Return the first line of what Ray says, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _room(resources: Mapping[str, float], per_client: Mapping[str, float]) -> int:
    return min(int(resources.get(name, 0.0) / amount + 1e-9) for name, amount in per_client.items() if amount)


def _listed(per_client: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in per_client.items() if amount)


def _too_small(cluster: RayCluster, per_client: Mapping[str, float]) -> str:
    where = "this machine" if cluster.is_own else "a node of the Ray cluster"
    kinds = [name for name, amount in per_client.items() if amount]
    found = [f"{node.host}: {_of(dict(node.resources), kinds)}" for node in cluster.nodes()]
    return (
        f"Expected {where} with at least {_listed(per_client)}, as much as each simulated client is given, but there "
        f"is {'; '.join(found[:8]) or 'no node with a CPU'}. Give each client less (--cpus-per-client, "
        "--gpus-per-client, --ray-resources), add nodes, or use --engine local."
    )


def _of(resources: Mapping[str, float], kinds: list[str]) -> str:
    return ", ".join(f"{resources.get(name, 0.0):g} {name}" for name in kinds)
