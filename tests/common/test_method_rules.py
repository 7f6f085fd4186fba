"""Options of methods that contradict each other are refused, naming both; what is special about one is known."""

import pytest

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.config.method import has_own_inner_steps
from nufed.common.errors import ConfigError
from nufed.common.method_rules import other_objectives, sequential_evaluation, sequential_training
from nufed.common.methods import METHODS

MOREAU = {"method.objective": "moreau", "method.personal-strength": 1.0}
LEARNED, HEAD = {"method.step-sizes": "learned"}, {"method.adapted-part": "head"}
ONE_BY_ONE = {"imaml"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**MOREAU, **LEARNED}, "objective=moreau contradicts step-sizes=learned; choose one"),
        ({**HEAD, **LEARNED}, "step-sizes=learned contradicts adapted-part=head"),
        ({"method.objective": "moreau"}, "personal-strength=0 contradicts objective=moreau"),
        ({**MOREAU, "method.num-inner-steps": 0}, "num-inner-steps=0 contradicts objective=moreau"),
        ({**MOREAU, "method.estimator": "first-order"}, "leave estimator at exact"),
        ({**MOREAU, "method.compile": "on"}, "compile=on contradicts objective=moreau"),
        ({**LEARNED, "method.num-inner-steps": 0}, "num-inner-steps=0 contradicts step-sizes=learned"),
        ({**LEARNED, "method.trained-part": "body"}, "trained-part=body contradicts step-sizes=learned"),
        ({**LEARNED, "method.estimator": "hessian-free"}, "choose exact, unrolled or first-order"),
        ({**HEAD, "method.estimator": "hessian-free"}, "estimator=hessian-free contradicts adapted-part=head"),
        (
            {**LEARNED, "method.estimator": "one-of-my-own"},
            "estimator=one-of-my-own contradicts step-sizes=learned",
        ),
        ({**HEAD, "method.compile": "on"}, "compile=on contradicts adapted-part=head"),
        ({**LEARNED, "evaluation.adapt-lr": 0.1}, r"adapt-lr=0\.1 contradicts method\.step-sizes=learned"),
    ],
)
def test_contradictions_are_refused_with_what_to_do(options, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig().updated(options)


@pytest.mark.parametrize("options", [MOREAU, LEARNED, HEAD, {**HEAD, "method.num-inner-steps": 0}])
def test_inner_steps_of_their_own_are_known_as_such(options):
    assert has_own_inner_steps(RunConfig().updated(options).method)


def test_plain_inner_steps_are_known_as_such():
    assert not has_own_inner_steps(MethodConfig(num_inner_steps=5, proximal_strength=1.0, trained_part="body"))


@pytest.mark.parametrize("name", METHODS)
def test_what_makes_another_method_is_listed_and_what_many_clients_at_once_cannot_compute(name):
    config = RunConfig().updated(METHODS[name].options())
    known = {"method.num-inner-steps", "method.estimator", "federation.server-lr", "federation.server-optimizer"}

    assert bool(other_objectives(config)) == bool(METHODS[name].overrides.keys() - known)
    assert bool(sequential_training(config)) == (name in ONE_BY_ONE)
    assert sequential_evaluation(config) == []


def test_how_the_server_aggregates_is_nothing_to_the_clients():
    config = RunConfig().updated({"federation.aggregation": "median", "federation.server-lr": 0.5})

    assert other_objectives(config) == sequential_training(config) == []


@pytest.mark.parametrize(
    "option",
    [
        {"method.step-sizes": "learned"},
        {"method.adapted-part": "head"},
        {"method.trained-part": "body"},
        {"method.proximal-strength": 0.5},
        {"method.personal-strength": 0.5},
        {"federation.training": "local"},
    ],
    ids=str,
)
def test_each_option_that_makes_another_method_is_listed_by_itself(option):
    ((key, value),) = option.items()

    assert other_objectives(RunConfig().updated(option)) == [f"{key}={value}"]


def test_the_options_are_listed_as_they_are_given():
    config = RunConfig().updated({**HEAD, "method.proximal-strength": 0.5})

    assert other_objectives(config) == ["method.adapted-part=head", "method.proximal-strength=0.5"]


def test_what_is_trained_alone_is_evaluated_as_it_is_trained():
    config = RunConfig().updated({**MOREAU, "method.objective": "implicit", "federation.training": "local"})

    assert sequential_evaluation(config) == sequential_training(config) == ["method.objective=implicit"]


@pytest.mark.parametrize("values", [{"federation": {"aggregation": "none"}}, {"federation.aggregation": "none"}])
def test_files_that_said_by_aggregation_that_nothing_is_federated_are_still_read(values):
    expected = RunConfig().updated({"federation.training": "local"})

    assert RunConfig.parse(values) == expected
    assert RunConfig.parse({**RunConfig().flat(), "federation.aggregation": "none"}) == expected
