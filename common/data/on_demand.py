"""The clients of a large federation, made when they are asked for and not all kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, overload

from nufed.common.errors import DataError
from nufed.common.examples import ClientData, TaskInfo

MANY = 2000
"""Clients of a federation that are made before it starts; of a larger one, each is made when it is first asked."""

_KEPT = 1000


class ClientsOnDemand(Sequence[ClientData]):
    """A federation's clients by partition id; holds those that were asked for last."""

    def __init__(self, num_total: int, make_client: Callable[[int], ClientData]) -> None:
        """Offer `num_total` clients, each made by `make_client` of its partition id."""
        self._num_total = num_total
        self._make_client = make_client
        self._made = lru_cache(maxsize=_KEPT)(make_client)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes the same clients elsewhere, none of which is made yet."""
        return ClientsOnDemand, (self._num_total, self._make_client)

    def __len__(self) -> int:
        """Return how many clients there are."""
        return self._num_total

    @overload
    def __getitem__(self, index: int) -> ClientData: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ClientData, ...]: ...

    def __getitem__(self, index: int | slice) -> ClientData | tuple[ClientData, ...]:
        """Return a client, or several.

        Raises:
            DataError: the source cannot make it.
            IndexError: there is none.
        """
        within = range(self._num_total)[index]
        return self._made(within) if isinstance(within, int) else tuple(self._made(each) for each in within)


class Population(Mapping[str, Any]):
    """Clients by name whose examples are made when they are asked for; what a `python:` source may return.

    Attributes:
        task: what all of them are for, since their examples are not looked at beforehand.

    Examples:
        >>> from nufed.common.examples import TaskInfo
        >>> task = TaskInfo("regression", (3,), 1)
        >>> people = Population(task, [f"user-{i}" for i in range(100_000)], lambda name: read_examples(name))
        >>> len(people)
        100000
    """

    def __init__(self, task: TaskInfo, names: Sequence[str], make: Callable[[str], Any]) -> None:
        """Offer clients of these names; `make` returns one's (inputs [N, ...], targets [N, ...]) or also its groups.

        Raises:
            DataError: two names are the same.
        """
        self.task = task
        self._make = make
        self._names = dict.fromkeys(names)
        if len(self._names) < len(names):
            raise DataError("expected client names that differ, but two are the same; rename one of them")

    def __getitem__(self, name: str) -> Any:
        """Return a client's examples, made anew.

        Raises:
            KeyError: there is no such client.
        """
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        """Return the names one after another."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many clients there are."""
        return len(self._names)
