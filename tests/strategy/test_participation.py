import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import ConfigError, RunError
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.participation import Judges, Remaining, choose, num_chosen
from tests.strategy.fake_grid import StreamingGrid, client

names = st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=30)
fractions = st.floats(0, 1, exclude_min=True)


@given(names, fractions, st.integers(0, 2**62), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_choice_is_a_sorted_subset_of_m_clients_whatever_their_order(clients, fraction, seed, number, shuffler):
    shuffled = clients.copy()
    shuffler.shuffle(shuffled)

    chosen = choose(clients, fraction, seed=seed, round=number)

    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(clients)
    assert len(chosen) == num_chosen(len(clients), fraction)
    assert choose(shuffled, fraction, seed=seed, round=number) == chosen


def test_every_client_and_every_pair_is_chosen_equally_often():
    clients, rounds, fraction = [f"c{i}" for i in range(8)], 4000, 3 / 8

    choices = [choose(clients, fraction, seed=3, round=number) for number in range(rounds)]

    for size, probability in ((1, 3 / 8), (2, 3 * 2 / (8 * 7))):
        counts = Counter(group for chosen in choices for group in itertools.combinations(chosen, size))
        spread = math.sqrt(rounds * probability * (1 - probability))
        assert len(counts) == math.comb(8, size)
        assert all(abs(count - rounds * probability) < 4.5 * spread for count in counts.values())


def test_the_choice_differs_between_rounds_and_between_seeds():
    clients = [f"c{i}" for i in range(20)]

    assert len({choose(clients, 0.5, seed=0, round=number) for number in range(50)}) == 50
    assert len({choose(clients, 0.5, seed=seed, round=1) for seed in range(50)}) == 50


def test_the_choice_is_the_same_on_every_machine_and_in_every_version():
    clients = [f"client-{i:03d}" for i in range(10)]

    assert choose(clients, 0.3, seed=0, round=1) == PINNED


PINNED = ("client-002", "client-005", "client-007")


@pytest.mark.parametrize(
    ("num_clients", "fraction", "expected"),
    [(10, 1.0, 10), (10, 0.01, 1), (1, 0.5, 1), (20, 0.5, 10), (5, 0.5, 2), (7, 0.5, 4), (3, 0.5, 2), (0, 0.5, 0)],
)
def test_m_is_the_rounded_share_and_at_least_one(num_clients, fraction, expected):
    assert num_chosen(num_clients, fraction) == expected


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, math.nan])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(RunError, match="fraction"):
        choose(["a"], fraction, seed=0, round=0)


class ClosingGrid(StreamingGrid):
    """Ends a phase early if told to, as a server's grid does; here it notes what it was told."""

    quorums = ()
    takes_quorum = True

    def busy_nodes(self):
        return frozenset()

    def stream_replies(self, messages, timeout=None, quorum=None):
        self.quorums = (*self.quorums, quorum)
        return super().stream_replies(messages, timeout)


@pytest.mark.parametrize(("fraction", "enough"), [(1.0, None), (0.85, 9), (0.01, 1)])
def test_a_phase_waits_for_all_or_for_the_share_that_is_enough(fraction, enough):
    grid = ClosingGrid({node: client(f"client-{node}") for node in range(10)})
    strategy = MetaFedAvg(participation_fraction=1.0, min_reply_fraction=fraction, reply_grace=7)
    strategy.discover(grid, expected=10, timeout=1)
    grid.quorums = ()

    strategy.train_round(grid, {"w": torch.zeros(1)}, 1)

    (quorum,) = grid.quorums
    if enough is None:
        assert quorum is None
    else:
        assert quorum.grace == 7
        assert (quorum.missing, quorum.room) == (enough - 10, 0)  # all have answered


@pytest.mark.parametrize("options", [{"min_reply_fraction": 0}, {"min_reply_fraction": 1.1}, {"reply_grace": -1}])
def test_shares_and_times_that_are_none_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        MetaFedAvg(**options)


@given(names, st.integers(1, 12), st.integers(0, 2**62), st.randoms(use_true_random=False))
def test_the_same_clients_judge_whatever_their_order_and_one_that_leaves_is_replaced_by_one(
    clients, number, seed, shuffler
):
    judges = Judges(number, seed=seed)
    shuffled = clients.copy()
    shuffler.shuffle(shuffled)

    asked = judges.of(clients)
    without_one = Judges(number, seed=seed).of([client_id for client_id in shuffled if client_id != asked[0]])

    assert asked == judges.of(shuffled) == tuple(sorted(set(asked)))
    assert len(asked) == min(number, len(clients))
    assert set(asked) - {asked[0]} <= set(without_one)
    assert Judges(0, seed=seed).of(shuffled) == tuple(sorted(clients))


@given(names=st.sets(st.text(max_size=3), max_size=12), left_out=st.sets(st.text(max_size=3)), data=st.data())
def test_names_are_given_out_by_their_place_among_those_that_remain(names, left_out, data):
    expected, left = sorted(names - left_out), Remaining(tuple(sorted(names)), left_out)

    while expected:
        assert len(left) == len(expected)
        index = data.draw(st.integers(0, len(expected) - 1))
        assert left.pop(index) == expected.pop(index)

    assert not left
