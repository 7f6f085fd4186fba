"""`nufed runs`: list, show and compare the runs that there are, and remove old ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.errors import ConfigError
from nufed.common.json_text import json_ready
from nufed.common.untrusted import printable
from nufed.deploy.commands.outputs import Force, check_output
from nufed.deploy.commands.tables import print_table
from nufed.deploy.commands.terminal import stdout_console
from nufed.server.progress_lines import duration, number, privacy_line

if TYPE_CHECKING:
    from nufed.deploy.runs.cleaning import Candidate
    from nufed.deploy.runs.stored import GroupResult, StoredRun

runs = typer.Typer(name="runs", no_args_is_help=True, help="List, show and compare runs, and remove old ones.")

_Folder = Annotated[
    Path | None, typer.Argument(help="folder of runs, or of an experiment (default: runs)", metavar="[RUNS]")
]
_Within = Annotated[Path | None, typer.Option("--runs", help="folder that names are looked up in (default: runs)")]
_Json = Annotated[bool, typer.Option("--json", help="print JSON and nothing else")]


def register(app: typer.Typer) -> None:
    """Mount the commands on the program's."""
    app.add_typer(runs)


@runs.command("list")
def list_command(
    folder: _Folder = None,
    limit: Annotated[int | None, typer.Option(help="only the newest ones, so many", min=1)] = None,
    as_json: _Json = False,
) -> None:
    """List the runs in a folder, newest first: what they did, how far they are, and what came out."""
    from nufed.deploy.runs.catalog import stored_runs

    found = stored_runs(_root(folder))[:limit]
    if as_json:
        _print_json([run.to_json() for run in found])
        return
    if not found:
        typer.echo(f"no runs in {_root(folder)}")
        return
    header = ("run", "status", "rounds", "data", "method", "judged by", "participating", "new", "time")
    print_table(stdout_console(), header, [_row(run) for run in found])
    for run in found:
        if run.damage:
            typer.echo(f"{printable(run.folder.name)} is damaged: {printable(run.damage)}", err=True)


@runs.command("show")
def show_command(
    run: Annotated[str, typer.Argument(help="a run's folder, or its name", metavar="RUN")],
    within: _Within = None,
    as_json: _Json = False,
) -> None:
    """Show one run: how it went, its results by fine-tuning steps, its costs, and its options."""
    from nufed.deploy.runs.catalog import find_runs
    from nufed.deploy.runs.stored import read_stored

    (folder,) = find_runs([run], _root(within))
    stored = read_stored(folder)
    if as_json:
        _print_json({**stored.to_json(), "options": dict(stored.options)})
        return
    for line in _described(stored):
        typer.echo(line)
    if stored.groups:
        header = ["clients", "number", *(f"s = {step}" for step in range(_length(stored)))]
        rows = [_curve_row(name, group, stored.measure) for name, group in stored.groups.items()]
        typer.echo(f"{stored.measure} after s fine-tuning steps:")
        print_table(stdout_console(), header, rows, right=len(header) - 1)
    typer.echo("options that are not the defaults:")
    changed = _changed(stored.options)
    print_table(stdout_console(), ("option", "value"), changed or [("none", "")])


@runs.command("compare")
def compare_command(
    names: Annotated[list[str], typer.Argument(help="two runs or more: folders, or names", metavar="RUN RUN...")],
    within: _Within = None,
    out: Annotated[Path | None, typer.Option(help="also draw the curves: a PNG or SVG file", metavar="FILE")] = None,
    force: Force = False,
    as_json: _Json = False,
) -> None:
    """Show runs side by side: their results, and the options in which they differ."""
    from nufed.deploy.runs.catalog import find_runs
    from nufed.deploy.runs.comparison import differing_options, progress
    from nufed.deploy.runs.stored import read_stored

    folders = list(find_runs(names, _root(within)))
    if len({folder.resolve() for folder in folders}) < 2:
        raise ConfigError("Expected two runs or more to compare, got one. Name others beside it.")
    if out:
        _check_picture(out, folders, force=force)
    stored = [read_stored(folder) for folder in folders]
    differing = differing_options([run.options for run in stored])
    if out:
        from nufed.deploy.runs.figure import draw_comparison

        draw_comparison(stored, out)
    if as_json:
        options = {key: [run.options.get(key) for run in stored] for key in differing}
        each = [{**run.to_json(), "progress": progress(run)} for run in stored]
        _print_json({"runs": each, "options": options, "figure": str(out) if out else None})
        return
    print_table(stdout_console(), _RESULTS, [row for run in stored for row in _result_rows(run)])
    typer.echo("")
    if differing:
        rows = [[key, *(printable(_shown(run.options.get(key))) for run in stored)] for key in differing]
        print_table(stdout_console(), ["option", *(printable(run.folder.name) for run in stored)], rows)
    else:
        typer.echo("their options are the same")
    if out:
        typer.echo(str(out))


@runs.command("clean")
def clean_command(
    older_than: Annotated[
        str, typer.Option(help="runs in which nothing changed for so long, e.g. 30d, 12h or 2w", metavar="AGE")
    ],
    folder: _Folder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and remove nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: _Json = False,
) -> None:
    """Remove old runs: never one that goes on, and nothing that is no run."""
    from nufed.deploy.runs.cleaning import old_runs, parse_age, remove

    if as_json and not (dry_run or yes):
        raise ConfigError("--json prints JSON and asks nothing. Type --dry-run or --yes with it.")
    found = old_runs(_root(folder), parse_age(older_than))
    going = [each for each in found if not each.kept]
    if not as_json:
        for line in _plan(found, older_than):
            typer.echo(line)
    if going and not dry_run:
        if not yes:
            typer.confirm(f"Remove {len(going)} run{'s' if len(going) > 1 else ''}?", abort=True)
        for candidate in going:
            remove(candidate)
    if as_json:
        listed = [{"folder": str(each.folder), "bytes": each.num_bytes} for each in going]
        kept = [{"folder": str(each.folder), "because": each.kept} for each in found if each.kept]
        _print_json({"removed": [] if dry_run else listed, "to_remove": listed if dry_run else [], "kept": kept})
    elif going:
        typer.echo(f"{'would free' if dry_run else 'freed'} {num_bytes(sum(each.num_bytes for each in going))}")


def num_bytes(number: float) -> str:
    """Return `812 B`, `3.4 kB`, `12 MB` or `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


WITHHELD = "withheld"
_RESULTS = ("run", "status", "clients", "number", "judged by", "before", "after", "worst tenth", "time")


def _root(folder: Path | None) -> Path:
    from nufed.common.settings import process_settings

    return folder or process_settings().out


def _print_json(value: Any) -> None:
    text = json.dumps(json_ready(value), indent=2, allow_nan=False, ensure_ascii=False)
    typer.echo(text.encode(errors="backslashreplace").decode())


def _row(run: "StoredRun") -> list[str]:
    from nufed.deploy.runs.stored import method_of

    groups = [run.groups.get(name) for name in ("participating", "new")]
    unknown = WITHHELD if "evaluation" in run.withheld else ""
    changes = [_change(group, run.measure) if group else unknown for group in groups]
    rounds = f"{run.rounds}/{run.num_rounds}" if run.options else ""
    data, method = _shown(run.options.get("data.source")), method_of(run.options)
    words = [run.folder.name, run.status, rounds, data, method, run.measure, *changes, _time(run)]
    return [printable(each) for each in words]


def _change(group: "GroupResult", measure: str) -> str:
    return f"{number(group.before, measure)} → {number(group.after, measure)}"


def _time(run: "StoredRun") -> str:
    return "" if run.seconds is None else duration(run.seconds)


def _described(run: "StoredRun") -> Iterator[str]:
    from nufed.deploy.runs.stored import method_of

    options = run.options
    yield f"{printable(str(run.folder))}: {run.status}"
    if run.damage:
        yield f"damaged: {printable(run.damage)}"
    if reason := run.summary.get("reason"):
        yield printable(str(reason))
    clients = f"{options.get('data.num-clients')} + {options.get('data.num-new-clients')} new clients"
    method = f"{method_of(options)}, seed {options.get('seed')}"
    yield printable(f"{options.get('data.source')}, {clients}, {options.get('model.name')}: {method}")
    begun = f", started {run.started}" if run.started else ""
    took = f" in {_time(run)}" if run.seconds is not None else ""
    yield printable(f"{run.rounds} of {run.num_rounds} rounds{took}{begun}{f', {run.engine}' if run.engine else ''}")
    yield from _on_privacy(run)
    costs, problems = run.summary.get("costs"), run.summary.get("problems")
    if isinstance(costs, Mapping) and "participants" not in run.withheld:
        up, down = (
            value if isinstance(value := costs.get(f"bytes_{way}"), int | float) else 0 for way in ("up", "down")
        )
        yield f"{num_bytes(up)} up, {num_bytes(down)} down"
    if isinstance(problems, Mapping) and any(problems.values()):
        yield "replies not used: " + printable(", ".join(f"{n} {name}" for name, n in problems.items() if n))


def _on_privacy(run: "StoredRun") -> Iterator[str]:
    from nufed.deploy.commands.result_tables import record_line

    try:
        lines = [privacy_line(run.summary), *record_line(run.summary)]
    except (KeyError, TypeError, ValueError, AttributeError):  # of another program
        lines = []
    yield from (printable(line) for line in lines if line)
    if run.withheld:
        yield f"withheld, as ε does not cover it: {', '.join(run.withheld)}"


def _curve_row(name: str, group: "GroupResult", measure: str) -> list[str]:
    return [name, str(group.num_clients), *(number(value, measure) for value in group.curve)]


def _length(run: "StoredRun") -> int:
    return max(len(group.curve) for group in run.groups.values())


def _changed(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    from nufed.common.config import option_descriptions

    defaults = {key: default for key, (default, _) in option_descriptions().items()}
    different = {key: value for key, value in options.items() if defaults.get(key) != value}
    return [(printable(key), printable(_shown(value))) for key, value in different.items()]


def _result_rows(run: "StoredRun") -> Iterator[list[str]]:
    name = printable(run.folder.name)
    if not run.groups:
        yield [name, run.status, "", "", *[WITHHELD if "evaluation" in run.withheld else ""] * 4, _time(run)]
    for group, result in run.groups.items():
        numbers = [number(value, run.measure) for value in (result.before, result.after, result.worst)]
        if "client-curves" in run.withheld:
            numbers[-1] = WITHHELD
        yield [name, run.status, group, str(result.num_clients), run.measure, *numbers, _time(run)]


def _check_picture(out: Path, folders: Sequence[Path], *, force: bool) -> None:
    from nufed.deploy.runs.figure import FORMATS

    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"Expected --out to name a picture, got {out}. Let it end in .png or .svg.")
    inputs = [path for folder in folders for path in folder.iterdir()]
    check_output(out, inputs=inputs, force=force)


def _plan(found: Sequence["Candidate"], older_than: str) -> Iterator[str]:
    for each in found:
        name = printable(each.folder.name)
        going = f"goes: {name}, {each.age / 86_400:.0f} days, {num_bytes(each.num_bytes)}"
        yield f"stays: {name}: {each.kept}" if each.kept else going
    if not any(not each.kept for each in found):
        yield f"no runs to remove that are older than {older_than}"


def _shown(value: object) -> str:
    return "" if value is None else str(value)
