"""Trees of tensors: what holds for every shape of tree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common import trees
from nufed.common.data.array_trees import as_tensors, spec_of
from nufed.common.errors import DataError
from nufed.common.examples import Examples, TensorSpec

LEAVES = st.sampled_from(["float", "integer", "boolean"])
NAMES = st.sampled_from(["a", "b", "c"])
SHAPES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, min_size=1),
    max_leaves=5,
)


def grown(shape, rows):
    """Return a tree of that shape, each leaf [rows, 2] of a type of its own."""
    if isinstance(shape, tuple):
        return tuple(grown(part, rows) for part in shape)
    if isinstance(shape, dict):
        return {name: grown(part, rows) for name, part in shape.items()}
    numbers = torch.arange(2 * rows).reshape(rows, 2)
    return {"float": numbers / 2, "integer": numbers, "boolean": numbers % 3 == 0}[shape]


def equal(left, right):
    pairs = zip(trees.leaves(left), trees.leaves(right), strict=True)
    return type(left) is type(right) and all(one.dtype == two.dtype and torch.equal(one, two) for one, two in pairs)


@given(SHAPES, st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_tree_taken_apart_and_put_together_is_the_tree(shape, sizes):
    tree = grown(shape, sum(sizes))

    parts = trees.split(tree, sizes)

    assert [trees.num_rows(part) for part in parts] == sizes
    assert equal(trees.cat(parts), tree)
    assert equal(trees.take(tree, torch.arange(sum(sizes))), tree)
    assert equal(trees.tree_map(lambda leaf: leaf[0], trees.stack([tree, tree])), tree)


@given(SHAPES, st.permutations(range(5)))
def test_rows_of_all_leaves_stay_together(shape, order):
    tree = grown(shape, 5)

    taken = Examples(tree, torch.arange(5)).take(torch.tensor(order))

    for leaf, moved in zip(trees.leaves(tree), trees.leaves(taken.inputs), strict=True):
        assert torch.equal(moved, leaf[taken.targets])


@given(SHAPES)
def test_numbers_take_the_runs_precision_and_ids_and_masks_keep_their_type(shape):
    tree = grown(shape, 3)
    arrays = trees.tree_map(lambda leaf: leaf.numpy(), tree)

    made = as_tensors(arrays, spec_of(arrays, keep_integers=True) or TensorSpec((2,)), torch.float64)

    assert equal(made, trees.in_double(tree))
    assert [leaf.dtype for leaf in trees.leaves(made)] == [
        torch.float64 if leaf.is_floating_point() else leaf.dtype for leaf in trees.leaves(tree)
    ]


def test_several_tensors_are_refused_by_name_where_one_is_wanted():
    with pytest.raises(DataError, match="one tensor, but got a dict of ids, mask"):
        trees.one_tensor({"ids": torch.zeros(1), "mask": torch.ones(1)})
