"""`nufed certs`: make and revoke certificates and node keys, and sign their roster."""

from pathlib import Path
from typing import Annotated

import typer

from nufed.deploy.commands.outputs import Force
from nufed.deploy.network.certificates import (
    ROSTER_DAYS,
    CertificateFolder,
    add_client,
    create_authority,
    revoke_client,
)
from nufed.deploy.network.key_requests import admit, make_request

DEFAULT_CERTIFICATES = Path("certs")

_CERTIFICATES = Annotated[
    Path, typer.Option("--out", help="folder of certificates and keys", metavar="DIR", show_default=True)
]

certs = typer.Typer(name="certs", no_args_is_help=True, help="Make and revoke certificates and node keys.")


@certs.command("init")
def init_command(
    san: Annotated[
        list[str], typer.Option("--san", help="host name or IP address that clients dial; repeatable", metavar="NAME")
    ],
    out: _CERTIFICATES = DEFAULT_CERTIFICATES,
    days: Annotated[int, typer.Option(help="validity of the certificates in days", min=1, max=36_500)] = 365,
    force: Force = False,
) -> None:
    """Make a certificate authority and a server certificate; an authority that is there already is kept.

    A server certificate that it has signed before is replaced, so that names can be added and dates renewed.
    """
    folder = CertificateFolder(out)
    renewed = folder.server_certificate.exists()
    create_authority(folder, san, days=days, force=force)
    if renewed:
        typer.echo("the earlier server certificate is replaced; restart the server to use the new one")
    typer.echo(f"server: {folder.server_certificate}, {folder.server_key} (for {', '.join(san)})")
    typer.echo(
        f"clients: give each {folder.authority_certificate}; each makes its key with `nufed certs request`, and you"
    )
    typer.echo("         admit it with `nufed certs admit`")


@certs.command("request")
def request_command(
    name: Annotated[str, typer.Option("--name", help="this client's name", metavar="NAME")],
    out: Annotated[
        Path, typer.Option("--out", help="folder of the two files", metavar="DIR", show_default="this folder")
    ] = Path(),
) -> None:
    """On a client's machine: make its key, and a request that the server's operator admits it by.

    The private key stays on this machine. The request holds the name and the public key.
    """
    key, request, fingerprint = make_request(out, name)
    typer.echo(f"private key: {key} (stays here; name it with `nufed client --key`)")
    typer.echo(f"request:     {request} (send it to the server's operator, by any way)")
    typer.echo(f"fingerprint: {fingerprint}")
    typer.echo("Tell the operator the fingerprint by another way than the request, for instance by telephone.")


@certs.command("admit")
def admit_command(
    request: Annotated[Path, typer.Argument(help="the file NAME.csr that a client sent")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="what the client was shown: SHA256:…", metavar="TEXT")
    ] = "",
    out: _CERTIFICATES = DEFAULT_CERTIFICATES,
) -> None:
    """On the server: admit a client whose request has this fingerprint; a running server takes note by itself."""
    admitted = admit(CertificateFolder(out), request, fingerprint)
    typer.echo(f"{admitted.name} is admitted with the key {admitted.fingerprint}")
    _remind_of_roster(out)


@certs.command("add-client")
def add_client_command(
    name: Annotated[str, typer.Argument(help="the client's name")], out: _CERTIFICATES = DEFAULT_CERTIFICATES
) -> None:
    """For trials: make a client's key on this machine and admit it; a running server takes note by itself.

    Whoever can read this machine can then pass for the client. Between organisations, let each make its own key with
    `nufed certs request`.
    """
    private_key = add_client(CertificateFolder(out), name)
    typer.echo(f"{name}: the private key is {private_key}, so whoever reads this machine can pass for {name}.")
    typer.echo("For more than a trial, revoke it and let the client make its own with `nufed certs request`;")
    typer.echo("or bring it to that machine over a safe channel, and delete it here.")


@certs.command("revoke")
def revoke_command(
    name: Annotated[str, typer.Argument(help="the client's name")], out: _CERTIFICATES = DEFAULT_CERTIFICATES
) -> None:
    """Take a client's key away; a running server refuses it from then on."""
    revoke_client(CertificateFolder(out), name)
    typer.echo(f"{name} is not admitted any more")
    _remind_of_roster(out)


@certs.command("roster")
def roster_command(
    out: _CERTIFICATES = DEFAULT_CERTIFICATES,
    authority_key: Annotated[
        Path | None,
        typer.Option(help="the authority's private key, where it is kept elsewhere (default: ca.key)", metavar="FILE"),
    ] = None,
    days: Annotated[
        int, typer.Option(help="for how long clients believe it, in days", min=1, max=36_500)
    ] = ROSTER_DAYS,
) -> None:
    """For secure aggregation: sign the names and keys of the admitted clients with the authority's key.

    Clients believe this file, and not the server, about whose key is whose. Sign it again whenever a client is admitted
    or revoked, and before it ends; a running server takes note by itself, and warns in time.
    """
    from nufed.deploy.network.rosters import write_roster  # which needs PyTorch

    path, roster = write_roster(CertificateFolder(out), authority_key, days=days)
    names = ", ".join(sorted(roster.keys))
    typer.echo(f"roster: {path} (serial {roster.serial}), signed for {len(roster.keys)} clients: {names}")
    typer.echo(f"it ends on {roster.expires:%Y-%m-%d %H:%M UTC}; sign it again before, and when clients change")


def _remind_of_roster(out: Path) -> None:
    if CertificateFolder(out).roster.exists():
        typer.echo("for secure aggregation, sign the roster again: nufed certs roster")
