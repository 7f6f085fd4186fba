"""Which NuFed this is: its version, and the commit that it was made of where that is known."""

import importlib.util
import subprocess
from importlib.metadata import version
from pathlib import Path
from platform import python_version

STAMP = "COMMIT"
"""A file beside `nufed/__init__.py` that a build (setup.py) leaves in a wheel or source archive."""


def version_line() -> str:
    """Return one line: NuFed's version and commit, and the versions of what its numbers depend on."""
    package = importlib.util.find_spec("nufed")
    commit = find_commit(Path(package.origin).parent) if package and package.origin else None
    from nufed.common import __version__

    stated = f"commit {commit}, " if commit else ""
    others = f"flwr {version('flwr')}, torch {version('torch')}, python {python_version()}"
    return f"nufed {__version__} ({stated}{others})"


def find_commit(package: Path) -> str | None:
    """Return the commit that a package folder is of, with `+changes` behind it if files differ; None if unknown.

    A checkout tells it by git, an installed package by the stamp of its build. That some folder above the package is a
    repository says nothing: a virtual environment may lie in another project's.
    """
    if (package.parent / ".git").exists() and (package.parent / "pyproject.toml").is_file():
        return _from_git(package.parent)
    try:
        return (package / STAMP).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _from_git(root: Path) -> str | None:
    describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the folder
        return None
    return done.stdout.strip() or None
