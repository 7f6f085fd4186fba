"""What a client tells of its training beside its model."""

from nufed.client.record_cost import RecordCost
from nufed.common.config import RunConfig
from nufed.common.message_schema import MetricValue
from nufed.common.meta.local_update import LocalUpdate
from nufed.common.privacy.publishing import Publication
from nufed.common.wire import TrainReply


def train_reply(
    update: LocalUpdate, config: RunConfig, num_examples: int, seconds: float, cost: RecordCost | None = None
) -> TrainReply:
    """Return the reply that carries an update, without what the run withholds.

    How long training took is left out with the numbers of examples, which it tells of; so is ε, which follows from
    them.

    Args:
        update: the client's work.
        config: the run's options.
        num_examples: N_i, examples in the support split; 0 is sent where it is withheld.
        seconds: that the work took.
        cost: what the client's records have cost, where that is accounted here.
    """
    shown = Publication.of(config)
    losses = {"loss": update.loss, "growth": update.growth, **update.measures}
    metrics: dict[str, MetricValue] = {**losses} if shown.training_loss else {}
    metrics |= {"gradient-evaluations": update.costs.gradient_evaluations, "hvps": update.costs.hvps}
    if shown.examples:
        metrics |= {"with-replacement": int(update.with_replacement), "seconds": seconds}
        metrics |= {"epsilon": cost.epsilon} if cost else {}
    return TrainReply(update.params, num_examples if shown.examples else 0, metrics)
