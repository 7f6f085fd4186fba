"""How the rows of one table are dealt to clients: `iid`, `dirichlet`, `classes`.

Each partitioner gets the class of every row and returns disjoint rows for every client. They are pure functions of
their arguments; why they are ours and not those of flwr-datasets is in docs/decisions/0002-partitioners.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.dealt_client import SMALLEST_CLIENT
from nufed.common.data.pool import Array, Rows
from nufed.common.errors import DataError
from nufed.common.rng import NumpyGenerator

NUM_DIRICHLET_DRAWS = 100


@dataclass(frozen=True)
class Parts:
    """The rows of each client, in partition order, and what should be said about them."""

    rows: list[Rows]
    notes: tuple[str, ...] = field(default=())


Partitioner = Callable[[Array, int, DataConfig, NumpyGenerator], Parts]


def iid(labels: Array, num_parts: int, _config: DataConfig, rng: NumpyGenerator) -> Parts:
    """Return parts of a random order of the rows, equal in size up to one."""
    return Parts(list(np.array_split(rng.permutation(len(labels)), num_parts)))


def dirichlet(labels: Array, num_parts: int, config: DataConfig, rng: NumpyGenerator) -> Parts:
    """Return parts whose shares of each class follow a symmetric Dirichlet distribution.

    Per class, shares ~ Dir(α, …, α) over the clients (Yurochkin et al. 2019, section 4; Hsu, Qi and Brown 2019 with
    the roles of class and client exchanged). Clients that already hold more than an average client get nothing of the
    following classes, as in flwr-datasets with `self_balancing`. Shares are drawn anew until no client has fewer than
    `SMALLEST_CLIENT` examples.
    """
    _need_classes(labels, "dirichlet")
    names, sizes = np.unique(labels, return_counts=True)
    for draw in range(NUM_DIRICHLET_DRAWS):
        counts = _dirichlet_counts(sizes, num_parts, config.dirichlet_alpha, rng)
        if counts.sum(0).min() >= SMALLEST_CLIENT:
            notes = (f"Dirichlet shares were drawn {draw + 1} times until no client was too small",) if draw else ()
            return Parts(_cut_classes(labels, names, counts, rng), notes)
    raise DataError(
        f"expected every one of {num_parts} clients to get at least {SMALLEST_CLIENT} of {len(labels)} examples, "
        f"but {NUM_DIRICHLET_DRAWS} draws with data.dirichlet-alpha={config.dirichlet_alpha:g} each left a client "
        f"with fewer (in the last one partition {int(counts.sum(0).argmin())} with {int(counts.sum(0).min())}); raise "
        "data.dirichlet-alpha, or lower data.num-clients or data.num-new-clients"
    )


def _dirichlet_counts(sizes: Array, num_parts: int, alpha: float, rng: NumpyGenerator) -> Array:
    """Return how many examples of each class [C] each client gets, [C, num_parts]."""
    average = sizes.sum() / num_parts
    counts = np.zeros((len(sizes), num_parts), dtype=np.int64)
    for row, size in enumerate(sizes):
        open_parts = np.flatnonzero(counts.sum(0) <= average)
        # Shares of a subset of a Dirichlet vector, renormalized, are Dirichlet again: draw for the open clients alone.
        shares = rng.dirichlet(np.full(len(open_parts), alpha))
        bounds = np.rint(np.cumsum(shares) * size).astype(np.int64)
        bounds[-1] = size
        counts[row, open_parts] = np.diff(bounds, prepend=0)
    return counts


def classes(labels: Array, num_parts: int, config: DataConfig, rng: NumpyGenerator) -> Parts:
    """Return parts that hold `classes_per_client` classes each (McMahan et al. 2017, their pathological split).

    Clients take the least used classes, ties at random, so that the numbers of clients holding two classes differ by
    one at most and every class is used if there are enough clients; a class is divided equally among its holders.
    """
    _need_classes(labels, "classes")
    names, sizes = np.unique(labels, return_counts=True)
    if config.classes_per_client > len(names):
        raise DataError(
            f"expected data.classes-per-client of at most {len(names)}, the classes there are, but got "
            f"{config.classes_per_client}; lower it, or use data.partition=iid"
        )
    used = np.zeros(len(names), dtype=np.int64)
    held = np.zeros((len(names), num_parts), dtype=bool)
    for part in range(num_parts):
        chosen = np.lexsort((rng.random(len(names)), used))[: config.classes_per_client]
        used[chosen] += 1
        held[chosen, part] = True
    if (short := np.flatnonzero(used > sizes)).size:
        raise DataError(
            f"expected at least {used[short[0]]} examples of class {names[short[0]]}, one for each client that holds "
            f"it, but there are {sizes[short[0]]}; lower data.num-clients, data.num-new-clients or "
            "data.classes-per-client"
        )
    counts = np.zeros(held.shape, dtype=np.int64)
    for row in np.flatnonzero(used):
        counts[row, held[row]] = [len(part) for part in np.array_split(np.arange(sizes[row]), used[row])]
    unused = names[used == 0]
    few = ", ".join(str(name) for name in unused[:5]) + (", …" if len(unused) > 5 else "")
    notes = (f"{len(unused)} of {len(names)} classes are held by no client: {few}",) if len(unused) else ()
    return Parts(_cut_classes(labels, names, counts, rng), notes)


def _cut_classes(labels: Array, names: Array, counts: Array, rng: NumpyGenerator) -> list[Rows]:
    """Return each client's rows, given how many it gets of each class, `counts` [C, num_parts]."""
    dealt = [
        rng.permutation(np.flatnonzero(labels == name))[: shares.sum()]
        for name, shares in zip(names, counts, strict=True)
    ]
    owners = np.concatenate([np.repeat(np.arange(counts.shape[1]), shares) for shares in counts])
    # One sort and one cut: a piece of each class for each of 100,000 clients would be millions of arrays.
    rows = np.concatenate(dealt)[np.argsort(owners, kind="stable")]
    return np.split(rows, np.cumsum(counts.sum(0))[:-1])


def _need_classes(labels: Array, partition: str) -> None:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"data.partition={partition} deals by class, but the targets are no classes of examples; "
            "use data.partition=iid or by-user"
        )


PARTITIONERS: dict[str, Partitioner] = {"iid": iid, "dirichlet": dirichlet, "classes": classes}
