"""The split of Per-FedAvg's experiments: half of the clients hold five classes, the others two.

Fallah, Mokhtari and Ozdaglar 2020, section 5: half of the users have a images of each of the first five classes; each
of the others has a/2 images of one of the first five classes and 2a of one of the other five. Which two classes a user
of the second kind has is not known; here user u of that kind has c = u mod 5 and c' = 5 + (u + ⌊u/5⌋) mod 5, which
meets all 25 pairs once in 25 users. With an odd number of clients the second kind has one more.

The source's own test part, where it has one, is dealt by the same rule with its own a.
"""

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.dealt_client import DealtClient, client_name
from nufed.common.data.pool import Array, Pool, Rows
from nufed.common.errors import DataError
from nufed.common.rng import NumpyGenerator

NUM_CLASSES = 10
HALF = 5

# (source, whether there are new clients) -> (a, a of the test part) for the paper's 50 participating clients. New
# clients need room: on MNIST a = 140 leaves it for 12 of each kind.
_PAPER_CLIENTS = 50
_PAPER_SIZES = {
    ("mnist", False): (196, 32),
    ("mnist", True): (140, 32),
    ("cifar10", False): (68, 14),
    ("cifar10", True): (68, 14),
}


def deal_per_fedavg(pool: Pool, config: DataConfig, rng: NumpyGenerator) -> tuple[list[DealtClient], tuple[str, ...]]:
    """Return the clients, and a note that says which a was used.

    a is the paper's for its 50 clients on MNIST and CIFAR-10, or less if new clients need the room; elsewhere it is the
    largest even number that fits without repeating an image.

    Raises:
        DataError: the source has not ten classes, or too few examples for a = 2.
    """
    if pool.task.kind != "classification" or pool.task.num_outputs != NUM_CLASSES:
        raise DataError(
            f"data.partition=per-fedavg is defined for {NUM_CLASSES} classes, but {config.source} has "
            f"{pool.task.num_outputs} {'classes' if pool.task.kind == 'classification' else 'values to predict'}; "
            "use data.partition=classes or dirichlet"
        )
    shares = np.concatenate([_shares(config.num_clients, 0), _shares(config.num_new_clients, config.num_clients // 2)])
    limit, test_limit = (None, None)
    if config.num_clients == _PAPER_CLIENTS:
        limit, test_limit = _PAPER_SIZES.get((config.source, config.num_new_clients > 0), (None, None))
    rows, size = _cut(pool.train.targets, shares, limit, rng, config)
    note = f"Per-FedAvg split with a={size} images"
    names = [client_name(index, config) for index in range(len(rows))]
    if pool.test is None:
        return [DealtClient(*name, pool.train, own) for name, own in zip(names, rows, strict=True)], (note,)
    test_rows, test_size = _cut(pool.test.targets, shares, test_limit, rng, config)
    dealt_clients = [
        DealtClient(*name, pool.train, own, pool.test, own_test)
        for name, own, own_test in zip(names, rows, test_rows, strict=True)
    ]
    return dealt_clients, (f"{note}, and a={test_size} of the source's test part",)


def _shares(num_clients: int, first_pair: int) -> Array:
    """Return the examples of each class per client in units of a/2, [num_clients, 10].

    Args:
        num_clients: clients of one group; the first half is of the first kind.
        first_pair: u of the group's first client of the second kind.
    """
    shares = np.zeros((num_clients, NUM_CLASSES), dtype=np.int64)
    num_first = num_clients // 2
    shares[:num_first, :HALF] = 2
    for index in range(num_first, num_clients):
        pair = first_pair + index - num_first
        shares[index, pair % HALF] = 1
        shares[index, HALF + (pair + pair // HALF) % HALF] = 4
    return shares


def _cut(
    labels: Array, shares: Array, limit: int | None, rng: NumpyGenerator, config: DataConfig
) -> tuple[list[Rows], int]:
    """Return each client's rows and the a they were cut with."""
    sizes = np.bincount(labels, minlength=NUM_CLASSES)
    demand = shares.sum(0)
    needed = demand > 0
    half_size = int((sizes[needed] // demand[needed]).min())
    if half_size < 1:
        short = int(np.flatnonzero(sizes < demand)[0])
        raise DataError(
            f"expected at least {demand[short]} examples of class {short} for data.partition=per-fedavg with "
            f"{config.num_clients} participating and {config.num_new_clients} new clients, but {config.source} has "
            f"{sizes[short]}; lower data.num-clients or data.num-new-clients"
        )
    if limit is not None:
        half_size = min(half_size, limit // 2)
    pieces: list[list[Rows]] = [[] for _ in shares]
    for label in range(NUM_CLASSES):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in enumerate(np.split(rows, np.cumsum(half_size * shares[:, label]))[:-1]):
            pieces[client].append(piece)
    return [np.concatenate(piece) for piece in pieces], 2 * half_size
