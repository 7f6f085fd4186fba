"""`nufed check`: all that a client checks, before a server sees a message of it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.errors import NufedError
from nufed.common.privacy.rules import check_privacy
from nufed.deploy.commands.federation import ClientSecurityOptions
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.participant import ParticipantOptions
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.tables import print_table
from nufed.deploy.commands.terminal import stdout_console

if TYPE_CHECKING:
    from nufed.client.rehearsal import Findings
    from nufed.deploy.network.handshake import Handshake

_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Mount the command on the program's."""
    app.command("check")(check_command)


@with_option_groups
def check_command(  # noqa: PLR0913 - one parameter per option that belongs to no group
    machine: MachineOptions,
    participant: ParticipantOptions,
    security: ClientSecurityOptions,
    config: Annotated[
        Path, typer.Option(help="the run's options: the server's --config, or a run's config.json", metavar="FILE")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="an option that the server is given beside --config", metavar="KEY=VALUE"),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="ask this server, too, whether it would let the client in", metavar="HOST:PORT"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Check a client's data and options as `nufed client` would, without joining a run; nothing leaves this machine.

    Data are read and compared with the run, the model is built and examined on them, and one loss is computed. With
    --server, the address, certificate, key, name and version are tried as well. What is printed is for this machine.

    Exit codes: 0 the client can take part; 2 an option, 3 the data, 4 the model or 7 the server is in the way.
    """
    try:
        findings, handshake = _checked(machine, participant, security, (config, assignments or ()), server)
    except NufedError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "exit_code": error.exit_code, "error": str(error)}))
        raise
    if as_json:
        told = None if handshake is None else {**vars(handshake), "is_same_version": handshake.is_same_version}
        typer.echo(json.dumps({"ok": True, "exit_code": 0, **findings.to_json(), "server": told}, indent=2))
        return
    _show(findings)
    for line in _lines_about(handshake):
        typer.echo(line)
    typer.echo(f"{findings.client_id} can take part")


def _checked(
    machine: MachineOptions,
    participant: ParticipantOptions,
    security: ClientSecurityOptions,
    given: tuple[Path, Any],
    server: str | None,
) -> "tuple[Findings, Handshake | None]":
    """Return what was found here, and what the server answered; in the order in which `nufed client` would find it."""
    from nufed.client.rehearsal import rehearse
    from nufed.common.settings import process_settings
    from nufed.deploy.network.handshake import shake_hands

    if server is not None or security.root_certificates or security.key:
        security.check()
    run = RunOptions(config_file=given[0], assignments=tuple(given[1])).resolve()
    check_privacy(run)
    node_config = participant.node_config()
    with machine.exported(), while_working("checking"):
        import torch

        settings = process_settings()
        torch.set_num_threads(settings.num_threads)
        findings = rehearse(run, node_config, settings)
        if server is None:
            return findings, None
        handshake = shake_hands(
            server, participant.name, key=security.key, root_certificates=security.root_certificates
        )
    return findings, handshake


def _lines_about(handshake: "Handshake | None") -> list[str]:
    """Return what to say of a server's answer."""
    from nufed.common import __version__

    if handshake is None:
        return []
    if handshake.is_taken is None:
        return [f"server    {handshake.server} answers; it runs an earlier version and does not say who is connected"]
    taken = "a client of this name is connected, which another one would replace" if handshake.is_taken else "name free"
    version = "" if handshake.is_same_version else f", which this machine does not ({__version__})"
    return [
        f"server    {handshake.server} would let this client in; {taken}; it runs NuFed {handshake.version}{version}"
    ]


def _show(findings: "Findings") -> None:
    """Print what was found."""
    splits = ", ".join(f"{count} {name}" for name, count in findings.splits.items())
    typer.echo(f"client    {findings.client_id} ({findings.group})")
    groups = "" if findings.groups is None else f", in {findings.groups} groups that stay together"
    typer.echo(f"examples  {findings.rows}: {splits}{groups}")
    if findings.missing is not None:
        typer.echo(f"missing   {findings.missing:.1%} of the cells in {len(findings.columns)} columns")
    typer.echo(
        f"model     {findings.model} for {findings.task}, {findings.parameters} parameters, loss before training "
        f"{findings.loss:.4g}"
    )
    console = stdout_console()
    if findings.classes:
        rows = [
            (name, *(str(count) for count in by_split.values()))
            for name, by_split in list(findings.classes.items())[:_SHOWN]
        ]
        print_table(console, ("class", *findings.splits), rows, right=len(findings.splits))
    lacking = [column for column in findings.columns if column.missing]
    if lacking:
        rows = [(column.name, f"{column.missing:.1%}") for column in lacking[:_SHOWN]]
        print_table(console, ("column", "missing"), rows, right=1)
    sys.stdout.flush()
