"""Personal models in Python for every kind of task: fine-tuned and judged as the run's own clients are."""

import numpy as np
import pytest
import torch
from torch import nn

import nufed
from nufed.common.data import load_federation
from nufed.common.settings import Settings
from nufed.library.turns import private

FEW = {"num_rounds": 1, "num_inner_steps": 1, "num_local_steps": 1, "num_adapt_steps": 2, "primary_step": 2}


class Labeller(nn.Module):
    """Gives each token a label; what the mask leaves out counts for nothing."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, ids, mask):
        return self.read(torch.tanh(self.embed(ids)) * mask.unsqueeze(-1))


def absolute(outputs, targets):
    return (outputs - targets["wanted"]).abs().sum(1) * targets["weight"]


def of_numbers(rng):
    return rng.normal(size=(24, 3)).astype("float32")


def of_tokens(rng):
    return {"ids": rng.integers(0, 5, (24, 4)), "mask": rng.random((24, 4)) < 0.8}


def labels_of(rng):
    return np.where(rng.random((24, 4)) < 0.2, -100, rng.integers(0, 5, (24, 4)))


KINDS = {
    "classification": (of_numbers, lambda rng: (rng.random(24) < 0.2).astype(int), nn.Linear(3, 2)),
    "multi-label": (of_numbers, lambda rng: rng.integers(0, 2, (24, 2)), nn.Linear(3, 2)),
    "counts": (of_numbers, lambda rng: rng.poisson(2.0, (24, 1)), nn.Linear(3, 1)),
    "regression": (of_numbers, lambda rng: 100 + 9 * rng.normal(size=(24, 2)), nn.Linear(3, 2)),
    "tokens": (of_tokens, labels_of, Labeller()),
    "own": (of_numbers, lambda rng: {"wanted": rng.normal(size=(24, 1)), "weight": rng.random(24)}, nn.Linear(3, 1)),
}
OPTIONS = {
    "classification": {"class_weights": "balanced"},
    "regression": {"task__loss": "huber"},
    "own": {"task": absolute},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_personal_model_is_the_one_that_the_run_judged_whatever_the_task(kind):
    inputs, targets, model = KINDS[kind]
    draws = [np.random.default_rng(number) for number in range(3)]
    clients = {f"site-{number}": (inputs(rng), targets(rng)) for number, rng in enumerate(draws)}
    options = {"task": kind, **OPTIONS.get(kind, {}), **FEW}
    run = nufed.simulate(clients, model, new_clients=["site-2"], progress=False, **options)
    with private({}, run.origin.objects):
        new = load_federation(run.config.data, seed=0, dtype=torch.float32, settings=Settings()).clients[-1]
    judged = run.curves("new").pivot_table(index="step", columns="metric", values="value")
    support, test = new.support.targets, new.test.targets
    if kind == "regression":
        support, test = new.target_scaling.undo(support), new.target_scaling.undo(test)

    personal = nufed.personalize(run.model, new.support.inputs, support, steps=2)
    result = nufed.evaluate(personal, new.test.inputs, test)

    assert {"loss": result.loss, **result.metrics} == pytest.approx(
        judged.loc[2].dropna().to_dict(), rel=1e-5, nan_ok=True
    )
    assert len(nufed.predict(personal, new.test.inputs)) == len(new.test)


def test_targets_of_another_kind_are_refused_without_a_value():
    inputs, targets, model = KINDS["counts"]
    rng = np.random.default_rng(0)
    clients = {f"site-{number}": (inputs(rng), targets(rng)) for number in range(3)}
    run = nufed.simulate(clients, model, task="counts", progress=False, **FEW)

    with pytest.raises(nufed.DataError, match="whole numbers from 0, but 24 of 24") as negative:
        nufed.evaluate(run.model, inputs(rng), np.full((24, 1), -987))
    with pytest.raises(nufed.DataError, match=r"shape \[1\], as the run had them, but got \[2\]"):
        nufed.evaluate(run.model, inputs(rng), np.zeros((24, 2)))
    with pytest.raises(nufed.DataError, match="expected inputs as the run had them"):
        nufed.predict(run.model, np.zeros((2, 4)))
    assert "987" not in str(negative.value)


class HeadFirst(nn.Module):
    """Registers its last layer before the one that runs first."""

    def __init__(self):
        super().__init__()
        self.read, self.body = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, inputs):
        return self.read(torch.tanh(self.body(inputs)))


def test_a_personal_model_has_the_head_adapted_that_runs_last_in_whatever_order_layers_are_registered():
    rng = np.random.default_rng(0)
    clients = {str(name): (of_numbers(rng), rng.integers(0, 2, 24)) for name in range(4)}
    run = nufed.simulate(clients, HeadFirst(), num_clients=3, num_new_clients=1, adapted_part="head", **FEW)

    personal = nufed.personalize(run.model, *clients["0"], steps=1)

    changed = {name for name, tensor in personal.named_parameters() if not torch.equal(tensor, run.params[name])}
    assert changed == {"read.weight", "read.bias"}
