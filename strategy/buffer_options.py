"""How a buffered run is conducted (FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, AISTATS 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flwr.serverapp import Grid
from torch import Tensor

from nufed.common.config import RunConfig
from nufed.common.config.federation import FederationConfig
from nufed.common.errors import ConfigError
from nufed.common.params import Params
from nufed.common.privacy.rules import check_strategy_privacy
from nufed.strategy.exchange import simulated_now
from nufed.strategy.participation import num_chosen

if TYPE_CHECKING:
    from nufed.strategy.private_rounds import ClientPrivacy
    from nufed.strategy.secure_phase import SecureAggregation

Mode = Literal["synchronous", "buffered"]


@dataclass(frozen=True)
class BufferOptions:
    """What a buffered run is told.

    Attributes:
        size: b, replies that a server step is made of.
        concurrency: clients at work at any time; 0 is as many as a synchronous round would ask.
        staleness_exponent: a, an update counts (1 + s)^-a where s steps were made while its client was at work.
        max_staleness: the largest s; work on older models is dropped.

    Raises:
        ConfigError: one of them is out of range.
    """

    size: int = 10
    concurrency: int = 0
    staleness_exponent: float = 0.5
    max_staleness: int = 100

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in (("size", 1), ("concurrency", 0), ("staleness_exponent", 0), ("max_staleness", 0)):
            if not (value := getattr(self, name)) >= least:  # nor NaN
                raise ConfigError(f"BufferOptions: {name}={value!r} is refused. Expected at least {least}.")

    def num_at_work(self, num_clients: int, participation_fraction: float) -> int:
        """Return how many of the connected clients are to be at work."""
        wanted = self.concurrency or num_chosen(num_clients, participation_fraction)
        return min(wanted, num_clients)

    def weight(self, staleness: int) -> float:
        """Return (1 + s)^-a, in (0, 1]."""
        return float((1.0 + staleness) ** -self.staleness_exponent)


def buffer_options(federation: FederationConfig) -> BufferOptions | None:
    """Return how a run's steps are buffered; None for synchronous rounds."""
    if federation.mode == "synchronous":
        return None
    return BufferOptions(
        size=federation.buffer_size,
        concurrency=federation.concurrency,
        staleness_exponent=federation.staleness_exponent,
        max_staleness=federation.max_staleness,
    )


def checked_stragglers(
    mode: str,
    buffer: BufferOptions | None,
    over_selection: float,
    *,
    privacy: "ClientPrivacy | None",
    secure: "SecureAggregation | None",
) -> BufferOptions | None:
    """Return how steps are buffered, None for synchronous rounds, after what contradicts what was looked at.

    Args:
        mode: `synchronous` or `buffered`.
        buffer: what was given; None takes the defaults.
        over_selection: o.
        privacy: of the strategy.
        secure: of the strategy.

    Raises:
        ConfigError: with the reason and what to change.
    """
    options: dict[str, object] = {"federation.mode": mode, "federation.over-selection": over_selection}
    if privacy:
        terms = privacy.terms
        options |= {"privacy.dp": "client", "privacy.clip": terms.clip, "privacy.noise": terms.noise}
        options |= {"privacy.publish": list(privacy.publish)}
    if secure:
        options |= {"privacy.secure-aggregation": True, "privacy.secure-threshold": secure.threshold}
    check_strategy_privacy(RunConfig().updated(options))
    if mode == "synchronous":
        if buffer is not None:
            raise ConfigError("MetaFedAvg: buffer has no meaning with mode='synchronous'. Set mode to 'buffered'.")
        return None
    return buffer or BufferOptions()


def check_buffer(federation: FederationConfig, num_clients: int) -> None:
    """Refuse a buffer that the run's clients never fill.

    Raises:
        ConfigError: with what to change.
    """
    if federation.mode == "buffered" and federation.training == "federated" and federation.buffer_size > num_clients:
        raise ConfigError(
            f"federation.buffer-size={federation.buffer_size} is more than the {num_clients} participating clients "
            "(data.num-clients), of whom each counts once in a step. Lower buffer-size."
        )


def check_speeds(federation: FederationConfig, grid: Grid) -> None:
    """Refuse speeds of clients that are not simulated.

    Raises:
        ConfigError: with what to change.
    """
    if federation.client_speeds and simulated_now(grid) is None:
        raise ConfigError(
            f"federation.client-speeds={federation.client_speeds!r} is how long simulated clients train, and these "
            "are not simulated: they take the time that they take. Leave it out."
        )


def rebased(
    reply: Mapping[str, Tensor], sent: Mapping[str, Tensor], now: Mapping[str, Tensor], weight: float
) -> Params:
    """Return w_k + λ (w_i - w_sent), in float64 and rounded once to the parameters' types.

    The mean of such models is w_k and the weighted mean of the updates, so that all that is made of models (the exact
    mean, robust rules, server optimizers) is made of late updates too. Where λ = 1 and w_sent is w_k, it is w_i itself.

    Args:
        reply: w_i, of the names, shapes and types of the others.
        sent: w_sent, the model that the client was sent.
        now: w_k, the model that there is.
        weight: λ.
    """
    if weight == 1 and sent is now:
        return dict(reply)
    result: Params = {}
    for name, tensor in now.items():
        moved = tensor.double() + weight * (reply[name].double() - sent[name].double())
        result[name] = (moved if tensor.is_floating_point() else moved.round()).to(tensor.dtype)
    return result
