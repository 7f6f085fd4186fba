"""`nufed certs`: make and revoke certificates and node keys."""

from pathlib import Path
from typing import Annotated

import typer

from nufed.deploy.commands.outputs import Force
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority, revoke_client

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
