"""Which runs lie in a folder, and which one a name means."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from nufed.common.errors import ConfigError, RunError, nearest_match_hint
from nufed.deploy.runs.stored import CONFIG, METRICS, StoredRun, read_stored

EXPERIMENT, CELLS = "experiment.json", "cells"


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's: it has its options, or at least its log."""
    return (folder / CONFIG).is_file() or (folder / METRICS).is_file()


def is_experiment(folder: Path) -> bool:
    """Return whether a folder is an experiment's."""
    return (folder / CELLS).is_dir() or (folder / EXPERIMENT).is_file()


def run_folders(root: Path) -> list[Path]:
    """Return the folders of the runs in a folder, and of an experiment's cells; the newest first.

    The folder's own one, where it is itself a run's.

    Raises:
        RunError: there is no such folder, or it cannot be read.
    """
    if is_run(root):
        return [root]
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and is_run(path)]
        if (root / CELLS).is_dir():
            cells = [cell for cell in (root / CELLS).iterdir() if cell.is_dir()]
            folders += [path for cell in cells for path in cell.iterdir() if path.is_dir() and is_run(path)]
    except OSError as error:
        raise RunError(
            f"Expected a folder of runs at {root}, but it cannot be read ({error.strerror}). Name a folder that --out "
            "of a run named."
        ) from error
    return sorted(folders, key=lambda path: path.name, reverse=True)


def stored_runs(root: Path) -> list[StoredRun]:
    """Return the runs in a folder, the newest first: by when they started, else by their folders' names.

    Raises:
        RunError: there is no such folder.
    """
    runs = [read_stored(folder) for folder in run_folders(root)]
    return sorted(runs, key=_began, reverse=True)


def find_runs(names: Iterable[str], root: Path) -> Iterator[Path]:
    """Yield the folder of each run that is named: by its path, by its folder's name in `root`, or by its `--name`.

    Raises:
        ConfigError: there is no such run, or several runs have the name.
    """
    for name in names:
        yield _find(name, root)


def _began(run: StoredRun) -> tuple[float, str]:
    """Return when a run began, in seconds: as it says, else as its folder's name says, else when the folder changed."""
    with suppress(ValueError):
        return datetime.fromisoformat(run.started).timestamp(), run.folder.name
    with suppress(ValueError):
        return datetime.strptime(run.folder.name[:15], "%Y%m%d-%H%M%S").astimezone().timestamp(), run.folder.name
    with suppress(OSError):
        return run.folder.stat().st_mtime, run.folder.name
    return 0.0, run.folder.name


def _find(name: str, root: Path) -> Path:
    for folder in (Path(name), root / name):
        if folder.is_dir() and is_run(folder):
            return folder
    known = run_folders(root) if root.is_dir() else []
    called = [folder for folder in known if folder.name[16:] == name]
    if len(called) == 1:
        return called[0]
    if called:
        listed = ", ".join(folder.name for folder in called[:5])
        raise ConfigError(f"Expected one run named {name!r} in {root}, but there are {len(called)}: {listed}. Name it.")
    raise ConfigError(
        f"Expected a run at {name!r} or in {root}, but there is none.{_hint(name, [folder.name for folder in known])} "
        "`nufed runs list` lists them."
    )


def _hint(name: str, known: Sequence[str]) -> str:
    hint = nearest_match_hint(name, known)
    return hint if "Did you mean" in hint else ""
