"""A support split is cut down to k examples of each class, by seed and name alone, the smaller within the larger."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.data.few_examples import choose_few
from nufed.common.examples import TaskInfo
from nufed.common.settings import Settings

CLASSES, VALUES = TaskInfo("classification", (1,), 4), TaskInfo("regression", (1,), 1)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_each_class_has_k_examples_or_all_of_its_own_and_more_examples_hold_the_fewer(labels, size, seed):
    targets = np.array(labels)

    few, more = (choose_few(targets, number, CLASSES, seed=seed, client_id="a") for number in (size, size + 1))

    have, left = np.bincount(targets, minlength=4), np.bincount(targets[few.rows], minlength=4)
    assert left.tolist() == np.minimum(have, size).tolist()
    assert few.is_short == any(0 < count < size for count in have)
    assert set(few.rows) <= set(more.rows)
    assert np.all(np.diff(few.rows) > 0)


@pytest.mark.parametrize(("size", "left", "is_short"), [(0, 6, False), (1, 1, False), (6, 6, False), (7, 6, True)])
def test_values_to_predict_have_k_examples_in_all(size, left, is_short):
    few = choose_few(np.zeros((6, 2)), size, VALUES, seed=0, client_id="a")

    assert (len(few.rows), few.is_short) == (left, is_short)


def load(**options):
    data = RunConfig().updated({"data.num-clients": 6, "data.num-new-clients": 3, **options}).data
    return load_federation(data, seed=0, dtype=torch.float32, settings=Settings())


def test_a_federation_says_who_has_fewer_and_keeps_what_is_judged_on():
    """Two classes for each client: 2 examples of each for new ones, all for the others."""
    whole = load()
    cut = load(**{"data.new-support-examples": 2})
    many = load(**{"data.new-support-examples": 2, "data.support-examples": 1000})

    for before, after in zip(whole.clients, cut.clients, strict=True):
        expected = 4 if after.group == "new" else len(before.support)
        assert len(after.support) == expected
        assert torch.equal(before.test.inputs, after.test.inputs)
    assert not [note for note in cut.notes if "support examples" in note]
    assert (
        "6 of 6 participating clients have fewer than 1000 support examples of one of their classes: they use what "
        in (" ".join(many.notes))
    )
    assert torch.equal(many.clients[0].support.inputs, whole.clients[0].support.inputs)
