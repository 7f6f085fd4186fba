"""The in-process engine behaves as a fleet of SuperNodes would, and repeatably."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from nufed.common.errors import DataError, RunError
from nufed.deploy.simulation.in_process import InProcessGrid, simulate_in_process
from nufed.deploy.simulation.simulated_grid import FIRST_NODE_ID, copy_records

RUN_CONFIG = {"seed": 3, "method.inner-lr": 0.1, "name": "toy", "flag": True}


def make_app(train):
    """Return a ClientApp that answers `train` messages with the function given."""
    app = ClientApp()
    app.train()(train)
    return app


def echo(message, context):
    return Message(message.content, reply_to=message)


def describe_context(message, context):
    described = {**context.node_config, "node-id": context.node_id, **context.run_config}
    return Message(RecordDict({"config": ConfigRecord(described)}), reply_to=message)


def count_turns(message, context):
    turn = context.state["turns"]["n"] + 1 if "turns" in context.state else 1
    context.state["turns"] = MetricRecord({"n": turn})
    if message.content["config"].get("fail"):
        raise RuntimeError("boom")
    return Message(RecordDict({"turns": MetricRecord({"n": turn})}), reply_to=message)


def make_grid(train=echo, num_nodes=3):
    return InProcessGrid(make_app(train), num_nodes=num_nodes, run_config=RUN_CONFIG)


def request(node_id, **config):
    records = RecordDict({"arrays": ArrayRecord([np.arange(3.0)]), "config": ConfigRecord(config)})
    return Message(records, dst_node_id=node_id, message_type="train")


def turns(reply):
    return reply.content["turns"]["n"]


def test_node_ids_and_contexts_are_the_same_in_every_run():
    """Node FIRST_NODE_ID + i holds partition i, and both apps see the run's configuration."""
    grids = [make_grid(describe_context), make_grid(describe_context)]

    contexts = [
        [dict(reply.content["config"]) for reply in grid.send_and_receive(map(request, grid.get_node_ids()))]
        for grid in grids
    ]

    assert contexts[0] == contexts[1]
    assert contexts[0] == [
        {"partition-id": i, "num-partitions": 3, "node-id": FIRST_NODE_ID + i, **RUN_CONFIG} for i in range(3)
    ]
    assert grids[0].server_context().run_config == RUN_CONFIG
    assert grids[0].run.run_id == grids[1].run.run_id


def test_another_configuration_is_another_run():
    """Caches that are keyed by run id do not mix runs."""
    first = InProcessGrid(make_app(echo), num_nodes=3, run_config={"seed": 0})
    second = InProcessGrid(make_app(echo), num_nodes=3, run_config={"seed": 1})

    assert first.run.run_id != second.run.run_id


def test_every_reply_says_which_message_it_answers():
    """Replies are matched by message id, and all ids differ."""
    grid = make_grid()
    messages = [request(node) for node in grid.get_node_ids() * 2]

    replies = grid.send_and_receive(messages)

    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in messages]
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids() * 2
    assert len({m.metadata.message_id for m in [*messages, *replies]}) == 12


def test_state_is_kept_per_node_between_messages():
    """A client finds what it kept, and nobody else's."""
    grid = make_grid(count_turns)
    first, second, _ = grid.get_node_ids()

    replies = grid.send_and_receive([request(first), request(first), request(second), request(first)])

    assert [turns(reply) for reply in replies] == [1, 2, 1, 3]


def test_state_is_rolled_back_when_the_app_raises():
    """A failed turn leaves no trace in the client's state."""
    grid = make_grid(count_turns)
    node = grid.get_node_ids()[0]

    replies = grid.send_and_receive([request(node), request(node, fail=True), request(node)])

    assert replies[1].has_error()
    assert [turns(replies[0]), turns(replies[2])] == [1, 2]


def test_state_changed_in_place_is_rolled_back_too():
    """Copies go down to the records and their lists."""

    def train(message, context):
        kept = context.state.setdefault("log", ConfigRecord({"rounds": [0]}))
        kept["rounds"].append(message.content["config"]["round"])
        if message.content["config"]["round"] == 2:
            raise RuntimeError("boom")
        return Message(RecordDict({"log": kept}), reply_to=message)

    grid = make_grid(train)
    node = grid.get_node_ids()[0]

    replies = grid.send_and_receive([request(node, round=k) for k in (1, 2, 3)])

    assert replies[2].content["log"]["rounds"] == [0, 1, 3]


def test_a_client_cannot_change_what_the_server_sent():
    """Clients that share one RecordDict each see what was sent, whatever the others do to theirs."""

    def train(message, context):
        seen = [float(message.content["config"]["x"]), float(message.content["arrays"]["0"].numpy()[1])]
        message.content["config"]["x"] = 9
        message.content["arrays"]["0"].data = Array(np.zeros(3)).data
        message.content["extra"] = MetricRecord({})
        message.metadata.group_id = "changed"
        return Message(RecordDict({"seen": MetricRecord({"seen": seen})}), reply_to=message)

    grid = make_grid(train)
    shared = RecordDict({"arrays": ArrayRecord([np.arange(3.0)]), "config": ConfigRecord({"x": 1})})
    messages = [Message(shared, node, "train", group_id="1") for node in grid.get_node_ids()]

    replies = grid.send_and_receive(messages)

    assert [reply.content["seen"]["seen"] for reply in replies] == [[1.0, 1.0]] * 3
    assert list(shared) == ["arrays", "config"]
    assert messages[0].metadata.group_id == "1"


def test_the_server_cannot_change_what_a_client_kept():
    """A reply that the client also keeps is the client's own copy."""

    def train(message, context):
        kept = context.state.setdefault("kept", MetricRecord({"x": 1}))
        return Message(RecordDict({"kept": kept}), reply_to=message)

    grid = make_grid(train)
    node = grid.get_node_ids()[0]

    grid.send_and_receive([request(node)])[0].content["kept"]["x"] = 7
    reply = grid.send_and_receive([request(node)])[0]

    assert reply.content["kept"]["x"] == 1


def test_array_contents_are_shared_not_copied():
    """Fifty clients of a large model hold its bytes once."""
    records = RecordDict({"arrays": ArrayRecord([np.zeros(1000)])})

    copied = copy_records(records)

    assert copied["arrays"]["0"] is not records["arrays"]["0"]
    assert copied["arrays"]["0"].data is records["arrays"]["0"].data


def test_an_exception_becomes_an_error_reply_and_the_others_go_on(caplog):
    """The reply names the exception as Flower's SuperNode does; its traceback is logged once per reason."""

    def train(message, context):
        if context.node_config["partition-id"] != 1:
            raise ValueError("boom in client")
        return echo(message, context)

    grid = make_grid(train)

    replies = grid.send_and_receive(map(request, grid.get_node_ids()))

    assert [reply.has_error() for reply in replies] == [True, False, True]
    assert replies[0].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[0].error.reason == "<class 'ValueError'>:<'boom in client'>"
    assert caplog.text.count("Traceback") == 1
    assert 'raise ValueError("boom in client")' in caplog.text


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (lambda message, context: None, "returned NoneType"),
        (lambda message, context: message, "no reply to its own"),
        (lambda message, context: Message(RecordDict(), reply_to=request(FIRST_NODE_ID)), "no reply to its own"),
    ],
)
def test_what_is_no_reply_to_the_message_is_an_error(train, reason):
    """A ClientApp that returns something else is answered for, by the right node."""
    grid = make_grid(train, num_nodes=1)

    [reply] = grid.send_and_receive([request(FIRST_NODE_ID)])

    assert reply.metadata.src_node_id == FIRST_NODE_ID
    assert reason in reply.error.reason


def test_a_message_of_an_unregistered_type_is_an_error():
    """A ClientApp without `evaluate` fails that message alone."""
    grid = make_grid(num_nodes=1)

    [reply] = grid.send_and_receive([Message(RecordDict(), FIRST_NODE_ID, "evaluate")])

    assert "No evaluate function registered" in reply.error.reason


def test_a_message_to_nobody_is_an_error():
    """An unknown node id is answered, not dropped and not raised."""
    grid = make_grid(num_nodes=2)

    replies = grid.send_and_receive([request(FIRST_NODE_ID + 2), request(FIRST_NODE_ID), request(0)])

    assert sorted(reply.error.code if reply.has_error() else 0 for reply in replies) == [
        0,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
    ]


def test_a_clients_own_explanation_ends_the_run():
    """A NufedError of a client reaches the caller: twenty clients with one bad option are one message."""

    def train(message, context):
        raise DataError("client-003 has no examples")

    grid = make_grid(train)

    with pytest.raises(DataError, match="client-003 has no examples"):
        grid.send_and_receive([request(FIRST_NODE_ID)])


def test_ctrl_c_passes_through():
    """An interrupt is nobody's error reply."""

    def train(message, context):
        raise KeyboardInterrupt

    grid = make_grid(train)

    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive([request(FIRST_NODE_ID)])


def test_replies_are_streamed_one_client_at_a_time():
    """The second client has not run when the first reply is there; what is not consumed is not run."""
    ran = []

    def train(message, context):
        ran.append(context.node_id)
        return echo(message, context)

    grid = make_grid(train)
    messages = [request(node) for node in grid.get_node_ids()]

    replies = grid.stream_replies(messages, timeout=1.0)
    ids_before_the_first_turn = [message.metadata.message_id for message in messages]
    first = next(replies)

    assert ran == [FIRST_NODE_ID]
    assert first.metadata.reply_to_message_id == ids_before_the_first_turn[0]
    assert all(ids_before_the_first_turn)


def test_the_grid_keeps_no_reply_alive():
    """The server that folds replies one by one holds one model."""
    grid = make_grid()
    alive = []

    for reply in grid.stream_replies([request(node) for node in grid.get_node_ids()]):
        alive.append(weakref.ref(reply.content["arrays"]))
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 1


def test_pushed_messages_are_pulled_once():
    """The two-step way of Flower's Grid works as well; a reply is given out once, an unknown id not at all."""
    grid = make_grid()
    ids = grid.push_messages(map(request, grid.get_node_ids()))

    first = grid.pull_messages([ids[1], "unknown"])
    rest = grid.pull_messages(ids)

    assert [reply.metadata.reply_to_message_id for reply in first] == [ids[1]]
    assert [reply.metadata.reply_to_message_id for reply in rest] == [ids[0], ids[2]]
    assert grid.pull_messages(ids) == []


def test_two_grids_do_not_mix_their_messages():
    """Messages belong to the grid that sends them, also if another grid was made in between."""
    first = make_grid(describe_context, num_nodes=1)
    make_grid(num_nodes=7)

    [reply] = first.send_and_receive([first.create_message(RecordDict(), "train", FIRST_NODE_ID, "1")])

    assert reply.metadata.run_id == first.run.run_id
    assert reply.metadata.group_id == "1"


def test_all_nodes_are_there_from_the_start():
    """Waiting returns at once, with the truth."""
    grid = make_grid(num_nodes=2)

    assert grid.wait_for_nodes(2, timeout=0.0)
    assert not grid.wait_for_nodes(3, timeout=0.0)
    assert [info.node_id for info in grid.get_nodes()] == grid.get_node_ids()


def test_no_client_is_refused():
    """A simulation of nobody is a mistake in the options."""
    with pytest.raises(RunError, match="at least one simulated client, got 0"):
        make_grid(num_nodes=0)


def test_a_stock_strategy_runs():
    """Flower's own FedAvg trains on this grid: one round of adding 1 everywhere adds 1."""

    def train(message, context):
        arrays = ArrayRecord([array.numpy() + 1 for array in message.content["arrays"].values()])
        metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    server_app, results = ServerApp(), []

    @server_app.main()
    def main(grid, context):
        strategy = FedAvg(fraction_evaluate=0.0)
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(2)]), num_rounds=3))
        results.append(dict(context.run_config))

    simulate_in_process(server_app, make_app(train), num_nodes=4, run_config=RUN_CONFIG)

    assert results[0].arrays["0"].numpy().tolist() == [3.0, 3.0]
    assert results[1] == RUN_CONFIG


def test_an_error_reply_made_by_the_app_is_passed_on():
    """A ClientApp may answer with an error of its own."""
    grid = make_grid(lambda message, context: Message(Error(77, "not today"), reply_to=message), num_nodes=1)

    [reply] = grid.send_and_receive([request(FIRST_NODE_ID)])

    assert (reply.error.code, reply.error.reason) == (77, "not today")
