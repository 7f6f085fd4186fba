import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from nufed.strategy.exchange import (
    CLOCK_TOLERANCE,
    Quorum,
    describe_error,
    iter_replies,
    poll,
    sender_of,
    time_to_live,
    wait_for_nodes,
)
from tests.strategy.fake_grid import FakeGrid, StreamingGrid, client, error_reply, reply, unreachable


class SlowGrid(FakeGrid):
    """Holds a node's reply back for a number of looks."""

    def __init__(self, nodes, looks):
        super().__init__(nodes)
        self.looks = looks
        self.num_looks = 0

    def pull_messages(self, message_ids):
        self.num_looks += 1
        by_id = {m.metadata.message_id: m.metadata.dst_node_id for m in self.sent}
        return super().pull_messages([i for i in message_ids if self.looks.get(by_id[i], 1) <= self.num_looks])


@pytest.fixture(autouse=True)
def _sender():
    """Give messages a sender, as a server does before any are made."""
    FakeGrid({})


def query(node_id, group_id="0"):
    return Message(RecordDict({"config": ConfigRecord()}), node_id, "query", group_id=group_id)


def nodes(*ids):
    return {node_id: client(f"client-{node_id}") for node_id in ids}


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
def test_every_reply_comes_with_its_node(grid_class):
    grid = grid_class(nodes(7, 8, 9), order=lambda items: items[::-1])

    found = list(iter_replies(grid, [query(7), query(8), query(9)], timeout=5))

    assert [node for node, _ in found] == [9, 8, 7]
    assert all(answer.metadata.src_node_id == node for node, answer in found)


def test_replies_are_yielded_as_they_arrive_and_looked_for_until_all_are_in():
    grid = SlowGrid(nodes(7, 8, 9), {7: 3, 9: 2})
    seen = []

    for node, _ in iter_replies(grid, [query(7), query(8), query(9)], timeout=5):
        seen.append((node, grid.num_looks))

    assert seen == [(8, 1), (9, 2), (7, 3)]
    assert grid.num_looks == 3


def test_what_has_not_come_by_the_deadline_is_given_up():
    grid = FakeGrid({7: client("a"), 8: lambda message: None})

    found = list(iter_replies(grid, [query(7), query(8)], timeout=0.05))

    assert [node for node, _ in found] == [7]


def test_a_grid_that_streams_is_not_polled():
    class NoPolling(StreamingGrid):
        def stream_replies(self, messages, timeout=None):
            assert timeout == 3
            ids = FakeGrid.push_messages(self, messages)
            return iter(FakeGrid.pull_messages(self, ids))

        def push_messages(self, messages):
            raise AssertionError

    found = list(iter_replies(NoPolling(nodes(7)), [query(7)], timeout=3))

    assert [node for node, _ in found] == [7]


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
def test_nothing_is_sent_when_there_is_nothing_to_send(grid_class):
    grid = grid_class({})

    assert list(iter_replies(grid, [], timeout=5)) == []


def test_messages_that_a_server_could_not_take_are_not_waited_for():
    class Full(FakeGrid):
        def push_messages(self, messages):
            return [message_id if i else None for i, message_id in enumerate(super().push_messages(messages))]

    found = list(iter_replies(Full(nodes(7, 8)), [query(7), query(8)], timeout=60))

    assert [node for node, _ in found] == [8]


def test_a_servers_own_answer_is_matched_to_the_node_it_is_about():
    grid, message = FakeGrid({}), query(7)
    grid.push_messages([message])

    assert sender_of([message])(unreachable(message)) == 7


def test_a_reply_to_a_message_sent_again_is_matched_by_its_sender():
    grid, first, again = FakeGrid(nodes(7)), query(7), query(7)
    grid.push_messages([first, again])

    assert sender_of([first])(reply(again, None, {})) == 7


@pytest.mark.parametrize("other", [(8, "0"), (7, "1")], ids=["another node", "another round"])
def test_a_reply_to_something_else_has_no_sender(other):
    grid = FakeGrid(nodes(7, 8))
    asked, not_asked = query(7), query(*other)
    grid.push_messages([asked, not_asked])

    assert sender_of([asked])(reply(not_asked, None, {})) is None


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
def test_waiting_for_nodes_tells_whether_they_came(grid_class):
    grid = grid_class(nodes(7, 8))

    assert wait_for_nodes(grid, 2, timeout=0)
    assert not wait_for_nodes(grid, 3, timeout=0.03)


def test_polling_ends_when_the_condition_comes_true():
    answers = iter([False, False, True])

    assert poll(lambda: next(answers), timeout=60)


def test_a_message_outlives_the_servers_patience_by_what_clocks_may_differ():
    assert time_to_live(60) == 60 + CLOCK_TOLERANCE


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("<class 'ValueError'>:<'boom'>", "error 2: <class 'ValueError'>:<'boom'>"),
        ("two\n  lines", "error 2: two lines"),
        ("", "error 2: no reason given"),
    ],
)
def test_an_error_is_described_on_one_line(reason, expected):
    assert describe_error(error_reply(query(7), reason)) == expected


def test_of_a_long_error_the_beginning_and_the_end_are_kept():
    described = describe_error(error_reply(query(7), "begins" + "\nFile x" * 500 + "\nends"))

    assert described.startswith("error 2: begins")
    assert described.endswith("ends")
    assert len(described) < 450


def test_a_node_that_answers_anothers_message_is_believed_for_neither():
    asked = [query(7), query(8)]
    FakeGrid(nodes(7, 8)).push_messages(asked)
    forged = error_reply(asked[0])
    forged.metadata.__dict__["_src_node_id"] = 8

    assert sender_of(asked)(error_reply(asked[0])) == 7
    assert sender_of(asked)(forged) is None


def test_an_error_cannot_move_the_cursor():
    described = describe_error(error_reply(query(7), "\x1b[2J\x07\u202ea\rb\u2028c\ud800" * 10_000))

    assert described.isprintable()
    assert len(described) < 3000


def test_once_enough_have_answered_the_others_are_waited_for_a_little_only():
    """An error is no answer that counts, and who comes within the grace still does."""
    grid = SlowGrid({7: error_reply, 8: client("b"), 9: client("c"), 10: lambda message: None}, {8: 2, 9: 3})
    started = time.monotonic()

    quorum, found = Quorum(1, grace=0.5), []
    for node, answer in iter_replies(grid, [query(7), query(8), query(9), query(10)], timeout=60, quorum=quorum):
        found.append(node)
        if not answer.has_error():
            quorum.note_usable()

    assert found == [7, 8, 9]
    assert time.monotonic() - started < 30
