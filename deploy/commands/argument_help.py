"""What `--help` says of positional arguments.

click 8.5 gave its arguments a help text of their own, and with it overwrites the one that typer up to 0.20 (the newest
that Flower allows) keeps under the same name: `--help` then shows an argument without a word about it.
"""

import inspect
from typing import Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand
from typer.models import ArgumentInfo


class ExplainedCommand(TyperCommand):
    """A command whose arguments have the help texts that its function declares; typer wants a class for that."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        """Put the declared texts where they were overwritten."""
        super().__init__(*args, **rest)
        texts = _declared_texts(self.callback) if self.callback else {}
        for parameter in self.params:
            if isinstance(parameter, TyperArgument) and parameter.name in texts:
                parameter.help = texts[parameter.name]


def explain_arguments(program: typer.Typer) -> None:
    """Let every command of a program, also below its groups, explain its positional arguments."""
    for command in program.registered_commands:
        command.cls = ExplainedCommand
    for group in program.registered_groups:
        if group.typer_instance is not None:
            explain_arguments(group.typer_instance)


def _declared_texts(function: Any) -> dict[str, str]:
    """Return parameter name -> help text of each `typer.Argument` in the annotations of a command's function."""
    texts = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        for declared in get_args(parameter.annotation):
            if isinstance(declared, ArgumentInfo) and declared.help:
                texts[name] = declared.help
    return texts
