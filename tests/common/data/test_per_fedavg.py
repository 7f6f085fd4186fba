"""Claims about the split of Per-FedAvg's experiments."""

import numpy as np
import pytest

from nufed.common.config import DataConfig
from nufed.common.data.per_fedavg import deal_per_fedavg
from nufed.common.data.pool import Pool, Table
from nufed.common.errors import DataError
from nufed.common.examples import TaskInfo
from nufed.common.rng import numpy_generator

TASK = TaskInfo("classification", (1,), 10, tuple("0123456789"))
# images of each digit in MNIST's training and test part
MNIST = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def pool_of(sizes, test_sizes=None):
    def table(counts):
        labels = np.repeat(np.arange(10), counts)
        return Table(np.arange(len(labels), dtype=np.float64)[:, None], labels)

    return Pool(TASK, table(sizes), test=None if test_sizes is None else table(test_sizes))


def split(pool, source, num_clients, num_new_clients):
    config = DataConfig(source=source, partition="per-fedavg", num_clients=num_clients, num_new_clients=num_new_clients)
    return deal_per_fedavg(pool, config, numpy_generator(0, "test"))


def counts(dealt, test=False):
    table, rows = (dealt.test_table, dealt.test_rows) if test else (dealt.table, dealt.rows)
    return np.bincount(table.targets[rows], minlength=10)


def test_mnist_with_the_papers_50_clients_has_the_papers_sizes():
    """Half hold 196 of each of five digits, half 98 of one of these and 392 of one other; the test likewise."""
    dealt_clients, notes = split(pool_of(MNIST, MNIST_TEST), "mnist", 50, 0)

    assert "a=196" in notes[0]
    assert "a=32" in notes[0]
    for dealt in dealt_clients[:25]:
        assert counts(dealt).tolist() == [196] * 5 + [0] * 5
        assert counts(dealt, test=True).tolist() == [32] * 5 + [0] * 5
    for dealt in dealt_clients[25:]:
        assert sorted(counts(dealt)[:5]) == [0, 0, 0, 0, 98]
        assert sorted(counts(dealt)[5:]) == [0, 0, 0, 0, 392]
        assert sorted(counts(dealt, test=True)[:5]) == [0, 0, 0, 0, 16]
        assert sorted(counts(dealt, test=True)[5:]) == [0, 0, 0, 0, 64]
        assert ((counts(dealt) > 0) == (counts(dealt, test=True) > 0)).all()


def test_the_second_kind_of_client_meets_each_pair_of_classes_once():
    """User u has c = u mod 5 and c' = 5 + (u + u // 5) mod 5: 25 users, 25 pairs."""
    dealt_clients, _ = split(pool_of(MNIST), "mnist", 50, 0)

    pairs = [tuple(np.flatnonzero(counts(dealt))) for dealt in dealt_clients[25:]]

    assert pairs[:6] == [(0, 5), (1, 6), (2, 7), (3, 8), (4, 9), (0, 6)]
    assert len(set(pairs)) == 25


def test_no_image_is_dealt_twice():
    """Neither among participating nor among new clients, in training or test part."""
    dealt_clients, _ = split(pool_of(MNIST, MNIST_TEST), "mnist", 50, 24)

    for rows in (
        np.concatenate([dealt.rows for dealt in dealt_clients]),
        np.concatenate([dealt.test_rows for dealt in dealt_clients]),
    ):
        assert len(np.unique(rows)) == len(rows)


def test_mnist_leaves_room_for_24_new_clients_of_both_kinds():
    """With new clients a is 140, and half of the new ones are of each kind."""
    dealt_clients, notes = split(pool_of(MNIST, MNIST_TEST), "mnist", 50, 24)

    kinds = ["first" if counts(dealt)[4] == counts(dealt)[0] == 140 else "second" for dealt in dealt_clients]
    assert "a=140" in notes[0]
    assert kinds == ["first"] * 25 + ["second"] * 25 + ["first"] * 12 + ["second"] * 12


def test_cifar10_has_the_papers_size():
    """5000 images a class would allow more; the paper takes 68."""
    _, notes = split(pool_of([5000] * 10, [1000] * 10), "cifar10", 50, 20)

    assert notes == ("Per-FedAvg split with a=68 images, and a=14 of the source's test part",)


@pytest.mark.parametrize(("num_clients", "num_new_clients"), [(4, 0), (7, 3), (50, 0), (20, 10)])
def test_elsewhere_a_is_the_largest_even_number_that_fits(num_clients, num_new_clients):
    """With a + 2 images some class would be short."""
    dealt_clients, notes = split(pool_of([600] * 10), "elsewhere", num_clients, num_new_clients)

    size = int(counts(dealt_clients[0])[0])
    used = sum(counts(dealt) for dealt in dealt_clients)
    assert size % 2 == 0
    assert f"a={size}" in notes[0]
    assert used.max() <= 600
    assert used.max() * (size + 2) / size > 600


def test_too_few_images_are_refused_with_class_and_numbers():
    """With 50 clients a = 2 needs 55 images of each of the first classes."""
    with pytest.raises(DataError, match=r"at least 55 examples of class 0 .*50 participating and 0 new.* has 54"):
        split(pool_of([54] * 10), "elsewhere", 50, 0)


@pytest.mark.parametrize(
    "task", [TaskInfo("classification", (1,), 62, tuple(map(str, range(62)))), TaskInfo("regression", (1,), 1)]
)
def test_another_number_of_classes_is_refused(task):
    """The rule is about ten classes."""
    with pytest.raises(DataError, match="defined for 10 classes, but elsewhere has"):
        split(Pool(task, pool_of([60] * 10).train), "elsewhere", 4, 0)
