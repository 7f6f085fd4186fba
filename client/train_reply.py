"""What a client tells of its training beside its model."""

from nufed.common.meta.local_update import LocalUpdate
from nufed.common.wire import TrainReply


def train_reply(update: LocalUpdate, num_examples: int, seconds: float) -> TrainReply:
    """Return the reply that carries an update.

    Args:
        update: the client's work.
        num_examples: N_i, examples in the support split.
        seconds: that the work took.
    """
    metrics = {
        "loss": update.loss,
        "growth": update.growth,
        "gradient-evaluations": update.costs.gradient_evaluations,
        "hvps": update.costs.hvps,
        "with-replacement": int(update.with_replacement),
        "seconds": seconds,
    }
    return TrainReply(update.params, num_examples, metrics)
