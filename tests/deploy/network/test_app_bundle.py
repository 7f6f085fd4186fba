"""The bundle that `flwr run` ships: the apps and what they import, nothing else, and little of it."""

import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

# Flower 1.39 selects the bundle's files with a name that pathspec has deprecated since.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROOT = Path(__file__).parents[3]
SHIPPED = ("client", "common", "server", "strategy")


@pytest.fixture(scope="module")
def bundle():
    return build_fab_from_disk(ROOT)


def test_the_bundle_holds_the_apps_packages_and_nothing_else(bundle):
    """No tests, docs, benchmarks, deployment, data or runs travel to a client."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        names = set(archive.namelist())

    modules = {path.relative_to(ROOT).as_posix() for package in SHIPPED for path in (ROOT / package).rglob("*.py")}
    modules.add("nufed/__init__.py")  # leads to the packages; the Python API stays at home
    assert names == modules | {"pyproject.toml", "LICENSE", ".info/CONTENT"}


def test_the_bundle_is_small(bundle):
    """Source text, which Flower packs as it is, of less than two megabytes; Flower's own limit is ten."""
    assert len(bundle) < 2_000_000
