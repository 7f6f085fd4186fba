"""Where a command writes: never over what it reads, and over nothing that is there unless `--force` is typed."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from nufed.common.errors import ConfigError
from nufed.common.json_text import parse_object

_PREPARED_DATA = "data"
_TOLD = ("events.jsonl", "tracking.json", "tensorboard", "wandb")
_PAGES = (".html", ".htm")

Force = Annotated[bool, typer.Option("--force", help="replace what is there already")]


def check_output(path: Path, *, inputs: Iterable[Path], force: bool, flag: str = "--out") -> None:
    """Refuse a file to write that is an input or a folder, lies nowhere, or exists while `--force` was not typed.

    Args:
        path: the file to write.
        inputs: files and folders that the command reads; the same file by another path or link is found too.
        force: whether a file that is there may be replaced.
        flag: the option that named the file, for the message.

    Raises:
        ConfigError: with what to do.
    """
    if path.is_dir():
        raise ConfigError(f"Expected {flag} to name a file, but {path} is a folder. Name a file in it.")
    for source in inputs:
        if _is_within(path, source):
            raise ConfigError(f"{flag} {path} is read by this command, as {source}. Name another file.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(
            f"Expected {flag} to name a file in a folder that exists, got {path}. Make the folder, or name another one."
        )
    if path.exists() and not path.is_file():
        raise ConfigError(f"Expected {flag} to name a plain file, but {path} is a device or a pipe. Name a file.")
    if not force and (path.exists() or path.is_symlink()):
        raise ConfigError(f"{flag} {path} exists already. Name another file, or type --force to replace it.")


def check_experiment_folder(folder: Path, suite: str) -> None:
    """Refuse a folder that holds anything but this suite's experiment, which goes on there.

    Raises:
        ConfigError: with what is there.
    """
    from nufed.deploy.experiments.cells import CELLS
    from nufed.deploy.experiments.conduct import RECORD

    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"Expected --out to name a folder, but {folder} is a file. Name a folder.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names <= {_PREPARED_DATA, *_TOLD} and not names & {RECORD, CELLS}:
        raise ConfigError(
            f"--out {folder} holds something other than an experiment ({sorted(names)[0]}). Name a folder that is new, "
            "empty or this suite's."
        )
    there = _suite_in(folder / RECORD)
    if there is not None and there != suite:
        raise ConfigError(f"--out {folder} holds the experiment {there!r}, and this is {suite!r}. Name another folder.")


def check_report(path: Path, folders: Iterable[Path], *, force: bool) -> None:
    """Refuse a file for a report that is not an HTML file, or that `check_output` refuses.

    Raises:
        ConfigError: with what to do.
    """
    from nufed.deploy.experiments.report import figures_folder

    if path.suffix.lower() not in _PAGES:
        raise ConfigError(f"Expected --out to name an HTML file, got {path}. Let it end in .html.")
    files = [each for folder in folders if folder.is_dir() for each in folder.iterdir() if each.is_file()]
    check_output(path, inputs=[each for each in files if each.suffix.lower() not in _PAGES], force=force)
    if not force and not path.exists() and (figures := figures_folder(path)).exists():
        raise ConfigError(f"{figures} exists, where the report puts its figures. Name another --out, or type --force.")


def check_document(path: Path) -> None:
    """Refuse a file for sections of Markdown that is there and cannot be such a document.

    Raises:
        ConfigError: with what to do.
    """
    if path.suffix.lower() not in (".md", ".markdown"):
        raise ConfigError(f"Expected --markdown to name a Markdown file, got {path}. Let it end in .md.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"Expected --markdown to name a file in a folder that exists, got {path}. Name another file.")


def check_page(path: Path) -> None:
    """Refuse the file of a section beside a document if a folder, or a file, is in its way.

    Raises:
        ConfigError: with what to do.
    """
    if path.is_dir():
        raise ConfigError(f"The section goes into {path}, but that is a folder. Move it, or name another --markdown.")
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(
            f"Sections go into the folder {path.parent}, but that is a file. Move it, or name another --markdown."
        )


def _suite_in(record: Path) -> str | None:
    try:
        return str(parse_object(record.read_text(encoding="utf-8"))["suite"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_from(model: Path | None = None, data: str | None = None) -> Iterator[Path]:
    """Yield the files and folders that `--model` and `--data` name.

    Raises:
        ConfigError: the data's SPEC is misspelled.
    """
    from nufed.common.data.private.load import is_slice
    from nufed.common.data.private.spec import parse_spec
    from nufed.server.run_folder import MODEL

    if model is not None:
        yield model / MODEL if model.is_dir() else model
    if data is not None and not is_slice(data):
        spec = parse_spec(data)
        module = spec.argument.partition(":")[0].replace(".", "/")
        yield Path(f"{module}.py") if spec.kind == "python" else spec.path


def _is_within(path: Path, source: Path) -> bool:
    """Return whether a path is an input, by whatever link or spelling, or lies in an input that is a folder."""
    if path.exists() and source.exists() and path.samefile(source):
        return True
    target, origin = path.resolve(), source.resolve()
    return target == origin or origin in target.parents
