"""Who keeps whose shares: everybody, or neighbours that each client draws by itself.

In a large cohort each client draws k others by the operating system's generator, shares its secrets among them and
itself, and masks with those that it drew and those that drew it. Nobody else has a say in whom it draws, so a server
cannot surround it with clients of its own (Bell et al. 2020, section 4, for the malicious server). What can go wrong
is chance, and its probabilities are computed here.
"""

import math
from collections.abc import Sequence

from nufed.common.errors import ConfigError
from nufed.common.privacy.secure.keys import Entropy

COMPLETE = 100
"""Most clients of which each keeps shares of all."""

COLLUDING = 0.2
"""Share of a cohort that may work together with the server."""

LEAVING = 0.1
"""Share of a cohort that may leave during a round, by chance."""

PRIVACY_BITS = 40
"""A client is at the mercy of its neighbours in fewer than 2^-40 of all rounds."""

AVAILABILITY_BITS = 20
"""A round fails for want of shares in fewer than 2^-20 of all rounds."""


def draw(others: Sequence[str], count: int, entropy: Entropy) -> tuple[str, ...]:
    """Return `count` of the others, in order, each set of so many equally likely."""
    pool = list(others)
    for place in range(count):
        chosen = place + _below(len(pool) - place, entropy)
        pool[place], pool[chosen] = pool[chosen], pool[place]
    return tuple(sorted(pool[:count]))


def chance_of_exposure(num_clients: int, neighbours: int, share_threshold: int, colluding: float = COLLUDING) -> float:
    """Return a bound of the probability that colluding neighbours can reconstruct any honest client's secret.

    Of n - 1 others ⌊γ n⌋ collude; X of k drawn ones is hypergeometric; the bound is n P[X >= t].

    Args:
        num_clients: n.
        neighbours: k, at most n - 1.
        share_threshold: t.
        colluding: γ.
    """
    total, bad = num_clients - 1, min(num_clients - 1, math.floor(colluding * num_clients))
    return min(1.0, num_clients * _upper_tail(total, bad, neighbours, share_threshold))


def chance_of_shortage(num_clients: int, neighbours: int, share_threshold: int, leaving: float = LEAVING) -> float:
    """Return a bound of the probability that too few keepers of any client's shares stay.

    The client may have left itself, so its k neighbours must hold t shares: n P[more than k - t of them leave].
    """
    total, gone = num_clients - 1, min(num_clients - 1, math.ceil(leaving * num_clients))
    return min(1.0, num_clients * _upper_tail(total, gone, neighbours, neighbours - share_threshold + 1))


def share_threshold_of(share: float, keepers: int) -> int:
    """Return the fewest shares of `keepers` that reconstruct a secret: more than half, and at least this share."""
    return max(keepers // 2 + 1, math.ceil(share * keepers - 1e-9))


def neighbours_needed(num_clients: int, share: float) -> int:
    """Return the smallest k for which both probabilities are small; 0, all others, for up to 100 clients.

    Args:
        num_clients: n.
        share: of a client's keepers that reconstruct its secrets, above 1/2.

    Raises:
        ConfigError: no k below n - 1 is enough for clients to be able to leave.
    """
    if num_clients <= COMPLETE:
        return 0
    for count in range(2, num_clients):
        threshold = share_threshold_of(share, count + 1)
        if (
            chance_of_exposure(num_clients, count, threshold) <= 2.0**-PRIVACY_BITS
            and chance_of_shortage(num_clients, count, threshold) <= 2.0**-AVAILABILITY_BITS
        ):
            return count
    raise ConfigError(
        f"Expected a privacy.secure-threshold with which a tenth of {num_clients} clients may leave, got {share:g}. "
        "Lower it, or set privacy.secure-neighbours."
    )


def _upper_tail(total: int, marked: int, drawn: int, least: int) -> float:
    """Return P[X >= least] of the number X of marked ones among `drawn` of `total`."""
    least = max(least, 0, drawn - (total - marked))
    ways = _log_choose(total, drawn)
    return math.fsum(
        math.exp(_log_choose(marked, count) + _log_choose(total - marked, drawn - count) - ways)
        for count in range(least, min(marked, drawn) + 1)
    )


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def _below(bound: int, entropy: Entropy) -> int:
    """Return an integer from 0 to bound - 1, each equally likely up to 2^-100."""
    return int.from_bytes(entropy(16)) % bound
