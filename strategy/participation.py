"""The choice of S_k, the clients that train in a round (server algorithm, line 2)."""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from nufed.common.errors import RunError
from nufed.common.privacy.noise import RandomSource
from nufed.common.rng import derive_seed, numpy_generator
from nufed.strategy.known_clients import ConnectedMembers


def num_chosen(num_clients: int, fraction: float) -> int:
    """Return m = max(1, round(r n)), halves rounded to even; 0 if there are no clients.

    Raises:
        RunError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise RunError(f"Expected a participation fraction in (0, 1], got {fraction!r}. 1 asks every client.")
    return max(1, round(fraction * num_clients)) if num_clients else 0


def choose(
    client_ids: Iterable[str],
    fraction: float,
    *,
    seed: int,
    round: int,  # noqa: A002 - the vocabulary's word
) -> tuple[str, ...]:
    """Return m clients chosen uniformly without replacement, sorted.

    The choice depends on the set of clients, the seed and the round (stream `seed, "sample", k`), and not on the order
    in which the clients come, on the rounds before, nor on who answered in them. So a resumed run chooses alike.

    Args:
        client_ids: stable ids of the n clients to choose from; repeated ones count once.
        fraction: r in (0, 1].
        seed: the run's seed.
        round: k.

    Raises:
        RunError: the fraction is not in (0, 1].
    """
    candidates = _in_order(client_ids)
    drawn = numpy_generator(seed, "sample", round).permutation(len(candidates))
    return tuple(sorted(candidates[index] for index in drawn[: num_chosen(len(candidates), fraction)]))


def choose_more(
    client_ids: Iterable[str],
    count: int,
    *,
    seed: int,
    round: int,  # noqa: A002 - the vocabulary's word
) -> tuple[str, ...]:
    """Return `count` clients in the order in which they were drawn; the first m are those of `choose`.

    Args:
        client_ids: as in `choose`.
        count: see `num_asked`.
        seed: the run's seed.
        round: k.
    """
    candidates = _in_order(client_ids)
    drawn = numpy_generator(seed, "sample", round).permutation(len(candidates))
    return tuple(candidates[index] for index in drawn[:count])


def num_asked(num_clients: int, needed: int, over_selection: float, *, rounds_down: bool = False) -> int:
    """Return min(n, ⌈(1 + o) m⌉), the clients that a round asks in order to have m replies.

    Args:
        num_clients: n.
        needed: m.
        over_selection: o.
        rounds_down: take ⌊(1 + o) m⌋, of which m are never a smaller share than 1 / (1 + o).
    """
    wanted = round((1 + over_selection) * needed, 9)  # 1.1 * 10 is 11, not a little more
    return min(num_clients, math.floor(wanted) if rounds_down else math.ceil(wanted))


def poisson_choice(
    client_ids: Iterable[str], probability: float, *, most: int, source: RandomSource
) -> tuple[str, ...]:
    """Return the clients of a private round, sorted: each is drawn with a probability on its own; nobody may be.

    Differential privacy counts on it that nobody can foresee or compute the choice: it depends on no seed.

    Args:
        client_ids: stable ids of the clients to choose from; repeated ones count once.
        probability: q in (0, 1].
        most: of more that were drawn, so many are chosen uniformly; 0 takes all.
        source: of the choice.

    Raises:
        RunError: the probability is not in (0, 1].
    """
    if not 0 < probability <= 1:
        raise RunError(f"Expected a participation probability in (0, 1], got {probability!r}. 1 asks every client.")
    candidates = sorted(set(client_ids))
    is_drawn = source.bernoulli(probability, len(candidates))
    drawn = [client_id for client_id, is_in in zip(candidates, is_drawn, strict=True) if is_in]
    if most and len(drawn) > most:
        drawn = [drawn[index] for index in source.subset(len(drawn), most)]
    return tuple(drawn)


class Remaining:
    """Holds the names of a sorted sequence but for some, and gives them out by their place; no work grows with it.

    Examples:
        >>> left = Remaining(("anna", "ben", "carl", "dora"), {"ben"})
        >>> len(left), left.pop(1), left.pop(1), len(left)
        (3, 'carl', 'dora', 1)
    """

    def __init__(self, names: Sequence[str], left_out: Iterable[str]) -> None:
        """Begin with all names but those of `left_out` that are among them."""
        self._names = names
        places = ((bisect_left(names, name), name) for name in set(left_out))
        self._out = sorted(place for place, name in places if place < len(names) and names[place] == name)

    def __len__(self) -> int:
        """Return how many are left."""
        return len(self._names) - len(self._out)

    def pop(self, index: int) -> str:
        """Take out the name at a place among those that are left, in their order, and return it."""
        place = index
        for out in self._out:
            if out > place:
                break
            place += 1
        insort(self._out, place)
        return self._names[place]


class Judges:
    """Chooses the clients that judge a run's models; holds each client's place in the order that they are taken in.

    The order follows from the seed and the client's id alone (stream `seed, "judge", client id`), so that every
    evaluation of a run asks the same clients, whose curves can be compared, and one that leaves is replaced by one
    other client.
    """

    def __init__(self, number: int, *, seed: int) -> None:
        """Choose `number` clients of each group; 0 takes all."""
        self.number = number
        self._seed = seed
        self._places: dict[str, int] = {}
        self._last: list[tuple[Sequence[str], tuple[str, ...]]] = []  # who could be asked in each group, and who is

    def of(self, client_ids: Iterable[str]) -> tuple[str, ...]:
        """Return those of one group that are asked, sorted.

        Args:
            client_ids: who could be asked; each once.
        """
        candidates = _in_order(client_ids)
        if not 0 < self.number < len(candidates):
            return tuple(candidates)
        for seen, chosen in self._last:
            if seen is candidates:
                return chosen
        for client_id in candidates:
            if client_id not in self._places:
                self._places[client_id] = derive_seed(self._seed, "judge", client_id)
        chosen = tuple(sorted(heapq.nsmallest(self.number, candidates, key=self._places.__getitem__)))
        self._last = [*self._last[-1:], (candidates, chosen)]
        return chosen


def _in_order(client_ids: Iterable[str]) -> Sequence[str]:
    """Return names sorted, each once; at no cost where that is known of them."""
    return client_ids.names if isinstance(client_ids, ConnectedMembers) else sorted(dict.fromkeys(client_ids))
