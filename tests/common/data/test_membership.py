"""An example's split follows from what it is: one more, one less or another order moves no other."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nufed.common.data.division import names_of
from nufed.common.data.membership import membership


def parts_of(names, key=0, *, classes=None, test=0.25, validation=0.15):
    """The split of each example, by the name of what it belongs to."""
    keys = names_of(names).keys()
    strata = np.zeros(len(keys), np.int64) if classes is None else np.asarray(classes)
    parts = membership(keys, strata, key, test=test, validation=validation)
    found = np.full(len(keys), -1)
    for number, rows in enumerate((parts.support, parts.validation, parts.test)):
        assert (found[rows] == -1).all()
        found[rows] = number
    return found


@settings(max_examples=60)
@given(
    first=st.integers(0, 10**6),
    number=st.integers(60, 400),
    per_group=st.integers(1, 6),
    key=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_who_is_appended_removed_or_moved_moves_no_other(first, number, per_group, key, data):
    """At least 99 of 100 test rows are test rows again; from 60 groups on it is all of them, classes or none."""
    units = [str(first + index) for index in range(number)]
    names = [unit for unit in units for _ in range(per_group)]
    classes = np.array([int(unit) % 2 for unit in names])
    order = data.draw(st.permutations(range(len(names))), label="order")
    kept = order[: data.draw(st.integers(len(names) * 9 // 10, len(names)), label="kept")]
    added = [str(10**7 + index) for index in range(data.draw(st.integers(0, number // 5), label="added"))]
    changed = [names[row] for row in kept] + added
    assume(len(set(changed)) >= 60)

    before = parts_of(names, key, classes=classes)
    after = parts_of(changed, key, classes=[int(unit) % 2 for unit in changed])[: len(kept)]

    stayed = (after == before[kept])[before[kept] == 2]
    assert stayed.mean() >= 0.99
    assert (after == before[kept]).all()


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=40), key=st.integers(0, 2**63 - 1))
def test_groups_are_whole_and_no_client_is_left_without_a_split(sizes, key):
    """However few there are: something to train on, something to be judged on, at most twice the share of the test."""
    names = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]

    found = parts_of(names, key)

    places = {name: {int(part) for part, own in zip(found, names, strict=True) if own == name} for name in names}
    assert all(len(place) == 1 for place in places.values())
    tested = sum(2 in place for place in places.values())
    assert 1 <= tested <= max(1, len(sizes) // 2)
    assert sum(0 in place for place in places.values()) >= 1


def test_shares_are_about_those_that_are_asked_for():
    """Of many units; the key decides which."""
    names = [str(number) for number in range(4000)]

    one, other = parts_of(names, 1), parts_of(names, 2)

    assert np.mean(one == 2) == pytest.approx(0.25, abs=0.025)
    assert np.mean(one[one != 2] == 1) == pytest.approx(0.15, abs=0.025)
    assert np.mean((one == 2) & (other == 2)) == pytest.approx(1 / 16, abs=0.02)


def test_a_larger_fraction_takes_in_who_was_there():
    """So that a study with a larger test goes on with the same."""
    names = [str(number) for number in range(300)]

    small, large = parts_of(names, test=0.1), parts_of(names, test=0.4)

    assert set(np.flatnonzero(small == 2)) < set(np.flatnonzero(large == 2))


def test_a_rare_class_is_in_each_split_of_a_large_client():
    """Where a correction moves at most one unit in a hundred."""
    names, classes = [str(number) for number in range(3000)], np.arange(3000) < 6

    splits = [parts_of(names, key, classes=classes.astype(np.int64))[:6] for key in range(40)]

    assert all({0, 2} <= set(rare.tolist()) for rare in splits)
    assert any(2 not in parts_of(names, key)[:6] for key in range(40))
