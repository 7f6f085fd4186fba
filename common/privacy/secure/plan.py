"""What a round asks for, and what a client agrees to."""

import math
from dataclasses import dataclass

from nufed.common.errors import ConfigError
from nufed.common.privacy.secure.failures import UnsafeRoundError
from nufed.common.privacy.secure.graph import (
    COLLUDING,
    COMPLETE,
    PRIVACY_BITS,
    chance_of_exposure,
    chance_of_parting,
    neighbours_needed,
    num_colluding,
    share_threshold_of,
)
from nufed.common.privacy.secure.messages import SecureTask

SMALLEST_COHORT = 3
"""In a sum of two, each knows the other's part."""

LARGEST_WEIGHT = 2**20
"""Of one client; see docs/decisions/0003-order-independent-mean.md."""


@dataclass(frozen=True)
class ClientPolicy:
    """What a client insists on before it takes part.

    Attributes:
        smallest_cohort: fewest clients in a sum.
        colluding: share of the cohort that may work together with the server.
        privacy_bits: the probability that chance puts a client at its neighbours' mercy is at most 2^-bits.
    """

    smallest_cohort: int = SMALLEST_COHORT
    colluding: float = COLLUDING
    privacy_bits: int = PRIVACY_BITS

    def check(self, task: SecureTask) -> None:
        """Raise UnsafeRoundError unless the task protects what its clients send."""
        asked, threshold = task.num_asked, task.threshold
        if not max(self.smallest_cohort, asked // 2 + 1) <= threshold <= asked:
            raise UnsafeRoundError(
                f"Expected a sum of at least {max(self.smallest_cohort, asked // 2 + 1)} of {asked} clients, got a "
                f"threshold of {threshold}. Ask more clients, or raise privacy.secure-threshold."
            )
        if not asked <= task.total_weight <= asked * LARGEST_WEIGHT:
            raise UnsafeRoundError(
                f"Expected a total weight from {asked} to {asked * LARGEST_WEIGHT} of {asked} clients, got "
                f"{task.total_weight}. Refuse this server."
            )
        self.check_sharing(task, asked)

    def check_sharing(self, task: SecureTask, num_members: int) -> None:
        """Raise UnsafeRoundError unless shares among this many clients keep secrets from those that collude."""
        neighbours = num_neighbours(task, num_members)
        least = task.threshold if task.neighbours == 0 else (neighbours + 1) // 2 + 1
        if not least <= task.share_threshold <= neighbours + 1:
            raise UnsafeRoundError(
                f"Expected secrets shared so that {least} to {neighbours + 1} shares are needed, got "
                f"{task.share_threshold}. Raise privacy.secure-threshold, or ask more clients."
            )
        colluders = num_colluding(task.num_asked, self.colluding)  # all of whom are still there
        chance = chance_of_exposure(num_members, neighbours, task.share_threshold, colluders) + chance_of_parting(
            num_members, neighbours, task.share_threshold, threshold=task.threshold, colluders=colluders
        )
        if min(1.0, chance) > 2.0**-self.privacy_bits:
            raise UnsafeRoundError(
                f"Expected neighbours enough that {self.colluding:.0%} of the clients learn nothing but once in "
                f"2^{self.privacy_bits} rounds, got {neighbours} neighbours among {num_members} of {task.num_asked} "
                "clients. Raise privacy.secure-neighbours, or ask clients that stay."
            )


def num_neighbours(task: SecureTask, num_members: int) -> int:
    """Return how many others each of so many clients shares its secrets with."""
    return min(task.neighbours or num_members, num_members - 1)


def plan_task(  # noqa: PLR0913 - keyword-only, one for each field
    *,
    run_id: str,
    round: int,  # noqa: A002 - the word of the run's records
    num_asked: int,
    total_weight: int,
    model_digest: bytes,
    options_digest: bytes = bytes(32),
    threshold_share: float = 0.67,
    neighbours: int = 0,
) -> SecureTask:
    """Return the task of a round that clients agree to.

    Args:
        run_id: of this start of the run; another one after a restart.
        round: k.
        num_asked: clients that will be asked.
        total_weight: bound of the sum of weights.
        model_digest: SHA-256 of the model that is sent.
        options_digest: SHA-256 of all else that decides what the integers mean.
        threshold_share: privacy.secure-threshold.
        neighbours: privacy.secure-neighbours.

    Raises:
        ConfigError: there are too few clients, or too few neighbours for a cohort of this size.
    """
    if num_asked < SMALLEST_COHORT:
        raise ConfigError(
            f"Expected secure aggregation of at least {SMALLEST_COHORT} clients, got {num_asked}: in a sum of two each "
            "knows the other's part. Ask more clients, or leave out --secure-aggregation."
        )
    threshold = max(SMALLEST_COHORT, num_asked // 2 + 1, math.ceil(threshold_share * num_asked - 1e-9))
    count = neighbours or neighbours_needed(num_asked, threshold_share)
    if count >= num_asked - 1 or (num_asked <= COMPLETE and not neighbours):
        count = 0
    task = SecureTask(
        run_id=run_id,
        round=round,
        num_asked=num_asked,
        threshold=threshold,
        neighbours=count,
        share_threshold=share_threshold_of(threshold_share, count + 1) if count else threshold,
        total_weight=total_weight,
        model_digest=model_digest,
        options_digest=options_digest,
    )
    try:
        ClientPolicy().check(task)
    except UnsafeRoundError as error:
        raise ConfigError(str(error)) from error
    return task
