"""Long series with fewer points: extremes stay, so that a chart looks the same."""

from collections.abc import Mapping, Sequence
from typing import Any

MOST_POINTS = 1200
"""Points of a series that are sent as they are; a wide screen has about as many columns."""


def kept_indices(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], most: int = MOST_POINTS) -> list[int]:
    """Return which rows to keep: all of a short series, else the extremes of each key in stretches of equal length.

    The first and the last row are always kept.

    Args:
        rows: in their order; a missing or None value has no extremes.
        keys: of numbers.
        most: rows to keep at most, about.

    Examples:
        >>> rows = [{"loss": value} for value in (1, 9, 2, 2, 2, 2, 0, 2)]
        >>> kept_indices(rows, ["loss"], most=4)
        [0, 1, 4, 6, 7]
    """
    if len(rows) <= most:
        return list(range(len(rows)))
    stretches = max(1, most // (2 * len(keys)))
    kept = {0, len(rows) - 1}
    for number in range(stretches):
        span = range(number * len(rows) // stretches, (number + 1) * len(rows) // stretches)
        for key in keys:
            known = [index for index in span if rows[index].get(key) is not None]
            if known:
                kept.add(min(known, key=lambda index, key=key: rows[index][key]))  # type: ignore[misc]
                kept.add(max(known, key=lambda index, key=key: rows[index][key]))  # type: ignore[misc]
    return sorted(kept)
