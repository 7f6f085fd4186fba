import logging

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from nufed.common.errors import RunError
from nufed.strategy import members
from nufed.strategy.members import Roster
from tests.strategy.fake_grid import FakeGrid, StreamingGrid, client, error_reply, reply, unreachable


class ArrivingGrid(FakeGrid):
    """Connects its nodes one after another, one for each look at them."""

    looks = 0

    def get_node_ids(self):
        self.looks += 1
        return list(self.nodes)[: self.looks]


class MovableClock:
    """Stands in for `time.monotonic` where a test wants a minute to have passed."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = MovableClock()
    monkeypatch.setattr(members, "time", clock)
    return clock


def discovered(grid, expected=None, timeout=0.2):
    roster = Roster()
    roster.discover(grid, len(grid.nodes) if expected is None else expected, timeout)
    return roster


def no_query(message):
    """Answer as Flower's ClientApp does when it has no function for queries."""
    return error_reply(message, "<class 'ValueError'>:<'No query function registered with name 'default''>")


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid, ArrivingGrid])
def test_clients_are_known_by_the_names_they_give(grid_class):
    grid = grid_class({5: client("b", num_examples=7), 9: client("a"), 6: client("z", group="new")})

    roster = discovered(grid, timeout=5)

    assert {name: member.node_id for name, member in roster.members.items()} == {"a": 9, "b": 5, "z": 6}
    assert roster.members["b"].description.num_support == 7
    assert list(roster.connected(grid, ["participating"])) == ["a", "b"]
    assert list(roster.connected(grid, ["new"])) == ["z"]


def test_one_missing_client_is_no_plural():
    with pytest.raises(RunError, match=r"Expected 1 client within 0.05 s, but 0 nodes"):
        discovered(FakeGrid({}), expected=1, timeout=0.05)


def test_a_run_does_not_start_with_too_few_clients():
    grid = FakeGrid({5: client("a"), 6: client("b")})

    with pytest.raises(RunError, match=r"Expected 3 clients within 0.05 s, but 2 nodes are connected"):
        discovered(grid, expected=3, timeout=0.05)


@pytest.mark.parametrize("grid_class", [FakeGrid, StreamingGrid])
def test_two_clients_of_one_name_are_refused_by_their_nodes(grid_class):
    grid = grid_class({5: client("a"), 6: client("b"), 7: client("a")})

    with pytest.raises(RunError, match=r"only 2 of 3 .*node 7 calls itself 'a', as node 5 does"):
        discovered(grid)


def other_query(message):
    return Message(RecordDict({"metrics": MetricRecord({"x": 1})}), reply_to=message)


@pytest.mark.parametrize("node", [no_query, other_query], ids=["no query function", "another query function"])
def test_a_client_app_that_does_not_describe_itself_takes_part_under_its_nodes_name(node, caplog):
    roster = discovered(FakeGrid({5: node, 6: client("a")}))

    member = roster.members["node-5"]
    assert member.description.group == "participating"
    assert not member.announced
    assert "takes part as node-5" in caplog.text


def broken_description(message):
    config = ConfigRecord({"client-id": "a", "group": "nwe"})
    sizes = MetricRecord({"num-support": 1, "num-validation": 1, "num-test": 1})
    return Message(RecordDict({"config": config, "metrics": sizes}), reply_to=message)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (lambda message: error_reply(message, "DataError: no such file"), "no such file"),
        (broken_description, "group is 'nwe'"),
        (lambda message: None, "did not say who it is within"),
    ],
    ids=["error", "malformed", "silence"],
)
def test_a_client_that_fails_to_say_who_it_is_stops_the_start_with_its_reason(node, reason):
    grid = FakeGrid({5: node, 6: client("a")})

    with pytest.raises(RunError, match=rf"Expected 2 clients, but only 1 of 2 .*node 5 .*{reason}"):
        discovered(grid, timeout=0.05)


def test_a_client_that_fails_to_say_who_it_is_takes_no_part_lest_it_be_a_new_one(caplog):
    grid = FakeGrid({5: error_reply, 6: client("a")})

    roster = discovered(grid, expected=1)

    assert list(roster.members) == ["a"]
    assert "Node 5 takes no part for now" in caplog.text


def test_an_empty_answer_is_no_description(caplog):
    def empty(message):
        answer = reply(message, None, {})
        answer.__dict__["_content"] = None
        return answer

    roster = discovered(FakeGrid({5: empty}))

    assert list(roster.members) == ["node-5"]


def test_a_node_that_goes_before_it_answers_is_waited_for_no_more():
    class Leaving(FakeGrid):
        def push_messages(self, messages):
            self.nodes.pop(5, None)
            return super().push_messages(messages)

    with pytest.raises(RunError, match="but 1 nodes are connected"):
        discovered(Leaving({5: unreachable, 6: client("a")}), timeout=0.05)


def test_known_nodes_are_not_asked_again():
    grid = FakeGrid({5: client("a"), 6: client("b")})
    roster = discovered(grid)

    roster.refresh(grid)

    assert grid.asked("query") == [5, 6]


def test_nodes_that_come_later_are_asked_and_only_they():
    grid = FakeGrid({5: client("a")})
    roster = discovered(grid)
    grid.nodes |= {6: client("b"), 7: client("c", group="new")}

    roster.refresh(grid)

    assert grid.asked("query") == [5, 6, 7]
    assert list(roster.connected(grid, ["participating"])) == ["a", "b"]


def test_a_client_that_comes_back_on_another_node_replaces_its_old_entry(caplog):
    caplog.set_level(logging.INFO, logger="nufed.strategy")
    grid = FakeGrid({5: client("a"), 6: client("b")})
    roster = discovered(grid)
    grid.nodes = {6: grid.nodes[6], 9: client("a", num_examples=3)}

    roster.refresh(grid)

    assert roster.members["a"].node_id == 9
    assert roster.members["a"].description.num_support == 3
    assert "Client a is back, on node 9" in caplog.text


@pytest.mark.parametrize("dead", [unreachable, lambda message: None], ids=["error", "silence"])
def test_a_client_comes_back_even_while_the_server_still_lists_its_old_node(dead, monkeypatch):
    monkeypatch.setattr(members, "QUERY_TIMEOUT", 0.05)
    grid = FakeGrid({5: client("a")})
    roster = discovered(grid)
    grid.nodes = {5: dead, 9: client("a")}

    roster.refresh(grid)

    assert roster.members["a"].node_id == 9


def test_a_second_client_of_a_name_does_not_take_it_from_a_living_one(caplog):
    grid = FakeGrid({5: client("a")})
    roster = discovered(grid)
    grid.nodes[9] = client("a")

    roster.refresh(grid)

    assert roster.members["a"].node_id == 5
    assert "calls itself 'a', as node 5 does" in caplog.text


def test_a_node_that_fails_is_asked_again_after_a_minute_then_two_then_four(clock):
    grid = FakeGrid({5: error_reply, 6: client("a")})
    roster = Roster()
    asked_at = []

    for clock.now in range(0, 600, 10):
        before = grid.asked("query").count(5)
        roster.refresh(grid, timeout=0.01)
        if grid.asked("query").count(5) > before:
            asked_at.append(clock.now)

    assert asked_at == [0, 60, 180, 420]
    assert grid.asked("query").count(6) == 1


def test_a_node_that_recovers_takes_part(clock):
    grid = FakeGrid({5: error_reply})
    roster = Roster()
    roster.refresh(grid)
    grid.nodes[5] = client("a")
    clock.now = 61

    roster.refresh(grid)

    assert list(roster.members) == ["a"]


def test_a_member_can_be_asked_anew():
    grid = FakeGrid({5: client("a", num_examples=3)})
    roster = discovered(grid)
    grid.nodes[5] = client("a", num_examples=8)

    roster.reask("a")
    roster.refresh(grid)

    assert roster.members["a"].description.num_support == 8


def test_members_whose_nodes_are_gone_are_not_connected():
    grid = FakeGrid({5: client("a"), 6: client("b")})
    roster = discovered(grid)
    del grid.nodes[5]

    assert list(roster.connected(grid, ["participating", "new"])) == ["b"]
    assert list(roster.members) == ["a", "b"]


def test_without_participants_one_is_waited_for():
    class Late(FakeGrid):
        looks = 0

        def get_node_ids(self):
            self.looks += 1
            return [7] + [5] * (self.looks > 6)

    grid = Late({5: client("a"), 7: client("z", group="new")})

    assert list(Roster().wait_for_participants(grid, timeout=20)) == ["a"]


def test_without_participants_to_the_end_the_run_stops():
    grid = FakeGrid({7: client("z", group="new")})

    with pytest.raises(RunError, match=r"at least one participating client within 0\.05 s, but 1 nodes"):
        Roster().wait_for_participants(grid, timeout=0.05)


def test_a_node_that_went_and_came_back_is_asked_again():
    grid = FakeGrid({5: client("a", num_examples=3), 6: client("b")})
    roster = discovered(grid)
    del grid.nodes[5]
    roster.refresh(grid)
    grid.nodes[5] = client("a", num_examples=8)

    roster.refresh(grid)

    assert roster.members["a"].description.num_support == 8


def test_of_two_answers_of_one_node_the_first_counts():
    """Or one node could be two clients, and count twice."""

    def twice(message):
        return [client(name)(message) for name in ("a", "b")]

    roster = discovered(FakeGrid({5: twice}))

    assert list(roster.members) == ["a"]


def test_a_node_that_takes_another_name_leaves_the_first_one():
    grid = FakeGrid({5: client("a")})
    roster = discovered(grid)
    grid.nodes[5] = client("b")

    roster.reask("a")
    roster.refresh(grid)

    assert {name: member.node_id for name, member in roster.members.items()} == {"b": 5}


def test_an_error_of_thousands_of_nodes_names_some():
    grid = FakeGrid(dict.fromkeys(range(1000, 1500), error_reply))

    with pytest.raises(RunError) as caught:
        discovered(grid, timeout=0.05)

    assert "and 480 more" in str(caught.value)
    assert len(str(caught.value)) < 5000


class ServingGrid(StreamingGrid):
    """Can turn clients away, knows their keys' names, and which of them are busy, as a server's grid does."""

    def __init__(self, nodes, names=None):
        super().__init__(nodes)
        self.names, self.turned_away, self.busy = names or {}, {}, set()

    def turn_away(self, node_id, reason):
        self.turned_away[node_id] = reason
        del self.nodes[node_id]
        return True

    def admitted_name(self, node_id):
        return self.names.get(node_id)

    def busy_nodes(self):
        return self.busy


def test_a_client_that_cannot_take_part_is_turned_away_with_its_reason_and_named_at_the_end():
    grid = ServingGrid({5: lambda message: error_reply(message, "DataError: no such file"), 6: client("a")})

    with pytest.raises(RunError, match=r"Expected 2 clients within 0.2 s, but 1 .*node 5 was turned away.*such file"):
        discovered(grid, expected=2)

    assert list(grid.turned_away) == [5]
    assert "no such file" in grid.turned_away[5]


@pytest.mark.parametrize("answer", [unreachable, lambda message: None], ids=["gone", "silent"])
def test_who_may_answer_the_next_time_is_not_turned_away(answer):
    grid = ServingGrid({5: answer, 6: client("a")})

    discovered(grid, expected=1)

    assert not grid.turned_away


def test_a_name_that_is_not_the_keys_is_turned_away_and_an_app_without_one_has_the_keys(caplog):
    grid = ServingGrid({5: client("h1"), 6: no_query, 7: client("h1")}, {5: "evil", 6: "h2", 7: "h1"})

    roster = discovered(grid, expected=2)

    assert {name: member.node_id for name, member in roster.members.items()} == {"h1": 7, "h2": 6}
    assert grid.turned_away == {5: "it calls itself 'h1', but has the key of 'evil'; a client's name is its key's"}
    assert "Client evil is turned away" in caplog.text


def test_who_still_works_on_an_earlier_message_is_left_out_unless_all_do(caplog):
    grid = ServingGrid({5: client("a"), 6: client("b")})
    roster = discovered(grid)
    members = roster.connected(grid, ["participating"])
    idle = {}

    for busy in ({5}, {5}, {5, 6}, set()):
        grid.busy = busy
        idle[len(idle)] = list(roster.idle(grid, members))

    assert list(idle.values()) == [["b"], ["b"], ["a", "b"], ["a", "b"]]
    assert caplog.text.count("Client a still works on an earlier message") == 1


def test_a_client_that_says_anew_who_it_is_keeps_its_place():
    """Else all who are connected are looked up anew, for each of a hundred thousand that is asked the first time."""
    grid = StreamingGrid({5: client("a"), 6: client("b")})
    roster = discovered(grid)

    roster.reask("a")
    roster.refresh(grid)

    assert len(grid.asked("query")) == 3
    assert list(roster.members) == ["a", "b"]


def test_the_errors_that_are_a_clients_own_are_flowers():
    assert members._CLIENTS_OWN_ERRORS == (
        ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    )
