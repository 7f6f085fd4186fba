"""`nufed dashboard`, and `--dashboard` of the commands that run something: a page in the browser."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.errors import ConfigError
from nufed.deploy.commands.option_groups import DeclaredOptions, with_option_groups

if TYPE_CHECKING:
    from nufed.common.events import EventStream
    from nufed.deploy.dashboard.pages import Dashboard
    from nufed.deploy.dashboard.server import Address, PageServer
    from nufed.server.control import RunControl

_PANEL = "Page in the browser"
_DEFAULT_PORT = "8765"


def _on_page(text: str, *flags: str, **rest: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=_PANEL, **rest)


def register(app: typer.Typer) -> None:
    """Mount the command on the program's."""
    app.command("dashboard")(dashboard_command)


@dataclass(frozen=True)
class DashboardOptions(DeclaredOptions):
    """Whether a run is shown on a page, and where."""

    dashboard: Annotated[
        str | None,
        _on_page("show the run on a page in the browser, on this machine alone without a HOST", metavar="[HOST:]PORT"),
    ] = None
    dashboard_cert: Annotated[
        Path | None, _on_page("certificate of the page, for a HOST that others reach", metavar="FILE")
    ] = None
    dashboard_key: Annotated[Path | None, _on_page("its private key", metavar="FILE")] = None
    dashboard_insecure: Annotated[
        bool, _on_page("let others reach the page without TLS; the token is still needed", "--dashboard-insecure")
    ] = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "DashboardOptions":
        """Return the options.

        Raises:
            ConfigError: something is said of a page that is not asked for, or the address is none.
        """
        options = cls(**values)
        if options.dashboard is None and options != cls():
            raise ConfigError("Expected --dashboard [HOST:]PORT beside --dashboard-cert, -key or -insecure. Give it.")
        if options.dashboard is not None:
            options.address()
        return options

    def address(self) -> "Address":
        """Return where the page listens.

        Raises:
            ConfigError: the address is none, or open to a network without TLS.
        """
        from nufed.deploy.dashboard.server import Address

        return Address.parse(
            self.dashboard or "",
            certificate=self.dashboard_cert,
            key=self.dashboard_key,
            insecure=self.dashboard_insecure,
        )

    @contextmanager
    def shown(self, events: "EventStream", control: "RunControl", out: Path, *, resume: Path | None) -> Iterator[None]:
        """Show the run of the block, and those in `out` beside it; nothing without --dashboard.

        Args:
            events: of the run.
            control: ends the run if somebody asks for that on the page.
            out: folder of runs.
            resume: the run's folder, where it goes on.

        Raises:
            ConfigError: the certificate cannot be used.
            RunError: the address is in use, or not this machine's.
        """
        if self.dashboard is None:
            yield
            return
        from nufed.deploy.dashboard.following import FolderFollower
        from nufed.deploy.dashboard.run_view import RunView
        from nufed.deploy.dashboard.sink import DashboardSink
        from nufed.deploy.monitoring.metrics_server import exposed
        from nufed.deploy.monitoring.prometheus_metrics import kept_metrics

        view = FolderFollower(resume).refresh() if resume else RunView()
        view.status, view.ended = "waiting", None
        view.connections = lambda: events.connections()  # noqa: PLW0108 - a server puts its own one there, later
        with serving(self.address()) as page, kept_metrics(events) as registry:
            events.attach(DashboardSink(view))
            metrics = partial(exposed, registry)
            dashboard = _dashboard(page, out, live=view, stop=control.request_stop, metrics=metrics)
            page.start(dashboard)
            announce(page, dashboard)
            try:
                yield
            finally:
                events.flush(2.0)
                dashboard.settle()

    @contextmanager
    def showing(self, folder: Path) -> Iterator[None]:
        """Show the experiment in a folder while the block runs; nothing without --dashboard.

        Raises:
            ConfigError: the certificate cannot be used.
            RunError: the address is in use, or not this machine's.
        """
        if self.dashboard is None:
            yield
            return
        with serving(self.address()) as page:
            dashboard = _dashboard(page, folder)
            page.start(dashboard)
            announce(page, dashboard)
            try:
                yield
            finally:
                dashboard.settle()


@with_option_groups
def dashboard_command(
    folder: Annotated[
        Path | None,
        typer.Argument(help="folder of runs or of an experiment, or one run (default: runs)", metavar="[RUNS]"),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="where to serve the page, on this machine alone without a HOST", metavar="[HOST:]PORT")
    ] = _DEFAULT_PORT,
    cert: Annotated[Path | None, typer.Option(help="certificate, for a HOST that others reach", metavar="FILE")] = None,
    key: Annotated[Path | None, typer.Option(help="its private key", metavar="FILE")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="let others reach the page without TLS; the token is still needed")
    ] = False,
) -> None:
    """Show runs, finished and running ones, on a page in the browser, until Ctrl-C."""
    from nufed.common.settings import process_settings
    from nufed.deploy.dashboard.server import Address
    from nufed.deploy.runs.catalog import is_experiment, is_run, run_folders

    root = folder or process_settings().out
    address = Address.parse(listen, certificate=cert, key=key, insecure=insecure, prefix="--listen")
    if not (is_run(root) or is_experiment(root)):
        run_folders(root)  # says what is wrong with a folder that cannot be read
    with serving(address) as page:
        dashboard = _dashboard(page, root)
        page.start(dashboard)
        announce(page, dashboard)
        try:
            page.wait()
        except KeyboardInterrupt:
            dashboard.settle()
            typer.echo("the page is closed")


@contextmanager
def serving(address: "Address") -> Iterator["PageServer"]:
    """Take an address, and leave it at the end of the block.

    Raises:
        ConfigError: what serves pages is not installed, or the certificate cannot be used.
        RunError: the address is in use, or not this machine's.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"The page needs {error.name}, which is not installed. Install it with `pip install starlette uvicorn`."
        ) from error
    from nufed.deploy.dashboard.server import PageServer

    with PageServer(address) as page:
        yield page


def announce(page: "PageServer", dashboard: "Dashboard") -> None:
    """Say where the page is, on stderr: the address holds the token, and is for whoever started this alone."""
    if sys.stderr is not None:
        print(f"page: {page.url}#token={dashboard.access.token}", file=sys.stderr, flush=True)


def _dashboard(page: "PageServer", root: Path, **rest: Any) -> "Dashboard":
    from nufed.deploy.dashboard.pages import Dashboard
    from nufed.deploy.dashboard.shelf import Shelf

    live = rest.pop("live", None)
    return replace(Dashboard(Shelf(root, live), page.access()), **rest)
