"""What an engine is told beside the run's options: which Ray, and what of a machine each client's process is given.

None of it changes the numbers of a run but the device, as `NUFED_DEVICE` does, and how many clients are computed at
once, up to rounding.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nufed.common.errors import ConfigError

_WITH_RAY, _WITH_PROCESSES = ("ray",), ("ray", "processes")
_BELONGS_TO = {
    "ray_address": _WITH_RAY,
    "ray_resources": _WITH_RAY,
    "cpus_per_client": _WITH_PROCESSES,
    "gpus_per_client": _WITH_PROCESSES,
    "clients_per_actor": _WITH_PROCESSES,
}


@dataclass(frozen=True)
class EngineOptions:
    """How an engine spreads clients; checked when it is made.

    Attributes:
        ray_address: `local`, `auto`, HOST:PORT or ray://HOST:PORT (nufed.deploy.simulation.ray_cluster).
        ray_resources: resources of Ray's, named by whoever started the nodes, that each client's actor takes.
        cpus_per_client: processors that each client's process counts as; None is its threads (`NUFED_NUM_THREADS`).
        gpus_per_client: part of a GPU that each client's process is given, 0.25 for four of them on each; None leaves
            all on the device that `NUFED_DEVICE` names.
        clients_per_actor: clients that each process computes at once, as the engine `cohort` does; equal up to
            rounding. 1 is one after another.
    """

    ray_address: str = "local"
    ray_resources: Mapping[str, float] = field(default_factory=dict)
    cpus_per_client: float | None = None
    gpus_per_client: float | None = None
    clients_per_actor: int = 1

    def __post_init__(self) -> None:
        """Refuse what makes no sense anywhere.

        Raises:
            ConfigError: a number is out of range, or a resource is none of Ray's own kind.
        """
        if not isinstance(self.ray_address, str) or not self.ray_address.strip():
            raise ConfigError(
                f"Expected --ray-address local, auto, HOST:PORT or ray://HOST:PORT, got {self.ray_address!r}."
            )
        if self.cpus_per_client is not None and not (_is_number(self.cpus_per_client) and self.cpus_per_client > 0):
            raise ConfigError(
                f"Expected --cpus-per-client greater than 0, got {self.cpus_per_client!r}. Give 1, or 0.5."
            )
        if self.gpus_per_client is not None and not (
            _is_number(self.gpus_per_client) and 0 < self.gpus_per_client <= 1
        ):
            raise ConfigError(
                f"Expected --gpus-per-client from above 0 to 1, as a client computes on one GPU, got "
                f"{self.gpus_per_client!r}. Give 1, 0.5 or 0.25; leave it out for none."
            )
        if not isinstance(self.clients_per_actor, int) or self.clients_per_actor is True or self.clients_per_actor < 1:
            raise ConfigError(
                f"Expected --clients-per-actor as a whole number from 1, got {self.clients_per_actor!r}. Correct it."
            )
        resources = self.ray_resources
        if not isinstance(resources, Mapping) or not all(_is_resource(*each) for each in resources.items()):
            raise ConfigError(
                f"Expected --ray-resources as names and amounts above 0 that the nodes were started with, other than "
                f"CPU, GPU and memory, got {resources!r}. Write for example '{{\"accelerator\": 1}}'."
            )

    def check(self, engine: str) -> None:
        """Refuse options that an engine would not heed.

        Raises:
            ConfigError: naming the option; or a GPU is shared out by --gpus-per-client and named by the device too.
        """
        given = [each.name for each in fields(self) if getattr(self, each.name) != getattr(_NOTHING, each.name)]
        for name in given:
            if engine not in _BELONGS_TO.get(name, (engine,)):
                flag, engines = f"--{name.replace('_', '-')}", " or ".join(_BELONGS_TO[name])
                raise ConfigError(
                    f"{flag} is for --engine {engines}, but the engine is {engine}. Leave one of them out."
                )
        if self.gpus_per_client and (device := os.environ.get("NUFED_DEVICE", "cuda")) != "cuda":
            raise ConfigError(
                f"--gpus-per-client={self.gpus_per_client:g} gives each client a GPU, which contradicts the device "
                f"{device!r} (--device or NUFED_DEVICE). Leave the device out, or give cuda."
            )

    def variables(self) -> dict[str, str]:
        """Return settings of the clients' processes that differ from this one's."""
        return {"NUFED_DEVICE": "cuda"} if self.gpus_per_client else {}


def ray_resources(text: str | None) -> dict[str, float]:
    """Return the resources that a JSON object names.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return EngineOptions(ray_resources=value).ray_resources  # type: ignore[return-value] # a dict, as checked


def split_engine_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], EngineOptions]:
    """Return (all other options, those of the engine), by their names in Python."""
    names = {each.name for each in fields(EngineOptions)}
    own = {name: value for name, value in options.items() if name in names and value is not None}
    return {name: value for name, value in options.items() if name not in names}, EngineOptions(**own)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_resource(name: object, amount: object) -> bool:
    own = ("CPU", "GPU", "memory", "object_store_memory")
    return isinstance(name, str) and bool(name) and name not in own and _is_number(amount) and float(str(amount)) > 0


_NOTHING = EngineOptions()
