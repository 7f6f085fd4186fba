"""The house's plan as tests: who may import whom, what modules may be called, how long they may be."""

import ast
import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from nufed.common.user_code import NEEDED

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "client", "strategy", "server", "deploy")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "strategy": {"strategy", "common"},
    "server": {"server", "strategy", "common"},
    "deploy": set(PACKAGES),
}
# What `import nufed` offers lies above all packages, but does without the command line.
LIBRARY = sorted((ROOT / "nufed" / "library").glob("*.py"))
# Process entries: they put a package's work behind the command line, which lives in deploy.
ENTRIES = {"client/__main__.py", "server/__main__.py"}
FLOWER_PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
KNOWS_FLOWER = {
    "client/app.py",
    "client/attending.py",
    "client/client_state.py",
    "client/error_replies.py",
    "client/secure_aggregation.py",
    "common/secure_wire.py",
    "common/model_arrays.py",
    "common/wire.py",
    "server/app.py",
    "server/run.py",
    "server/run_folder.py",
}
KNOWS_INTERNALS = "deploy/flower_runtime/"
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
WITH_LIBRARY = [*MODULES, *LIBRARY]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Return the dotted modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)} imports relatively"
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_packages_import_only_what_lies_below_them(path):
    package = relative(path).split("/")[0]

    ours = {".".join(name.split(".")[1:2]) for name in imports(path) if name.split(".")[0] == "nufed"}

    allowed = MAY_IMPORT[package] | ({"deploy"} if relative(path) in ENTRIES else set())
    assert ours <= allowed


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_the_library_knows_neither_the_command_line_nor_flower(path):
    assert not {name for name in imports(path) if name.split(".")[0] in {"typer", "click", "flwr"}}
    assert not {name for name in imports(path) if name.startswith(("nufed.deploy.commands", "nufed.deploy.network"))}


def test_needed_modules_are_all_that_the_product_imports_from_elsewhere():
    """The names that a module in the user's folder may not take (common/user_code.py)."""
    found = {name.split(".")[0] for path in WITH_LIBRARY for name in imports(path)}

    assert found - sys.stdlib_module_names <= NEEDED


@pytest.mark.parametrize("path", WITH_LIBRARY, ids=relative)
def test_no_product_code_imports_tests_or_benchmarks(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"tests", "benchmarks"}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_few_files_know_flower_and_one_folder_alone_its_internals(path):
    flower = {name for name in imports(path) if name.split(".")[0] == "flwr"}

    if relative(path).startswith("deploy/"):
        internal = {name for name in flower if name not in FLOWER_PUBLIC}
        assert not internal or relative(path).startswith(KNOWS_INTERNALS)
    elif flower:
        assert relative(path) in KNOWS_FLOWER or relative(path).startswith("strategy/")
        assert flower <= FLOWER_PUBLIC | {"flwr"}


@pytest.mark.parametrize("path", WITH_LIBRARY, ids=relative)
def test_modules_stay_short_enough_to_read(path):
    limit = 100 if path.name == "app.py" else 400

    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", WITH_LIBRARY, ids=relative)
def test_modules_have_names_of_their_own_and_say_what_they_are(path):
    assert path.stem not in {"utils", "util", "helpers", "helper", "misc", "base"}
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{relative(path)} has no docstring"


def test_every_package_is_imported_from_nufed_and_lies_at_the_top_of_the_repository():
    for package in PACKAGES:
        module = importlib.import_module(f"nufed.{package}")
        assert Path(module.__file__).resolve().parent == ROOT / package


def test_pyproject_lists_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]

    folders = [path.parent for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert listed == [
        "nufed",
        *sorted(["nufed.library", *("nufed." + relative(folder).replace("/", ".") for folder in folders)]),
    ]
