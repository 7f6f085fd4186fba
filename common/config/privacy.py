"""Options of what a run may reveal: differential privacy and secure aggregation."""

from typing import Literal

from pydantic import Field

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section


class PrivacyConfig(Section):
    """What is clipped, noised, summed in secret and withheld; see docs/privacy.md."""

    dp: Literal["none", "client", "record"] = Field(
        "none",
        description="what differential privacy protects: client (that a client took part; the server clips and adds "
        "noise) or record (that an example is among a client's; each client clips and adds noise)",
    )
    clip: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="C, length to which a client's update (dp client) or an example's gradient (dp record) is clipped; "
        "must be given with dp",
    )
    hvp_clip: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="length to which an example's Hessian-vector product is clipped (dp record); 0: C",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="z, standard deviation of the noise on a sum, in clipping lengths; or give epsilon",
    )
    epsilon: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="ε of the planned rounds: without noise, z is found for it; a run stops before it",
    )
    delta: float = Field(0.0, ge=0, lt=1, description="δ; 0: n^-1.1 of n clients, or examples, protected")
    cohort_cap: float = Field(
        2.0,
        ge=1,
        le=1e6,
        description="most clients of a round, in expected cohorts: of more that were drawn, so many take part "
        "(dp client)",
    )
    publish: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="what is shown although ε does not cover it: evaluation, client-curves, participants, "
        "examples, training-loss, statistics",
    )
    secure_aggregation: bool = Field(
        False, description="the server learns the sum of a round's models alone, and no client's"
    )
    secure_threshold: float = Field(
        0.67,
        gt=0.5,
        le=1,
        description="share of a round's clients (of each client's neighbours) that must stay for the sum to come out",
    )
    secure_neighbours: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="clients that each client shares masks with; 0: all of up to 100, of more what the threshold needs",
    )
