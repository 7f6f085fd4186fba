"""What targets, options, class weights and losses of one's own must be, and what is said where they are not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nufed
from nufed.common.config import RunConfig
from nufed.common.config.data import TASK_KINDS
from nufed.common.errors import ConfigError, DataError, ModelError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.input_forms import task_from_json, task_to_json
from nufed.common.models import examine
from nufed.common.tasks import TASKS, find_task
from nufed.common.tasks.client_check import check_client_targets
from nufed.common.tasks.options import with_loss_options
from nufed.common.tasks.weights import weighted
from tests.common.tasks.problems import PROBLEMS, TASK_PROBLEMS, dense

TOKENS = TASK_PROBLEMS["tokens"].info
MASKS = TASK_PROBLEMS["segmentation"].info
SPOILED = {
    "a class above the last": (TaskInfo("classification", (5,), 3), torch.tensor([0, 3, 99]), "2 of 3"),
    "a class that is a float": (TaskInfo("classification", (5,), 3), torch.tensor([0.0, 1.0]), "float32"),
    "a label that is neither 0 nor 1": (TaskInfo("multi-label", (5,), 2), torch.tensor([[0.0, 2.0]]), "1 of 2"),
    "a negative count": (TaskInfo("counts", (5,), 1), torch.tensor([[3.0], [-1.0]]), "1 of 2"),
    "half a count": (TaskInfo("counts", (5,), 1), torch.tensor([[0.5]]), "1 of 1"),
    "an infinite value": (TaskInfo("regression", (5,), 1), torch.tensor([[torch.inf]]), "1 of 1"),
    "a mask of another shape": (MASKS, torch.zeros(2, 4, 5, dtype=torch.int64), r"\[N, 4, 4\], but got \[2, 4, 5\]"),
    "a token beyond the vocabulary": (TOKENS, torch.full((1, 6), 77), "6 of 6"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_targets_that_a_task_does_not_have_are_refused_with_counts_and_no_value(what):
    info, targets, told = SPOILED[what]
    good = Examples(torch.zeros(0, 5), targets[:0])
    client = ClientData("north", "participating", Examples(torch.zeros(len(targets), 5), targets), good, good)

    with pytest.raises(DataError, match=f"client 'north', targets of the support split: .*{told}") as caught:
        check_client_targets(client, info)

    assert not any(number in str(caught.value) for number in ("99", "77", "-1.0", "2.0"))


@pytest.mark.parametrize("name", PROBLEMS)
def test_good_targets_pass_and_losses_and_predictions_have_a_row_for_each_example(name):
    problem = PROBLEMS[name]
    task, examples = find_task(problem.info), problem.draw(4)
    outputs = torch.randn(4, *task.output_shape, dtype=torch.float64)

    task.check_targets(examples.targets)

    assert torch.allclose(task.losses(outputs, examples.targets), problem.reference(outputs, examples.targets))
    assert float(task.loss(outputs, examples.targets)) == pytest.approx(
        float(task.losses(outputs, examples.targets).mean())
    )
    assert bool((task.losses(outputs, examples.targets) > -1e-9).all())
    assert task.predictions(outputs).shape == outputs.shape
    assert task_from_json(task_to_json(problem.info)) == problem.info


def test_the_configuration_knows_the_registered_tasks():
    assert set(TASK_KINDS) == set(TASKS)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.sampled_from(["balanced", "1,2,3,4"]))
def test_class_weights_are_1_on_average_over_a_clients_support_and_balance_its_own_classes(classes, chosen):
    targets = torch.tensor(classes)
    info = with_loss_options(TaskInfo("classification", (2,), 4), RunConfig.parse({"task.class-weights": chosen}).task)

    weights = weighted(Examples(torch.zeros(len(targets), 2, dtype=torch.float64), targets), info).weights

    assert float(weights.mean()) == pytest.approx(1)
    totals = torch.bincount(targets, weights, minlength=4)
    if chosen == "balanced":
        present = torch.bincount(targets, minlength=4) > 0
        assert torch.allclose(totals[present], torch.full_like(totals[present], len(targets) / int(present.sum())))
    else:
        assert torch.allclose(weights / weights[0], (targets + 1.0).double() / (targets[0] + 1.0))


@pytest.mark.parametrize(
    ("kind", "key", "value", "told"),
    [
        ("regression", "class-weights", "balanced", "is for data.task=classification"),
        ("classification", "class-weights", "1,2", "expected 3 weights"),
        ("classification", "class-weights", "1,-2,3", "above 0"),
        ("classification", "loss", "huber", "is for data.task=regression"),
        ("counts", "label-smoothing", 0.1, "is for data.task=classification, multi-label"),
    ],
)
def test_options_that_a_task_does_not_read_are_refused(kind, key, value, told):
    with pytest.raises(ConfigError, match=told):
        with_loss_options(TaskInfo(kind, (2,), 3), RunConfig.parse({f"task.{key}": value}).task)


def test_a_task_of_another_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'multi-label'"):
        RunConfig.parse({"data.task": "multilabel"})


# Losses of one's own: what they do to outputs o and targets t, [B, 1]
REFUSED = {
    "detaches": (lambda o, t: ((o - t) * (o - t).detach()).mean(-1), "second derivatives"),
    "rounds": (lambda o, t: (o.round() - t).square().mean(-1), "have a gradient"),
    "leaves torch": (lambda o, t: torch.tensor(np.square((o - t).detach().numpy()))[:, 0], "have a gradient"),
    "takes the mean": (lambda o, t: (o - t).square().mean(), "one number for each of 4 examples"),
    "mixes examples": (lambda o, t: (o - o.mean(0) - t).square().mean(-1), "each example alone"),
    "is infinite": (lambda o, t: (o - o).log().mean(-1) * t[:, 0], "finite"),
    "raises": (lambda o, t: {}[float(t[0])], "it raised KeyError"),
}


def own(losses):
    """Return a task of one's own, as `data.task=python:…` makes it."""
    return replace(find_task(TaskInfo("regression", (5,), 1)), losses=losses, by_hand=None, mean=None, own="python:a:b")


@pytest.mark.parametrize("what", REFUSED)
def test_losses_that_cannot_be_trained_on_are_refused_before_round_1_and_no_value_is_told(what, monkeypatch):
    losses, told = REFUSED[what]
    monkeypatch.setattr("nufed.common.task.find_task", lambda _: own(losses))
    examples = Examples(torch.randn(5, 5), torch.full((5, 1), 0.123))

    with pytest.raises(ModelError, match=told) as caught:
        examine(dense(1)(), TaskInfo("regression", (5,), 1), examples, twice=True)

    assert "python:a:b" in str(caught.value)
    assert "0.123" not in str(caught.value)


def test_a_loss_that_detaches_is_trained_on_where_nothing_is_differentiated_twice(monkeypatch):
    monkeypatch.setattr("nufed.common.task.find_task", lambda _: own(REFUSED["detaches"][0]))
    examples = Examples(torch.randn(5, 5), torch.randn(5, 1))

    assert examine(dense(1)(), TaskInfo("regression", (5,), 1), examples, twice=False).draws == "nothing"


OWN = '''
import torch
from nufed.common.tasks import OwnTask

def likelihood(task):
    """The outputs' deviation is known: the log-likelihood may have any sign."""
    return OwnTask(lambda o, t: (50 * (o - t["value"]).square() - 3.0).mean(-1))

def data(config, seed):
    generator = torch.Generator().manual_seed(0)
    clients = {}
    for name in "abcd":
        ids = torch.randint(0, 5, (16,), generator=generator)
        numbers = torch.randn(16, 2, generator=generator)
        clients[name] = {"code": ids, "numbers": numbers}, {"value": 0.1 * numbers[:, :1] + 0.01 * ids[:, None]}
    return clients

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codes, self.head = torch.nn.Embedding(5, 2), torch.nn.Linear(4, 1)

    def forward(self, numbers, code):
        return self.head(torch.cat([self.codes(code), numbers], 1))

def model(config, task):
    return Model()
'''


@pytest.mark.parametrize("engine", ["cohort", "processes"])
def test_a_task_of_ones_own_with_trees_as_inputs_and_targets_runs_in_every_engine(tmp_path, monkeypatch, engine):
    (tmp_path / "ownjob.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    run = nufed.simulate(
        "python:ownjob:data",
        "ownjob:model",
        engine=engine,
        task="python:ownjob:likelihood",
        num_clients=3,
        num_new_clients=1,
        num_rounds=12,
        inner_lr=3e-3,
        local_lr=3e-3,
        progress=False,
    )

    curve = run.curves("participating").query("split == 'test' and metric == 'loss'").groupby("step").value.mean()
    assert curve.iloc[-1] < 0 < curve.iloc[0] + 4
