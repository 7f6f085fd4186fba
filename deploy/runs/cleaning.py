"""Removing old runs: never one that goes on, and nothing that is no run."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from nufed.common.errors import ConfigError, RunError
from nufed.deploy.runs.catalog import is_run, run_folders
from nufed.deploy.runs.stored import CONFIG, SUMMARY
from nufed.server.run_lock import locked, writer_of

_AGE = re.compile(r"(\d+)\s*(m|h|d|w)")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NAME = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9._-]+")
_OURS = {
    *("config.json", "environment.json", "metrics.jsonl", "events.jsonl", "checkpoint.safetensors", "clients.csv"),
    *("model.safetensors", "summary.json", "curves.png", "report.html", "shots.csv", "shots.png", "tracking.json"),
    *("statistics.csv", "statistics.json"),
}
"""What a run and `nufed report` leave in a run's folder; a folder with anything else holds work of somebody's."""
_BOARD, _RECORD = "tensorboard", "events.out.tfevents."
"""The folder of `--track tensorboard`, and what the names of its files begin with."""
_PARTIAL = re.compile(r"\..+\.\d+\.part")


@dataclass(frozen=True)
class Candidate:
    """A run's folder that is old enough to go, or what keeps it.

    Attributes:
        folder: where it is.
        age: seconds since anything in it changed.
        num_bytes: what removing it frees.
        kept: why it stays; empty for one that goes.
    """

    folder: Path
    age: float
    num_bytes: int
    kept: str = ""


def parse_age(text: str) -> float:
    """Return the seconds of an age such as `30d`, `12h`, `45m` or `2w`.

    Raises:
        ConfigError: it is none.

    Examples:
        >>> parse_age("2d")
        172800.0
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"Expected --older-than as a number with m, h, d or w behind it, e.g. 30d, got {text!r}.")
    return float(int(match[1]) * _SECONDS[match[2]])


def old_runs(root: Path, older_than: float) -> list[Candidate]:
    """Return the runs in a folder in which nothing has changed for so many seconds, and what keeps some of them.

    Raises:
        ConfigError: it is a run's folder.
        RunError: there is no such folder.
    """
    if is_run(root):
        raise ConfigError(f"Expected a folder of runs, but {root} is a run itself. Name the folder that it is in.")
    now = time.time()
    found = (_candidate(folder, now) for folder in run_folders(root) if folder.parent == root)
    return [each for each in found if each.age > older_than]


def remove(candidate: Candidate) -> None:
    """Remove a run's folder; while it goes, nobody can go on with the run.

    Raises:
        RunError: it is not to be removed any more, or the system refuses.
    """
    folder = candidate.folder
    with locked(folder):
        now = _candidate(folder, time.time(), is_held=True)
        if now.kept or now.age < candidate.age:
            raise RunError(f"Expected {folder} as it was when it was looked at, but {now.kept or 'it has changed'}.")
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise RunError(
                f"Expected to remove {folder}, but the system refused ({error.strerror}). Change its permissions."
            ) from error


def _candidate(folder: Path, now: float, *, is_held: bool = False) -> Candidate:
    try:
        entries = list(folder.iterdir())
        stats = [each.lstat() for each in entries]
        age = now - max(stat.st_mtime for stat in [folder.lstat(), *stats])
        kept = _kept(folder, entries, is_held=is_held)
        board = folder / _BOARD
        stats += [each.lstat() for each in board.iterdir()] if not kept and board.is_dir() else []
        return Candidate(folder, age, sum(stat.st_size for stat in stats), kept)
    except OSError as error:
        return Candidate(folder, float("inf"), 0, f"it cannot be read ({error.strerror})")


def _is_board(path: Path) -> bool:
    """Return whether it is the folder of TensorBoard's record, with nothing else in it."""
    if path.name != _BOARD or path.is_symlink() or not path.is_dir():
        return False
    return all(each.name.startswith(_RECORD) and each.is_file() and not each.is_symlink() for each in path.iterdir())


def _kept(folder: Path, entries: list[Path], *, is_held: bool) -> str:
    """Return why a folder stays, as the end of a sentence; nothing for one that may go."""
    if folder.is_symlink():
        return "it is a link"
    if not _NAME.fullmatch(folder.name):
        return "its name is not one that a run makes"
    if not (folder / CONFIG).is_file():
        return f"it has no {CONFIG}"
    files = [path for path in entries if not _is_board(path)]
    others = sorted(path.name for path in files if path.name not in _OURS and not _PARTIAL.fullmatch(path.name))
    if others:
        return f"it holds {others[0]}, which is not of the run alone"
    if any(path.is_symlink() or not path.is_file() for path in files):
        return "it holds links or folders"
    writer = "nobody" if is_held else writer_of(folder)
    if writer == "somebody":
        return "it is running"
    if writer == "unknown" and not (folder / SUMMARY).is_file():
        return "it may be running"
    return ""
