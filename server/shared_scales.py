"""Means and scales that are taken of all clients' data where these are in one place: no ε covers them."""

from nufed.common.config import RunConfig
from nufed.common.data import shared_scaling
from nufed.common.privacy.rules import check_scales
from nufed.common.settings import process_settings


def check_shared_scales(config: RunConfig) -> None:
    """Refuse what the data's source would be scaled by under differential privacy, as `input-scale=auto` asks for.

    A named source is dealt by the run's options, on the server as on each client, in a simulation and elsewhere.

    Raises:
        ConfigError: they are of all clients' data, and not published by name.
        DataError: the source is missing or malformed.
    """
    if config.privacy.dp == "none":
        return
    shared = shared_scaling(config.data, process_settings(), seed=config.seed)
    of_inputs = ["scales of inputs"] if shared.inputs else []
    of_targets = ["scales of targets"] if shared.targets and not config.data.target_means else []
    check_scales(config, of_inputs + of_targets)
