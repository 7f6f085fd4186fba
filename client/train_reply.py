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
    """Return the reply that carries an update.

    With record-level privacy, how long training took is left out, for it tells how many examples were drawn; so is the
    loss, unless the run publishes it.

    Args:
        update: the client's work.
        config: the run's options.
        num_examples: N_i, examples in the support split.
        seconds: that the work took.
        cost: what the client's records have cost, where that is accounted here.
    """
    metrics: dict[str, MetricValue] = {
        "loss": update.loss,
        "growth": update.growth,
        "gradient-evaluations": update.costs.gradient_evaluations,
        "hvps": update.costs.hvps,
        "with-replacement": int(update.with_replacement),
        "seconds": seconds,
    }
    if config.privacy.dp == "record":
        del metrics["seconds"]
        if not Publication.of(config).training_loss:
            del metrics["loss"]
    if cost is not None:
        metrics["epsilon"] = cost.epsilon
    return TrainReply(update.params, num_examples, metrics)
