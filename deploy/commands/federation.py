"""The commands of a real federation: `nufed server`, `nufed client` and `nufed certs`."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.events import EventStream
from nufed.common.privacy.publishing import Publication
from nufed.common.privacy.rules import check_privacy
from nufed.common.untrusted import escaped
from nufed.deploy.commands.certificates import DEFAULT_CERTIFICATES, certs
from nufed.deploy.commands.dashboard import DashboardOptions
from nufed.deploy.commands.option_groups import DeclaredOptions, MachineOptions, with_option_groups
from nufed.deploy.commands.participant import ParticipantOptions
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.terminal import OutputOptions
from nufed.deploy.commands.watch_options import LogOptions, Track, watched
from nufed.deploy.network.certificates import CertificateFolder

if TYPE_CHECKING:
    from nufed.deploy.commands.find_run import FoundRun
    from nufed.deploy.network.direct_server import ServerEndpoint, ServerSecurity
    from nufed.server.run import ServerOptions

_DEPLOYMENT = "Deployment"
_SECURITY = "Security"

Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="neither TLS nor node keys; trials on one machine", rich_help_panel=_SECURITY),
]


def _serving(text: str, **rest: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_DEPLOYMENT, **rest)


def _secured(text: str, **rest: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=_SECURITY, **rest)


def register(app: typer.Typer) -> None:
    """Mount the commands on the program's."""
    app.command("server")(server_command)
    app.command("client")(client_command)
    app.add_typer(certs)


@dataclass(frozen=True)
class ServingOptions(DeclaredOptions):
    """Where the server listens and how long it waits for clients."""

    listen: Annotated[str, _serving("address and port to listen on", metavar="HOST:PORT")] = "0.0.0.0:9092"
    min_clients: Annotated[
        int | None, _serving("clients to wait for (default: --clients plus --new-clients)", min=1)
    ] = None
    wait: Annotated[float, _serving("seconds to wait for those clients", min=0)] = 3600.0
    round_timeout: Annotated[float | None, _serving("seconds to wait for the replies of a round", metavar="NUMBER")] = (
        None
    )
    state: Annotated[
        Path | None,
        _serving("SQLite file that client registrations survive in; several times slower than memory", metavar="FILE"),
    ] = None
    health: Annotated[
        str | None,
        _serving("second, unencrypted port that only answers gRPC health checks", metavar="HOST:PORT"),
    ] = None
    stock_clients: Annotated[bool, _serving("serve Flower's own SuperNodes as well")] = False
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="before round 1, ask clients for statistics of their columns (those that allow it); they give the run "
            "its means and scales where it has none",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = False


@dataclass(frozen=True)
class ResumeOptions(DeclaredOptions):
    """Whether a run that is there is gone on with."""

    resume: Annotated[
        Path | None,
        typer.Option(help="go on with the run in this folder; only --rounds may change", metavar="RUN_DIR"),
    ] = None
    resume_or_start: Annotated[
        bool,
        typer.Option(
            "--resume-or-start",
            help="go on with this run if the output folder holds it, end at once if it is complete, else start it; "
            "for supervisors",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = False


@dataclass(frozen=True)
class ServerSecurityOptions(DeclaredOptions):
    """Certificates of the server, or that there are none."""

    certificates: Annotated[
        Path | None,
        _secured(f"folder made by `nufed certs init` (default: {DEFAULT_CERTIFICATES})", metavar="DIR"),
    ] = None
    insecure: Insecure = False

    def read(self) -> "ServerSecurity | None":
        """Return where certificates and keys are; None for a server without.

        Raises:
            ConfigError: they are not there, or both options are given.
        """
        if not self.insecure:
            return _server_security(self.certificates)
        if self.certificates:
            raise ConfigError(f"--insecure contradicts --certificates {self.certificates}. Leave one of them out.")
        return None


@dataclass(frozen=True)
class ClientSecurityOptions(DeclaredOptions):
    """What a client knows the server by and is known by itself, or that it does without."""

    root_certificates: Annotated[Path | None, _secured("ca.crt of the server's `nufed certs init`", metavar="FILE")] = (
        None
    )
    key: Annotated[
        Path | None, _secured("this client's private key, made by `nufed certs request`", metavar="FILE")
    ] = None
    trust_server_roster: Annotated[
        bool,
        _secured(
            "with secure aggregation: believe the server about other clients' keys where the authority has signed no "
            "roster; it could then see what secure aggregation hides",
        ),
    ] = False
    insecure: Insecure = False

    def check(self) -> None:
        """Refuse options that contradict each other or are not enough.

        Raises:
            ConfigError: saying which.
        """
        given = {"--root-certificates": self.root_certificates, "--key": self.key}
        if self.insecure and any(given.values()):
            raise ConfigError("--insecure contradicts --root-certificates and --key. Leave it or both of them out.")
        missing = [flag for flag, value in given.items() if value is None]
        if not self.insecure and missing:
            raise ConfigError(
                f"Expected {' and '.join(missing)}: the server's ca.crt, and the key that `nufed certs request` "
                "made. For a trial on one machine, type --insecure on both sides."
            )


@with_option_groups
def server_command(  # noqa: PLR0913 - one parameter per group of options
    run: RunOptions,
    machine: MachineOptions,
    output: OutputOptions,
    serving: ServingOptions,
    resuming: ResumeOptions,
    security: ServerSecurityOptions,
    page: DashboardOptions,
    log: LogOptions,
    track: Track = None,
) -> None:
    """Serve a federation: wait for its clients, run the rounds, and leave the same folder as `simulate`.

    Clients are processes of `nufed client` on other machines. They may come and go; a round goes on without those that
    are gone.
    """
    from nufed.deploy.commands.gathering import with_statistics
    from nufed.deploy.network.direct_server import ServerEndpoint
    from nufed.server.control import RunControl
    from nufed.server.run import ServerOptions

    config, notes = _config(run, resuming.resume, serving.round_timeout)
    config = with_statistics(config, asked=serving.statistics)
    check_privacy(config)
    out, resume = _out(output), resuming.resume
    if resuming.resume_or_start:
        found = _find_run(out, config, resume)
        if found and found.complete:
            typer.echo(f"the run in {found.folder} is complete")
            return
        resume, config = (found.folder, found.scaled(config)) if found else (None, config)
    endpoint = ServerEndpoint(serving.listen, security.read(), health_address=serving.health, database=serving.state)
    control = RunControl()
    with (
        machine.exported(),
        watched(output, log, track) as (events, observer),
        page.shown(events, control, resume.parent if resume else out, resume=resume),
        terminated_as_interrupted(),
    ):
        options = ServerOptions(
            out=out,
            resume=resume,
            events=events,
            control=control,
            min_clients=serving.min_clients,
            connect_timeout=serving.wait,
        )
        events.publication = Publication.of(config)
        for note in notes:
            events.say(note)
        observer.waits_for(_awaited(options, config))
        _serve(endpoint, options, config, serving)


def _awaited(options: "ServerOptions", config: RunConfig) -> str:
    """Return for how many clients the first round waits, in words."""
    number = _num_awaited(options, config)
    return f"{number} client{'s' if number > 1 else ''}"


def _num_awaited(options: "ServerOptions", config: RunConfig) -> int:
    all_of_run = config.data.num_clients + config.data.num_new_clients
    return all_of_run if options.min_clients is None else options.min_clients


def _serve(endpoint: "ServerEndpoint", options: "ServerOptions", config: RunConfig, serving: ServingOptions) -> None:
    """Listen, ask for statistics if the run wants any, and run the rounds."""
    from nufed.common.data.private.task import awaits_statistics
    from nufed.deploy.commands.gathering import gather
    from nufed.deploy.network.app_bundle import build_app_bundle
    from nufed.deploy.network.direct_server import DirectServer
    from nufed.server.app import build_server_app

    quiet_flower()
    bundle = build_app_bundle() if serving.stock_clients else None
    events = options.events
    with DirectServer(endpoint, on_event=events.say_of_clients, events=events) as server:
        unprotected = "" if endpoint.security else " without TLS and node keys"
        events.say(f"listening on {server.address}{unprotected}")
        events.say(f"waiting for {_awaited(options, config)}, for {options.connect_timeout:g} s at most")
        if config.privacy.secure_aggregation and endpoint.security and (note := endpoint.security.roster_note()):
            events.say(note)
        if not options.resume and (serving.statistics or awaits_statistics(config.data)):
            config, options = gather(server, config, options, _num_awaited(options, config))
        server.run(build_server_app(options), config.flat(), bundle=bundle)


@with_option_groups
def client_command(  # noqa: PLR0913 - one parameter per option that belongs to no group
    machine: MachineOptions,
    participant: ParticipantOptions,
    security: ClientSecurityOptions,
    log: LogOptions,
    server: Annotated[str, typer.Option(help="the server's address", metavar="HOST:PORT")],
    once: Annotated[bool, typer.Option("--once", help="end when the server's run is over")] = False,
    wait: Annotated[
        float | None, typer.Option(help="seconds to wait for a server that is not there (default: for ever)", min=0)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="show nothing but errors")] = False,
) -> None:
    """Take part in a federation with the data on this machine; runs until it is stopped.

    Nothing but model arrays and aggregate metrics leaves this process, and statistics with --allow-statistics.
    """
    from nufed.client.app import app as client_app
    from nufed.client.secure_trust import trust_config
    from nufed.client.split_memory import forgets
    from nufed.deploy.commands.client_ending import check_ending, last_written
    from nufed.deploy.network.direct_client import ClientIdentity, DirectClient

    security.check()
    trusts = security.trust_server_roster or security.insecure
    identity = ClientIdentity(
        participant.name,
        security.key,
        {**participant.node_config(), **trust_config(security.key, security.root_certificates, trusts_server=trusts)},
        default_run_config=RunConfig().flat(),
    )
    kept_before = last_written(participant.personal_model)
    events, level = EventStream(), "warning" if quiet and not log.is_terse else None
    with (
        machine.exported(),
        terminated_as_interrupted(),
        events,
        log.logged(events, client=participant.name, level=level, to_stderr=quiet),
    ):
        quiet_flower()
        say = events.say if log.is_json else _echo(silent=quiet or log.is_terse)
        client = DirectClient(client_app, server, identity, root_certificates=security.root_certificates, on_event=say)
        client.events = events
        if forgets(identity.node_config):
            say("which examples were trained on is forgotten when this process ends; --state FILE remembers it")
        try:
            ending = client.serve(until_finished=once, patience=wait)
        except KeyboardInterrupt:
            say(f"{participant.name} has left")
            if once:  # before the run is over
                raise
            ending = None
        written = last_written(participant.personal_model) != kept_before
        if written:
            replaced = " (in place of the earlier one)" if kept_before else ""
            say(f"personal model: {participant.personal_model}{replaced}")
        if ending:
            check_ending(ending, server=server, unwritten=None if written else participant.personal_model)


def _echo(*, silent: bool) -> Callable[[str], None]:
    return (lambda _line: None) if silent else lambda line: typer.echo(escaped(line))


def _config(run: RunOptions, resume: Path | None, round_timeout: float | None) -> tuple[RunConfig, list[str]]:
    """Return the run's configuration, and what is to be said of it."""
    from nufed.deploy.commands.run_options import config_for_resuming
    from nufed.deploy.simulation.engines import check_resumable
    from nufed.server.resuming import stored_config

    config, notes = (config_for_resuming(stored_config(resume), run), []) if resume else run.resolve_with_notes()
    if resume:
        check_resumable(resume, config)
    if round_timeout is not None:
        config = config.updated({"federation.round-timeout": round_timeout})
    return config, notes


def _find_run(out: Path, config: RunConfig, resume: Path | None) -> "FoundRun | None":
    from nufed.deploy.commands.find_run import find_run
    from nufed.deploy.simulation.engines import check_resumable

    if resume:
        raise ConfigError(f"--resume-or-start finds the folder itself and contradicts --resume {resume}. Choose one.")
    found = find_run(out, config)
    if found and not found.complete:
        check_resumable(found.folder, config)
    return found


def _out(output: OutputOptions) -> Path:
    from nufed.common.settings import process_settings

    return output.out or process_settings().out


def _server_security(certificates: Path | None) -> "ServerSecurity":
    from nufed.deploy.network.direct_server import ServerSecurity
    from nufed.deploy.network.rosters import RosterFile

    folder = CertificateFolder(certificates or DEFAULT_CERTIFICATES)
    if not folder.server_certificate.exists():
        raise ConfigError(
            f"Expected the server's certificate at {folder.server_certificate}. Make it with `nufed certs init --san "
            "NAME`, name its folder with --certificates, or type --insecure for a trial on one machine."
        )
    roster = RosterFile(folder.roster, folder.authority_certificate)
    return ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients, roster)


def quiet_flower() -> None:
    """Let Flower speak of what is wrong only: it logs every call."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a stopped container writes its folder or takes its leave."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
