"""Personal models in Python of any task, and of inputs that are several arrays."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import nufed
from nufed.common.tasks import OwnTask

LENGTH, WORDS, SIZE = 5, 12, 6
OPTIONS = {"num_clients": 2, "num_new_clients": 1, "num_rounds": 1, "progress": False}
HERE = "tests.library.test_personal_trees"


class Tagger(nn.Module):
    """A class for each word of a sentence, from its number and those that it stands with."""

    def __init__(self, num_outputs):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(16, num_outputs)

    def forward(self, ids, mask):
        assert ids.dtype == torch.int64
        assert mask.dtype == torch.bool
        known = self.words(ids) * mask[..., None]
        around = known.sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp(min=1)
        return self.head(torch.cat([known, around.expand_as(known)], -1))


class OfSentence(Tagger):
    """A row for each sentence."""

    def forward(self, ids, mask):
        return super().forward(ids, mask).mean(1)


def in_a_tuple(task):
    """A model of two arrays by position."""

    class Pair(OfSentence):
        def forward(self, first, second):
            return super().forward(first, second)

    return Pair(task.num_outputs)


def pairwise(info):
    """Half the squared error of a sentence's two values, and twice them as predictions."""
    return OwnTask(
        losses=lambda outputs, targets: (
            ((outputs - targets["low"]) ** 2 + (outputs - targets["high"]) ** 2).sum(-1) / 2
        ),
        predictions=lambda outputs: 2 * outputs,
        output_shape=(1,),
    )


def sentences(rng, number=24):
    ids = rng.integers(0, WORDS, (number, LENGTH))
    return {"mask": np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (number, 1)), "ids": ids}


def tags(rng):
    inputs = sentences(rng)
    return inputs, np.where(inputs["mask"], inputs["ids"] % 3, -100)


def masks(rng):
    images = rng.integers(0, 256, (24, SIZE, SIZE), dtype=np.uint8)
    return images, (images > 128).astype(np.int64)


def of_sentences(make):
    def client(rng):
        inputs = sentences(rng)
        return inputs, make(inputs["ids"])

    return client


def pairs(rng):
    inputs = sentences(rng)
    return (inputs["ids"], inputs["mask"]), inputs["ids"][:, 0] % 3


CASES = {
    "tokens": (tags, lambda task: Tagger(task.num_outputs), {}, (24, LENGTH, 3)),
    "segmentation": (masks, lambda task: nn.Conv2d(1, task.num_outputs, 3, padding=1), {}, (24, 2, SIZE, SIZE)),
    "multi-label": (
        of_sentences(lambda ids: np.stack([(ids == word).any(1) for word in range(4)], 1).astype(np.int64)),
        lambda task: OfSentence(task.num_outputs),
        {},
        (24, 4),
    ),
    "counts": (
        of_sentences(lambda ids: (ids < 4).sum(1)),
        lambda task: OfSentence(task.num_outputs),
        {},
        (24, 1),
    ),
    "regression": (
        of_sentences(lambda ids: 1000.0 + 50 * ids.mean(1)),
        lambda task: OfSentence(task.num_outputs),
        {},
        (24, 1),
    ),
    "classification": (
        pairs,
        in_a_tuple,
        {"task__class_weights": "balanced"},
        (24, 3),
    ),
    f"python:{HERE}:pairwise": (
        of_sentences(lambda ids: {"low": ids.min(1)[:, None] / 9, "high": ids.max(1)[:, None] / 9}),
        lambda task: OfSentence(1),
        {},
        (24, 1),
    ),
}


@functools.cache
def run_of(kind):
    make, build, more, _ = CASES[kind]
    clients = {f"site-{number}": make(np.random.default_rng(number)) for number in range(3)}
    return nufed.simulate(clients, build, data__task=kind, method__inner_lr=0.1, **more, **OPTIONS)


@pytest.mark.parametrize("kind", CASES)
def test_a_personal_model_of_any_task_is_made_judged_and_used(kind):
    make, _, _, shape = CASES[kind]
    run = run_of(kind)
    inputs, targets = make(np.random.default_rng(9))

    personal = nufed.personalize(run.model, inputs, targets, steps=20, batch_size=12)

    before, after = (nufed.evaluate(model, inputs, targets) for model in (run.model, personal))
    predicted = nufed.predict(personal, inputs)
    assert after.loss < before.loss
    assert set(after.metrics) == set(before.metrics)
    assert predicted.shape == shape
    if kind == "regression":  # undone scale
        assert np.abs(predicted[:, 0] - targets).mean() < np.abs(targets - targets.mean()).mean() * 1.2
    if kind.startswith("python"):
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        torch.testing.assert_close(torch.from_numpy(predicted), 2 * personal(**tensors).detach())
    if isinstance(inputs, dict):
        with pytest.raises(nufed.DataError, match=r"as the run had them.* ids .* of integers, mask .* of booleans"):
            nufed.predict(personal, {**inputs, "mask": inputs["mask"].astype(float)})
        with pytest.raises(nufed.DataError, match="as the run had them"):
            nufed.predict(personal, inputs["ids"])


def test_targets_that_the_run_was_not_for_are_refused():
    run, (inputs, targets) = run_of("tokens"), tags(np.random.default_rng(9))

    with pytest.raises(nufed.DataError, match=r"from 0 to 2, or -100 .* 24 of 120 are others"):
        nufed.evaluate(run.model, inputs, np.where(np.arange(LENGTH) == 1, 7, targets))
    with pytest.raises(nufed.DataError, match="one for each position"):
        nufed.personalize(run.model, inputs, targets[:, 0])
