"""Examples in docstrings are run, and say what comes out."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "client", "strategy", "server", "deploy")
LIBRARY = (ROOT / "nufed" / "library").glob("*.py")
FILES = [
    ROOT / "nufed" / "__init__.py",
    *LIBRARY,
    *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
]
SHOWN = sorted(path.relative_to(ROOT).as_posix() for path in FILES if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHOWN)
def test_examples_in_docstrings_give_what_they_show(path):
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(name if name.startswith("nufed") else f"nufed.{name}")

    found = doctest.testmod(module)

    assert found.attempted > 0
    assert found.failed == 0
