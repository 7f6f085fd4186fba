"""The command `nufed`: simulate a federation, and list what it can be made of.

Errors that we foresee end a command with one paragraph on stderr and the exit code of their kind
(common/errors.py); `--debug` anywhere on the command line shows where they came from.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.table import Table
from rich.text import Text

from nufed.common.errors import ConfigError, NufedError
from nufed.deploy.commands import experiment as experiment_cli
from nufed.deploy.commands import federation as deploy_cli
from nufed.deploy.commands import personal as personal_cli
from nufed.deploy.commands import theory as theory_cli
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.run_options import FLAGS, RunOptions, config_for_resuming
from nufed.deploy.commands.terminal import OutputOptions, stdout_console

app = typer.Typer(
    suggest_commands=False,
    name="nufed",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `--debug` anywhere adds tracebacks to errors.

    Args:
        arguments: what was typed behind `nufed`; None takes this process's.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in typed
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        code = app([word for word in typed if word != "--debug"], prog_name="nufed", standalone_mode=False)
    except NufedError as error:
        if debug:
            traceback.print_exception(error)
        return _fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:  # click has shown the help by now
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "nufed"
        return _fail(f"{error.format_message()} See `{command} --help`.", error.exit_code)
    except click.Abort:
        return _fail("Aborted.", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, exit_code: int) -> int:
    sys.stdout.flush()
    print(f"nufed: {message}", file=sys.stderr)
    return exit_code


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version
    from platform import python_version

    from nufed.common import __version__

    typer.echo(f"nufed {__version__} (flwr {version('flwr')}, torch {version('torch')}, python {python_version()})")
    raise typer.Exit


@app.callback()
def describe_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="versions")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error came from; any command takes it")] = False,
) -> None:
    """Federated learning of a starting point that each client adapts to its own data in ν fine-tuning steps."""


@app.command("simulate")
@with_option_groups
def simulate_command(
    run: RunOptions,
    machine: MachineOptions,
    output: OutputOptions,
    engine: Annotated[
        str,
        typer.Option(
            help="local (one client after another), cohort (all at once, equal up to rounding), processes, "
            "ray (Flower's), or auto (cohort or local, whichever is faster)",
            metavar="NAME",
            rich_help_panel="Machine",
        ),
    ] = "local",
    resume: Annotated[
        Path | None,
        typer.Option(help="go on with the run in this folder; only --rounds may change", metavar="RUN_DIR"),
    ] = None,
) -> None:
    """Run a whole federation on this machine and write its curves, model and numbers to a folder.

    Without options: 20 clients and 10 new ones on handwritten digits that come with scikit-learn, ν = 1.

    Later ones win: defaults, --config, --method, flags, --set.
    """
    from nufed.common.settings import process_settings
    from nufed.deploy.simulation.engines import check_resumable, find_engine, prepare, simulate
    from nufed.server.run import ServerOptions
    from nufed.server.run_folder import stored_config

    find_engine(engine)
    if resume and output.out:
        raise ConfigError(f"--out {output.out} contradicts --resume {resume}, which goes on in its folder. Choose one.")
    config = config_for_resuming(stored_config(resume), run) if resume else run.resolve()
    with machine.exported(), output.observer() as observer:
        settings = process_settings()
        if resume:
            check_resumable(resume, config)
        federation = prepare(config)
        for note in federation.notes:
            observer.say(note)
        options = ServerOptions(out=output.out or settings.out, resume=resume, observer=observer)
        simulate(config, options, engine=engine)


@app.command()
def models() -> None:
    """List the models for --model."""
    from nufed.common.models import MODELS

    _list("model", {name: spec.description for name, spec in MODELS.items()})
    typer.echo("Your own: --model module:function, called with (ModelConfig, TaskInfo), returning a torch.nn.Module.")


@app.command()
def datasets() -> None:
    """List the data sources for --dataset."""
    from nufed.common.data import SOURCES

    spelled = {f"{name}:{source.argument}" if source.argument else name: source for name, source in SOURCES.items()}
    _list("dataset", {name: source.description for name, source in spelled.items()})


@app.command()
def estimators() -> None:
    """List the ways of computing the meta-gradient for --estimator."""
    from nufed.common.meta.estimators import ESTIMATORS

    _list("estimator", {name: estimator.summary for name, estimator in ESTIMATORS.items()})


@app.command()
def methods() -> None:
    """List the methods for --method: presets of options, which flags and --set can change."""
    from nufed.common.methods import METHODS

    table = Table("method", "description", "source", box=None, pad_edge=False)
    for name, method in METHODS.items():
        table.add_row(Text(name), Text(method.summary), Text(method.source))
    stdout_console().print(table)


@app.command()
def options() -> None:
    """List every option for --set and --config, with its default and the short flag where there is one."""
    from nufed.common.config import option_descriptions

    flags = {key: flag for flag, key in FLAGS.items()}
    table = Table(box=None, pad_edge=False)
    for column in ("option", "flag", "default"):
        table.add_column(column, no_wrap=True)
    table.add_column("meaning")
    for key, (default, description) in option_descriptions().items():
        flag = f"--{flags[key]}" if key in flags else ""
        table.add_row(key, flag, str(default), Text(description))
    stdout_console().print(table)


def _list(what: str, descriptions: Mapping[str, str]) -> None:
    table = Table(what, "description", box=None, pad_edge=False)
    for name, description in descriptions.items():
        table.add_row(Text(name), Text(description))
    stdout_console().print(table)


deploy_cli.register(app)
experiment_cli.register(app)
personal_cli.register(app)
theory_cli.register(app)
