"""Asks a run's clients for statistics of their columns before round 1, and shows how they differ."""

from dataclasses import replace
from typing import TYPE_CHECKING

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.privacy.publishing import Publication

_ANSWER_TIMEOUT = 600.0
"""Seconds that clients have for reading their data."""

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

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


def _asking_app(
    config: RunConfig, options: "ServerOptions", min_clients: int
) -> "tuple[ServerApp, list[StatisticsReport]]":
    """Return a ServerApp that waits for clients and asks them, and where it leaves what came of it."""
    from flwr.serverapp import ServerApp

    from nufed.common.data.private.task import statistics_shape
    from nufed.server.statistics import StatisticsReport
    from nufed.strategy.members import Roster
    from nufed.strategy.statistics import gather_statistics

    app, reports = ServerApp(), []

    @app.main()
    def main(grid: "Grid", _context: "Context") -> None:
        roster = Roster()
        roster.discover(grid, min_clients, options.connect_timeout)
        members = roster.connected(grid, ["participating"])
        gathered = gather_statistics(grid, members, statistics_shape(config.data), _ANSWER_TIMEOUT)
        reports.append(StatisticsReport.of(gathered))

    return app, reports


def gather(
    server: "DirectServer", config: RunConfig, options: "ServerOptions", min_clients: int
) -> "tuple[RunConfig, ServerOptions]":
    """Ask the clients, and return the run's options and the server's with what came of it.

    Raises:
        RunError: too few clients came, or none told anything and the run has no means and scales without.
    """
    app, reports = _asking_app(config, options, min_clients)
    server.run(app, config.flat())
    return scaled_by(reports[0], config, options)


def scaled_by(
    report: "StatisticsReport", config: RunConfig, options: "ServerOptions"
) -> "tuple[RunConfig, ServerOptions]":
    """Return the run's options with its means and scales, and the server's, which keep the report in its folder."""
    from nufed.deploy.commands.tables import table_lines

    header, rows = report.table()
    for line in report.lines():
        options.events.say_of_clients(line)
    if report.gathered.sites:
        for line in table_lines(header, rows, width=None):
            options.events.say_of_clients(line)
    shown = Publication.of(config)
    files = report.files() if shown.participants and shown.examples else {}  # of single clients
    return report.scaled(config), replace(options, attachments={**options.attachments, **files})
