"""Asks a run's clients for statistics of their columns before round 1, and shows how they differ."""

from dataclasses import replace
from typing import TYPE_CHECKING

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError

if TYPE_CHECKING:
    from nufed.deploy.network.direct_server import DirectServer
    from nufed.server.options import ServerOptions
    from nufed.server.statistics import StatisticsReport


def with_statistics(config: RunConfig, *, asked: bool) -> RunConfig:
    """Return the options of a run that was started with or without --statistics.

    Raises:
        ConfigError: the run has no columns to ask about.
    """
    from nufed.common.data.private.task import statistics_shape

    if not asked:
        return config
    try:
        statistics_shape(config.data)
    except ConfigError as error:
        raise ConfigError(f"--statistics: {error}") from error
    return config if config.data.feature_means else config.updated({"data.scale": "federated"})


def gather(
    server: "DirectServer", config: RunConfig, options: "ServerOptions", min_clients: int
) -> "tuple[RunConfig, ServerOptions]":
    """Ask the clients, and return the run's options and the server's with what came of it.

    Raises:
        RunError: too few clients came, or none told anything and the run has no means and scales without.
    """
    from nufed.server.statistics import StatisticsReport, statistics_app

    reports: list[StatisticsReport] = []
    app = statistics_app(config, min_clients=min_clients, wait=options.connect_timeout, reports=reports)
    server.run(app, config.flat())
    return scaled_by(reports[0], config, options)


def scaled_by(
    report: "StatisticsReport", config: RunConfig, options: "ServerOptions"
) -> "tuple[RunConfig, ServerOptions]":
    """Return the run's options with its means and scales, and the server's, which keep the report in its folder."""
    from nufed.deploy.commands.tables import table_lines

    header, rows = report.table()
    for line in report.lines():
        options.events.say(line)
    if report.gathered.sites:
        for line in table_lines(header, rows, width=None):
            options.events.say(line)
    return report.scaled(config), replace(options, attachments={**options.attachments, **report.files()})
