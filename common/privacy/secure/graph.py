"""Who keeps whose shares: everybody, or neighbours that each client draws by itself.

In a large cohort each client draws k others by the operating system's generator, shares its secrets among them and
itself, and masks with those that it drew and those that drew it. Nobody else has a say in whom it draws, so a server
cannot surround it with clients of its own (Bell et al. 2020, section 4, for the malicious server). What can go wrong
is chance: too many neighbours that collude, honest clients whose masks do not connect them, too few that stay. These
probabilities are computed here.
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

_NEVER = 200.0
"""Of a natural logarithm: what is less probable than e^-200 is counted as it is bounded first."""

AVAILABILITY_BITS = 20
"""A round fails for want of shares in fewer than 2^-20 of all rounds."""


def draw(others: Sequence[str], count: int, entropy: Entropy) -> tuple[str, ...]:
    """Return `count` of the others, in order, each set of so many equally likely."""
    pool = list(others)
    for place in range(count):
        chosen = place + _below(len(pool) - place, entropy)
        pool[place], pool[chosen] = pool[chosen], pool[place]
    return tuple(sorted(pool[:count]))


def num_colluding(num_clients: int, share: float = COLLUDING) -> int:
    """Return how many of so many clients may work together with the server."""
    return math.floor(share * num_clients + 1e-9)


def chance_of_exposure(num_clients: int, neighbours: int, share_threshold: int, colluders: int) -> float:
    """Return a bound of the probability that colluding neighbours can reconstruct any honest client's secret.

    Of n - 1 others c collude; X of k drawn ones is hypergeometric; the bound is n P[X >= t].

    Args:
        num_clients: n.
        neighbours: k, at most n - 1.
        share_threshold: t.
        colluders: c.
    """
    total, bad = num_clients - 1, min(num_clients - 1, colluders)
    return min(1.0, num_clients * _upper_tail(total, bad, neighbours, share_threshold))


def chance_of_parting(
    num_clients: int, neighbours: int, share_threshold: int, *, threshold: int, colluders: int
) -> float:
    """Return a bound of the probability that the server can learn the sum of a part of the honest clients.

    It sees who masks with whom, and can then declare n - T clients gone. A set S of s honest clients is summed alone
    if it has no mask in common with the other survivors, a set R of r >= s, and shares enough of each one's seed come:
    t_k - 1 of each one's k draws fall on S and the c that collude, as each holds a share of its own seed as well. Draws
    are independent, so that for each s the probability is at most the smaller of

        C(h, s) P[Hyp(n - 1, c + s - 1, k) >= t_k - 1]^s                    h = n - c: whoever is declared gone
        C(h, s) C(h - s, <= n - T) P[Hyp(n - 1, r, k) = 0]^s                r = max(s, h - s - (n - T)) at least

    and the bound is the sum over s <= h / 2. In a complete graph it is 0. (Bell et al. 2020 ask for a connected graph
    too, and let chance choose who leaves.)

    Args:
        num_clients: n.
        neighbours: k, at most n - 1.
        share_threshold: t_k.
        threshold: T, fewest survivors.
        colluders: c.
    """
    total, honest, gone = num_clients - 1, num_clients - colluders, max(0, num_clients - threshold)
    terms = []
    for size in range(1, honest // 2 + 1):
        rest = max(size, honest - size - gone)
        sets, apart = _log_choose(honest, size), _log_none(total, rest, neighbours)
        term = sets + _log_at_most(honest - size, gone) + size * apart
        if term > -_NEVER:  # the other bound is slower to compute, and needed of few sizes
            enough = _upper_tail(total, min(total, colluders + size - 1), neighbours, share_threshold - 1)
            term = min(term, sets + size * math.log(enough) if enough else -math.inf)
        terms.append(math.exp(min(0.0, term)))
    return min(1.0, math.fsum(terms))


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
    """Return the smallest k for which all three probabilities are small; 0, all others, for up to 100 clients.

    Args:
        num_clients: n.
        share: of a client's keepers that reconstruct its secrets, above 1/2.

    Raises:
        ConfigError: no k below n - 1 is enough for clients to be able to leave.
    """
    if num_clients <= COMPLETE:
        return 0
    colluders, least = num_colluding(num_clients), share_threshold_of(share, num_clients)
    for count in range(2, num_clients):
        threshold = share_threshold_of(share, count + 1)
        if (
            chance_of_exposure(num_clients, count, threshold, colluders) <= 2.0**-PRIVACY_BITS
            and chance_of_shortage(num_clients, count, threshold) <= 2.0**-AVAILABILITY_BITS
            and chance_of_parting(num_clients, count, threshold, threshold=least, colluders=colluders)
            <= 2.0**-PRIVACY_BITS
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


def _log_none(total: int, marked: int, drawn: int) -> float:
    """Return log P[X = 0] of the number X of marked ones among `drawn` of `total`."""
    if total - marked < drawn:
        return -math.inf
    return _log_choose(total - marked, drawn) - _log_choose(total, drawn)


def _log_at_most(total: int, most: int) -> float:
    """Return a bound of the log of the number of subsets of at most so many of `total`: total H(most / total)."""
    part = most / total
    if part >= 0.5:
        return total * math.log(2)
    return -total * (part * math.log(part) + (1 - part) * math.log1p(-part)) if most else 0.0


def _below(bound: int, entropy: Entropy) -> int:
    """Return an integer from 0 to bound - 1, each equally likely up to 2^-100."""
    return int.from_bytes(entropy(16)) % bound
