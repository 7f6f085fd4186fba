"""A deployed client without a network: its app, called with the messages that a server sends."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.client.app import app
from nufed.common.wire import EvaluateRequest, TrainRequest


def ask(kind, run, node_config, params=None, *, final=False, shots=(), run_id=1):
    """Return the client's reply to a `query`, `train` or `evaluate` message of a run with this configuration."""
    if kind == "query":
        content = RecordDict({"config": ConfigRecord()})
    elif kind == "train":
        content = TrainRequest(params, 1).to_records()
    else:
        content = EvaluateRequest(params, 1, final, shots).to_records()
    context = Context(run_id, 7, dict(node_config), RecordDict(), run.flat())
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return app(message=Message(content, 7, kind), context=context)
