"""The command `nufed`: simulate a federation, and list what it can be made of.

Errors that we foresee end a command with one paragraph on stderr and the exit code of their kind
(common/errors.py); `--debug` anywhere on the command line shows where they came from.
"""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import click
import typer

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, NufedError, RunError
from nufed.deploy.commands import check as check_cli
from nufed.deploy.commands import dashboard as dashboard_cli
from nufed.deploy.commands import draft as draft_cli
from nufed.deploy.commands import experiment as experiment_cli
from nufed.deploy.commands import federation as deploy_cli
from nufed.deploy.commands import personal as personal_cli
from nufed.deploy.commands import privacy as privacy_cli
from nufed.deploy.commands import runs as runs_cli
from nufed.deploy.commands import theory as theory_cli
from nufed.deploy.commands import tune as tune_cli
from nufed.deploy.commands.argument_help import explain_arguments
from nufed.deploy.commands.dashboard import DashboardOptions
from nufed.deploy.commands.option_groups import (
    AttackOptions,
    EngineFlags,
    MachineOptions,
    beginning_with,
    engine_names,
    with_option_groups,
)
from nufed.deploy.commands.run_options import (
    FLAGS,
    RunOptions,
    allowed_values,
    config_for_resuming,
)
from nufed.deploy.commands.streams import lost_output, unfailing_streams
from nufed.deploy.commands.tables import print_table
from nufed.deploy.commands.terminal import OutputOptions, stdout_console
from nufed.deploy.commands.watch_options import LogOptions, Track, watched
from nufed.deploy.monitoring.logs import error_line, wants_json
from nufed.server.progress_lines import describe_run

app = typer.Typer(
    suggest_commands=False,
    name="nufed",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_INTERRUPTED = 130
"""128 and the number of the signal, as shells have it."""

_TOO_LITTLE_MEMORY = re.compile("allocate memory|out of memory", re.IGNORECASE)
"""What torch says of it, as a RuntimeError."""

_SIMULATE_HELP = f"""Run a whole federation on this machine and write its curves, model and numbers to a folder.

Without options: {describe_run(RunConfig())}.

Later ones win: defaults, --config, --method, flags, --set.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `--debug` anywhere adds tracebacks to errors.

    Args:
        arguments: what was typed behind `nufed`; None takes this process's.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    with unfailing_streams() as outlet:
        try:
            code = _run([word for word in typed if word != "--debug"], debug="--debug" in typed)
        except Exception as error:
            if not wants_json(typed):
                raise  # Python shows where the bug is; a log of JSON lines gets it as one
            print(error_line(f"{type(error).__name__}: {error}", 1, error), file=sys.stderr)
            code = 1
        if (lost := lost_output(outlet)) and not code:
            words, code = lost
            if words:
                _fail(words, code, typed)
    return code


def _run(typed: list[str], *, debug: bool) -> int:
    """Run a command and return its exit code; what can go wrong on a user's machine is said in one paragraph."""
    try:
        _check_paths_are_named(typed)
        code = app(typed, prog_name="nufed", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # click has shown the help by now
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "nufed"
        return _fail(f"{error.format_message()} See `{command} --help`.", error.exit_code, typed)
    except (click.Abort, KeyboardInterrupt):
        return _fail("Interrupted.", _INTERRUPTED, typed)
    except (NufedError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _TOO_LITTLE_MEMORY.search(str(error)):
            raise  # a bug of ours, which needs its traceback
        if debug:
            traceback.print_exception(error)
        return _fail(*_explained(error), typed)
    if code == _INTERRUPTED:  # typer has made an exit code of it, without a word
        return _fail("Interrupted.", _INTERRUPTED, typed)
    return code if isinstance(code, int) else 0


def _check_paths_are_named(typed: Sequence[str]) -> None:
    """Refuse empty paths, as an unset variable of a shell leaves them: they would be the current folder. NUL neither.

    Raises:
        ConfigError: naming the option.
    """
    if any("\0" in word for word in typed):
        raise ConfigError("Expected arguments without NUL characters, which no path or name may have.")
    pairs = [word.partition("=")[::2] for word in typed if word.startswith("--") and "=" in word]
    for flag, value in [*pairs, *pairwise(typed)]:
        if not value.strip() and flag in _path_flags(typer.main.get_command(app)):
            raise ConfigError(f"Expected a path behind {flag}, got an empty one. Give one, or leave {flag} out.")


def _path_flags(command: click.Command) -> Iterator[str]:
    """Yield the flags of a command, and of those below it, that stand before a path."""
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            yield from parameter.opts
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _path_flags(inner)


def _explained(error: Exception) -> tuple[str, int]:
    """Return what to say of an error that is none of the program's own making, and the exit code."""
    if isinstance(error, NufedError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError | RuntimeError):
        return "This machine has too little memory for that. Use a smaller model, or fewer or smaller data.", 1
    what = f" {error.filename}" if isinstance(error, OSError) and error.filename else " a file or a connection"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return (
        f"Expected to use{what}, but the system refused ({reason}). Free space, or change paths or permissions.",
        RunError.exit_code,
    )


def _fail(message: str, exit_code: int, typed: Sequence[str]) -> int:
    if sys.stderr is not None:
        line = error_line(message, exit_code) if wants_json(typed) else f"nufed: {message}"
        print(line, file=sys.stderr)
    return exit_code


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from nufed.deploy.commands.version import version_line

    typer.echo(version_line())
    raise typer.Exit


@app.callback()
def describe_program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="version, commit, and those of Flower"),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error came from; any command takes it")] = False,
) -> None:
    """Federated learning of a starting point that each client adapts to its own data in ν fine-tuning steps."""


@app.command("simulate", help=_SIMULATE_HELP)
@with_option_groups
def simulate_command(  # noqa: PLR0913 - groups of options, all by name
    run: RunOptions,
    machine: MachineOptions,
    output: OutputOptions,
    attack: AttackOptions,
    spread: EngineFlags,
    page: DashboardOptions,
    log: LogOptions,
    engine: Annotated[
        str,
        typer.Option(
            help="local (one client after another), cohort (all at once, equal up to rounding), processes, "
            "ray (also on a cluster), or auto (cohort or local, whichever is faster)",
            metavar="NAME",
            rich_help_panel="Machine",
            autocompletion=beginning_with(engine_names),
        ),
    ] = "local",
    resume: Annotated[
        Path | None,
        typer.Option(help="go on with the run in this folder; only --rounds may change", metavar="RUN_DIR"),
    ] = None,
    track: Track = None,
) -> None:
    """Run a whole federation on this machine."""
    from nufed.common.settings import process_settings
    from nufed.deploy.simulation.engines import find_engine, simulate_checked
    from nufed.server.control import RunControl
    from nufed.server.resuming import stored_config
    from nufed.server.run import ServerOptions

    find_engine(engine)
    spread.chosen.check(engine)
    if resume and output.out:
        raise ConfigError(f"--out {output.out} contradicts --resume {resume}, which goes on in its folder. Choose one.")
    config, notes = (config_for_resuming(stored_config(resume), run), []) if resume else run.resolve_with_notes()
    out, control = output.out or process_settings().out, RunControl()
    with (
        machine.exported(),
        watched(output, log, track) as (events, _),
        page.shown(events, control, resume.parent if resume else out, resume=resume),
    ):
        for note in notes:
            events.say(note)
        options = ServerOptions(out=out, resume=resume, events=events, control=control)
        simulate_checked(config, options, engine=engine, engine_options=spread.chosen, attack=attack.chosen)


@app.command()
def models() -> None:
    """List the models for --model."""
    from nufed.common.models import MODELS

    spelled = {f"{name}:{spec.argument}" if spec.argument else name: spec for name, spec in MODELS.items()}
    _list("model", {name: spec.description for name, spec in spelled.items()})
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

    rows = [(name, method.source, method.summary) for name, method in METHODS.items()]
    print_table(stdout_console(), ("method", "source", "description"), rows)


@app.command()
def options() -> None:
    """List every option for --set and --config: its flag where there is one, default, allowed values, and meaning."""
    from nufed.common.config import option_descriptions

    flags = {key: f"--{flag}" for flag, key in FLAGS.items()}
    rows = [
        (key, flags.get(key, ""), str(default), allowed_values(key), description)
        for key, (default, description) in option_descriptions().items()
    ]
    print_table(stdout_console(), ("option", "flag", "default", "values", "meaning"), rows)


def _list(what: str, descriptions: Mapping[str, str]) -> None:
    print_table(stdout_console(), (what, "description"), list(descriptions.items()))


deploy_cli.register(app)
check_cli.register(app)
draft_cli.register(app)
experiment_cli.register(app)
personal_cli.register(app)
runs_cli.register(app)
dashboard_cli.register(app)
theory_cli.register(app)
tune_cli.register(app)
privacy_cli.register(app)
explain_arguments(app)
