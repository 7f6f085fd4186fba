"""Every method is a preset of options, and every preset a configuration."""

from pathlib import Path

import pytest

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.methods import DEFINING_OPTIONS, METHODS, Method, find_method, preset_notes

LEFT_OPEN = {"method.estimator", "federation.server-lr", "method.inner-lr", "method.batch-size"}
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
        left_open = {"method.estimator", "federation.server-lr", "method.inner-lr", "method.batch-size"} - find_method(
            name
        ).overrides.keys()
        assert found.updated({key: expected.flat()[key] for key in left_open}) == expected


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_what_is_tuned_alone(name):
    """But for iMAML, whose inner problem is not solved at the default step size and batch."""
    config = configured(name, **{**OTHER, "method.inner-lr": 0.03})

    assert (config.seed, config.method.inner_lr) == (3, 0.02 if name == "imaml" else 0.03)


def test_no_two_methods_are_the_same():
    configurations = [configured(name).to_json() for name in METHODS]

    # Generalized meta federated learning with ν = 3 is the default.
    assert len(set(configurations)) == len(METHODS)
    assert configured("meta-fedavg-3") == RunConfig()


def test_meta_fedavg_takes_any_estimator():
    assert configured("meta-fedavg-5", **OTHER).method.estimator == "unrolled"


def test_a_new_preset_with_a_new_key_changes_no_other_preset(monkeypatch):
    before = {name: method.options() for name, method in METHODS.items()}

    monkeypatch.setitem(METHODS, "made-up", Method("patient", "2026", {"federation.round-timeout": 5.0}))

    assert {name: METHODS[name].options() for name in before} == before
    assert all(before[name].keys() == {*DEFINING_OPTIONS, *METHODS[name].overrides} for name in before)


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("fedavg", {"method.num-inner-steps": 3}, "3 instead of 0: this is no longer fedavg, but meta-fedavg-3"),
        ("fedavg", {"method.num-inner-steps": 4}, "4 instead of 0: this is no longer fedavg"),
        ("fedavg", {"method.proximal-strength": 2.0}, "this is no longer fedavg, but fedprox"),
        ("per-fedavg", {"method.estimator": "first-order"}, "no longer per-fedavg, but per-fedavg-fo"),
        ("fedprox", {"method.proximal-strength": 0.0}, "this is no longer fedprox, but fedavg"),
        ("local-only", {"federation.training": "federated"}, "this is no longer local-only, but fedavg"),
    ],
)
def test_a_preset_that_is_changed_into_another_method_says_so(name, typed, expected):
    (note,) = preset_notes(name, {}, configured(name).updated(typed), typed=typed)

    assert note.endswith(expected)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.tuned])
def test_what_a_method_leaves_to_its_user_is_no_departure(name):
    whole = {"method.num-inner-steps", "method.batch-size"}
    typed = {key: 4 if key in whole else 0.25 for key in find_method(name).tuned}

    assert preset_notes(name, {}, configured(name).updated(typed), typed=typed) == []


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'per-fedavg'"):
        find_method("perfedavg")


def test_the_document_has_every_method():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")

    short = {name: f"`-{name.rpartition('-')[2]}`" for name in METHODS}
    assert [name for name in METHODS if f"`{name}`" not in text and short[name] not in text] == []
