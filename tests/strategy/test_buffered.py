"""Buffered steps with clients that are slow, wrong, double or gone, on a grid that knows nothing of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nufed.common.errors import ConfigError, RunError
from nufed.common.model_arrays import params_to_arrays
from nufed.strategy import MetaFedAvg
from nufed.strategy.buffer_options import BufferOptions, rebased
from nufed.strategy.participation import choose, choose_more, num_asked
from tests.strategy.fake_grid import FakeGrid, client, error_reply, received, reply

START = {"w": torch.zeros(3)}


class LateGrid(FakeGrid):
    """Gives out each reply when it is asked for the `delay`-th time after its message was sent."""

    def __init__(self, nodes, delays):
        super().__init__(nodes)
        self.delays, self.looks = delays, {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for message_id, message in zip(ids, messages, strict=True):
            kind = message.metadata.message_type
            self.looks[message_id] = self.delays.get(message.metadata.dst_node_id, 0) if kind == "train" else 0
        return ids

    def pull_messages(self, message_ids):
        ready = []
        for message_id in message_ids:
            self.looks[message_id] -= 1
            if self.looks[message_id] < 0:
                ready.append(message_id)
        return super().pull_messages(ready)


def buffered(nodes, delays=None, *, steps=3, concurrency=2, size=2, exponent=0.5, max_staleness=9, **options):
    """Return the results of some steps, and the strategy and the grid that made them."""
    grid = LateGrid(nodes, delays or {})
    buffer = BufferOptions(size, concurrency, exponent, max_staleness)
    strategy = MetaFedAvg(mode="buffered", buffer=buffer, participation_fraction=1.0, **options)
    strategy.discover(grid, expected=len(nodes), timeout=1)
    results, params = [], START
    for k in range(1, steps + 1):
        results.append(strategy.train_round(grid, params, k, timeout=5))
        params = results[-1].params
    return results, strategy, grid


def numbered(message):
    """Move the model to where the number of the step says, whatever it was."""
    k = message.content.config_records["config"]["server-round"]
    moved = {"w": received(message)["w"] + np.float32(k)}
    return reply(message, moved, {"num-examples": 10, "loss": 1.0})


def test_a_late_update_counts_by_its_staleness_from_the_model_that_its_client_was_sent():
    """One client is two steps late: it moves w by (1 + 2)^-a of its own update, wherever w has gone meanwhile."""
    nodes = {7: client("slow", step=8.0), 8: client("b"), 9: client("c"), 10: client("d")}

    results, _, grid = buffered(nodes, {7: 3}, steps=5, concurrency=4, size=3, exponent=1.0)

    late = next(each for each in results if each.buffer.max_staleness)
    staleness, earlier = late.buffer.max_staleness, results[late.round - 2].params["w"]
    assert "slow" in late.client_metrics
    expected = earlier + (8.0 / (1 + staleness) + 1 + 1) / 3
    assert torch.allclose(late.params["w"], expected)
    rounds = [(m.metadata.dst_node_id, m.metadata.group_id) for m in grid.sent if m.metadata.message_type == "train"]
    assert len(set(rounds)) == len(rounds)  # nobody is sent one model twice


def test_weights_by_examples_divide_by_the_examples_and_the_server_step_follows():
    nodes = {7: client("a", step=1.0, num_examples=30), 8: client("b", step=3.0, num_examples=10)}

    (result,), _, _ = buffered(nodes, steps=1, weighting="examples", server_lr=0.5)

    assert torch.allclose(result.params["w"], torch.full((3,), 0.5 * (30 * 1 + 10 * 3) / 40))


def test_what_is_wrong_fills_no_buffer_and_is_counted():
    """Of five clients one diverges, one fails and one answers twice; a step has the replies that can be used."""

    def diverged(message):
        return reply(message, {"w": np.full(3, np.nan, np.float32)}, {"num-examples": 1, "loss": 1.0})

    def twice(message):
        return [numbered(message), numbered(message)]

    nodes = {
        7: client("nan", train=diverged),
        8: client("fails", train=error_reply),
        9: client("twice", train=twice),
        10: client("d"),
        11: client("e"),
    }

    results, _, _ = buffered(nodes, steps=4, concurrency=5, size=3)

    assert all(each.counts.replied == 3 for each in results)
    assert all(torch.isfinite(each.params["w"]).all() for each in results)
    assert sum(each.counts.rejected for each in results) >= 2
    assert sum(each.counts.failed for each in results) >= 2
    assert sum(each.strays for each in results) >= 2
    for each in results:
        counts = each.counts
        assert counts.sampled == counts.replied + counts.rejected + counts.failed == len(each.problems) + 3


def test_a_step_that_nobody_is_left_to_ask_for_has_fewer_replies():
    nodes = {7: client("a"), 8: client("b", train=error_reply)}

    results, _, _ = buffered(nodes, size=5, concurrency=7)

    assert [(each.counts.replied, each.counts.failed) for each in results] == [(1, 1)] * 3


def test_old_work_is_dropped_and_no_more_models_are_kept_than_may_count():
    nodes = {7: client("slow"), **{8 + i: client(f"c{i}") for i in range(4)}}

    results, strategy, grid = buffered(nodes, {7: 10_000}, steps=6, concurrency=3, size=2, max_staleness=2)

    assert next(each.dropped for each in results if each.dropped) == ("slow",)
    assert "slow" not in {name for each in results for name in each.client_metrics}
    assert all(each.buffer.models <= 3 for each in results)
    first = next(m for m in grid.sent if m.metadata.message_type == "train" and m.metadata.dst_node_id == 7)
    stray = numbered(first)
    grid._replies["late"] = [stray]
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [*grid._replies.pop("late", []), *pull(ids)]
    after = strategy.train_round(grid, results[-1].params, 7, timeout=5)
    assert after.strays == 1  # of a model that is long gone


def test_a_client_counts_once_in_a_step_so_that_b_attackers_are_b():
    """A fast attacker is among 5 of a step once, and the median is an honest client's."""
    honest = {10 + i: client(f"honest-{i}", step=1.0) for i in range(4)}
    nodes = {7: client("attacker", step=-500.0), **honest}

    results, _, _ = buffered(
        nodes, dict.fromkeys(honest, 2), steps=4, concurrency=5, size=5, aggregation="median", num_attackers=1
    )

    assert all(len(each.client_metrics) == each.counts.replied == 5 for each in results)
    assert torch.allclose(results[-1].params["w"], torch.full((3,), 4.0))
    with pytest.raises(ConfigError, match="needs 3 replies"):
        buffered(nodes, size=2, aggregation="median", num_attackers=1)


def test_concurrency_is_the_number_at_work_and_no_more_than_there_are():
    for concurrency, expected in ((1, 1), (3, 3), (50, 5)):
        nodes = {7 + i: client(f"c{i}") for i in range(5)}
        grid = LateGrid(nodes, dict.fromkeys(nodes, 2))
        strategy = MetaFedAvg(mode="buffered", buffer=BufferOptions(3, concurrency))
        strategy.discover(grid, expected=5, timeout=1)

        result = strategy.train_round(grid, START, 1, timeout=5)

        at_work = len(grid.asked("train")) - result.counts.sampled
        assert at_work == result.buffer.at_work <= expected
        assert result.counts.replied == 3


def test_a_run_in_any_server_app_is_buffered_and_flowers_own_loop_is_refused():
    grid = FakeGrid({7 + i: client(f"c{i}") for i in range(4)})
    strategy = MetaFedAvg(mode="buffered", buffer=BufferOptions(2, staleness_exponent=0), min_clients=4)

    result = strategy.start(grid, params_to_arrays(START), num_rounds=3)

    assert np.allclose(result.arrays["w"].numpy(), 3.0)
    with pytest.raises(RunError, match="asked one by one"):
        strategy.configure_train(1, params_to_arrays(START), None, grid)
    for options in (
        {"mode": "other"},
        {"buffer": BufferOptions()},
        {"mode": "buffered", "over_selection": 0.5},
        {"over_selection": -1.0},
    ):
        with pytest.raises(ConfigError):
            MetaFedAvg(**options)
    for wrong in ({"size": 0}, {"concurrency": -1}, {"staleness_exponent": float("nan")}, {"max_staleness": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            BufferOptions(**wrong)


@settings(max_examples=15)
@given(st.permutations(range(6)), st.integers(0, 5), st.sampled_from(["uniform", "examples"]))
def test_the_order_of_replies_within_a_buffer_leaves_no_trace(order, seed, weighting):
    """Whoever answers first: the same clients on the same models make the same bits."""

    def step(ranks):
        nodes = {7 + i: client(f"c{i}", step=0.1 * (i + 1) / (seed + 3), num_examples=10 + i) for i in range(6)}
        delays = {7 + i: rank for i, rank in enumerate(ranks)}
        (result,), _, _ = buffered(nodes, delays, steps=1, concurrency=6, size=6, weighting=weighting)
        return result.params["w"].numpy().tobytes()

    assert step(order) == step(range(6))


def test_rebasing_is_exact_where_nothing_is_stale_and_rounds_once_elsewhere():
    now, sent = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([4])}, {"w": torch.zeros(2), "n": torch.tensor([1])}
    its = {"w": torch.tensor([0.1, 0.7]), "n": torch.tensor([3])}

    assert rebased(its, now, now, 1.0)["w"] is its["w"]
    moved = rebased(its, sent, now, 0.5)
    assert torch.equal(moved["w"], (now["w"].double() + 0.5 * its["w"].double()).float())
    assert torch.equal(moved["n"], torch.tensor([5]))


@given(st.integers(1, 40), st.floats(0.01, 1), st.floats(0, 5), st.integers(0, 99))
def test_over_selection_asks_the_chosen_first_and_no_more_than_there_are(n, fraction, over, seed):
    names = [f"c{i:02d}" for i in range(n)]
    chosen = choose(names, fraction, seed=seed, round=3)

    count = num_asked(n, len(chosen), over)
    asked = choose_more(names, count, seed=seed, round=3)

    assert tuple(sorted(asked[: len(chosen)])) == chosen
    assert len(set(asked)) == len(asked) == count <= n
    assert num_asked(100, 10, 0.1) == num_asked(100, 10, 0.1, rounds_down=True) == 11


@given(st.integers(3, 60), st.floats(0.51, 1), st.floats(0, 1), st.floats(0.51, 1))
def test_a_secure_round_that_ends_early_has_as_many_as_its_threshold(needed, share, over, fraction):
    """Whatever is rounded: a round of 6 that asks 9 ends with 6, of whom two thirds of 9 were one more."""
    assume((1 + over) * share <= fraction)

    asked = num_asked(10_000, needed, over, rounds_down=True)

    assert math.ceil(share * asked - 1e-9) <= math.ceil(fraction * needed)


def test_a_round_ends_with_as_many_usable_replies_as_it_needs():
    """What is refused does not count, and who was not waited for is dropped, neither missing nor a problem."""

    def diverged(message):
        return reply(message, {"w": np.full(3, np.inf, np.float32)}, {"num-examples": 1, "loss": 1.0})

    never = {14: 10_000, 15: 10_000, 16: 10_000}
    nodes = {7: client("bad", train=diverged), **{8 + i: client(f"c{i}") for i in range(9)}}
    grid = LateGrid(nodes, never)
    strategy = MetaFedAvg(participation_fraction=0.5, over_selection=1.0)
    strategy.discover(grid, expected=10, timeout=1)

    result = strategy.train_round(grid, START, 1, timeout=30)

    assert len(grid.asked("train")) == 10
    assert vars(result.counts) == {
        "sampled": 10, "replied": 5, "rejected": 1, "failed": 0, "missing": 0, "dropped": 4,
    }  # fmt: skip
    assert set(result.problems) == {"bad"}
    assert len(result.dropped) == 4
