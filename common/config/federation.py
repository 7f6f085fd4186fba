"""Options of the rounds: participation, weighting and the server's step."""

from typing import Literal

from pydantic import Field

from nufed.common.config.section import Section


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
    aggregation: Literal["mean", "none"] = Field(
        "mean", description="none has no rounds: each client trains alone for as many steps (local-only)"
    )
    server_lr: float = Field(
        1.0, gt=0, le=100, description="ε, how far a round moves the model towards the mean; 1 all the way"
    )
    round_timeout: float = Field(3600.0, gt=0, le=1e6, description="seconds to wait for the replies of a phase")
