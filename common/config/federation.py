"""Options of the rounds: participation, weighting and the server's step."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nufed.common.config.section import Section, to_kebab

_OF_OPTIMIZERS = {
    "server_momentum": ("momentum",),
    "server_beta1": ("adam", "yogi"),
    "server_beta2": ("adam", "yogi"),
    "server_eps": ("adam", "yogi", "adagrad"),
    "server_bias_correction": ("adam",),
}

_OF_BUFFERED = ("concurrency", "buffer_size", "staleness_exponent", "max_staleness")
"""Options without a meaning where each round waits for its clients."""


class FederationConfig(Section):
    """Rounds, participation and weighting."""

    num_rounds: int = Field(60, ge=0, le=10_000_000, description="K, server updates")
    participation_fraction: float = Field(
        0.5, gt=0, le=1, description="r, share of the participating clients asked in a round"
    )
    weighting: Literal["uniform", "examples"] = Field("uniform", description="weights in the mean over clients")
    max_weight: float = Field(
        10.0,
        ge=1,
        le=1e6,
        description="with weights by examples, a client counts at most this many times the median client",
    )
    training: Literal["federated", "local"] = Field(
        "federated", description="local has no rounds: each client trains alone for as many steps (local-only)"
    )
    aggregation: str = Field(
        "mean",
        description="how the server makes one model of the clients' models: mean, or a robust rule: median, "
        "trimmed-mean, geometric-median, nnm-geometric-median, krum, multi-krum, centered-clipping, norm-clipping",
    )
    num_attackers: int = Field(
        0, ge=0, le=1_000_000, description="b, clients of a round that may send anything, for robust aggregation"
    )
    bucket_size: int = Field(
        1, ge=1, le=1_000_000, description="s, replies averaged before robust aggregation sees them; 1 averages none"
    )
    server_lr: float = Field(
        1.0, gt=0, le=100, description="ε, how far a round moves the model towards the mean; 1 all the way"
    )
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi", "adagrad"] = Field(
        "sgd", description="what the server does with w_k - mean, in steps of server-lr (FedAvgM, FedAdam, FedYogi …)"
    )
    server_momentum: float = Field(0.9, ge=0, lt=1, description="β of server-optimizer=momentum")
    server_beta1: float = Field(0.9, ge=0, lt=1, description="β1 of the server's adam and yogi, for w_k - mean")
    server_beta2: float = Field(0.99, ge=0, lt=1, description="β2 of the server's adam and yogi, for its square")
    server_eps: float = Field(
        1e-3, gt=0, le=1e3, description="τ of the server's adam, yogi and adagrad, beside the root of the second moment"
    )
    server_bias_correction: bool = Field(
        False, description="whether the server's adam divides its moments by 1 - β^t (Kingma and Ba); FedAdam does not"
    )
    min_reply_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the clients asked whose replies end a phase, after reply-grace; below 1 runs on machines "
        "are not repeatable",
    )
    reply_grace: float = Field(
        60.0, ge=0, le=1e6, description="seconds that the other clients have once min-reply-fraction have answered"
    )
    round_timeout: float = Field(3600.0, gt=0, le=1e6, description="seconds to wait for the replies of a phase")
    over_selection: float = Field(
        0.0,
        ge=0,
        le=10,
        description="o, a round asks (1 + o) times the clients that it needs, and ends when as many as it needs have "
        "replied; above 0 runs on machines are not repeatable",
    )
    mode: Literal["synchronous", "buffered"] = Field(
        "synchronous",
        description="synchronous rounds wait for the clients that they ask; buffered takes replies as they come and "
        "steps after every buffer-size of them (FedBuff): runs on machines are not repeatable",
    )
    concurrency: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="buffered: clients at work at any time; 0 is as many as participation-fraction asks in a round",
    )
    buffer_size: int = Field(10, ge=1, le=1_000_000, description="buffered: replies that a server step is made of")
    staleness_exponent: float = Field(
        0.5,
        ge=0,
        le=10,
        description="buffered: a, an update counts (1 + s)^-a where s steps were made since its client was asked",
    )
    max_staleness: int = Field(
        100, ge=0, le=1_000_000, description="buffered: work on a model that is more steps old is dropped"
    )
    client_speeds: str = Field(
        "",
        max_length=1000,
        description="simulations: how long clients train, in simulated seconds: lognormal:SIGMA, slow:SHARE:FACTOR, "
        "file:PATH or python:MODULE:FUNCTION; empty, training takes no simulated time",
    )

    @model_validator(mode="after")
    def _options_are_of_the_server_optimizer(self) -> Self:
        for name, optimizers in _OF_OPTIMIZERS.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.server_optimizer not in optimizers:
                raise ValueError(
                    f"{to_kebab(name)}={getattr(self, name)} has no meaning with server-optimizer="
                    f"{self.server_optimizer}; leave it out, or choose {' or '.join(optimizers)}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_aggregation_none(cls, values: Any) -> Any:
        """Read files and runs of NuFed 0.1, where `aggregation = "none"` said that nothing is federated."""
        if isinstance(values, Mapping) and values.get("aggregation") == "none":
            return {**values, "aggregation": "mean", "training": "local"}
        return values

    @model_validator(mode="after")
    def _stragglers_are_met_in_one_way(self) -> Self:
        if self.mode == "synchronous":
            idle = [name for name in _OF_BUFFERED if getattr(self, name) != type(self).model_fields[name].default]
            if idle:
                names = ", ".join(name.replace("_", "-") for name in idle)
                raise ValueError(
                    f"federation.{names} has no meaning in synchronous rounds; set federation.mode to buffered, or "
                    "leave it out"
                )
            return self
        if self.over_selection:
            raise ValueError(
                f"federation.over-selection={self.over_selection:g} contradicts federation.mode=buffered, in which no "
                "client is waited for; leave over-selection at 0, or set mode to synchronous"
            )
        if self.training == "local":
            raise ValueError(
                "federation.mode=buffered contradicts federation.training=local, where clients send nothing that "
                "could be buffered; set one of the two to its default"
            )
        return self
