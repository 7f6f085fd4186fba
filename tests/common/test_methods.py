"""Every method is a preset of options, and every preset a configuration."""

from pathlib import Path

import pytest

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.methods import METHODS, find_method

OTHER = {"method.num-inner-steps": 7, "method.estimator": "unrolled", "method.inner-lr": 0.02, "seed": 3}


def configured(name, **base):
    return RunConfig().updated(base).updated(find_method(name).options())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_run_and_says_where_it_comes_from(name):
    method = find_method(name)

    assert configured(name).flat().items() >= method.overrides.items()
    assert any(character.isdigit() for character in method.source)  # a year
    assert method.summary


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_an_earlier_method_is_left_over(name):
    """What tells methods apart is set by each of them, so that the order in which they are tried does not matter."""
    expected = configured(name)

    for earlier in METHODS:
        found = configured(earlier).updated(find_method(name).options())
        leaves_estimator_open = "method.estimator" not in find_method(name).overrides
        assert found.replace(method__estimator="exact") == expected.replace(method__estimator="exact")
        assert leaves_estimator_open or found.method.estimator == expected.method.estimator


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_what_is_tuned_alone(name):
    config = configured(name, **OTHER)

    assert (config.seed, config.method.inner_lr) == (3, 0.02)


def test_no_two_methods_are_the_same():
    configurations = [configured(name).to_json() for name in METHODS]

    # Generalized meta federated learning with ν = 3 is the default.
    assert len(set(configurations)) == len(METHODS)
    assert configured("meta-fedavg-3") == RunConfig()


def test_meta_fedavg_takes_any_estimator():
    assert configured("meta-fedavg-5", **OTHER).method.estimator == "unrolled"


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'per-fedavg'"):
        find_method("perfedavg")


def test_the_document_has_every_method():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")

    short = {name: f"`-{name.rpartition('-')[2]}`" for name in METHODS}
    assert [name for name in METHODS if f"`{name}`" not in text and short[name] not in text] == []
