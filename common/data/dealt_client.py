"""What one client is dealt, and its division into support, validation and test."""

from dataclasses import dataclass, field

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.pool import Rows, Table
from nufed.common.examples import ClientData, Group, TaskInfo
from nufed.common.rng import numpy_generator

SMALLEST_CLIENT = 2
NO_ROWS: Rows = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class DealtClient:
    """What one client is dealt.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        table: where `rows` point into.
        rows: [M] the client's examples.
        test_table: the source's own test part if the client is judged on it; None if `rows` are split for the test.
        test_rows: the client's rows of `test_table`.
    """

    client_id: str
    group: Group
    table: Table
    rows: Rows
    test_table: Table | None = None
    test_rows: Rows = field(default_factory=lambda: NO_ROWS)


def client_name(partition_id: int, config: DataConfig) -> tuple[str, Group]:
    """Return the name and the group of a client that the source does not name."""
    if partition_id < config.num_clients:
        return f"client-{partition_id:03d}", "participating"
    return f"new-{partition_id - config.num_clients:03d}", "new"


def give_away(num_rows: int, fraction: float) -> int:
    """Return how many of `num_rows` a positive fraction gives away: at least 1, and at least 1 is kept."""
    return min(max(1, round(fraction * num_rows)), num_rows - 1) if fraction > 0 else 0


@dataclass(frozen=True)
class SplitRows:
    """Rows of a client's three splits; those of the test point into the source's own test part if it has one."""

    support: Rows
    validation: Rows
    test: Rows


def split_rows(dealt: DealtClient, config: DataConfig, seed: int) -> SplitRows:
    """Return the rows of each split, drawn at random; new clients have no validation split.

    The test split is `test_fraction` of the rows, unless the source has its own; the validation split is
    `validation_fraction` of what remains.
    """
    rows = numpy_generator(seed, "data", "split", dealt.client_id).permutation(dealt.rows)
    test = dealt.test_rows
    if dealt.test_table is None:
        num_test = give_away(len(rows), config.test_fraction)
        test, rows = rows[:num_test], rows[num_test:]
    num_validation = 0 if dealt.group == "new" else give_away(len(rows), config.validation_fraction)
    return SplitRows(rows[num_validation:], rows[:num_validation], test)


def split_client(dealt: DealtClient, task: TaskInfo, config: DataConfig, seed: int, dtype: torch.dtype) -> ClientData:
    """Return the client's three splits, as `split_rows` draws them."""
    return make_splits(dealt, split_rows(dealt, config, seed), task, dtype)


def make_splits(dealt: DealtClient, rows: SplitRows, task: TaskInfo, dtype: torch.dtype) -> ClientData:
    """Return the examples of the rows that were drawn."""
    return ClientData(
        client_id=dealt.client_id,
        group=dealt.group,
        support=dealt.table.examples(rows.support, task, dtype),
        validation=dealt.table.examples(rows.validation, task, dtype),
        test=(dealt.test_table or dealt.table).examples(rows.test, task, dtype),
    )


def too_small(dealt: DealtClient) -> str:
    """Return what is wrong with a client that cannot have both a support and a test example; empty if nothing is."""
    if dealt.test_table is None:
        return f"has {len(dealt.rows)} examples and needs at least {SMALLEST_CLIENT}" * (
            len(dealt.rows) < SMALLEST_CLIENT
        )
    if len(dealt.rows) and len(dealt.test_rows):
        return ""
    return f"has {len(dealt.rows)} training and {len(dealt.test_rows)} test examples and needs at least 1 of each"
