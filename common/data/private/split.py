"""A client's own examples, divided; and a hash of each, by which it is known again in a changed file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nufed.common.data.dealt_client import SplitRows
from nufed.common.data.division import Division, content_keys
from nufed.common.data.membership import PARTS, Keys
from nufed.common.data.private.rows import PrivateRows, refusal, tell_here
from nufed.common.errors import DataError


@dataclass(frozen=True)
class SplitHashes:
    """Hashes of examples as they were read, before they are filled in and scaled. They stay on the client's machine.

    Attributes:
        support: trained on and adapted to.
        test: judged on.
    """

    support: "tuple[bytes, ...] | Keys"
    test: "tuple[bytes, ...] | Keys"


def hash_split(rows: PrivateRows, division: Division | None, split: SplitRows) -> SplitHashes:
    """Return the hashes of a client's support and test split, which the division has already where there is one."""
    own = division.contents if division else content_keys_of(rows)
    test = own if rows.test is None else content_keys_of(rows.test)
    return SplitHashes(own[split.support], test[split.test])


def divide(rows: PrivateRows) -> Division:
    """Return what the splits of a client's examples follow from.

    Raises:
        DataError: the source's own splits have a group in common.
    """
    division = Division(content_keys_of(rows), _group_keys(rows), rows.parts)
    if rows.parts is not None:
        _check_apart([(division.units[rows.parts == part], part) for part in range(len(PARTS))], division)
    if rows.test is not None:
        test = Division(content_keys_of(rows.test), _group_keys(rows.test))
        both = division if test.groups is not None else Division(division.contents)
        _check_apart([(both.units, 0), (test.units, PARTS.index("test"))], both)
    return division


def content_keys_of(rows: PrivateRows) -> Keys:
    """Return the key of each example [N], whatever the file's order and the precision that its numbers are held in."""
    targets = np.zeros(len(rows)) if rows.targets is None else rows.targets
    return content_keys(rows.inputs, targets, in_double=bool(rows.columns))


def _group_keys(rows: PrivateRows) -> Keys | None:
    return None if rows.groups is None else rows.groups.keys()


def _check_apart(parts: "Sequence[tuple[Keys, int]]", division: Division) -> None:
    """Refuse groups that are in two of the source's own splits; say here how many equal examples are."""
    seen = [(np.unique(keys), PARTS[part]) for keys, part in parts]
    for index, (keys, name) in enumerate(seen):
        for others, other in seen[:index]:
            if not (common := len(np.intersect1d(keys, others))):
                continue
            if division.groups is not None:
                raise refusal(
                    DataError,
                    f"expected the examples of a group in one split, but {common} groups have examples in the {other} "
                    f"and in the {name} split that the data themselves say; put each group into one of them, or leave "
                    "the splits to the run",
                )
            tell_here(
                "%d examples stand in the %s split and, equal to the last digit, in the %s split that the data "
                "themselves say: what is reported of this client's test may be too good",
                common,
                other,
                name,
            )
