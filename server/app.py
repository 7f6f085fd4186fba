"""The ServerApp: reads the run's configuration and conducts the run."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from nufed.common.config import RunConfig
from nufed.common.events import EventStream
from nufed.common.settings import process_settings
from nufed.server.log_observer import LogObserver
from nufed.server.observer import ObserverSink
from nufed.server.run import Run, ServerOptions


def build_server_app(options: ServerOptions | None = None) -> ServerApp:
    """Return a ServerApp that conducts one run.

    Args:
        options: where to write and whom to tell; None, as under `flwr run`, writes to the folder of the environment's
            settings, tells Flower's log, and gives clients two minutes to connect.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        config = RunConfig.parse(context.run_config)
        if options is not None:
            Run(grid, config, options).conduct()
            return
        with EventStream() as events:
            events.attach(ObserverSink(LogObserver(), "the log"), patience=None)
            defaults = ServerOptions(out=process_settings().out, events=events, connect_timeout=120.0)
            Run(grid, config, defaults).conduct()

    return server_app


app = build_server_app()
