"""Clients that attack a simulated federation, to measure what an aggregation rule stands.

Attackers train as all others do; what they send instead is made of that, and (`alie`, `inner-product`) of what the
honest clients of the round send, which is more than a real attacker knows. Nothing of this is in `nufed client`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from torch import Tensor

from nufed.client.workplace import FLIP_LABELS
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Federation
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.params import Params
from nufed.common.registry import find_registered
from nufed.common.rng import numpy_generator
from nufed.common.wire import ARRAYS
from nufed.deploy.flower_runtime.words import UserConfig
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID, ClientTurn
from nufed.server.hostile import Hostile

SCALE = 10.0
"""How many times its update, reversed, an attacker of `scaled` sends; well inside the default max_growth."""

EPSILON = 0.1
"""Share of the honest mean, reversed, that an attacker of `inner-product` sends."""

LEAST_DEVIATIONS = 1.0
"""Fewest standard deviations of `alie`."""

Turns = Iterator[tuple[Message, ClientTurn]]
Update = Callable[[Tensor, Tensor, int], Tensor]
"""(own update [P], updates of the honest clients [h, P], attackers in the round) -> the update to send [P]; float64."""


@dataclass(frozen=True)
class Attack:
    """One way of attacking.

    Attributes:
        summary: one line: what is sent.
        update: what is sent instead of the client's update; None sends that.
        flips_labels: whether the client trains on wrong labels.
    """

    summary: str
    update: Update | None = None
    flips_labels: bool = False


def sign_flip(own: Tensor, _honest: Tensor, _num_attackers: int) -> Tensor:
    """Return the update reversed."""
    return -own


def scaled(own: Tensor, _honest: Tensor, _num_attackers: int) -> Tensor:
    """Return the update reversed and ten times as long."""
    return -SCALE * own


def alie(own: Tensor, honest: Tensor, num_attackers: int) -> Tensor:
    """Return the honest mean less z standard deviations, coordinate by coordinate: "a little is enough".

    Baruch, Baruch and Goldberg 2019, Algorithm 3: z is how far a majority with the attackers still reaches. For few
    attackers that is next to nothing or negative, so that z is at least 1 here.
    """
    if len(honest) == 0:
        return own
    total = len(honest) + num_attackers
    supporters = total // 2 + 1 - num_attackers
    share = (len(honest) - supporters) / len(honest)
    deviations = NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0
    return honest.mean(0) - max(LEAST_DEVIATIONS, deviations) * honest.std(0, correction=0)


def inner_product(own: Tensor, honest: Tensor, _num_attackers: int) -> Tensor:
    """Return a small multiple of the honest mean, reversed (Xie, Koyejo and Gupta 2020, "Fall of Empires")."""
    return -EPSILON * honest.mean(0) if len(honest) else own


ATTACKS: dict[str, Attack] = {
    "sign-flip": Attack("its update reversed", sign_flip),
    "scaled": Attack("its update reversed, ten times as long", scaled),
    "label-flip": Attack("what it trains on labels y -> C - 1 - y", flips_labels=True),
    "alie": Attack("the honest mean less z standard deviations (Baruch et al. 2019)", alie),
    "inner-product": Attack("-0.1 times the honest mean (Xie et al. 2020)", inner_product),
}


def recruit(attack: str, num_attackers: int, config: RunConfig, federation: Federation) -> Hostile:
    """Return which participating clients attack: chosen by the seed, the same in every engine.

    Raises:
        ConfigError: the attack is unknown, has no meaning for the task, or leaves no honest client.
    """
    known, num_clients = known_attack(attack, num_attackers, config), config.data.num_clients
    if known.flips_labels and federation.task.kind != "classification":
        raise ConfigError("--attack label-flip contradicts a regression, which has no labels. Choose another attack.")
    drawn = numpy_generator(config.seed, "attackers").permutation(num_clients)[:num_attackers]
    return Hostile(attack, {int(i): federation.clients[int(i)].client_id for i in sorted(drawn)})


def known_attack(attack: str, num_attackers: int, config: RunConfig) -> Attack:
    """Return the registered attack, after what can be known of it without data was checked.

    Raises:
        ConfigError: it is unknown, or leaves no honest client.
    """
    known = find_registered(ATTACKS, attack, what="attack", option="--attack")
    num_clients = config.data.num_clients
    if not 1 <= num_attackers < num_clients:
        raise ConfigError(
            f"--attackers={num_attackers} is refused: expected 1 to {num_clients - 1} of {num_clients} participating "
            "clients (data.num-clients), so that one is honest."
        )
    return known


class Adversary:
    """Speaks for the attackers of a simulation; holds who they are.

    The replies of a round are held until all have come, and go on in the order of partitions.
    """

    def __init__(self, hostile: Hostile) -> None:
        """Speak for these clients."""
        self._attack = ATTACKS[hostile.attack]
        self._partitions = frozenset(hostile.clients)

    def node_options(self, partition: int) -> UserConfig:
        """Return what an attacker's node is told beside its partition."""
        return {FLIP_LABELS: True} if self._attack.flips_labels and partition in self._partitions else {}

    def corrupted(self, turns: Turns) -> Turns:
        """Yield all turns, those of attackers in training with the models that they send instead."""
        held: dict[int, tuple[Message, ClientTurn]] = {}
        for message, turn in turns:
            is_model = message.metadata.message_type == MessageType.TRAIN and turn.reply.has_content()
            if self._attack.update and is_model:
                held[message.metadata.dst_node_id - FIRST_NODE_ID] = message, turn
            else:
                yield message, turn
        if not held:
            return
        sent = _model(next(iter(held.values()))[0].content)
        models = {partition: _model(held[partition][1].reply.content) for partition in sorted(held)}
        instead = instead_of(self._attack, sent, models, self._partitions)
        for partition in sorted(held):
            message, turn = held[partition]
            if partition in instead:
                turn.reply.content = RecordDict({**turn.reply.content, ARRAYS: params_to_arrays(instead[partition])})
            yield message, turn


def instead_of(
    attack: Attack, sent: Params, models: Mapping[int, Params], attackers: frozenset[int]
) -> dict[int, Params]:
    """Return what the attackers among `models` send; integer arrays stay as they are.

    Args:
        attack: how.
        sent: w_k.
        models: w_k^i by partition, of all that answered, as their clients made them.
        attackers: partitions.
    """
    hostile = [partition for partition in models if partition in attackers]
    honest = [partition for partition in models if partition not in attackers]
    result: dict[int, Params] = {partition: {} for partition in hostile}
    for name, before in sent.items():
        start = before.double()

        def updates(partitions: list[int], name: str = name, start: Tensor = start) -> Tensor:
            found = [models[partition][name].double() - start for partition in partitions]
            return torch.stack(found) if found else torch.empty(0, *start.shape, dtype=torch.float64)

        others = updates(honest)
        for partition in hostile:
            if attack.update is None or not before.is_floating_point():
                result[partition][name] = models[partition][name]
            else:
                made = attack.update(updates([partition])[0], others, len(hostile))
                result[partition][name] = (start + made).to(before.dtype)
    return result


def _model(content: RecordDict) -> Params:
    return arrays_to_params(next(iter(content.array_records.values()), ArrayRecord()))
