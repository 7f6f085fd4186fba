"""One round of a simulated federation, with secure aggregation or without, in which chosen clients fail at a stage."""

import torch
from flwr.app import Error, Message, RecordDict

from nufed.client.app import app as client_app
from nufed.common.config import RunConfig
from nufed.common.data import task_of_run
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import process_settings
from nufed.deploy.simulation.in_process import InProcessGrid
from nufed.deploy.simulation.simulated_grid import ClientTurn
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.secure_phase import SecureAggregation

STAGES = ("secure_identity", "secure_keys", "secure_shares", "train", "secure_confirm", "secure_unmask")
BEFORE_THE_SUM = STAGES[:4]
SMALL = {
    "data.num-clients": 7,
    "data.num-new-clients": 0,
    "federation.participation-fraction": 1.0,
    "method.num-local-steps": 1,
    "method.num-inner-steps": 1,
    "method.batch-size": 8,
    "evaluation.interval": 0,
}


def config_of(**more):
    return RunConfig().updated({**SMALL, **more})


class FailingGrid(InProcessGrid):
    """Answers with an error for the partitions in `failing`, at their stage; calls `hook` with each message before."""

    def __init__(self, config, failing=None, hook=None):
        super().__init__(client_app, num_nodes=config.data.num_clients, run_config=config.flat())
        self.failing, self.hook, self.asked = failing or {}, hook, []

    def _turns(self, messages):
        for message in messages:
            stage = message.metadata.message_type.removeprefix("query.")
            partition = message.metadata.dst_node_id - 1000
            self.asked.append((stage, partition))
            if partition in self.failing.get(stage, ()):
                reply = Message(Error(2, "the client was killed"), reply_to=message)
                yield message, ClientTurn(reply, self._states.get(message.metadata.dst_node_id, RecordDict()))
                continue
            yield from super()._turns([self.hook(message) if self.hook else message])


def initial(config):
    return model_params(build_model(config.model, task_of_run(config, process_settings()), seed=config.seed))


def strategy_of(config, secure):
    how = SecureAggregation(config.privacy.secure_threshold, config.privacy.secure_neighbours) if secure else None
    return MetaFedAvg(
        seed=config.seed,
        participation_fraction=1.0,
        weighting=config.federation.weighting,
        secure=how,
        server_lr=config.federation.server_lr,
    )


def one_round(config, *, secure, failing=None, hook=None, number=1, strategy=None):
    """Return a round's result; `failing` is stage -> partitions."""
    config = config.updated({"privacy.secure-aggregation": secure})
    grid = FailingGrid(config, failing, hook)
    strategy = strategy or strategy_of(config, secure)
    strategy.discover(grid, expected=config.data.num_clients, timeout=5)
    return strategy.train_round(grid, initial(config), number, timeout=60)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
