"""The choice of S_k, the clients that train in a round (server algorithm, line 2)."""

import heapq
import math
from collections.abc import Iterable

from nufed.common.errors import RunError
from nufed.common.privacy.noise import RandomSource
from nufed.common.rng import derive_seed, numpy_generator


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
    candidates = sorted(dict.fromkeys(client_ids))  # which is quick where they come sorted
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
    candidates = sorted(dict.fromkeys(client_ids))
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

    def of(self, client_ids: Iterable[str]) -> tuple[str, ...]:
        """Return those of one group that are asked, sorted.

        Args:
            client_ids: who could be asked; each once.
        """
        candidates = list(client_ids)
        if not 0 < self.number < len(candidates):
            return tuple(sorted(candidates))
        for client_id in candidates:
            if client_id not in self._places:
                self._places[client_id] = derive_seed(self._seed, "judge", client_id)
        return tuple(sorted(heapq.nsmallest(self.number, candidates, key=self._places.__getitem__)))
