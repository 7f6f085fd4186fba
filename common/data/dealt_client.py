"""What one client is dealt, and its division into support, validation and test."""

from dataclasses import dataclass, field

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import is_tree
from nufed.common.data.division import Division
from nufed.common.data.membership import PARTS, membership, num_units
from nufed.common.data.pool import Rows, Table
from nufed.common.examples import ClientData, Group, TaskInfo
from nufed.common.rng import derive_seed, numpy_generator

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
    """Return the rows of each split, drawn at random or by their hashes; new clients have no validation split.

    What the source says of its own splits is kept; a new client's validation rows are support rows. Otherwise the test
    split is `test_fraction` of the rows and the validation split `validation_fraction` of what remains, or about as
    many where hashes decide (common/data/membership.py).
    """
    if dealt.table.division is not None:
        return _by_division(dealt, dealt.table.division, config, seed)
    rows = numpy_generator(seed, "data", "split", dealt.client_id).permutation(dealt.rows)
    test = dealt.test_rows
    if dealt.test_table is None:
        num_test = give_away(len(rows), config.test_fraction)
        test, rows = rows[:num_test], rows[num_test:]
    num_validation = 0 if dealt.group == "new" else give_away(len(rows), config.validation_fraction)
    return SplitRows(rows[num_validation:], rows[:num_validation], test)


def _by_division(dealt: DealtClient, division: Division, config: DataConfig, seed: int) -> SplitRows:
    """Return the rows of each split in the order of their contents, so that nothing follows from the file's order."""
    rows = dealt.rows[np.argsort(division.contents[dealt.rows], kind="stable")]
    said = None if division.parts is None else division.parts[rows]
    test = dealt.test_rows
    validation_fraction = 0.0 if dealt.group == "new" else config.validation_fraction
    test_fraction = config.test_fraction if dealt.test_table is None and said is None else 0.0
    if said is not None:
        test, held_out = rows[said == PARTS.index("test")], said == PARTS.index("validation")
        if held_out.any() and dealt.group != "new":
            return SplitRows(rows[said == PARTS.index("support")], rows[held_out], test)
        rows = rows[said != PARTS.index("test")]
    strata, targets = np.zeros(len(rows), dtype=np.int64), dealt.table.targets
    if not is_tree(targets) and targets.ndim == 1 and targets.dtype.kind in "iu":
        strata = targets[rows]
    key = derive_seed(seed, "data", "membership", dealt.client_id)
    parts = membership(division.units[rows], strata, key, test=test_fraction, validation=validation_fraction)
    if test_fraction:
        test = rows[parts.test]
    return SplitRows(rows[parts.support], rows[parts.validation], test)


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
    division = dealt.table.division
    said = None if division is None or division.parts is None else division.parts[dealt.rows]
    num_test = len(dealt.test_rows) if said is None else int((said == PARTS.index("test")).sum())
    if dealt.test_table is not None or said is not None:
        num_training = len(dealt.rows)
        if said is not None:
            named = ("support", "validation") if dealt.group == "new" else ("support",)
            num_training = int(np.isin(said, [PARTS.index(name) for name in named]).sum())
        if num_training and num_test:
            return ""
        return f"has {num_training} training and {num_test} test examples and needs at least 1 of each"
    if len(dealt.rows) < SMALLEST_CLIENT:
        return f"has {len(dealt.rows)} examples and needs at least {SMALLEST_CLIENT}"
    if division is None or num_units(division.units[dealt.rows]) >= SMALLEST_CLIENT:
        return ""
    same = "belong to one group" if division.groups is not None else "are equal"
    return f"has {len(dealt.rows)} examples that all {same}, so that none of them can be kept apart for the test"
