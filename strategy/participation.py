"""The choice of S_k, the clients that train in a round (server algorithm, line 2)."""

from collections.abc import Iterable

from nufed.common.errors import RunError
from nufed.common.rng import numpy_generator


def num_chosen(num_clients: int, fraction: float) -> int:
    """Return m = max(1, round(r n)), halves rounded to even; 0 if there are no clients.

    Raises:
        RunError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise RunError(f"Expected a participation fraction in (0, 1], got {fraction!r}. 1 asks every client.")
    return max(1, round(fraction * num_clients)) if num_clients else 0


def choose(
    client_ids: Iterable[str],
    fraction: float,
    *,
    seed: int,
    round: int,  # noqa: A002 - the vocabulary's word
) -> tuple[str, ...]:
    """Return m clients chosen uniformly without replacement, sorted.

    The choice depends on the set of clients, the seed and the round (stream `seed, "sample", k`), and not on the order
    in which the clients come, on the rounds before, nor on who answered in them. So a resumed run chooses alike.

    Args:
        client_ids: stable ids of the n clients to choose from; repeated ones count once.
        fraction: r in (0, 1].
        seed: the run's seed.
        round: k.

    Raises:
        RunError: the fraction is not in (0, 1].
    """
    candidates = sorted(set(client_ids))
    drawn = numpy_generator(seed, "sample", round).permutation(len(candidates))
    return tuple(sorted(candidates[index] for index in drawn[: num_chosen(len(candidates), fraction)]))
