"""`nufed experiment` and `nufed report`: run a suite of methods over seeds, and show what came out."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nufed.common.errors import ConfigError
from nufed.common.json_text import json_ready
from nufed.deploy.commands.dashboard import DashboardOptions
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, beginning_with, engine_names, with_option_groups
from nufed.deploy.commands.outputs import (
    Force,
    check_document,
    check_experiment_folder,
    check_page,
    check_report,
)
from nufed.deploy.commands.run_options import RunOptions, complete_assignment
from nufed.deploy.commands.terminal import stdout_console
from nufed.deploy.commands.watch_options import Track

COMPARISON = "comparison.html"
"""The report of several runs, beside the first."""

_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="run option for all methods, e.g. federation.num-rounds=50",
        metavar="KEY=VALUE",
        autocompletion=complete_assignment,
    ),
]

_MOST_JOBS = 256


def _suites() -> Iterable[str]:
    from nufed.deploy.experiments.suite import suite_names

    return ["list", *suite_names()]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("experiment")(experiment_command)
    app.command("report")(report_command)


@with_option_groups
def experiment_command(  # noqa: PLR0913 - the command line is flat
    machine: MachineOptions,
    page: DashboardOptions,
    suite: Annotated[
        str,
        typer.Argument(
            help="name of a suite, or a TOML file; `list` names them",
            metavar="SUITE",
            autocompletion=beginning_with(_suites),
        ),
    ],
    seeds: Annotated[int | None, typer.Option(help="seeds of the final runs", min=1, max=1000)] = None,
    jobs: Annotated[
        str,
        typer.Option(
            help="runs at a time on this machine, or `ray` for as many as a Ray cluster has CPUs for", metavar="N|ray"
        ),
    ] = "1",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="of --jobs ray: local (this machine alone, the default), auto, HOST:PORT or ray://HOST:PORT",
            metavar="ADDRESS",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the experiment (default: results/SUITE)", metavar="DIR")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="what runs a federation, as in simulate", metavar="NAME", autocompletion=beginning_with(engine_names)
        ),
    ] = "cohort",
    resume: Annotated[
        bool, typer.Option(help="go on where an earlier start stopped, or refuse a folder that has runs")
    ] = True,
    assignments: _Set = None,
    method: Annotated[list[str] | None, typer.Option(help="only this method (repeatable)", metavar="NAME")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="only this setting (repeatable)", metavar="NAME")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="show nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the verdict as JSON and nothing else")] = False,
    track: Track = None,
) -> None:
    """Tune the methods of a suite with equal budgets, run them over seeds, and write tables and a report.

    Finished runs are kept: the same command goes on after Ctrl-C or a crash.
    """
    from nufed.common.settings import process_settings
    from nufed.deploy.experiments.cells import CELLS
    from nufed.deploy.experiments.conduct import Changes, conduct, located, with_changes
    from nufed.deploy.experiments.ray_cells import RayCells, check_engine
    from nufed.deploy.experiments.runner import Workers
    from nufed.deploy.experiments.suite import Suite, suite_names
    from nufed.deploy.experiments.told import told_experiment
    from nufed.deploy.monitoring.tracking import check_tracking
    from nufed.deploy.simulation.engines import find_engine

    if suite == "list":
        for name in suite_names():
            typer.echo(f"{name}: {Suite.load(name).title}")
        return
    find_engine(engine)
    num_jobs = _num_jobs(jobs, ray_address)
    if num_jobs is None:
        check_engine(engine)
    specs = check_tracking(track or [])
    changes = Changes(seeds, _options(assignments or []), method or (), setting or ())
    changed = with_changes(Suite.load(suite), changes)
    folder = out or Path("results") / changed.name
    check_experiment_folder(folder, changed.name)
    if not resume and (folder / CELLS).exists():
        raise ConfigError(f"--no-resume contradicts {folder}, which has runs. Choose another --out, or leave it out.")
    with machine.exported(), page.showing(folder):
        say, command = _speaker(silent=quiet or as_json), " ".join(["nufed", *sys.argv[1:]])
        suite_here = located(changed, folder, process_settings().data_root)
        with told_experiment(changed.name, folder, dict(suite_here.options), specs) as (events, trackers):
            cluster = RayCells(ray_address or "local", engine) if num_jobs is None else None
            with cluster or nullcontext():
                workers = Workers(folder, num_jobs or 0, engine, say, events, trackers, cluster)
                experiment = conduct(suite_here, workers, command=command)
    workers.say("making the report")
    _show(experiment.suite.name, folder, quiet=quiet, as_json=as_json)


def _num_jobs(jobs: str, ray_address: str | None) -> int | None:
    """Return how many runs at a time, or None for a Ray cluster.

    Raises:
        ConfigError: it is neither, or an address is given for runs on this machine.
    """
    if jobs == "ray":
        return None
    if not jobs.isascii() or not jobs.isdecimal() or not 1 <= int(jobs) <= _MOST_JOBS:
        raise ConfigError(f"Expected --jobs of 1 to {_MOST_JOBS}, or ray, but got {jobs!r}. Correct it.")
    if ray_address is not None:
        raise ConfigError(f"--ray-address={ray_address} is for --jobs ray, but --jobs is {jobs}. Correct one of them.")
    return int(jobs)


def report_command(
    folders: Annotated[
        list[Path], typer.Argument(help="folders of experiments, or of single runs", metavar="RUN_OR_SUITE...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="HTML file (default, written anew: report.html in the folder; of several runs, comparison.html beside "
            "the first)",
            metavar="FILE",
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            help="also keep this Markdown file: sections of runs, and a table with a row for each experiment, whose "
            "section has a page of its own (for results.md, results/FOLDER.md), unless the file has its marks; other "
            "text, rows and pages stay",
            metavar="FILE",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a report of an experiment or a run: one HTML file that needs no network, and its figures beside it.

    Several run folders make one comparison; several experiments, a report each.
    """
    from nufed.deploy.experiments.report import write_report
    from nufed.deploy.experiments.report_documents import with_stories, write_documents
    from nufed.deploy.experiments.story import is_run, read_story, story_of_runs

    names = [folder.resolve().name for folder in folders]
    are_compared = len(folders) > 1 and all(map(is_run, folders))
    if out and len(folders) > 1 and not are_compared:
        raise ConfigError("--out is one file, and there are several folders. Leave it out, or report one at a time.")
    if len({folder.resolve() for folder in folders} if are_compared else set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"There are two folders named {twice!r}, and sections are named like them. Rename one.")
    if out:
        check_report(out, folders, force=force)
    beside = folders[0].resolve().parent / COMPARISON
    sections = (
        {beside.stem: False} if are_compared else {folder.resolve().name: not is_run(folder) for folder in folders}
    )
    texts, places = _documents(markdown, sections) if markdown else ({}, {})
    with while_working("reporting"):
        if are_compared:
            stories = {beside.stem: (story_of_runs(folders), out or beside)}
        else:
            targets = [out or folder / "report.html" for folder in folders]
            told = [read_story(folder) for folder in folders]
            stories = dict(zip(names, zip(told, targets, strict=True), strict=True))
        for story, target in stories.values():
            write_report(story, target)
            typer.echo(str(target))
        if markdown:
            changed = with_stories(texts, markdown, {name: story for name, (story, _) in stories.items()}, places)
            write_documents(changed, markdown)
            typer.echo("\n".join(map(str, changed)))


def _documents(document: Path, sections: Mapping[str, bool]) -> tuple[dict[Path, str], dict[str, Path]]:
    """Return the texts of the document and of its sections' files, and the file of each section.

    Args:
        document: that `--markdown` names.
        sections: their names -> whether they are an experiment's, which has a page of its own.

    Raises:
        ConfigError: one cannot be such a file.
    """
    from nufed.deploy.experiments.report_documents import page_of

    check_document(document)
    text = _text_of(document)
    places = {name: page_of(name, document, text) if is_suite else document for name, is_suite in sections.items()}
    pages = set(places.values()) - {document}
    for page in pages:
        check_page(page)
    return {document: text, **{page: _text_of(page) for page in pages}}, places


def _text_of(path: Path) -> str:
    """Return the text that sections are put into; empty if the file is still to be made.

    Raises:
        ConfigError: it is no text.
    """
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected UTF-8 text in {path}, but {error}. Name another file with --markdown.") from error


def _show(name: str, folder: Path, *, quiet: bool, as_json: bool) -> None:
    from nufed.deploy.experiments.report import write_report
    from nufed.deploy.experiments.story import read_story

    story = read_story(folder)
    write_report(story, folder / "report.html")
    if as_json:
        typer.echo(json.dumps(json_ready({"folder": folder, "suite": name, **story.to_json()}), indent=2))
    elif not quiet:
        console = stdout_console()
        for line in story.verdict_lines():
            console.print(Text(line), soft_wrap=True)
        console.print(Text(f"report {folder / 'report.html'}"), soft_wrap=True)


def _speaker(*, silent: bool) -> Callable[[str], None]:
    console = stdout_console()
    return (lambda _line: None) if silent else lambda line: console.print(Text(line), soft_wrap=True)


def _options(assignments: list[str]) -> dict[str, str | int | float | bool]:
    """Return the options of --set.

    Raises:
        ConfigError: one is no assignment, or two contradict each other.
    """
    return dict(RunOptions(assignments=assignments).changes())
