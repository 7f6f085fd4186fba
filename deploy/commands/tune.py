"""`nufed tune`: find ν, α and β for a federation within a budget, and say how sure that is."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.deploy.commands.federation import ServerSecurityOptions, quiet_flower, terminated_as_interrupted
from nufed.deploy.commands.option_groups import (
    DeclaredOptions,
    MachineOptions,
    beginning_with,
    engine_names,
    with_option_groups,
)
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.terminal import stdout_console

if TYPE_CHECKING:
    from nufed.deploy.tuning.connected import ConnectedClients

_PANEL, _DEPLOYMENT = "Search", "Deployment"
_FEWEST_FINALISTS = 2


@dataclass(frozen=True)
class ListeningOptions(DeclaredOptions):
    """Where the clients of a real federation connect, if it is one that is tuned."""

    listen: Annotated[
        str | None,
        typer.Option(
            help="tune the federation of the `nufed client` processes that connect here, instead of a simulation",
            metavar="HOST:PORT",
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = None
    wait: Annotated[
        float,
        typer.Option(
            help="with --listen: seconds to wait for all clients, at the start and whenever one has gone",
            min=0,
            rich_help_panel=_DEPLOYMENT,
        ),
    ] = 3600.0

    @contextmanager
    def connected(
        self, config: RunConfig, share: float, out: Path, security: ServerSecurityOptions, say: Callable[[str], None]
    ) -> "Iterator[ConnectedClients | None]":
        """Offer the federation whose clients connect here; None where a simulation is tuned.

        Raises:
            ConfigError: there is nothing to be secure about, or certificates are missing.
        """
        if self.listen is None:
            if security.insecure or security.certificates:
                raise ConfigError(
                    "--insecure and --certificates are about clients that connect, and a simulation has none. Add "
                    "--listen HOST:PORT, or leave them out."
                )
            yield None
            return
        from nufed.deploy.network.direct_server import ServerEndpoint
        from nufed.deploy.tuning.connected import ConnectedClients, Listening

        listening = Listening(ServerEndpoint(self.listen, security.read()), self.wait, say)
        quiet_flower()
        with terminated_as_interrupted(), ConnectedClients(config, share, out, listening) as clients:
            yield clients


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("tune")(with_option_groups(tune_command))


def tune_command(  # noqa: PLR0913 - the command line is flat
    run: RunOptions,
    machine: MachineOptions,
    listening: ListeningOptions,
    security: ServerSecurityOptions,
    nus: Annotated[
        str, typer.Option("--nu", help="ν to try; 0 is always among them", metavar="LIST", rich_help_panel=_PANEL)
    ] = "0,1,2,3,5",
    alpha: Annotated[
        str, typer.Option("--alpha", help="range of α", metavar="LOW:HIGH", rich_help_panel=_PANEL)
    ] = "0.005:3",
    beta: Annotated[
        str, typer.Option("--beta", help="range of β", metavar="LOW:HIGH", rich_help_panel=_PANEL)
    ] = "0.005:3",
    search: Annotated[
        str,
        typer.Option(
            "--search", help="search these too: estimator, local-steps (τ)", metavar="LIST", rich_help_panel=_PANEL
        ),
    ] = "",
    budget: Annotated[
        int | None,
        typer.Option(
            help="runs of full length that everything may cost together; a pruned trial counts for the rounds it had "
            "(default: a fifth of the full grid)",
            min=1,
            max=100_000,
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    finalists: Annotated[
        int, typer.Option(help="ν in the final runs, 0 among them", min=_FEWEST_FINALISTS, rich_help_panel=_PANEL)
    ] = 3,
    seeds: Annotated[int, typer.Option(help="final runs of each", min=2, max=1000, rich_help_panel=_PANEL)] = 4,
    held_out: Annotated[
        float,
        typer.Option(
            help="share of the participating clients that each run holds out as if they were new",
            min=0.01,
            max=0.5,
            rich_help_panel=_PANEL,
        ),
    ] = 0.2,
    out: Annotated[
        Path | None, typer.Option(help="folder of the search (default: results/tune-NAME)", metavar="DIR")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="what runs a federation, as in simulate", metavar="NAME", autocompletion=beginning_with(engine_names)
        ),
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="show nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON and nothing else")] = False,
) -> None:
    """Find ν, α and β for a federation, judged by clients that take no part in the training of the run they judge.

    --inner-lr and --local-lr are where the search begins. What is done is kept: the same command goes on after Ctrl-C
    or a crash. `best.toml` in the folder is for `nufed simulate --config`, or `nufed server --config`.
    """
    from nufed.deploy.experiments.runner import Workers
    from nufed.deploy.simulation.engines import find_engine
    from nufed.deploy.tuning.finals import sentence
    from nufed.deploy.tuning.result import BEST, REPORT, remarks, to_json, write_result
    from nufed.deploy.tuning.space import Range, Space, parse_nus, parse_searched
    from nufed.deploy.tuning.tuner import Plan, default_budget, describe_plan, tune

    find_engine(engine)
    if listening.listen and engine != "auto":
        raise ConfigError(
            f"--engine={engine} runs a simulation, and with --listen clients connect. Leave one of them out."
        )
    config, notes = run.resolve_with_notes()
    if "method.num-inner-steps" in run.changes():
        raise ConfigError("--inner-steps is what tune finds. Leave it out, and name those to try with --nu.")
    space = Space(parse_nus(nus), Range.parse(alpha, "--alpha"), Range.parse(beta, "--beta"), parse_searched(search))
    finalists = min(finalists, len(space.nus))
    plan = Plan(budget or default_budget(space, finalists, seeds), finalists, seeds, held_out)
    folder, console = out or Path("results") / f"tune-{config.name}", stdout_console()

    def say(line: str) -> None:
        if not (quiet or as_json):
            console.print(Text(line), soft_wrap=True)

    with machine.exported(), listening.connected(config, held_out, folder, security, say) as connected:
        for line in (*notes, *describe_plan(config, space, plan)):
            say(line)
        found = tune(config, space, plan, Workers(folder, 1, engine, say), connected)
        write_result(found, folder)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=2, ensure_ascii=False))
        return
    for line in (sentence(found.verdict), *remarks(found)):
        say(line)
    say(f"best {folder / BEST}")
    say(f"report {folder / REPORT}")
