"""The strategy that a run's options describe."""

from nufed.common.config import RunConfig
from nufed.common.meta.meta_sgd import MOVED, SQUARED
from nufed.strategy.buffer_options import buffer_options
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.private_rounds import ClientPrivacy
from nufed.strategy.secure_phase import secure_aggregation
from nufed.strategy.server_step import configured_optimizer


def strategy_of_run(config: RunConfig, privacy: ClientPrivacy | None) -> MetaFedAvg:
    """Return the strategy of a run; `privacy` is client-level, and None where there is none.

    Raises:
        ConfigError: options contradict each other.
        RunError: there is a privacy ledger, and it was changed.
    """
    federation = config.federation
    return MetaFedAvg(
        seed=config.seed,
        participation_fraction=federation.participation_fraction,
        weighting=federation.weighting,
        num_judges=config.evaluation.num_clients,
        server_lr=federation.server_lr,
        server_optimizer=configured_optimizer(federation, (MOVED, SQUARED)),
        max_weight=federation.max_weight,
        aggregation=federation.aggregation,
        num_attackers=federation.num_attackers,
        bucket_size=federation.bucket_size,
        min_reply_fraction=federation.min_reply_fraction,
        reply_grace=federation.reply_grace,
        over_selection=federation.over_selection,
        mode=federation.mode,
        buffer=buffer_options(federation),
        secure=secure_aggregation(config.privacy),
        privacy=privacy,
    )
