"""Buffered steps and rounds that ask more than they need, on a server with clients that are slow, die and come."""

import threading
import time

import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from nufed.common.wire import ClientDescription
from nufed.deploy.network.direct_server import DirectServer
from nufed.strategy import MetaFedAvg
from nufed.strategy.buffer_options import BufferOptions
from tests.deploy.network.loopback import LOOPBACK, added, call
from tests.deploy.network.test_fleet_identity import Started, until

START = {"w": torch.zeros(2000)}


def working(client_id, before=lambda: None):
    """A ClientApp that says who it is, trains by adding 1 after `before()`, and judges."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        return Message(ClientDescription(client_id, "participating", 3, 1, 1).to_records(), reply_to=message)

    @app.train()
    def train(message, context):
        before()
        sums = added({"arrays": message.content["arrays"]}, 1)
        sums["arrays"] = type(sums["arrays"])({"w": next(iter(sums["arrays"].values()))})
        return Message(RecordDict(sums), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": added(message.content, 0)["metrics"]}), reply_to=message)

    return app


def test_steps_go_on_while_one_client_is_slow_another_dies_and_a_third_comes():
    """The slow one's work counts steps later; evaluations between the steps wait for nobody at work."""
    release, taken = threading.Event(), threading.Event()

    def slow():
        taken.set()
        release.wait(60)

    def main(grid):
        strategy = MetaFedAvg(mode="buffered", buffer=BufferOptions(2, 4), participation_fraction=1.0)
        strategy.discover(grid, expected=4, timeout=30)
        results, params, judged = [], START, []
        for k in range(1, 13):
            if k == 4:
                until(taken.is_set)
                dying.client.stop()
            if k == 6:
                start(working("late"), "late")
            if k == 8:
                until(lambda: len(grid.get_node_ids()) >= 4)
                release.set()
            started = time.monotonic()
            results.append(strategy.train_round(grid, params, k, timeout=60))
            params = results[-1].params
            if k in (2, 7):
                judged.append(set(strategy.evaluate_round(grid, params, k, timeout=60).client_metrics))
            assert time.monotonic() - started < 30
            if k > 7:
                time.sleep(0.1)
        strategy.buffered.end()
        return results, judged, len(strategy.buffered.at_work)

    with DirectServer(LOOPBACK) as server, Started(server) as start:
        start(working("slow", slow), "slow")
        start(working("a"), "a")
        start(working("b"), "b")
        dying, _ = start(working("dying", lambda: time.sleep(0.05)), "dying")
        results, judged, at_work = call(server, main)

    assert all(each.counts.replied == 2 for each in results)
    assert all("slow" not in names for names in judged)
    arrived = next(each for each in results if "slow" in each.client_metrics)
    assert arrived.round >= 8
    assert arrived.buffer.max_staleness >= 5
    assert any("late" in each.client_metrics for each in results)
    assert not any("dying" in each.client_metrics for each in results[8:])
    assert at_work == 0


def test_a_round_that_asks_more_ends_without_the_slow_one_who_is_free_again_when_it_is_back(caplog):
    release = threading.Event()

    def main(grid):
        strategy = MetaFedAvg(participation_fraction=0.67, over_selection=0.5)
        strategy.discover(grid, expected=3, timeout=30)
        first = strategy.train_round(grid, START, 1, timeout=60)
        second = strategy.train_round(grid, START, 2, timeout=60)
        release.set()
        until(lambda: not grid.busy_nodes())
        return first, second, strategy.train_round(grid, START, 3, timeout=60)

    with DirectServer(LOOPBACK) as server, Started(server) as start:
        start(working("slow", lambda: release.wait(60)), "slow")
        start(working("a"), "a")
        start(working("b"), "b")
        first, second, third = call(server, main)

    assert (first.counts.sampled, first.counts.replied, first.dropped) == (3, 2, ("slow",))
    assert first.problems == {}
    # The slow one still works on the message of the first round; the second has as many replies all the same.
    assert (second.counts.sampled, second.counts.replied) == (2, 2)
    assert not any("still works" in record.getMessage() for record in caplog.records)
    assert (third.counts.sampled, third.counts.replied, third.counts.dropped) == (3, 2, 1)
