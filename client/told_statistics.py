"""What a client tells of its columns before round 1, if it is allowed to."""

from collections.abc import Mapping

from nufed.client.workplace import membership
from nufed.common.config import RunConfig, Scalar
from nufed.common.data.private.load import own_statistics
from nufed.common.data.private.rows import refusal, tell_here
from nufed.common.errors import ConfigError
from nufed.common.settings import Settings
from nufed.common.statistics import SiteStatistics

ALLOWS, LEAST = "allow-statistics", "statistics-min-count"
"""Of a node's configuration: whether statistics may be told, and of how many examples everything told is made at least.
"""


def told_statistics(
    run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar], settings: Settings
) -> SiteStatistics:
    """Return the statistics that a server asks for.

    Raises:
        ConfigError: this client does not allow it, or has no table.
        DataError: its data are not what the run expects.
    """
    if not node_config.get(ALLOWS):
        raise refusal(
            ConfigError,
            "this client tells no statistics of its columns; whoever runs it may allow that with --allow-statistics",
        )
    least = node_config.get(LEAST, 0)
    config = RunConfig.parse(run_config)
    told = own_statistics(membership(node_config), config, settings, least if isinstance(least, int) else 0)
    tell_here("statistics of %d columns were told to the server", sum(count > 0 for count in told.counts))
    return told
