"""Who is at work when a buffered run is stopped: what a checkpoint keeps of it, and what becomes of it afterwards.

In simulated time a run goes on with the same clients at work on the same models, and ends at the same model. Of real
clients nobody knows what became of them: their work is dropped, and that is said.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nufed.server.starting import StartingPoint
from nufed.strategy.meta_fedavg import MetaFedAvg

_MODEL = "at-work/"
"""Before the round and the names of a model that clients work on."""


def kept_state(strategy: MetaFedAvg, history: Mapping[str, Any]) -> dict[str, Any]:
    """Return `history` and `server_state` of a checkpoint, with what the strategy remembers."""
    if not strategy.buffered:
        return {"history": history, "server_state": strategy.server_state}
    told, models = strategy.buffered.snapshot()
    arrays = {f"{_MODEL}{k}/{name}": tensor for k, model in models.items() for name, tensor in model.items()}
    return {"history": {**history, "at_work": told}, "server_state": {**strategy.server_state, **arrays}}


def restore_state(strategy: MetaFedAvg, start: StartingPoint) -> list[str]:
    """Have a strategy go on from where a run stands, and return what to say of it.

    Raises:
        RunError: the checkpoint does not say who was at work on what.
    """
    models: dict[int, dict[str, Tensor]] = {}
    remembered: dict[str, Tensor] = {}
    for name, tensor in start.server_state.items():
        if not name.startswith(_MODEL):
            remembered[name] = tensor
            continue
        k, _, array = name.removeprefix(_MODEL).partition("/")
        models.setdefault(int(k), {})[array] = tensor
    strategy.server_state = remembered
    if not strategy.buffered or not (lost := strategy.buffered.restore(start.at_work, models)):
        return []
    return [_counted(lost, "when the run was stopped")]


def ended_work(strategy: MetaFedAvg) -> list[str]:
    """Take back what clients are at, because all steps are done, and return what to say of it."""
    left = strategy.buffered.end() if strategy.buffered else 0
    return [_counted(left, "when the last step was made")] if left else []


def _counted(number: int, when: str) -> str:
    clients = "client was" if number == 1 else "clients were"
    return f"{number} {clients} at work {when}; what came of it is dropped"
