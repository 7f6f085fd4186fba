"""Federated statistics before round 1: the run's means and scales of what sites tell, and how the sites differ."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.statistics import NOT_TOLD, PooledStatistics, SiteStatistics, StatisticsShape, pool
from nufed.strategy.statistics import GatheredStatistics

CSV, JSON = "statistics.csv", "statistics.json"
"""In a run's folder: one line for each site and column, and the same with what became of it."""

CSV_COLUMNS = ("site", "column", "category", "examples", "values", "missing", "mean", "deviation", "share")


@dataclass(frozen=True)
class StatisticsReport:
    """What came of asking the sites.

    Attributes:
        gathered: what each told.
        pooled: what they make together.
    """

    gathered: GatheredStatistics
    pooled: PooledStatistics

    @classmethod
    def of(cls, gathered: GatheredStatistics) -> "StatisticsReport":
        """Return the report on what was gathered."""
        return cls(gathered, pool(gathered.sites, gathered.shape))

    @property
    def untold(self) -> tuple[str, ...]:
        """Names of the columns of numbers that no site told of."""
        shape = self.gathered.shape
        rows = zip(shape.columns, shape.categories, self.pooled.counts, strict=True)
        return tuple(name for name, categories, count in rows if not categories and not count)

    def scaled(self, config: RunConfig) -> RunConfig:
        """Return the run's options with the means and scales of its columns; those that it has already stay.

        Raises:
            RunError: no site told anything.
        """
        if config.data.scale != "federated" or config.data.feature_means:
            return config
        if not self.gathered.sites:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.gathered.absent.items())
            raise RunError(
                f"Expected statistics of columns from at least one client, but none told any ({reasons}). Have clients "
                "start with --allow-statistics, or give data.feature-means and data.feature-scales."
            )
        numbers = [index for index, names in enumerate(self.gathered.shape.categories) if not names]
        return config.updated(
            {
                "data.feature-means": [self.pooled.means[index] for index in numbers],
                "data.feature-scales": [self.pooled.scales[index] for index in numbers],
            }
        )

    def files(self) -> dict[str, str]:
        """Return the content of the files that a run's folder gets, by name."""
        return {CSV: self.to_csv(), JSON: json.dumps(self.to_json(), indent=2) + "\n"}

    def to_csv(self) -> str:
        """Return one line for each site and column, category and class; what a site keeps back is empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name, site in self.gathered.sites.items():
            writer.writerows({"site": name, "examples": site.num_examples, **row} for row in _rows(site, self.shape))
        return text.getvalue()

    @property
    def shape(self) -> StatisticsShape:
        """What was asked for."""
        return self.gathered.shape

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; null stands for what is kept back."""
        shape = self.shape
        return {
            "min_count": shape.min_count,
            "columns": [
                {"name": name, "values": count, "mean": mean, "scale": scale}
                for name, names, count, mean, scale in zip(
                    shape.columns,
                    shape.categories,
                    self.pooled.counts,
                    self.pooled.means,
                    self.pooled.scales,
                    strict=True,
                )
                if not names
            ],
            "sites": {
                name: {"examples": site.num_examples, "told": _rows(site, shape)}
                for name, site in self.gathered.sites.items()
            },
            "absent": dict(self.gathered.absent),
            "rejected": self.gathered.rejected,
        }

    def lines(self) -> list[str]:
        """Return what to say of it: who told nothing and why, and which columns nobody told of."""
        lines = [f"statistics of {len(self.gathered.sites)} clients, of at least {self.shape.min_count} examples each"]
        lines += [f"{name} told no statistics: {reason}" for name, reason in self.gathered.absent.items()]
        if self.untold:
            lines.append(f"nobody told of {', '.join(self.untold)}: these columns stay as they are")
        return lines

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return (header, rows) of how the sites differ, by column, category and class."""
        rows: list[tuple[str, ...]] = []
        shape = self.shape
        for index, (name, names) in enumerate(zip(shape.columns, shape.categories, strict=True)):
            told = {site: each for site, each in self.gathered.sites.items() if each.counts[index]}
            if not names:
                means = {site: each.means[index] for site, each in told.items()}
                overall = f"{self.pooled.means[index]:.4g} ± {self.pooled.scales[index]:.4g}" if told else "-"
                missing = [1 - each.counts[index] / each.num_examples for each in told.values()]
                rows.append((name, str(len(told)), overall, *_ends(means, "{:.4g}"), _range(missing)))
                continue
            for code, category in enumerate(names):
                shares = _shares(
                    {site: (each.categories[index], each.counts[index]) for site, each in told.items()}, code
                )
                rows.append((f"{name} = {category}", str(len(shares)), "", *_ends(shares, "{:.1%}"), ""))
        sites = {site: (each.classes, each.num_examples) for site, each in self.gathered.sites.items()}
        for code, label in enumerate(shape.classes):
            shares = _shares(sites, code)
            rows.append((f"class {label}", str(len(shares)), "", *_ends(shares, "{:.1%}"), ""))
        return ("column", "sites", "together", "lowest", "highest", "missing"), rows


def _rows(site: SiteStatistics, shape: StatisticsShape) -> list[dict[str, Any]]:
    """Return what a site told, by column and category; None for what it keeps back."""
    rows: list[dict[str, Any]] = []
    for index, (name, names) in enumerate(zip(shape.columns, shape.categories, strict=True)):
        count = site.counts[index]
        told = {"column": name, "values": count or None}
        missing = 1 - count / site.num_examples if count else None
        if not names:
            mean, deviation = (site.means[index], site.deviations[index]) if count else (None, None)
            rows.append({**told, "missing": missing, "mean": mean, "deviation": deviation})
        for category, number in zip(names, site.categories[index], strict=True):
            share = None if number == NOT_TOLD or not count else number / count
            rows.append({**told, "category": category, "missing": missing, "share": share})
    for label, number in zip(shape.classes, site.classes, strict=True):
        share = None if number == NOT_TOLD else number / site.num_examples
        rows.append({"column": "", "category": label, "values": site.num_examples, "share": share})
    return rows


def _shares(sites: Mapping[str, tuple[Sequence[int], int]], code: int) -> dict[str, float]:
    return {site: counts[code] / total for site, (counts, total) in sites.items() if counts[code] != NOT_TOLD and total}


def _ends(values: Mapping[str, float], form: str) -> tuple[str, str]:
    """Return the lowest and the highest value with the sites that have them."""
    if not values:
        return "-", "-"
    lowest, highest = (choose(sorted(values), key=values.__getitem__) for choose in (min, max))
    return f"{form.format(values[lowest])} ({lowest})", f"{form.format(values[highest])} ({highest})"


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "-"
    return f"{min(shares):.1%}" if max(shares) == min(shares) else f"{min(shares):.1%} to {max(shares):.1%}"
