"""A participating client held out of a run's training as if it were new, and judged part by part.

A few clients have few validation examples, and one of them then moves a run's number by points. So a held-out client
may stand for several new ones, whose validation splits are other parts of its support and validation examples (cross
validation; Stone 1974): its number is their mean. Its test split stays out of it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from nufed.common.config import DataConfig, Scalar
from nufed.common.data.few_examples import few_examples
from nufed.common.data.on_demand import MANY
from nufed.common.data.target_scaling import target_scale
from nufed.common.errors import WireError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.rng import numpy_generator
from nufed.common.trees import cat

DATA_SEED, SEARCH = "trial.data-seed", "trial.search"
"""Beside the options of a run that is a trial of a search, which clients that know nothing of trials so refuse."""

ENOUGH_EXAMPLES, MOST_PARTS = 500, 5
"""Validation examples up to which clients are divided anew, and how often at most."""
_PART = re.compile(r" \(\d+ of \d+\)$")


@dataclass(frozen=True)
class Trial:
    """Which search a run belongs to.

    Attributes:
        data_seed: that clients divide their examples by, whatever seed the trial itself has.
        search: a name of the search as long as its server runs, during which clients read their data once.
    """

    data_seed: Scalar
    search: Scalar

    def beside(self, options: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return what clients are sent of a trial with these options."""
        return {**options, DATA_SEED: self.data_seed, SEARCH: self.search}

    @classmethod
    def taken_from(cls, sent: dict[str, Scalar]) -> "Trial | None":
        """Return what is said beside the options, after taking it out; None of a run that is no trial."""
        data_seed, search = sent.pop(DATA_SEED, None), sent.pop(SEARCH, "")
        return None if data_seed is None else cls(data_seed, search)


@dataclass(frozen=True)
class Part:
    """Which part of a held-out client's examples it is judged on.

    Attributes:
        number: from 1 on.
        total: how many parts there are.
    """

    number: int
    total: int

    def name(self, client_id: str) -> str:
        """Return what the new client is called that the part stands for."""
        return f"{client_id} ({self.number} of {self.total})"


@dataclass(frozen=True)
class Sizes:
    """How many examples a held-out client has.

    Attributes:
        support: of its support split.
        validation: of its validation split.
        is_grouped: whether some of its examples belong together and may not be divided.
    """

    support: int
    validation: int
    is_grouped: bool = False

    @classmethod
    def of(cls, client: ClientData) -> "Sizes":
        """Return those of a client's own examples."""
        return cls(len(client.support), len(client.validation), client.support.groups is not None)


def parts_of(held: Sequence[Sizes], config: DataConfig, task: TaskInfo) -> list[tuple[Part, ...]]:
    """Return for each held-out client the parts that it is judged on.

    It is one where examples belong together, or values are scaled by each client's own, or there are examples enough.

    Args:
        held: all clients that a run holds out.
        config: of the run that is tuned for; `num_clients` counts the held-out ones too.
        task: of the run.
    """
    wanted = 1
    if not any(client.is_grouped for client in held) and target_scale(config, task) != "local":
        num_judged = sum(client.validation for client in held)
        room = (MANY - config.num_clients) // len(held)  # so that a simulation keeps all of them
        wanted = max(1, min(MOST_PARTS, room, math.ceil(ENOUGH_EXAMPLES / max(1, num_judged))))
    return [_parts(min(wanted, _most_parts(client))) for client in held]


def check_part(part: Part, client: ClientData, *, is_private: bool) -> None:
    """Refuse a part that a client's examples cannot be divided into, or more parts than any search asks for.

    Args:
        part: that a server asks about.
        client: as it takes part.
        is_private: whether the run may not be told how many examples there are, which a refusal would tell of.

    Raises:
        WireError: saying what was expected.
    """
    if client.group != "participating" or is_private:
        raise WireError("a part of this client's examples is refused: it is new, or the run is private")
    sizes = Sizes.of(client)
    most = 1 if sizes.is_grouped else min(MOST_PARTS, _most_parts(sizes))
    if not 1 <= part.number <= part.total <= most:
        raise WireError(
            f"part {part.number} of {part.total} is refused: expected one of those that this client's examples can be "
            "divided into"
        )


def as_new(client: ClientData, part: Part, config: DataConfig, task: TaskInfo, *, seed: int) -> ClientData:
    """Return a participating client as a new one that is judged on a part of its support and validation examples.

    Args:
        client: as it takes part.
        part: which; the first is its own validation split.
        config: says how many examples a new client has to adapt to.
        task: what they are for.
        seed: that the client's examples were dealt with.
    """
    size = len(client.validation)
    whole = _joined(client.validation, client.support)
    order = numpy_generator(seed, "tune", "parts", client.client_id).permutation(len(client.support))
    rows = torch.cat([torch.arange(size), size + torch.from_numpy(order)])
    first, end = (part.number - 1) * size, part.number * size
    rest = torch.cat([rows[:first], rows[end:]]).sort().values
    own = client.support if part.number == 1 else whole.take(rest)
    support, _ = few_examples(own, config.new_support_examples, task, seed=seed, client_id=client.client_id)
    name, judged_on = part.name(client.client_id), whole.take(rows[first:end])
    return replace(client, client_id=name, group="new", support=support, validation=judged_on)


def client_of(name: str) -> str:
    """Return the client that is judged under a name, without which part of its examples it is judged on.

    >>> client_of("ward 3 (2 of 5)")
    'ward 3'
    """
    return _PART.sub("", name)


def _most_parts(client: Sizes) -> int:
    return 1 + (client.support - 1) // client.validation if client.validation else 1


def _parts(total: int) -> tuple[Part, ...]:
    return tuple(Part(number, total) for number in range(1, total + 1))


def _joined(first: Examples, second: Examples) -> Examples:
    weights = None
    if first.weights is not None and second.weights is not None:
        weights = torch.cat([first.weights, second.weights])
    return Examples(cat([first.inputs, second.inputs]), cat([first.targets, second.targets]), weights)
