"""Record-level privacy of meta steps: clipped sums, Poisson batches and noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

from benchmarks.record_privacy_audit import OTHERS, Attack
from nufed.common.config import MethodConfig
from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.meta import example_terms
from nufed.common.meta.draw import batch_plan, sources_of
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.example_terms import SampledBatch, gradient_sum, product_sum
from nufed.common.meta.local_update import Stream, private_update
from nufed.common.meta.mapping import maps_examples
from nufed.common.meta.poisson import PoissonBatches
from nufed.common.meta.private_steps import Protection, noised_mean, private_steps
from nufed.common.params import add_scaled, model_params
from nufed.common.privacy.noise import RandomSource
from nufed.common.privacy.record import round_steps
from nufed.common.steps.differentiate import gradient
from nufed.common.task import make_loss
from tests.common.meta.problems import model_problem, random_examples, relative_difference

PROBLEMS = {name: model_problem(name) for name in ("mlp", "cnn")}
STREAM = Stream(seed=0, client_id="client-0", round=1)
KEPT = 1 - 2.0**-32  # of the clipping length, so that rounding stays within it


def protection(clip, *, noise=0.0, product_clip=None, key="0"):
    return Protection(clip, product_clip or clip, noise, RandomSource(key))


def update(examples, method, guard, *, name="mlp", mapped=True):
    loss, params, _ = PROBLEMS[name]
    return private_update(loss, params, examples, method, STREAM, protection=guard, mapped=mapped).params


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


class ByHand:
    """The same mechanism in explicit loops: one example at a time, full Hessians, flat vectors."""

    def __init__(self, examples, method, clip, product_clip, key):
        self.loss, params, _ = PROBLEMS["mlp"]
        self.names, self.shapes = list(params), [tensor.shape for tensor in params.values()]
        self.start = flat(params.values())
        self.examples, self.method, self.clip, self.product_clip = examples, method, clip, product_clip
        self.source = RandomSource(key)

    def value(self, vector, row):
        parts = torch.split(vector, [math.prod(shape) for shape in self.shapes])
        params = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        return self.loss(params, self.examples.take(torch.tensor([row])).as_batch())

    def gradient(self, vector, row):
        return torch.autograd.functional.jacobian(lambda at: self.value(at, row), vector)

    def product(self, vector, row, direction):
        return torch.autograd.functional.hessian(lambda at: self.value(at, row), vector) @ direction

    def drawn(self, size):
        """Return the rows of each unit drawn, and the expected number of examples."""
        groups = range(len(self.examples)) if self.examples.groups is None else self.examples.groups.tolist()
        units = [[row for row, group in enumerate(groups) if group == unit] for unit in sorted(set(groups))]
        probability = min(1.0, size / len(self.examples)) if size else 1.0
        if probability < 1:
            drawn = self.source.bernoulli(probability, len(units))
            units = [unit for unit, is_in in zip(units, drawn, strict=True) if is_in]
        return units, probability * len(self.examples)

    def mean(self, term, drawn, clip):
        units, expected = drawn
        total = torch.zeros_like(self.start)
        for rows in units:
            of_unit = torch.stack([term(row) for row in rows]).sum(0)
            total += of_unit * min(1.0, clip * KEPT / float(of_unit.norm()))
        return total / expected

    def run(self):
        method, w = self.method, self.start
        sizes = [
            method.batch_size if size < 0 else size for size in (method.outer_batch_size, method.hessian_batch_size)
        ]
        fresh = method.estimator == "exact" and method.hessian_batches == "fresh"
        for _ in range(method.num_local_steps):
            outer = self.drawn(sizes[0])
            inner = [self.drawn(method.batch_size) for _ in range(method.num_inner_steps)]
            hessian = [self.drawn(sizes[1]) for _ in range(method.num_inner_steps)] if fresh else inner
            path = [w]
            for batch in inner:
                at = path[-1]
                path.append(
                    at - method.inner_lr * self.mean(lambda row, at=at: self.gradient(at, row), batch, self.clip)
                )
            end = path.pop()
            v = self.mean(lambda row, at=end: self.gradient(at, row), outer, self.clip)
            if method.estimator != "first-order":
                for batch in reversed(hessian):
                    at = path.pop()
                    hv = self.mean(lambda row, at=at, v=v: self.product(at, row, v), batch, self.product_clip)
                    v = v - method.inner_lr * hv
            w = w - method.local_lr * v
        return w


METHODS = {
    "fedavg": {"num_inner_steps": 0, "batch_size": 5},
    "exact": {"num_inner_steps": 2, "batch_size": 4, "outer_batch_size": 5, "hessian_batch_size": 3},
    "exact, coupled": {"num_inner_steps": 1, "batch_size": 4, "hessian_batches": "inner"},
    "exact, all examples": {"num_inner_steps": 1, "batch_size": 0},
    "unrolled": {"num_inner_steps": 2, "batch_size": 4, "estimator": "unrolled"},
    "first-order": {"num_inner_steps": 3, "batch_size": 5, "estimator": "first-order"},
}


@pytest.mark.parametrize("name", METHODS)
def test_without_noise_an_update_is_what_explicit_loops_over_examples_give(name, monkeypatch):
    options, grouped = METHODS[name], name in ("exact", "unrolled")
    monkeypatch.setattr(example_terms, "MEMORY", 2500)  # a few examples at once
    examples = random_examples(7, (1, 3, 3))
    if grouped:
        examples = replace(examples, groups=torch.tensor([3, 1, 1, 3, 2, 0, 3]))
    method = MethodConfig(inner_lr=0.3, local_lr=0.5, num_local_steps=2, **options)
    clip, product_clip = 0.7, 0.2  # below most gradients' and products' lengths

    found = update(examples, method, protection(clip, product_clip=product_clip, key="4"))

    expected = ByHand(examples, method, clip, product_clip, key="4").run()
    assert float((flat(found.values()) - expected).abs().max()) < 1e-10
    unclipped = update(examples, method, protection(1e6, key="4"))
    assert relative_difference(found, unclipped) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("estimator", ["exact", "unrolled", "first-order"])
def test_without_noise_and_clipping_it_is_the_ordinary_estimator_on_poisson_batches(estimator, name):
    loss, params, shape = PROBLEMS[name]
    examples = random_examples(12, shape)
    method = MethodConfig(
        estimator=estimator, num_inner_steps=2, inner_lr=0.2, num_local_steps=1, local_lr=1.0, batch_size=5
    )

    def over_expected(point, batch):
        return loss(point, batch) * len(batch) / 5

    plan = batch_plan(method, uses_hessian_batches=find_estimator(estimator).uses_hessian_batches)
    sources = sources_of(examples, 0.0, seed=0, client_id="client-0")
    drawn = PoissonBatches(examples, sources, plan, RandomSource("2")).draw()
    batches = replace(
        drawn,
        outer=drawn.outer.examples,
        inner=tuple(batch.examples for batch in drawn.inner),
        hessian=tuple(batch.examples for batch in drawn.hessian),
    )
    ordinary = find_estimator(estimator).build(over_expected, method)(params, batches)

    for mapped in (True, False):
        found = update(examples, method, protection(1e3, key="2"), name=name, mapped=mapped)

        assert relative_difference(found, add_scaled(params, ordinary.gradient, -1.0)) < 1e-9
    assert any(len(batch) != 5 for batch in (batches.outer, *batches.inner))


values = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, 1e30, -1e300, math.inf, math.nan]))


@settings(max_examples=25)
@given(
    record=st.lists(values, min_size=9, max_size=9),
    others=st.integers(0, 6),
    rows=st.integers(1, 3),
    clip=st.floats(1e-3, 50),
    grouped=st.booleans(),
)
def test_one_unit_changes_no_sum_by_more_than_the_clipping_length(record, others, rows, clip, grouped):
    loss, params, shape = PROBLEMS["mlp"]
    rest = random_examples(others + 1, shape, seed=3)
    rows = rows if grouped else 1
    added = torch.tensor(record, dtype=torch.float64).view(1, 1, 3, 3).repeat(rows, 1, 1, 1)
    together = Examples(
        torch.cat([rest.inputs, added]), torch.cat([rest.targets, torch.zeros(rows, dtype=torch.int64)])
    )
    units = torch.tensor([*range(others + 1), *[others + 1] * rows]) if grouped else None
    with_it = SampledBatch(together.as_batch(), units, 1.0)
    without = SampledBatch(rest.as_batch(), None if units is None else units[: others + 1], 1.0)
    direction = {name: torch.ones_like(tensor) for name, tensor in params.items()}

    for sum_of in (
        lambda batch: gradient_sum(loss, params, batch, clip),
        lambda batch: product_sum(loss, params, direction, batch, clip),
    ):
        sums = [noised_mean(sum_of(batch).total, params, 1.0, clip, protection(clip)) for batch in (with_it, without)]

        changed = flat(add_scaled(sums[0], sums[1], -1.0).values())
        assert float(changed.norm()) <= clip


def test_a_batch_that_nobody_is_in_has_a_sum_of_zero():
    loss, params, shape = PROBLEMS["mlp"]
    empty = random_examples(3, shape).take(torch.zeros(0, dtype=torch.int64)).as_batch()

    for units in (None, torch.zeros(0, dtype=torch.int64)):
        found = gradient_sum(loss, params, SampledBatch(empty, units, 5.0), 1.0)

        assert all(not tensor.any() for tensor in found.total.values())


def test_parameters_without_dimensions_have_terms_like_others():
    examples = Examples(torch.tensor([[3.0], [-0.25]]), torch.zeros(2, dtype=torch.int64))

    def scaled(point, batch):
        return (point["scale"] * batch.inputs.flatten(1)[:, 0]).mean()

    for mapped in (True, False):
        batch = SampledBatch(examples.as_batch(), None, 2.0)
        found = gradient_sum(scaled, {"scale": torch.tensor(2.0)}, batch, 1.0, mapped=mapped)
        assert float(found.total["scale"]) == pytest.approx(1.0 - 0.25)


def test_a_loss_that_mixes_examples_has_terms_of_one_example_each():
    _, params, shape = PROBLEMS["mlp"]

    def centred(point, batch):
        outputs = batch.inputs.flatten(1) @ point["1.weight"].T
        return (outputs - outputs.mean(0) + outputs).square().mean()

    examples = random_examples(4, shape)
    alone = [
        gradient_sum(centred, params, SampledBatch(examples.take(torch.tensor([row])).as_batch(), None, 1.0), 1.0)
        for row in range(4)
    ]
    together = gradient_sum(centred, params, SampledBatch(examples.as_batch(), None, 1.0), 1.0)

    expected = {name: sum(each.total[name] for each in alone) for name in params}
    assert relative_difference(together.total, expected) < 1e-12


def test_batches_are_drawn_with_the_stated_rates_independently_and_keep_groups_whole():
    groups = torch.arange(40) // 2
    examples = Examples(torch.arange(40.0), torch.zeros(40, dtype=torch.int64), groups=groups)
    method = MethodConfig(num_inner_steps=2, batch_size=10, outer_batch_size=0, hessian_batch_size=4)
    plan = batch_plan(method, uses_hessian_batches=True)
    sources = sources_of(examples, 0.0, seed=0, client_id="client-0")
    batches = PoissonBatches(examples, sources, plan, RandomSource("0"))

    drawn = [batches.draw() for _ in range(400)]

    taken = np.zeros((400, 4, 20))
    for number, step in enumerate(drawn):
        for kind, batch in enumerate((*step.inner, *step.hessian)):
            rows = batch.examples.inputs.long()
            assert torch.equal(torch.bincount(groups[rows], minlength=20) % 2, torch.zeros(20, dtype=torch.int64))
            assert len(batch.units) == len(rows)
            taken[number, kind, groups[rows].numpy()] = 1
        assert len(step.outer) == 40
        assert (step.outer.expected_size, step.inner[0].expected_size, step.hessian[0].expected_size) == (40, 10, 4)
    np.testing.assert_allclose(taken.mean((0, 2)), [0.25, 0.25, 0.1, 0.1], atol=0.02)
    np.testing.assert_allclose(taken.mean((0, 1)), np.full(20, 0.175), atol=0.05)
    correlations = np.corrcoef(taken.transpose(1, 0, 2).reshape(4, -1))
    assert float(np.abs(correlations - np.eye(4)).max()) < 0.05


def test_the_unused_weights_of_a_batch_are_those_of_its_examples():
    loss, params, shape = PROBLEMS["mlp"]
    examples = random_examples(3, shape)
    weights = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    weighted = SampledBatch(Batch(examples.inputs, examples.targets, weights=weights), None, 1.0)

    found = gradient_sum(loss, params, weighted, 1e6)

    parts = [
        gradient_sum(loss, params, SampledBatch(examples.take(torch.tensor([row])).as_batch(), None, 1.0), 1e6).total
        for row in range(3)
    ]
    expected = {name: 2 * parts[0][name] + 0.5 * parts[1][name] for name in params}
    assert relative_difference(found.total, expected) < 1e-9


def test_each_query_has_the_noise_of_its_clipping_length_and_of_nothing_else():
    clip, product_clip, noise, expected_size = 0.5, 3.0, 1.5, 8.0
    guard = protection(clip, noise=noise, product_clip=product_clip, key="ks")
    params = {"w": torch.zeros(100, 50, dtype=torch.float64), "b": torch.zeros(5000, dtype=torch.float64)}
    steps = private_steps(lambda point, batch: 0.0 * (point["w"].sum() + point["b"].square().sum()), 1.0, guard)
    batch = SampledBatch(random_examples(4, (1,)).as_batch(), None, expected_size)

    def added(moved):
        return flat(add_scaled(moved, params, -1.0).values()).numpy()

    drawn = [
        (clip, flat(steps.value_and_gradient(params, batch)[1].values()).numpy()),
        (clip, added(steps.descend(params, batch))),
        (product_clip, added(steps.pull_back(params, batch, params))),
        (product_clip, added(steps.linearize(params, batch)[1](params))),
    ]

    for length, sample in drawn:
        assert kstest(sample / (noise * length / expected_size), "norm").pvalue > 1e-3
    correlations = np.corrcoef([sample for _, sample in drawn])
    assert float(np.abs(correlations - np.eye(4)).max()) < 0.04


@pytest.mark.parametrize(("estimator", "queries"), [("exact", 3), ("unrolled", 3), ("first-order", 2)])
def test_an_attack_on_all_queries_tells_a_record_as_well_as_the_account_says_and_no_better(estimator, queries):
    attack = Attack(estimator)
    accounted = sum(
        count / step.noise**2 for step, count in round_steps(attack.method, OTHERS + 1).with_noise(3).items()
    )

    signal = float((attack.statistics(True, 0.0, 1) - attack.statistics(False, 0.0, 1))[0])
    spread = attack.statistics(False, 3.0, 100, "audit").std()

    assert accounted == pytest.approx(queries / 3**2)
    assert signal / spread == pytest.approx(math.sqrt(accounted), rel=0.2)  # 100 draws: 7 % is one deviation


def test_a_model_whose_examples_cannot_be_computed_together_is_computed_one_after_another():
    class Branching(nn.Module):
        """Reads a value, which `vmap` cannot."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(9, 4)

        def forward(self, inputs):
            rows = inputs.flatten(1)
            return self.layer(rows if float(rows.sum()) > 0 else 2 * rows)

    torch_examples = random_examples(6, (1, 3, 3), dtype=torch.float32)
    loss = make_loss(Branching(), TaskInfo("classification", (1, 3, 3), 4))
    params = model_params(loss.model)

    assert not maps_examples(loss, params, torch_examples, twice=True)
    assert maps_examples(PROBLEMS["cnn"][0], PROBLEMS["cnn"][1], random_examples(6, (1, 8, 8)), twice=True)
    alone = gradient_sum(loss, params, SampledBatch(torch_examples.as_batch(), None, 1.0), 1e6, mapped=False).total
    rows = [gradient(loss, params, torch_examples.take(torch.tensor([row])).as_batch()) for row in range(6)]
    assert relative_difference(alone, {name: sum(row[name] for row in rows) for name in params}) < 1e-6
