"""What sites tell of their columns before round 1, and what a run makes of it: one mean and one scale for each column.

A site tells, of its support split: for a column of numbers how many values there are, their mean and their deviation
(sum and sum of squares, in a form that neither overflows nor loses digits where values lie far from 0); for a column of
categories, and for the classes, how many examples have each. Nothing that fewer than `min_count` examples make up is
told, and nothing that it could be worked out from:

- a column with fewer values, or with fewer that differ from its most frequent one (a 0 and 1 of which 3 are 1);
- a category or class with fewer examples; where those that are left out come to fewer in all, the next larger one, too;
- how many cells are empty, if they are fewer: then none is said to be.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nufed.common.errors import WireError

Array = NDArray[np.float64]

Lists = dict[str, list[int] | list[float]]
"""Numbers of a site by name, as they travel."""

NOT_TOLD = -1
"""Stands for a count that a site keeps to itself."""

LARGEST = 1e300
"""Magnitude beyond which a mean or a deviation is not told, and not believed: differences stay finite."""

NOISE = 2.0**-23
"""Float32's rounding, relative to a value: what varies less than that does not vary."""


@dataclass(frozen=True)
class StatisticsShape:
    """What is asked for.

    Attributes:
        columns: names of the columns that are the run's inputs, in its order.
        categories: of each column, its categories; none for a column of numbers.
        classes: names of the run's classes; empty where values are predicted.
        min_count: examples that everything told is made of, at least.
    """

    columns: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    min_count: int

    @property
    def lengths(self) -> dict[str, int]:
        """Return how many numbers each list of `SiteStatistics.to_lists` has."""
        of_columns = dict.fromkeys(("counts", "means", "deviations"), len(self.columns))
        return {**of_columns, "categories": sum(map(len, self.categories)), "classes": len(self.classes)}


@dataclass(frozen=True)
class SiteStatistics:
    """What one site tells.

    Attributes:
        num_examples: N, in its support split.
        counts: of each column, examples that have a value; 0 where nothing is told of the column.
        means: of each column of numbers; 0 for others.
        deviations: likewise; root of the mean squared difference from the site's own mean.
        categories: of each column, examples by category, `NOT_TOLD` where it is kept back; empty for numbers.
        classes: examples by class, likewise.
    """

    num_examples: int
    counts: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    categories: tuple[tuple[int, ...], ...]
    classes: tuple[int, ...] = ()

    def to_lists(self) -> Lists:
        """Return the numbers as they travel, those of categories column after column; empty lists do not."""
        lists: Lists = {
            "counts": list(self.counts),
            "means": list(self.means),
            "deviations": list(self.deviations),
            "categories": [count for counts in self.categories for count in counts],
            "classes": list(self.classes),
        }
        return {name: values for name, values in lists.items() if values}

    @classmethod
    def from_lists(cls, num_examples: int, lists: Lists, shape: StatisticsShape) -> "SiteStatistics":
        """Return what `to_lists` wrote; lengths have been checked."""
        flat = iter(map(int, lists.get("categories", ())))
        return cls(
            num_examples,
            tuple(map(int, lists["counts"])),
            tuple(map(float, lists["means"])),
            tuple(map(float, lists["deviations"])),
            tuple(tuple(itertools.islice(flat, len(names))) for names in shape.categories),
            tuple(map(int, lists.get("classes", ()))),
        )


@dataclass(frozen=True)
class PooledStatistics:
    """What all sites together tell.

    Attributes:
        counts: of each column, values that its mean is made of; 0 where no site told.
        means: of each column of numbers; 0 for others and where no site told.
        scales: deviations, above the rounding of the mean; 1 where no site told or the column does not vary.
    """

    counts: tuple[int, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]


def site_statistics(inputs: Array, targets: NDArray[np.generic] | None, shape: StatisticsShape) -> SiteStatistics:
    """Return what a site tells of its examples.

    Args:
        inputs: [N, D], columns one after another, one-hot where they have categories, NaN where a cell is empty.
        targets: [N] class numbers; None where they are not told.
        shape: what is asked for.
    """
    least, first = max(2, shape.min_count), 0
    counts, means, deviations, categories = [], [], [], []
    for names in shape.categories:
        part = inputs[:, first : first + (len(names) or 1)]
        first += len(names) or 1
        known = part[~np.isnan(part).any(1)]
        mean = deviation = 0.0
        by_category: tuple[int, ...] = ()
        if names:
            count, by_category = _told_categories(known, len(inputs), least)
        else:
            count, mean, deviation = _told_numbers(known[:, 0], len(inputs), least)
        counts.append(count)
        means.append(mean)
        deviations.append(deviation)
        categories.append(by_category)
    classes: tuple[int, ...] = ()
    if shape.classes and targets is not None:
        classes = told_counts(np.bincount(targets.astype(np.int64), minlength=len(shape.classes)).tolist(), least)
    return SiteStatistics(len(inputs), tuple(counts), tuple(means), tuple(deviations), tuple(categories), classes)


def told_counts(counts: Sequence[int], least: int) -> tuple[int, ...]:
    """Return counts with `NOT_TOLD` for those that are too small, and for those that would give them away.

    What is kept back comes to at least `least` examples of at least two kinds, or to none at all.

    Examples:
        >>> told_counts([50, 40], 10), told_counts([97, 3], 10), told_counts([60, 30, 12, 3], 10)
        ((50, 40), (-1, -1), (60, 30, -1, -1))
    """
    order = sorted(range(len(counts)), key=lambda index: (counts[index], index))
    hidden = [index for index in order if counts[index] < least]
    total = sum(counts[index] for index in hidden)
    for index in order[len(hidden) :]:
        if total == 0 or (total >= least and sum(counts[each] > 0 for each in hidden) > 1):
            break
        hidden.append(index)
        total += counts[index]
    if 0 < total < least:
        hidden = order
    return tuple(NOT_TOLD if index in set(hidden) else count for index, count in enumerate(counts))


def pool(sites: Mapping[str, SiteStatistics], shape: StatisticsShape) -> PooledStatistics:
    """Return the mean and the scale of each column over the values of all sites; the same bits in whatever order.

    Of values at several sites it is what one would compute of all of them together, up to rounding.
    """
    counts, means, scales = [], [], []
    for index, names in enumerate(shape.categories):
        told = [site for site in sites.values() if site.counts[index]]
        count, mean, scale = sum(site.counts[index] for site in told), 0.0, 1.0
        if count and not names:
            parts = [(site.counts[index], site.means[index], site.deviations[index]) for site in told]
            mean, deviation = _merged(parts, count)
            scale = _scale(mean, deviation)
        counts.append(count)
        means.append(mean)
        scales.append(scale)
    return PooledStatistics(tuple(counts), tuple(means), tuple(scales))


def check_consistent(site: SiteStatistics, shape: StatisticsShape, announced: int | None) -> None:
    """Refuse statistics that no examples can have, or that are made of fewer than was agreed.

    Args:
        site: what came; lengths, types and ranges have been checked.
        shape: what was asked for.
        announced: examples that the site said to have; None if it did not say.

    Raises:
        WireError: with the first contradiction.
    """
    total, least = site.num_examples, max(2, shape.min_count)
    if announced not in (None, total):
        raise WireError(f"statistics of {total} examples are refused: the client announced {announced}")
    for index, name in enumerate(shape.columns):
        count, mean, deviation = site.counts[index], site.means[index], site.deviations[index]
        if count > total or (count and (count < least or 0 < total - count < least)):
            raise WireError(f"{count} values of column {name!r} are refused: {least} to {total} can be told")
        if (not count or shape.categories[index]) and (mean or deviation):
            raise WireError(f"a mean of column {name!r} is refused: no values of it are told")
        if shape.categories[index]:
            _check_counts(site.categories[index], count, least, f"the categories of column {name!r}")
    if shape.classes:
        _check_counts(site.classes, total, least, "the classes")


def _check_counts(counts: Sequence[int], total: int, least: int, what: str) -> None:
    told = [count for count in counts if count != NOT_TOLD]
    is_whole = len(told) == len(counts) and bool(counts)
    if sum(told) > total or (is_whole and sum(told) != total) or any(0 < count < least for count in told):
        raise WireError(f"the counts of {what} are refused: they do not come to the {total} examples that are told")


def mean_and_scale(values: Array) -> tuple[float, float]:
    """Return the mean of values [N] and their deviation, or what divides them instead where they do not vary."""
    mean, deviation = _mean_and_deviation(values)
    return mean, _scale(mean, deviation)


def _scale(mean: float, deviation: float) -> float:
    """Return a deviation above the rounding of its mean; else 1, or as much as is above it."""
    return deviation if deviation > NOISE * max(abs(mean), deviation) else max(1.0, abs(mean))


def _told_numbers(values: Array, total: int, least: int) -> tuple[int, float, float]:
    """Return how many values there are said to be, their mean and their deviation; zeros if they are kept back."""
    most = int(np.unique(values, return_counts=True)[1].max()) if len(values) else 0
    if len(values) < least or 0 < len(values) - most < least:
        return 0, 0.0, 0.0
    mean, deviation = _mean_and_deviation(values)
    if not max(abs(mean), deviation) <= LARGEST:
        return 0, 0.0, 0.0
    return total if total - len(values) < least else len(values), mean, deviation


def _told_categories(known: Array, total: int, least: int) -> tuple[int, tuple[int, ...]]:
    """Return how many values there are said to be, and examples by category; empty cells count as one more kind."""
    counts = [int(value) for value in known.sum(0)]
    *told, missing = told_counts([*counts, total - len(known)], least)
    if all(count == NOT_TOLD for count in told):
        return 0, tuple(told)
    return total if missing == NOT_TOLD else total - missing, tuple(told)


def _mean_and_deviation(values: Array) -> tuple[float, float]:
    """Return both, exact up to rounding wherever the values lie; infinite beyond float64."""
    largest = float(np.abs(values).max())
    if not 0 < largest < math.inf:
        return largest, 0.0
    scaled = values / largest
    mean = math.fsum(scaled.tolist()) / len(scaled)
    deviation = math.sqrt(math.fsum(np.square(scaled - mean).tolist()) / len(scaled))
    return mean * largest, deviation * largest


def _merged(parts: Sequence[tuple[int, float, float]], count: int) -> tuple[float, float]:
    """Return mean and deviation over all of (count, mean, deviation); exact sums do not depend on their order."""
    largest = max(abs(mean) for _, mean, _ in parts) or 1.0
    mean = math.fsum(number * (each / largest) for number, each, _ in parts) / count * largest
    unit = max(max(deviation, abs(each - mean)) for _, each, deviation in parts)
    if not unit:
        return mean, 0.0
    squares = math.fsum(
        number * ((deviation / unit) ** 2 + ((each - mean) / unit) ** 2) for number, each, deviation in parts
    )
    return mean, unit * math.sqrt(squares / count)
