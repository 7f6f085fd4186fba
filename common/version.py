"""The version of NuFed, which stands in pyproject.toml and nowhere else."""

import tomllib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


@cache
def read_version() -> str:
    """Return the version: of the checkout or app bundle that this file is in, else of the installed package."""
    try:
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return version("nufed")
    return str(project["version"]) if project.get("name") == "nufed" else version("nufed")
