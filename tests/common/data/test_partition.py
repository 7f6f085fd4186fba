"""Claims about how rows are dealt to clients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import DataConfig
from nufed.common.data.dealt_client import SMALLEST_CLIENT, give_away
from nufed.common.data.partition import PARTITIONERS, _cut_classes, classes, dirichlet, iid
from nufed.common.errors import DataError
from nufed.common.rng import numpy_generator

LABELS = np.repeat(np.arange(10), 60)


def rng(seed=0):
    return numpy_generator(seed, "test", "partition")


def class_counts(rows):
    return np.bincount(LABELS[rows], minlength=10)


@given(
    name=st.sampled_from(sorted(PARTITIONERS)),
    num_parts=st.integers(1, 40),
    alpha=st.floats(0.2, 1e6),
    per_client=st.integers(1, 10),
    seed=st.integers(0, 2**32),
)
def test_no_row_is_dealt_twice_and_none_is_left_over(name, num_parts, alpha, per_client, seed):
    """The clients' rows are disjoint; together they are all rows of the classes that anybody holds."""
    config = DataConfig(dirichlet_alpha=alpha, classes_per_client=per_client)

    parts = PARTITIONERS[name](LABELS, num_parts, config, rng(seed))

    dealt = np.concatenate(parts.rows)
    assert len(parts.rows) == num_parts
    assert len(np.unique(dealt)) == len(dealt)
    held = np.unique(LABELS[dealt])
    assert len(dealt) == np.isin(LABELS, held).sum()
    assert len(held) == (min(10, num_parts * per_client) if name == "classes" else 10)


@given(num_parts=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_iid_parts_differ_by_one_example_at_most(num_parts, seed):
    """Equal parts, also where the division leaves a remainder."""
    sizes = [len(rows) for rows in iid(LABELS, num_parts, DataConfig(), rng(seed)).rows]

    assert max(sizes) - min(sizes) <= 1


def test_iid_parts_do_not_follow_the_order_of_the_source():
    """From a source sorted by class, every one of five clients still gets every class."""
    parts = iid(LABELS, 5, DataConfig(), rng())

    assert all((class_counts(rows) > 0).all() for rows in parts.rows)


@given(num_parts=st.integers(1, 60), per_client=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_classes_are_held_by_nearly_equally_many_clients(num_parts, per_client, seed):
    """Each client holds the number of classes asked for; holders of two classes differ by one at most."""
    config = DataConfig(classes_per_client=per_client)

    parts = classes(LABELS, num_parts, config, rng(seed))

    held = np.stack([class_counts(rows) > 0 for rows in parts.rows])
    assert (held.sum(1) == per_client).all()
    assert held.sum(0).max() - held.sum(0).min() <= 1


def test_classes_that_nobody_holds_are_noted():
    """With fewer clients than classes the examples that are left out are spoken of."""
    parts = classes(LABELS, 3, DataConfig(classes_per_client=1), rng())

    assert "7 of 10 classes are held by no client" in parts.notes[0]


def test_more_classes_than_there_are_is_refused_with_both_numbers():
    """classes-per-client cannot exceed the source's classes."""
    with pytest.raises(DataError, match=r"at most 10.* got 11"):
        classes(LABELS, 3, DataConfig(classes_per_client=11), rng())


def test_a_class_with_fewer_examples_than_holders_is_refused_by_name():
    """No client is told that it holds a class of which it has no example."""
    labels = np.array([0] * 50 + [1] * 3)

    with pytest.raises(DataError, match=r"at least 8 examples of class 1.* there are 3"):
        classes(labels, 8, DataConfig(classes_per_client=2), rng())


def test_a_small_alpha_concentrates_and_a_large_one_spreads():
    """The mean share of a client's largest class falls from most of it to about a tenth."""

    def largest_share(alpha):
        parts = dirichlet(LABELS, 10, DataConfig(dirichlet_alpha=alpha), rng())
        return np.mean([class_counts(rows).max() / len(rows) for rows in parts.rows])

    shares = [largest_share(alpha) for alpha in (0.1, 1.0, 1e4)]

    assert shares[0] > 0.5
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.12


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    """With two clients and one class the first one's share is Beta(α, α): mean 1/2, variance 1/(4(2α + 1))."""
    labels, config = np.zeros(10_000, dtype=np.int64), DataConfig(dirichlet_alpha=2.0)
    shares = [len(dirichlet(labels, 2, config, rng(seed)).rows[0]) / 10_000 for seed in range(2000)]

    mean, variance = np.mean(shares), np.var(shares)

    assert mean == pytest.approx(0.5, abs=0.02)
    assert variance == pytest.approx(1 / 20, rel=0.1)


def test_dirichlet_draws_anew_until_no_client_is_too_small_and_says_so():
    """An unlucky draw is repeated; the notes tell how often."""
    repeated = [dirichlet(LABELS, 30, DataConfig(dirichlet_alpha=0.1), rng(seed)) for seed in range(20)]

    noted = [parts for parts in repeated if parts.notes]

    assert all(min(len(rows) for rows in parts.rows) >= SMALLEST_CLIENT for parts in repeated)
    assert noted
    assert "times until no client was too small" in noted[0].notes[0]


@given(num_parts=st.integers(2, 20), alpha=st.floats(0.05, 0.5), seed=st.integers(0, 2**32))
def test_a_client_above_the_average_gets_nothing_of_later_classes(num_parts, alpha, seed):
    """Without its last class, every client has at most the average."""
    try:
        parts = dirichlet(LABELS, num_parts, DataConfig(dirichlet_alpha=alpha), rng(seed))
    except DataError:
        return

    for rows in parts.rows:
        last = LABELS[rows].max()
        assert (LABELS[rows] < last).sum() <= len(LABELS) / num_parts


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 0.01])
def test_an_alpha_that_leaves_clients_empty_is_refused_with_client_and_sizes(alpha):
    """With more clients than classes and all of a class in one place, someone has nothing."""
    with pytest.raises(DataError, match=r"at least 2 of 600 .*partition \d+ with [01]\).*raise data.dirichlet-alpha"):
        dirichlet(LABELS, 40, DataConfig(dirichlet_alpha=alpha), rng())


@pytest.mark.parametrize("name", ["dirichlet", "classes"])
def test_values_cannot_be_dealt_by_class(name):
    """Regression targets have no classes; the message offers iid."""
    with pytest.raises(DataError, match=rf"data.partition={name} deals by class.*iid"):
        PARTITIONERS[name](np.zeros((20, 1)), 2, DataConfig(), rng())


@given(num_rows=st.integers(2, 10_000), fraction=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_positive_share_gives_something_and_keeps_something(num_rows, fraction):
    """Whatever the rounding, both sides of a split have an example, and a share is within one of its exact size."""
    given_away = give_away(num_rows, fraction)

    assert 1 <= given_away <= num_rows - 1
    assert abs(given_away - fraction * num_rows) <= 1
    assert give_away(num_rows, 0.0) == 0


@pytest.mark.parametrize("counts", [[[3, 0, 2], [0, 4, 1]], [[0, 0, 5], [2, 2, 2]], [[4, 0, 1], [0, 0, 0]]])
def test_clients_have_the_rows_that_cutting_each_class_in_pieces_gives(counts):
    """Runs of earlier versions are repeated bit for bit: the rows, and the order in which a client has them."""
    labels, counts = np.array([0, 1] * 6), np.array(counts)
    generator, pieces = rng(3), [[] for _ in range(3)]
    for label, shares in enumerate(counts):
        rows = list(generator.permutation(np.flatnonzero(labels == label)))
        for piece, share in zip(pieces, shares, strict=True):
            piece += [rows.pop(0) for _ in range(share)]

    cut = _cut_classes(labels, np.arange(2), counts, rng(3))

    assert [part.tolist() for part in cut] == pieces
