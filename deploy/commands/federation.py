"""The commands of a real federation: `nufed server`, `nufed client` and `nufed certs`."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nufed.common.config import RunConfig, Scalar
from nufed.common.errors import ConfigError
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.terminal import OutputOptions
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority, revoke_client

if TYPE_CHECKING:
    from nufed.deploy.commands.find_run import FoundRun
    from nufed.deploy.network.direct_server import AppBundle, ServerSecurity

DEFAULT_CERTIFICATES = Path("certs")

_SECURITY = "Security"
_CERTIFICATES = Annotated[
    Path, typer.Option("--out", help="folder of certificates and keys", metavar="DIR", show_default=True)
]

certs = typer.Typer(name="certs", no_args_is_help=True, help="Make and revoke certificates and node keys.")


def register(app: typer.Typer) -> None:
    """Mount the commands on the program's."""
    app.command("server")(server_command)
    app.command("client")(client_command)
    app.add_typer(certs)


@with_option_groups
def server_command(  # noqa: PLR0913 - one parameter per option
    run: RunOptions,
    machine: MachineOptions,
    output: OutputOptions,
    listen: Annotated[
        str, typer.Option(help="address and port to listen on", metavar="HOST:PORT", rich_help_panel="Deployment")
    ] = "0.0.0.0:9092",
    min_clients: Annotated[
        int | None,
        typer.Option(
            min=1, help="clients to wait for (default: --clients plus --new-clients)", rich_help_panel="Deployment"
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(help="seconds to wait for those clients", min=0, rich_help_panel="Deployment")
    ] = 3600.0,
    round_timeout: Annotated[
        float | None,
        typer.Option(help="seconds to wait for the replies of a round", metavar="NUMBER", rich_help_panel="Deployment"),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="SQLite file that client registrations survive in; several times slower than memory",
            metavar="FILE",
            rich_help_panel="Deployment",
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            help="second, unencrypted port that only answers gRPC health checks",
            metavar="HOST:PORT",
            rich_help_panel="Deployment",
        ),
    ] = None,
    stock_clients: Annotated[
        bool, typer.Option(help="serve Flower's own SuperNodes as well", rich_help_panel="Deployment")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="go on with the run in this folder; only --rounds may change", metavar="RUN_DIR"),
    ] = None,
    resume_or_start: Annotated[
        bool,
        typer.Option(
            "--resume-or-start",
            help="go on with this run if the output folder holds it, end at once if it is complete, else start it; "
            "for supervisors",
            rich_help_panel="Deployment",
        ),
    ] = False,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help=f"folder made by `nufed certs init` (default: {DEFAULT_CERTIFICATES})",
            metavar="DIR",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="neither TLS nor node keys; trials on one machine", rich_help_panel=_SECURITY),
    ] = False,
) -> None:
    """Serve a federation: wait for its clients, run the rounds, and leave the same folder as `simulate`.

    Clients are processes of `nufed client` on other machines. They may come and go; a round goes on without those that
    are gone.
    """
    from nufed.deploy.network.direct_server import DirectServer, ServerEndpoint
    from nufed.server.app import build_server_app
    from nufed.server.run import ServerOptions

    config = _config(run, resume, round_timeout)
    if resume_or_start:
        found = _find_run(_out(output), config, resume)
        if found and found.complete:
            typer.echo(f"the run in {found.folder} is complete")
            return
        resume = found.folder if found else None
    security = None if insecure else _server_security(certificates)
    if insecure and certificates:
        raise ConfigError(f"--insecure contradicts --certificates {certificates}. Leave one of them out.")
    with machine.exported(), output.observer() as observer, _terminated_as_interrupted():
        _quiet_flower()
        endpoint = ServerEndpoint(listen, security, health_address=health, database=state)
        options = ServerOptions(
            out=_out(output), resume=resume, observer=observer, min_clients=min_clients, connect_timeout=wait
        )
        bundle = _app_bundle() if stock_clients else None
        with DirectServer(endpoint, on_event=observer.say) as server:
            observer.say(f"listening on {server.address}{'' if security else ' without TLS and node keys'}")
            server.run(build_server_app(options), config.flat(), bundle=bundle)


@with_option_groups
def client_command(  # noqa: PLR0913 - one parameter per option
    machine: MachineOptions,
    server: Annotated[str, typer.Option(help="the server's address", metavar="HOST:PORT")],
    data: Annotated[
        str,
        typer.Option(
            help="this client's data: csv:, parquet:, npz: or images:PATH, python:module:function, or digits#3/20",
            metavar="SPEC",
        ),
    ],
    name: Annotated[str, typer.Option(help="this client's stable name", metavar="NAME")],
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="ca.crt of the server's `nufed certs init`", metavar="FILE", rich_help_panel=_SECURITY),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="this client's private key, made by `nufed certs add-client`",
            metavar="FILE",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="neither TLS nor node keys; trials on one machine", rich_help_panel=_SECURITY),
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="never take part in training; adapt the final model and be judged")
    ] = False,
    personal_model: Annotated[
        Path | None,
        typer.Option(help="file to keep the run's final model in, adapted to this client's data", metavar="FILE"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="end when the server's run is over")] = False,
    wait: Annotated[
        float | None, typer.Option(help="seconds to wait for a server that is not there (default: for ever)", min=0)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="show nothing but errors")] = False,
) -> None:
    """Take part in a federation with the data on this machine; runs until it is stopped.

    Nothing but model arrays and aggregate metrics leaves this process.
    """
    from nufed.client.app import app as client_app
    from nufed.deploy.network.direct_client import ClientIdentity, DirectClient

    _check_client_security(root_certificates, key, insecure=insecure)
    node_config = _node_config(data, name, personal_model, new=new)
    kept_before = _modified(personal_model)
    identity = ClientIdentity(name, key, node_config, default_run_config=RunConfig().flat())
    with machine.exported(), _terminated_as_interrupted():
        _quiet_flower()
        say = (lambda _line: None) if quiet else typer.echo
        client = DirectClient(client_app, server, identity, root_certificates=root_certificates, on_event=say)
        try:
            client.serve(until_finished=once, patience=wait)
        except KeyboardInterrupt:
            say(f"{name} has left")
        if _modified(personal_model) != kept_before:
            say(f"personal model: {personal_model}")


@certs.command("init")
def init_command(
    san: Annotated[
        list[str], typer.Option("--san", help="host name or IP address that clients dial; repeatable", metavar="NAME")
    ],
    out: _CERTIFICATES = DEFAULT_CERTIFICATES,
    days: Annotated[int, typer.Option(help="validity of the certificates in days", min=1, max=36_500)] = 365,
) -> None:
    """Make a certificate authority and a server certificate; an authority that is there already is kept."""
    folder = CertificateFolder(out)
    create_authority(folder, san, days=days)
    typer.echo(f"server: {folder.server_certificate}, {folder.server_key} (for {', '.join(san)})")
    typer.echo(f"clients: give each {folder.authority_certificate} and a key from `nufed certs add-client NAME`")


@certs.command("add-client")
def add_client_command(
    name: Annotated[str, typer.Argument(help="the client's name")], out: _CERTIFICATES = DEFAULT_CERTIFICATES
) -> None:
    """Make a node key for a client and admit it; a running server takes note by itself."""
    private_key = add_client(CertificateFolder(out), name)
    typer.echo(f"{name}: bring {private_key} to that machine over a safe channel, then delete it here")


@certs.command("revoke")
def revoke_command(
    name: Annotated[str, typer.Argument(help="the client's name")], out: _CERTIFICATES = DEFAULT_CERTIFICATES
) -> None:
    """Take a client's key away; a running server refuses it from then on."""
    revoke_client(CertificateFolder(out), name)
    typer.echo(f"{name} is not admitted any more")


def _config(run: RunOptions, resume: Path | None, round_timeout: float | None) -> RunConfig:
    from nufed.deploy.commands.run_options import config_for_resuming
    from nufed.deploy.simulation.engines import check_resumable
    from nufed.server.run_folder import stored_config

    config = config_for_resuming(stored_config(resume), run) if resume else run.resolve()
    if resume:
        check_resumable(resume, config)
    return config if round_timeout is None else config.updated({"federation.round-timeout": round_timeout})


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

    folder = CertificateFolder(certificates or DEFAULT_CERTIFICATES)
    if not folder.server_certificate.exists():
        raise ConfigError(
            f"Expected the server's certificate at {folder.server_certificate}. Make it with `nufed certs init --san "
            "NAME`, name its folder with --certificates, or type --insecure for a trial on one machine."
        )
    return ServerSecurity(folder.server_certificate, folder.server_key, folder.admitted_clients)


def _check_client_security(root_certificates: Path | None, key: Path | None, *, insecure: bool) -> None:
    if insecure and (root_certificates or key):
        raise ConfigError("--insecure contradicts --root-certificates and --key. Leave it or both of them out.")
    missing = [flag for flag, value in (("--root-certificates", root_certificates), ("--key", key)) if value is None]
    if not insecure and missing:
        raise ConfigError(
            f"Expected {' and '.join(missing)}: the server's ca.crt, and the key that `nufed certs add-client` made. "
            "For a trial on one machine, type --insecure on both sides."
        )


def _node_config(data: str, name: str, personal_model: Path | None, *, new: bool) -> dict[str, Scalar]:
    """Return what the client's app reads; what can be wrong with it before a run is known is refused here."""
    from nufed.client.personal_model import personal_path
    from nufed.common.data.private.load import check_spec

    check_spec(data)
    config: dict[str, Scalar] = {"data": data, "client-id": name}
    if new:
        config["group"] = "new"
    if personal_model:
        config["personal-model"] = str(personal_model.expanduser().absolute())
    personal_path(config)
    return config


def _modified(path: Path | None) -> int | None:
    """Return when a file was last written, in nanoseconds; None if there is none."""
    return path.stat().st_mtime_ns if path and path.exists() else None


def _app_bundle() -> "AppBundle":
    from nufed.deploy.network.app_bundle import build_app_bundle

    return build_app_bundle()


def _quiet_flower() -> None:
    """Let Flower speak of what is wrong only: it logs every call."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that a stopped container writes its folder or takes its leave."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
