"""With weights by examples nobody is the model: what a client announces counts up to a multiple of the median."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.strategy import MetaFedAvg
from nufed.strategy.weights import weight_limit
from tests.strategy.fake_grid import FakeGrid, client, error_reply, received, reply

ZERO = {"w": torch.zeros(1)}


def round_of(sizes, *, num_rounds=1, say_so=True, **options):
    """Return the model after rounds in which client i moves it to i, and the strategy."""

    def node(index, size):
        def train(message):
            moved = {"w": np.full(1, index, np.float32)}
            return reply(message, moved, {"num-examples": size, "loss": 1.0})

        described = client(f"c{index}", num_examples=size, train=train)

        def answer(message):
            if message.metadata.message_type == "query" and not say_so:
                return error_reply(message, "<class 'ValueError'>:<'No query function registered'>")
            return described(message)

        return answer

    grid = FakeGrid({100 + i: node(i, size) for i, size in enumerate(sizes)})
    strategy = MetaFedAvg(participation_fraction=1.0, weighting="examples", **options)
    strategy.discover(grid, expected=len(sizes), timeout=1)
    results = [strategy.train_round(grid, ZERO, number, timeout=0.1) for number in range(1, num_rounds + 1)]
    return results[-1], strategy


@pytest.mark.parametrize("say_so", [True, False], ids=["announced", "told with the reply"])
@pytest.mark.parametrize("num_rounds", [1, 2])
def test_two_billion_examples_weigh_as_ten_ordinary_clients_do(say_so, num_rounds, caplog):
    largest = 2**31 - 1 if say_so else 2**20

    result, _ = round_of([10, 12, 8, largest], say_so=say_so, num_rounds=num_rounds)

    assert result.counts.replied == 4
    weights = [10, 12, 8, 100]
    assert result.params["w"].item() == pytest.approx(np.average(range(4), weights=weights), rel=1e-6)
    assert caplog.text.count("weighs as 100 do") == 1


def test_ordinary_differences_between_clients_count_in_full():
    result, _ = round_of([10, 20, 99])

    assert result.params["w"].item() == pytest.approx(np.average(range(3), weights=[10, 20, 99]), rel=1e-6)


def test_the_multiple_can_be_chosen():
    result, _ = round_of([10, 10, 1000], max_weight=2)

    assert result.params["w"].item() == pytest.approx(np.average(range(3), weights=[10, 10, 20]), rel=1e-6)


def test_what_a_client_first_tells_is_what_it_announced():
    """A client that describes itself to nobody cannot say more in a later round than in its first."""
    sizes = iter([10, 20])

    def growing(message):
        if message.metadata.message_type == "query":
            return error_reply(message, "<class 'ValueError'>:<'No query function registered'>")
        return reply(message, received(message), {"num-examples": next(sizes)})

    grid = FakeGrid({1: growing, 2: client("b")})
    strategy = MetaFedAvg(participation_fraction=1.0, weighting="examples")
    strategy.discover(grid, expected=2, timeout=1)

    results = [strategy.train_round(grid, ZERO, number, timeout=0.1) for number in (1, 2)]

    assert [result.counts.rejected for result in results] == [0, 1]
    assert "expected 1 to 10" in results[1].problems["node-1"]


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=20), st.integers(1, 2**31 - 1))
def test_one_client_can_change_the_limit_only_within_the_others_range(sizes, any_size):
    limit = weight_limit([*sizes, any_size], 10)

    assert 10 * min(sizes) <= limit <= 10 * max(sizes)


def test_clients_that_announce_nothing_do_not_lower_the_limit():
    assert weight_limit([0] * 50 + [7, 9], 10) == 70
