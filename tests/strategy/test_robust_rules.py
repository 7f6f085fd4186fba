"""Each robust rule beside its definition, written down a second time in plain NumPy over whole vectors."""

import math
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nufed.common.errors import DivergedError, RunError, WireError
from nufed.common.fixed_point import DEFAULT_MAX_GROWTH
from nufed.strategy import robust_rules
from nufed.strategy.aggregation import find_aggregation
from nufed.strategy.robust_options import RobustOptions
from nufed.strategy.robust_rules import ROBUST_RULES, draw_buckets

SHAPES = {"weight": (3, 4), "bias": (5,), "count": ()}


def model(generator, scale=1.0):
    return {
        "weight": scale * torch.randn(3, 4, generator=generator),
        "bias": scale * torch.randn(5, generator=generator),
        "count": torch.randint(0, 9, (), generator=generator),
    }


def models(number, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [model(generator, scale) for _ in range(number)]


def aggregated(rule, sent, replies, order=None, **options):
    aggregation = find_aggregation(rule)(sent, len(replies), DEFAULT_MAX_GROWTH, RobustOptions(**options))
    for number in order or range(len(replies)):
        aggregation.fold(replies[number], client_id=f"client-{number:02}")
    return aggregation.result()


def vector(params):
    return np.concatenate([params[name].double().reshape(-1).numpy() for name in ("weight", "bias")])


def by_median(updates, _b):
    return np.median(updates, axis=0)


def by_trimming(updates, b):
    return np.array([np.mean(sorted(column)[b : len(column) - b]) for column in updates.T])


def by_geometric_median(updates, _b):
    """Gradient descent on the smoothed objective, by another way than Weiszfeld's."""
    point = torch.tensor(np.median(updates, axis=0), requires_grad=True)
    fixed = torch.tensor(updates)
    optimizer = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        total = (fixed - point).norm(dim=1).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return point.detach().numpy()


def krum_order(updates, b):
    scores = []
    for i, one in enumerate(updates):
        apart = sorted(np.sum((one - other) ** 2) for j, other in enumerate(updates) if j != i)
        scores.append(sum(apart[: len(updates) - b - 2]))
    return np.argsort(scores, kind="stable")


def by_krum(updates, b):
    return updates[krum_order(updates, b)[0]]


def by_multi_krum(updates, b):
    return updates[krum_order(updates, b)[: len(updates) - b - 2]].mean(0)


def clipped(vectors):
    lengths = np.linalg.norm(vectors, axis=1)
    radius = sorted(lengths)[(len(lengths) - 1) // 2]
    return vectors * np.minimum(1, radius / lengths)[:, None]


def by_norm_clipping(updates, _b):
    return clipped(updates).mean(0)


def by_centered_clipping(updates, _b):
    center = np.zeros(updates.shape[1])
    for _ in range(3):
        center = center + clipped(updates - center).mean(0)
    return center


def by_nearest_mixing(updates, b):
    mixed = []
    for one in updates:
        nearest = np.argsort([np.sum((one - other) ** 2) for other in updates], kind="stable")
        mixed.append(updates[nearest[: len(updates) - b]].mean(0))
    return by_geometric_median(np.stack(mixed), b)


DIRECT = {
    "nnm-geometric-median": by_nearest_mixing,
    "median": by_median,
    "trimmed-mean": by_trimming,
    "geometric-median": by_geometric_median,
    "krum": by_krum,
    "multi-krum": by_multi_krum,
    "norm-clipping": by_norm_clipping,
    "centered-clipping": by_centered_clipping,
}
"""How far a rule can be from w_k when n - b updates are at most 1 long, from the proofs in the papers or the text."""


def reach(rule, count, b):
    share = b / count
    geometric = 2 * (1 - share) / (1 - 2 * share)  # Pillutla et al. 2022, section II
    return {
        "nnm-geometric-median": 3 * geometric,  # an honest mixture has attackers no further than an honest update, 2
        "median": math.sqrt(17),  # each coordinate is among the honest ones
        "trimmed-mean": math.sqrt(17),
        "geometric-median": geometric,
        "krum": 1 + 2 * math.sqrt(count - b - 2),  # a chosen one is near an honest one, or has a larger score than it
        "multi-krum": 1 + 2 * math.sqrt(count - b - 2),
        "norm-clipping": 1,
        "centered-clipping": 7,  # the radius is at most 1 + ‖v‖, three times
    }[rule]


@pytest.mark.parametrize("rule", ROBUST_RULES)
@pytest.mark.parametrize(("count", "b", "s"), [(9, 2, 1), (10, 3, 1), (15, 1, 2)])
def test_every_rule_is_what_its_definition_says(rule, count, b, s, monkeypatch):
    monkeypatch.setattr(robust_rules, "BLOCK", 5)  # so that arrays lie in several blocks
    sent, *replies = models(count + 1, seed=count)
    replies[0] = {**replies[0], "weight": replies[0]["weight"] * 30}
    start = vector(sent)
    updates = draw_buckets(count, s, 4, 2).numpy() @ np.stack([vector(reply) - start for reply in replies])

    found = aggregated(rule, sent, replies, num_attackers=b, bucket_size=s, seed=4, round=2)

    np.testing.assert_allclose(vector(found) - start, DIRECT[rule](updates, b), rtol=2e-5, atol=2e-5)
    assert found["count"] == round(float(np.median([reply["count"] for reply in replies])))
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: sent[name].dtype for name in sent}


@pytest.mark.parametrize("rule", ROBUST_RULES)
@settings(max_examples=20)
@given(st.permutations(range(9)), st.integers(0, 2**30), st.sampled_from([1, 2]))
def test_every_rule_has_the_same_bits_in_whatever_order_replies_come(rule, order, seed, s):
    sent, *replies = models(10, seed)
    options = {"num_attackers": 1, "bucket_size": s, "seed": seed}

    plain, shuffled = aggregated(rule, sent, replies, **options), aggregated(rule, sent, replies, order, **options)

    assert all(torch.equal(plain[name], shuffled[name]) for name in sent)


@pytest.mark.parametrize("rule", ROBUST_RULES)
@settings(max_examples=20)
@given(st.integers(0, 2**30), st.integers(1, 4), st.floats(-3, 2.9))
def test_attackers_move_the_result_no_further_than_the_theory_allows(rule, seed, b, magnitude):
    """Eleven clients, b of which send anything up to the limit; the honest updates are at most 1 long."""
    sent, *replies = models(12, seed, scale=0.1)
    honest = []
    for reply in replies:
        update = {name: reply[name] - sent[name] for name in ("weight", "bias")}
        length = max(1.0, float(np.linalg.norm(vector(update))))
        honest.append({**reply, **{name: sent[name] + update[name] / length for name in update}})
    generator = torch.Generator().manual_seed(seed)
    direction = {name: torch.randn(sent[name].shape, generator=generator).sign() for name in ("weight", "bias")}
    hostile = [{**sent, **{name: 10**magnitude * direction[name] for name in direction}} for _ in range(b)]

    found = aggregated(rule, sent, [*honest[: 11 - b], *hostile], num_attackers=b)

    assert np.linalg.norm(vector(found) - vector(sent)) <= reach(rule, 11, b) * (1 + 1e-5) + 1e-5


def test_the_plain_mean_has_no_such_bound():
    sent, *replies = models(12, scale=0.1)
    hostile = {**sent, "weight": torch.full((3, 4), 1000.0)}

    found = aggregated("mean", sent, [*replies[:10], hostile])

    assert np.linalg.norm(vector(found) - vector(sent)) > 100


def test_equal_replies_are_themselves_under_every_rule():
    sent, reply = models(2)

    for rule in ROBUST_RULES:
        found = aggregated(rule, sent, [reply] * 7, num_attackers=1)
        np.testing.assert_allclose(vector(found), vector(reply), rtol=1e-6, atol=1e-6)
        unmoved = aggregated(rule, sent, [sent] * 7, num_attackers=1)
        np.testing.assert_array_equal(vector(unmoved), vector(sent))


@pytest.mark.parametrize("rule", ROBUST_RULES)
def test_a_single_reply_is_the_model_where_a_rule_is_defined_on_one_and_none_otherwise(rule):
    sent, reply = models(2)

    found = aggregated(rule, sent, [reply], bucket_size=2, num_attackers=1 if ROBUST_RULES[rule].needs_attackers else 0)

    if ROBUST_RULES[rule].needs_attackers:
        assert found is None
    else:
        np.testing.assert_allclose(vector(found), vector(reply), rtol=1e-6, atol=1e-6)
        assert found["count"] == reply["count"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([2**53 + 1, 2**53 + 3, 2**53 + 5], 2**53 + 3), ([2**53 + 1, 2**53 + 3], 2**53 + 2), ([4, 5], 4), ([5, 6], 6)],
)
def test_counters_have_their_exact_median(counts, expected):
    sent = {"w": torch.zeros(1), "count": torch.tensor(2**53, dtype=torch.int64)}

    found = aggregated("median", sent, [{**sent, "count": torch.tensor(c)} for c in counts])

    assert found["count"].item() == expected


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made that are still held; holds the largest number there was."""

    def __init__(self, given):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in given}
        self.held, self.now, self.peak = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                size = tensor.untyped_storage().nbytes()
                self.now += 0 if self.held[key] else size
                self.held[key] += 1
                weakref.finalize(tensor, self.drop, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def drop(self, key, size):
        self.held[key] -= 1
        self.now -= 0 if self.held[key] else size


@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("rule", ROBUST_RULES)
def test_a_rule_needs_blocks_of_memory_beside_the_replies_and_the_model_that_it_makes(rule, s, monkeypatch):
    """docs/robust-aggregation.md: n models of replies, 3 n + 3 blocks whatever the model, and the result."""
    count, block = 20, 256
    monkeypatch.setattr(robust_rules, "BLOCK", block)
    made = [{"w": torch.randn(64 * block), "count": torch.randint(9, (64 * block,))} for _ in range(count + 1)]
    sent, *replies = made
    aggregation = find_aggregation(rule)(sent, count, DEFAULT_MAX_GROWTH, RobustOptions(1, s))

    with LiveBytes([tensor for model in made for tensor in model.values()]) as folding:
        for number, reply in enumerate(replies):
            aggregation.fold(reply, client_id=f"client-{number:02}")
    held = folding.now
    with LiveBytes([tensor for model in made for tensor in model.values()]) as combining:
        result = aggregation.result()

    model = sum(tensor.nbytes for tensor in result.values())
    assert held == 0  # the replies themselves are kept, and no copy of them
    assert model < combining.peak <= model + (3 * count + 3) * block * 8 + 5 * count**2 * 8


@pytest.mark.parametrize(("count", "s"), [(7, 1), (7, 2), (7, 3), (3, 9)])
def test_buckets_hold_each_reply_once_and_average_s_of_them(count, s):
    rows = draw_buckets(count, s, 0, 1)

    assert rows.shape == (math.ceil(count / s), count)
    assert ((rows > 0).sum(0) == 1).all()
    assert (rows > 0).sum(1).max() == min(s, count)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert count < 7 or s == 1 or not torch.equal(rows, draw_buckets(count, s, 0, 2))


@pytest.mark.parametrize("rule", ROBUST_RULES)
def test_a_refused_reply_leaves_no_trace_and_a_client_replies_once(rule):
    sent, *replies = models(10)
    aggregation = find_aggregation(rule)(sent, 9, DEFAULT_MAX_GROWTH, RobustOptions(num_attackers=1))
    for number, reply in enumerate(replies):
        aggregation.fold(reply, client_id=f"client-{number:02}")

    for value in (torch.nan, 1e9):
        with pytest.raises(WireError):
            aggregation.fold({**sent, "bias": torch.full((5,), value)}, client_id="other")
    with pytest.raises(RunError, match="second one of 'client-00'"):
        aggregation.fold(replies[0], client_id="client-00")

    plain = aggregated(rule, sent, replies, num_attackers=1)
    assert all(torch.equal(aggregation.result()[name], plain[name]) for name in sent)


def test_updates_too_long_for_their_inner_products_are_said_to_be():
    sent = {"w": torch.full((2,), 1e200, dtype=torch.float64)}
    replies = [{"w": sent["w"] * k} for k in range(3)]

    with pytest.raises(DivergedError, match="inner products"):
        aggregated("geometric-median", sent, replies)
