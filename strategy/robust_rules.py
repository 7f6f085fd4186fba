"""Robust means: one model of n clients' models of which b may be anything, as functions without state.

A rule sees updates d_i = w_k^i - w_k in float64, in the order of the clients' ids. Some work coordinate by coordinate;
the others weigh whole updates, Σ c_i d_i, and need no more of them than their inner products. So no more than a block
of a model is ever there in float64, and a rule is a few lines on an m × m matrix.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.errors import DivergedError
from nufed.common.params import Params
from nufed.common.rng import torch_generator

BLOCK = 2**15
"""Coordinates of an array that are looked at together: 256 KiB in float64, of which a rule takes at most 3 n."""

_SMOOTHING = 1e-6  # of the median length of an update; Pillutla et al. 2022 call it ν
_WEISZFELD_STEPS, _CENTERED_STEPS = 200, 3

OfCoordinates = Callable[[Tensor, int], Tensor]
"""([m, P] values sorted along m, b) -> [P]."""

OfUpdates = Callable[[Tensor, int], Tensor]
"""([m, m] inner products of the updates, b) -> [m] weights c."""


@dataclass(frozen=True)
class RobustRule:
    """One way of making one update of many.

    Attributes:
        summary: one line: what it does, and its source.
        of_coordinates: the rule, where it works coordinate by coordinate.
        of_updates: the rule, where it weighs whole updates.
        least: b -> the fewest updates that it is defined on.
        needs_attackers: whether b must be said.
        mixes: whether each update is first averaged with its nearest others (`nearest_mixing`).
    """

    summary: str
    least: Callable[[int], int]
    of_coordinates: OfCoordinates | None = None
    of_updates: OfUpdates | None = None
    needs_attackers: bool = False
    mixes: bool = False


def combined(rule: RobustRule, sent: Params, replies: Sequence[Params], num_attackers: int, buckets: Tensor) -> Params:
    """Return w_{k+1}, in the types of w_k.

    Integer arrays (counters) take the coordinate-wise median of the replies under every rule, and are in no length.

    Args:
        rule: how.
        sent: w_k.
        replies: n models, in an order that does not depend on who was first; not changed.
        num_attackers: b.
        buckets: [m, n] from `draw_buckets`.

    Raises:
        DivergedError: the updates are too long for their inner products to be finite.
    """
    moved = _bound(rule, sent, replies, num_attackers, buckets)
    return {name: _array(name, before, replies, moved) for name, before in sent.items()}


def draw_buckets(num_replies: int, bucket_size: int, seed: int, round: int) -> Tensor:  # noqa: A002 - the vocabulary's word
    """Return [⌈n / s⌉, n]: the rows average s updates each, drawn without replacement (the last one what is left).

    Bucketing of Karimireddy, He and Jaggi 2022, Algorithm 1: means of s clients differ less from one another than
    clients do, so that a rule takes fewer honest ones for attackers; b attackers spoil at most b of them.

    Args:
        num_replies: n.
        bucket_size: s; 1 leaves each update alone.
        seed: the run's.
        round: k; each round has other buckets.
    """
    if bucket_size == 1:
        return torch.eye(num_replies, dtype=torch.float64)
    order = torch.randperm(num_replies, generator=torch_generator(seed, "buckets", round))
    rows = []
    for members in torch.split(order, bucket_size):
        row = torch.zeros(num_replies, dtype=torch.float64)
        row[members] = 1 / len(members)
        rows.append(row)
    return torch.stack(rows)


def nearest_mixing(products: Tensor, num_attackers: int) -> Tensor:
    """Return [m, m]: row i averages the m - b updates nearest to the i-th, itself among them; of equals the first.

    Allouah et al. 2023, Algorithm 2 (NNM): what the honest clients' mixtures differ by is what attackers can hide in,
    and it is smaller than what their updates differ by.

    Args:
        products: [m, m] inner products of the updates.
        num_attackers: b.
    """
    apart = _squared_distances(products).fill_diagonal_(-1)
    kept = len(products) - num_attackers
    nearest = apart.sort(dim=1, stable=True).indices[:, :kept]
    return torch.zeros_like(products).scatter_(1, nearest, 1 / kept)


def median(values: Tensor, _num_attackers: int) -> Tensor:
    """Return the coordinate-wise median, of an even number the mean of the middle two (Yin et al. 2018, Option I)."""
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def trimmed_mean(values: Tensor, num_attackers: int) -> Tensor:
    """Return each coordinate's mean without its b largest and b smallest values (Yin et al. 2018, Option II)."""
    return values[num_attackers : len(values) - num_attackers].mean(0)


def geometric_median(products: Tensor, _num_attackers: int) -> Tensor:
    """Return the weights of the point whose distances to all updates have the least sum.

    Smoothed Weiszfeld steps from the mean, as RFA of Pillutla, Kakade and Harchaoui 2022 (Algorithm 2). There are as
    many as it takes, since they cost m² each here, and the smoothing is relative to the median length.
    """
    count = len(products)
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    least = max(_SMOOTHING * _lower_median(products.diagonal().clamp_min(0).sqrt()), 1e-30)
    for _ in range(_WEISZFELD_STEPS):
        closeness = 1 / _distances(products, weights).clamp_min(least)
        before, weights = weights, closeness / closeness.sum()
        if (weights - before).abs().max() < 1e-12:
            break
    return weights


def krum(products: Tensor, num_attackers: int) -> Tensor:
    """Return weight 1 for the update with the least Krum score (Blanchard et al. 2017)."""
    return _of_best(products, num_attackers, 1)


def multi_krum(products: Tensor, num_attackers: int) -> Tensor:
    """Return equal weights for the m - b - 2 updates with the least Krum scores.

    The mean of several is Multi-Krum of Blanchard et al. 2017; as many as this are still resilient (Damaskinos et al.
    2019, AggregaThor).
    """
    return _of_best(products, num_attackers, len(products) - num_attackers - 2)


def norm_clipping(products: Tensor, _num_attackers: int) -> Tensor:
    """Return the weights of the mean of updates cut to their median length (Sun et al. 2019 fix a length)."""
    lengths = products.diagonal().clamp_min(0).sqrt()
    return _share_within(lengths) / len(products)


def centered_clipping(products: Tensor, _num_attackers: int) -> Tensor:
    """Return the weights of the center v after steps v + mean_i (d_i - v) min(1, radius / ‖d_i - v‖).

    Karimireddy, He and Jaggi 2021, equation (7). Theirs starts from the aggregate of the round before and has a given
    radius; this one has no memory: it starts from w_k, and the radius is the median of the distances to v.
    """
    count = len(products)
    weights = torch.zeros(count, dtype=torch.float64)
    for _ in range(_CENTERED_STEPS):
        share = _share_within(_distances(products, weights))
        weights = weights * (1 - share.mean()) + share / count
    return weights


def _majority(num_attackers: int) -> int:
    return 2 * num_attackers + 1


def _krum_least(num_attackers: int) -> int:
    return 2 * num_attackers + 3


ROBUST_RULES: dict[str, RobustRule] = {
    "median": RobustRule("coordinate-wise median (Yin et al. 2018)", _majority, of_coordinates=median),
    "trimmed-mean": RobustRule(
        "coordinate-wise mean without the b largest and smallest (Yin et al. 2018)",
        _majority,
        of_coordinates=trimmed_mean,
        needs_attackers=True,
    ),
    "geometric-median": RobustRule(
        "least sum of distances (RFA, Pillutla et al. 2022)", _majority, of_updates=geometric_median
    ),
    "nnm-geometric-median": RobustRule(
        "geometric median of updates averaged with their nearest (NNM, Allouah et al. 2023)",
        _majority,
        of_updates=geometric_median,
        needs_attackers=True,
        mixes=True,
    ),
    "krum": RobustRule(
        "the one update closest to others (Blanchard et al. 2017)", _krum_least, of_updates=krum, needs_attackers=True
    ),
    "multi-krum": RobustRule(
        "mean of the updates closest to others (Blanchard et al. 2017)",
        _krum_least,
        of_updates=multi_krum,
        needs_attackers=True,
    ),
    "centered-clipping": RobustRule(
        "mean of updates clipped around their center (Karimireddy et al. 2021)", _majority, of_updates=centered_clipping
    ),
    "norm-clipping": RobustRule(
        "mean of updates clipped to their median length (after Sun et al. 2019)", _majority, of_updates=norm_clipping
    ),
}


def _bound(
    rule: RobustRule, sent: Params, replies: Sequence[Params], num_attackers: int, buckets: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the rule on a block of this round's updates, [n, P] -> [P]."""
    rows, is_averaged = buckets, rule.mixes or len(buckets) < len(replies)
    if rule.of_updates or rule.mixes:
        products = _inner_products(sent, replies)
        if rule.mixes:
            rows = nearest_mixing(rows @ products @ rows.T, num_attackers) @ rows
        if rule.of_updates:
            weights = rows.T @ rule.of_updates(rows @ products @ rows.T, num_attackers)
            return lambda updates: weights @ updates
    of_coordinates = rule.of_coordinates or median
    return lambda updates: of_coordinates((rows @ updates if is_averaged else updates).sort(0).values, num_attackers)


def _array(name: str, before: Tensor, replies: Sequence[Params], moved: Callable[[Tensor], Tensor]) -> Tensor:
    """Return one array of w_{k+1}."""
    made = torch.empty(before.numel(), dtype=before.dtype)
    if before.is_floating_point():
        for place, start, updates in _blocks(name, before, replies):
            made[place] = (start + moved(updates)).to(before.dtype)
    else:
        for place, values in _stacked(name, replies, torch.int64):  # float64 holds no large ones exactly
            made[place] = _integer_median(values).to(before.dtype)
    return made.reshape(before.shape)


def _inner_products(sent: Params, replies: Sequence[Params]) -> Tensor:
    products = torch.zeros(len(replies), len(replies), dtype=torch.float64)
    for name, before in sent.items():
        if before.is_floating_point():
            for _, _, updates in _blocks(name, before, replies):
                products += updates @ updates.T
    if not math.isfinite(products.abs().sum().item()):
        raise DivergedError(
            "Expected updates of clients whose inner products are finite, but they are too long. Lower --local-lr."
        )
    return products


def _blocks(name: str, before: Tensor, replies: Sequence[Params]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (place, w_k there, the updates there [n, P]) in float64, for one array; see `_stacked`."""
    flat = before.reshape(-1)
    for place, values in _stacked(name, replies, torch.float64):
        start = flat[place].double()
        yield place, start, values.sub_(start)


def _stacked(name: str, replies: Sequence[Params], dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (place, the replies there [n, P]) for one array; they are overwritten by the next ones."""
    flats = [reply[name].reshape(-1) for reply in replies]
    size = flats[0].numel()
    scratch = torch.empty(len(flats), min(BLOCK, size), dtype=dtype)
    for begin in range(0, size, BLOCK):
        place = slice(begin, begin + BLOCK)
        values = scratch[:, : min(BLOCK, size - begin)]
        for row, flat in zip(values, flats, strict=True):
            row.copy_(flat[place])
        yield place, values


def _integer_median(values: Tensor) -> Tensor:
    """Return the median of [n, P] integers; half way between the middle two of an even number, rounded to even."""
    ordered, middle = values.sort(0).values, len(values) // 2
    if len(values) % 2:
        return ordered[middle]
    apart = ordered[middle] - ordered[middle - 1]
    below = ordered[middle - 1] + apart // 2
    return below + (apart & below & 1)


def _distances(products: Tensor, weights: Tensor) -> Tensor:
    """Return ‖d_i - Σ c_j d_j‖ for each i."""
    toward = products @ weights
    return (products.diagonal() - 2 * toward + weights @ toward).clamp_min(0).sqrt()


def _squared_distances(products: Tensor) -> Tensor:
    """Return [m, m]: ‖d_i - d_j‖²."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)


def _lower_median(values: Tensor) -> float:
    return values.sort().values[(len(values) - 1) // 2].item()


def _share_within(lengths: Tensor) -> Tensor:
    """Return what to multiply vectors of these lengths by, so that none is longer than the median one."""
    radius = _lower_median(lengths)
    return torch.where(lengths <= radius, 1.0, radius / lengths.clamp_min(1e-300))


def _of_best(products: Tensor, num_attackers: int, number: int) -> Tensor:
    """Return equal weights for the updates with the least sums of squared distances to their m - b - 2 nearest others.

    Of equal scores the first counts.
    """
    count = len(products)
    apart = _squared_distances(products).fill_diagonal_(math.inf)
    scores = apart.sort(1).values[:, : count - num_attackers - 2].sum(1)
    best = scores.sort(stable=True).indices[:number]
    return torch.zeros(count, dtype=torch.float64).index_fill_(0, best, 1 / number)
