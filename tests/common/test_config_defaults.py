"""pyproject.toml repeats for Flower what common/ declares, and says the same."""

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import flatten_dict

from nufed.common import __version__
from nufed.common.config import RunConfig

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
DECLARED = flatten_dict(PYPROJECT["tool"]["flwr"]["app"]["config"])


def test_flower_is_told_every_option_and_no_other():
    """Flower refuses to override a key that is not declared; one that we do not know would be refused by us."""
    assert set(DECLARED) == set(RunConfig().flat())


@pytest.mark.parametrize(("key", "default"), RunConfig().flat().items())
def test_flower_is_told_the_defaults(key, default):
    """Value and type are equal: Flower reads an override as the type declared, and 1 is not 1.0."""
    assert DECLARED[key] == default
    assert type(DECLARED[key]) is type(default)


def test_what_flower_passes_on_is_the_default_configuration():
    """A run without overrides runs the defaults."""
    assert RunConfig.parse(DECLARED) == RunConfig()


def test_the_package_has_one_version():
    """Flower reads it from pyproject.toml, where it cannot be looked up in the code."""
    assert PYPROJECT["project"]["version"] == __version__
