"""`nufed draft`: the `[data]` table of a run, written from data that lie here, for a person to look at and to share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.outputs import Force, check_output, read_from

_HEAD = """\
# Written by `nufed draft` of {num} examples on this machine. It holds the names of columns, categories and classes,
# and means and deviations, and nothing else of the data. Look at it before you share it, and fill in the rest:
#   nufed server --config {name}
[data]
source = "private"
"""
_COMMENTS = {
    "task": "{reason}",
    "feature-names": "the inputs, in this order, whatever the order in the clients' files",
    "categories": "columns of names; add values that other sites have",
    "class-names": "in the order of their numbers; add classes that other sites have",
    "num-outputs": "values that are predicted for each example, or classes that are numbers",
    "input-shape": "of one example",
    "feature-means": 'of columns without categories, of these examples; scale = "federated" makes them of all sites\'',
    "feature-scales": "their deviations",
    "target-means": "of what is predicted, over these examples",
    "target-scales": "their deviations",
}
_TAIL = """\
num-clients = 2  # fill in: sites that take part
num-new-clients = 0  # fill in: sites that adapt the final model and are judged
"""


def register(app: typer.Typer) -> None:
    """Mount the command on the program's."""
    app.command("draft")(draft_command)


def draft_command(
    data: Annotated[
        str,
        typer.Option(
            help="data that lie here: csv:FILE?label=COLUMN, parquet:FILE?label=COLUMN or images:FOLDER", metavar="SPEC"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="TOML file to write (default: standard output)", metavar="FILE")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="what the data are for (default: guessed by the label)", metavar="NAME")
    ] = None,
    force: Force = False,
) -> None:
    """Write the options that a run on such data needs, for `nufed server --config`; nothing is sent anywhere.

    What is written has the names of columns, categories and classes, and the means and deviations of the columns of
    numbers. It is a draft: names and values that other sites have are not in it.
    """
    from nufed.common.data.private.inference import infer
    from nufed.common.data.private.spec import KINDS, USERS, parse_spec
    from nufed.common.durable_file import write_text

    _check_task(task)
    spec = parse_spec(data, {kind: KINDS[kind] for kind in USERS})
    if out is not None:
        check_output(out, inputs=read_from(data=data), force=force)
    with while_working("reading"):
        found = infer(spec, task)
    text = _toml(found.options, found.reasons, found.num_examples, out.name if out else "run.toml")
    _check_reads_back(text)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_text(out, text)
    typer.echo(
        f"{out}: names of columns, categories and classes, means and deviations of {found.num_examples} examples"
    )


def _check_task(task: str | None) -> None:
    from nufed.common.config import DataConfig

    if task is not None:
        DataConfig(task=task)  # judged by the configuration


def _check_reads_back(text: str) -> None:
    """Refuse what no server would take, such as two names that are spellings of one.

    Raises:
        ConfigError: with what is wrong.
    """
    from nufed.common.config import RunConfig
    from nufed.common.data.private.task import declared_task
    from nufed.common.json_text import parse_toml

    declared_task(RunConfig.parse(parse_toml(text)).data)


def _toml(options: Mapping[str, Any], reasons: Mapping[str, str], num: int, name: str) -> str:
    lines = [_HEAD.format(num=num, name=name)]
    for field, value in options.items():
        key = field.replace("_", "-")
        if value in ("", [], {}, 0):
            continue
        comment = _COMMENTS[key].format(reason=reasons.get(field, ""))
        lines.append(f"# {comment}\n{key} = {_value(value)}\n")
    return "".join([*lines, _TAIL])


def _value(value: Any) -> str:
    """Return a value as TOML has it; a text in JSON is one in TOML."""
    from nufed.common.data.private.task import check_written

    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_value(key)} = {_value(each)}" for key, each in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        check_written(value, "--data")
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
