"""Claims about federations that a function of the user's own makes."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from nufed.common.config import DataConfig
from nufed.common.data import user_defined
from nufed.common.data.dealing import deal
from nufed.common.data.pool import Pool, SourceRequest
from nufed.common.errors import DataError
from nufed.common.examples import ClientData, Examples, Federation, TaskInfo
from nufed.common.settings import Settings

CONFIG = DataConfig(source="python:of_mine:make", num_clients=2, num_new_clients=1)
TASK = TaskInfo("classification", (3,), 2, ("no", "yes"))
X, Y = np.arange(18.0).reshape(6, 3), np.array([0, 1, 0, 1, 0, 1])


@pytest.fixture
def load(monkeypatch):
    """Load what a function returns: all clients, their task, and what the function was called with."""

    def load_made(made, seed=0):
        module, calls = ModuleType("of_mine"), []
        module.make = lambda *args: calls.append(args) or made
        monkeypatch.setitem(sys.modules, "of_mine", module)
        loaded = user_defined.load(SourceRequest(CONFIG, seed, Settings(), "of_mine:make"))
        dealt = deal(loaded, CONFIG, seed) if isinstance(loaded, Pool) else loaded
        clients = [dealt.make_client(index, torch.float64) for index in range(dealt.num_total)]
        return Federation(dealt.task, tuple(clients), dealt.notes), calls

    return load_made


def client(name, group="participating", inputs=X, targets=Y, empty=()):
    def split(which):
        count = 0 if which in empty else len(inputs)
        return Examples(torch.as_tensor(inputs[:count]), torch.as_tensor(targets[:count]))

    return ClientData(name, group, split("support"), split("validation"), split("test"))


def federation(first=None, task=TASK):
    return Federation(task, (first or client("a"), client("b"), client("c", "new")), ("mine",))


def test_the_function_gets_the_data_section_and_the_seed(load):
    """So that it can follow the run's numbers of clients and be reproducible."""
    _, calls = load(dict.fromkeys("abc", (X, Y)), seed=7)

    assert calls == [(CONFIG, 7)]


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, lambda array: array.tolist()])
def test_a_dict_of_arrays_tensors_or_lists_becomes_clients(load, convert):
    """Names are the dict's; examples are split; the partition of the configuration does not matter."""
    made, _ = load({name: (convert(X), convert(Y)) for name in ("north", "south", "east")})

    assert {c.client_id for c in made.clients} == {"north", "south", "east"}
    assert [c.group for c in made.clients] == ["participating", "participating", "new"]
    for one in made.clients:
        rows = torch.cat([one.support.inputs, one.validation.inputs, one.test.inputs])
        assert sorted(rows.tolist()) == X.tolist()
    assert made.task == TaskInfo("classification", (3,), 2, ("0", "1"))


def test_float_targets_make_a_regression(load):
    """One value for each example becomes [N, 1]."""
    made, _ = load(dict.fromkeys("abc", (X, Y * 0.5)))

    assert made.task == TaskInfo("regression", (3,), 1)
    assert made.clients[0].support.targets.shape[1:] == (1,)


def test_classes_are_counted_over_all_clients(load):
    """A class that only one client has widens the task for all."""
    made, _ = load({"a": (X, Y), "b": (X, Y), "c": (X, Y + 3)})

    assert made.task.num_outputs == 5


def test_the_order_of_the_dict_does_not_matter(load):
    """Who takes part, and with which examples, follows from the names and the seed."""
    clients = {name: (X + index, Y) for index, name in enumerate("abcdefgh")}

    forwards, _ = load(clients, seed=3)
    backwards, _ = load(dict(reversed(clients.items())), seed=3)

    for one, other in zip(forwards.clients, backwards.clients, strict=True):
        assert one.client_id == other.client_id
        assert torch.equal(one.support.inputs, other.support.inputs)
        assert torch.equal(one.test.inputs, other.test.inputs)


def test_clients_that_take_no_part_are_noted(load):
    """With their number."""
    made, _ = load({f"site-{index}": (X, Y) for index in range(100)})

    [note] = made.notes
    assert note.startswith("3 of 100 users of python:of_mine:make are the participating and new clients of this run")
    assert "97 take no part" in note


def test_codes_are_no_class_numbers(load):
    """As in an archive."""
    with pytest.raises(DataError, match="targets of python:of_mine:make to number the classes"):
        load(dict.fromkeys("abc", (X, Y * 1000)))


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_what_a_model_does_to_its_inputs_does_not_reach_the_users_own_arrays(load, convert):
    """Nor do the user's later changes reach the clients; whether a dict or a federation was returned."""
    own_x, own_y = convert(X.copy()), convert(Y * 0.5)
    task = TaskInfo("regression", (3,), 1)
    names = zip("abc", ["participating", "participating", "new"], strict=True)
    whole = Federation(
        task, tuple(client(name, group, torch.as_tensor(own_x), torch.as_tensor(own_y)) for name, group in names)
    )

    for made in (dict.fromkeys("abc", (own_x, own_y)), whole):
        loaded, _ = load(made)
        parts = [part for one in loaded.clients for part in (one.support, one.validation, one.test)]
        for part in parts:
            part.inputs.zero_()
            part.targets.zero_()

        assert np.array_equal(np.asarray(own_x), X)
        assert np.array_equal(np.asarray(own_y), Y * 0.5)
        own_x += 1
        assert not any(part.inputs.any() for part in parts)
        own_x -= 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.ma.masked_array(X, X > 9), "without masked values, but 8 are"),
        (torch.as_tensor(X).to_sparse(), "to be an array"),
        (torch.as_tensor(X).to(torch.complex64), "to be numbers"),
    ],
)
def test_what_a_conversion_would_lose_is_refused(load, inputs, message):
    """NumPy drops a mask without a word."""
    with pytest.raises(DataError, match=message):
        load({"a": (X, Y), "b": (inputs, Y), "c": (X, Y)})


def test_tensors_of_types_that_numpy_lacks_are_taken(load):
    """Brain floats are exact in float32; a mask that hides nothing is no mask."""
    made, _ = load({"a": (torch.as_tensor(X).bfloat16(), Y), "b": (np.ma.masked_array(X), Y), "c": (X, Y)})

    assert {c.client_id for c in made.clients} == set("abc")


NAN = np.where(np.arange(18).reshape(6, 3) == 4, np.nan, X)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "Federation, or a dict .* got NoneType"),
        ({}, "dict of clients that is not empty, but got an empty one"),
        ({"a": (X, Y), "b": X}, r"client 'b' to be a pair \(inputs, targets\), or .*groups\), but got ndarray"),
        ({"a": (X, Y), "b": (X, Y[:5])}, "client 'b' to have as many targets as inputs, but got 5 and 6"),
        ({"a": (X, Y), "b": (X[:1], Y[:1])}, "client 'b' to have at least 2 examples, .* has 1"),
        ({"a": (X, Y), "b": (X[:0], Y[:0])}, "client 'b' to have at least 2 examples, .* has 0"),
        ({"a": (X, Y), "b": (X[:, :2], Y)}, r"client 'b' to have the form of client 'a' .*inputs \[3\].* \[2\]"),
        ({"a": (X, Y), "b": (X, Y * 0.5)}, "client 'b' to have the form of .*classification.*but got regression"),
        ({"a": (X, Y), "b": (X.astype(np.uint8), Y)}, "client 'b' to have the form .*floating-point.*got.*uint8"),
        ({"a": (X, Y), "b": (NAN, Y)}, r"inputs of client 'b', .* feature 1 \(1\)"),
        ({"a": (X, Y), "b": (X, Y - 1)}, "targets of client 'b' to be class numbers from 0"),
        ({"a": (X, Y), "b": ([[1, 2], [3]], Y)}, "inputs of client 'b' to be an array"),
        ({"a": (X, Y), "b": (X.astype(str), Y)}, "inputs of client 'b' to be numbers"),
        ({1: (X, Y), "1": (X, Y), "b": (X, Y)}, "two are the same"),
        ({"a": (X, Y), "b": (X, Y)}, "expected 3 participating and new users .* has 2"),
    ],
)
def test_a_malformed_dict_is_refused_naming_the_client(load, made, message):
    """Each message names the client, what was expected and what came."""
    with pytest.raises(DataError, match=message):
        load(made)


def test_a_federation_keeps_its_own_splits(load):
    """Nothing is split again; inputs take the run's precision; notes are kept."""
    made, _ = load(federation())

    assert [c.client_id for c in made.clients] == ["a", "b", "c"]
    assert made.clients[0].validation.inputs.tolist() == X.tolist()
    assert made.clients[0].test.targets.dtype == torch.int64
    assert made.notes == ("mine",)


def test_values_of_a_federation_may_be_a_vector(load):
    """Targets [N] of a regression with one output become [N, 1]."""
    task = TaskInfo("regression", (3,), 1)
    clients = [
        client(name, group, targets=Y * 0.5)
        for name, group in zip("abc", ["participating", "participating", "new"], strict=True)
    ]

    made, _ = load(Federation(task, tuple(clients)))

    assert made.clients[0].test.targets.shape == (6, 1)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Federation(TASK, (client("a"),)), "expected 2 participating .* 1 new .* got 1 and 0.*data.num-clients=1"),
        (Federation(TASK, (client("c", "new"), client("a"), client("b"))), "got 2 and 1, or another order"),
        (federation(client("b")), "names of their own .* two are the same"),
        (federation(client("a", empty=("test",))), "at least 1 example in the test split of client 'a'"),
        (federation(client("a", empty=("support",))), "at least 1 example in the support split of client 'a'"),
        (federation(client("a", inputs=NAN)), r"inputs in the support split of client 'a', .* feature 1 \(1\)"),
        (
            federation(client("a", inputs=X[:, :2])),
            r"support split of client 'a' to fit .*inputs \[3\].* \[6, 2\] inputs",
        ),
        (federation(client("a", targets=Y + 1)), "support split of client 'a' to fit .* 2 outputs.* and 3 outputs"),
        (federation(client("a", targets=Y * 0.5)), "support split of client 'a' to fit .* it is regression"),
        (federation(client("a", targets=Y[:5])), "support split of client 'a' to fit .* 5 targets"),
    ],
)
def test_a_malformed_federation_is_refused_naming_the_client(load, made, message):
    """Each message names the client and the split, or the numbers of clients."""
    with pytest.raises(DataError, match=message):
        load(made)


def test_an_empty_validation_split_is_no_fault(load):
    """Validation is for choosing hyper-parameters; a federation may have none."""
    made, _ = load(federation(client("a", empty=("validation",))))

    assert len(made.clients[0].validation) == 0
