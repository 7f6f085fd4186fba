"""How much a client may weigh in a mean: as many examples as it has, at most a multiple of the clients' median.

Nobody can check how many examples a client has. One that announces two billion would be the model; held to ten times
the median, it weighs as ten ordinary clients do, and so does a client that really is that large.
"""

from collections.abc import Iterable

DEFAULT_MAX_WEIGHT = 10.0
"""Medians that a client may weigh."""

HIGHEST_MAX_WEIGHT = 1e6


def weight_limit(num_examples: Iterable[int], max_weight: float) -> int:
    """Return the most examples that count of one client: `max_weight` times the median, at least 1.

    The median is the lower one of two, and over the clients that have examples: of two clients, the smaller one
    decides, and clients that announce none do not lower it.

    Args:
        num_examples: of all clients that could take part, announced before.
        max_weight: at least 1.
    """
    positive = sorted(number for number in num_examples if number > 0)
    return max(1, int(max_weight * positive[(len(positive) - 1) // 2])) if positive else 1
