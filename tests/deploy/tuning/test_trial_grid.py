"""A trial's nodes on those of connected clients: what is told to whom, and what becomes of a client that is gone."""

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.common.data.as_new import Part
from nufed.common.errors import RunError
from nufed.common.wire import CONFIG, HELD_OUT, ClientDescription
from nufed.deploy.tuning.trial_grid import TrialGrid, TrialNode
from nufed.strategy.members import Roster

LOST, RAISED = 5, 2


class Network:
    """Connected clients, by node; `answers` says how each next message to a client ends: an error's number, or None."""

    def __init__(self, nodes, answers=None, silent=()):
        self.nodes, self.answers, self.silent = dict(nodes), dict(answers or {}), set(silent)
        self.run, self.asked, self.comes_back = None, [], {}

    def node_set(self):
        return frozenset(self.nodes)

    def get_node_ids(self):
        return sorted(self.nodes)

    def wait_for_nodes(self, count, timeout):
        self.nodes |= self.comes_back
        return True

    def admitted_name(self, node_id):
        return self.nodes[node_id]

    def turn_away(self, node_id, reason):
        return True

    def stream_replies(self, messages, *, timeout=None):
        messages = list(messages)
        nodes = [message.metadata.dst_node_id for message in messages]
        assert len(set(nodes)) == len(nodes)
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{len(self.asked)}-{node}"
            if message.metadata.message_type == MessageType.QUERY:
                said = ClientDescription(self.nodes[node], "participating", 9, 3, 2).to_records()
                yield Message(said, reply_to=message)
                continue
            name, told = self.nodes.get(node, ""), message.content.config_records[CONFIG]
            self.asked.append((name, node, list(told.get(HELD_OUT, []))))
            code = self.answers.get(name, []).pop(0) if self.answers.get(name) else None
            if code == LOST and self.comes_back:
                del self.nodes[node]
            if name not in self.silent:
                yield Message(Error(code, "why"), reply_to=message) if code else Message(RecordDict(), reply_to=message)


def trial(network, nodes, patience=0.0):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    roster = Roster()
    roster.refresh(network)
    return TrialGrid(network, roster, nodes, patience)


def ask(grid, nodes):
    messages = [Message(RecordDict({CONFIG: ConfigRecord()}), node, "evaluate", group_id="1") for node in nodes]
    replies = list(grid.stream_replies(messages, timeout=9))
    sent = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return [(sent[reply.metadata.reply_to_message_id], reply) for reply in replies]


def test_each_part_of_a_held_out_client_is_a_node_and_is_asked_about_one_after_another():
    network = Network({1: "anna", 2: "ben"})
    grid = trial(network, [TrialNode("anna"), TrialNode("ben", Part(1, 2)), TrialNode("ben", Part(2, 2))])
    nodes = grid.get_node_ids()

    replies = ask(grid, nodes)

    assert sorted(node for node, _ in replies) == nodes == sorted(grid.node_set())
    assert all(reply.metadata.src_node_id == node for node, reply in replies)
    assert network.asked == [("anna", 1, []), ("ben", 2, [1, 2]), ("ben", 2, [2, 2])]
    assert [grid.admitted_name(node) for node in nodes] == ["anna", "ben (1 of 2)", "ben (2 of 2)"]


def test_a_client_that_is_lost_is_waited_for_and_asked_again_where_it_is_then():
    network = Network({1: "anna", 2: "ben"}, {"ben": [LOST]})
    grid = trial(network, [TrialNode("anna"), TrialNode("ben", Part(1, 1))], patience=60)
    network.comes_back = {9: "ben"}

    replies = ask(grid, grid.get_node_ids())

    assert [reply.has_error() for _, reply in replies] == [False, False]
    assert network.asked == [("anna", 1, []), ("ben", 2, [1, 1]), ("ben", 9, [1, 1])]


def test_what_a_clients_own_app_raises_is_its_answer():
    network = Network({1: "anna"}, {"anna": [RAISED]})
    grid = trial(network, [TrialNode("anna")])

    ((_, reply),) = ask(grid, grid.get_node_ids())

    assert reply.error.code == RAISED
    assert len(network.asked) == 1


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Network({1: "anna"}, {"anna": [LOST] * 9}), "lost 3 times over the same message"),
        (Network({1: "anna"}, silent=["anna"]), "within 9 s (federation.round-timeout)"),
    ],
)
def test_a_client_that_never_answers_ends_the_search_and_is_named(network, words):
    grid = trial(network, [TrialNode("anna")])

    with pytest.raises(RunError) as caught:
        ask(grid, grid.get_node_ids())

    assert "client 'anna'" in str(caught.value)
    assert words in str(caught.value)


def test_a_client_that_stays_away_ends_the_search_and_is_named():
    network = Network({1: "anna", 2: "ben"}, {"ben": [LOST]})
    grid = trial(network, [TrialNode("anna"), TrialNode("ben")])
    network.comes_back = {1: "anna"}

    with pytest.raises(RunError, match="Expected client ben to come back within 0 s, but it has not"):
        ask(grid, grid.get_node_ids())
