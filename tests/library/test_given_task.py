"""Tasks and metrics given in Python: every engine, resuming, and names that follow from what functions are."""

import functools
import threading

import numpy as np
import pytest
import torch
from torch import nn

import nufed
from nufed.deploy.commands.cli import main
from nufed.library.content import content_name
from tests.library.federations import same_model

FEW = {"num_rounds": 2, "num_inner_steps": 2, "num_local_steps": 2, "num_adapt_steps": 3, "primary_step": 2}
QUIET = {"new_clients": ["site-3"], "progress": False}


def claims():
    """Return {name: (inputs [24, 3], claims [24, 1])}, many of them 0."""
    rng = np.random.default_rng(0)
    clients = {}
    for number in range(4):
        inputs = rng.normal(size=(24, 3))
        clients[f"site-{number}"] = (
            inputs,
            (rng.gamma(2.0, np.exp(0.3 * inputs[:, 0])) * (rng.random(24) < 0.5))[:, None],
        )
    return clients


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def deviance_of(power):
    def deviance(outputs, targets):
        mean = outputs.exp()
        return (mean ** (2 - power) / (2 - power) - targets * mean ** (1 - power) / (1 - power)).sum(1)

    return deviance


def sum_error(outputs, targets):
    return float((outputs.exp().sum() / targets.sum() - 1).abs())


sum_error.lower_is_better = True

TASK = nufed.OwnTask(deviance_of(1.5), torch.exp, metrics=(sum_error, "mae"), primary_metric="sum-error")


def simulated(task=TASK, **options):
    return nufed.simulate(claims(), build, task=task, **{**FEW, **QUIET, **options})


@pytest.fixture(scope="module")
def run():
    return simulated()


def test_each_way_of_giving_a_task_and_each_engine_is_the_same_run(run):
    judged = {"metrics": [sum_error, "mae"], "primary_metric": "sum_error"}
    by_function = simulated(lambda info: TASK)
    by_losses, together = (simulated(deviance_of(1.5), engine=engine, **judged) for engine in ("local", "cohort"))

    assert same_model(run, by_function, by_losses, together)
    assert set(run.curves()["metric"]) == {"loss", "sum-error", "mae"}
    assert run.curves().equals(by_function.curves())
    assert run.curves().equals(by_losses.curves())
    assert (run.summary["primary_metric"], by_losses.summary["primary_metric"]) == ("sum-error", "sum-error")
    assert simulated(deviance_of(1.4), num_rounds=1).config.data.task != by_losses.config.data.task


def bound_metric():
    share = 0.5

    def zeros_found(outputs, targets):
        return float(((outputs < share) == (targets == 0)).double().mean())

    return zeros_found


def test_a_run_goes_on_with_its_own_task_and_metrics_alone(tmp_path, run, capsys):
    kept = simulated(num_rounds=1, metrics=["auto", bound_metric()], out=tmp_path).path
    given = {"dataset": claims(), "model": build, "new_clients": ["site-3"]}
    metrics = {"metrics": ["auto", bound_metric()]}

    with pytest.raises(nufed.ConfigError, match=r"the task that the run was started with.*load_run"):
        nufed.load_run(kept, **given)
    with pytest.raises(nufed.ConfigError, match="Expected the task of the run"):
        nufed.load_run(kept, task=deviance_of(1.5), **given)
    with pytest.raises(nufed.ConfigError, match="metrics is missing: the run was given it in Python"):
        nufed.load_run(kept, task=TASK, **given).resume(num_rounds=2)
    longer = nufed.load_run(kept, task=TASK, **given, **metrics).resume(num_rounds=2, progress=False)
    assert main(["simulate", "--resume", str(kept), "--rounds", "3"]) != 0

    assert same_model(longer, run)
    assert "Go on in Python: nufed.load_run(FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": 3}, "task expects a nufed.OwnTask, a function"),
        ({"task": nufed.OwnTask}, "got the class OwnTask"),
        (
            {"task": lambda info: deviance_of(1.5)},
            "expected the task to return a nufed.OwnTask, but it returned function",
        ),
        ({"task": lambda one, two, three: 0}, "a function of 3 arguments"),
        ({"task": functools.partial(sum_error, 1)}, "the task to return a nufed.OwnTask|raised"),
        ({"metrics": [3]}, "metrics expects names, and functions"),
        ({"metrics": [lambda outputs, targets: 0.0]}, "would be the metric '<lambda>', which is no name"),
        ({"metrics": []}, "metrics='' is refused"),
    ],
)
def test_what_is_no_task_or_metric_is_refused(options, said):
    with pytest.raises(nufed.NufedError, match=said):
        simulated(**options)


def test_names_follow_from_what_a_function_does_and_uses():
    def scaled(factor):
        def inner(outputs, targets, power=2):
            return factor * helper(outputs - targets) ** power

        return inner

    lock = threading.Lock()
    names = [
        content_name(function, "task")
        for function in (
            scaled(1.0),
            scaled(2.0),
            scaled(torch.ones(1)),
            scaled(torch.zeros(1)),
            functools.partial(scaled(1.0), power=3),
            sum_error,
            nn.HuberLoss(delta=1.0),
            nn.HuberLoss(delta=2.0),
            lambda outputs, targets: outputs + targets,
            lambda outputs, targets: outputs - targets,
        )
    ]

    assert len(set(names)) == len(names)
    assert names[0] == content_name(scaled(1.0), "task")
    assert content_name({0, 8}, "") == content_name({8, 0}, "")  # which are gone through in another order
    with pytest.raises(nufed.ConfigError, match="task uses an object of type lock, of which nothing can be known"):
        content_name(lambda outputs, targets: lock, "task")


def test_a_helper_that_changes_is_another_function(monkeypatch):
    def loss(outputs, targets):
        return helper(outputs - targets)

    before = content_name(loss, "task")
    monkeypatch.setitem(globals(), "helper", lambda errors: errors**2)

    assert content_name(loss, "task") != before


def helper(errors):
    return errors.abs() if len({"a", "b", "c"} & {"a", "c"}) == 2 else errors
