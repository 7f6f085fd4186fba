"""What a client's records have cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordCost:
    """What a client's records have cost.

    Attributes:
        epsilon: of the rounds of this run.
        delta: of the run.
        in_all: ε of all runs that the ledger knows, at δ = N^-1.1.
        num_rounds: of this run.
    """

    epsilon: float
    delta: float
    in_all: float
    num_rounds: int
