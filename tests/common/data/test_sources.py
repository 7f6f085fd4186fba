"""Claims that hold for every source in the registry."""

from collections import Counter

import numpy as np
import pytest
import torch

from nufed.common.config import DataConfig
from nufed.common.data import SOURCES, describe_task, digits, load_client, load_federation
from nufed.common.data.pool import SourceRequest
from nufed.common.data.registry import find_source
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import ClientData, Examples
from nufed.common.settings import Settings
from tests.common.data.stand_ins import STAND_INS, stand_in_of


@pytest.fixture(params=sorted(SOURCES))
def stand_in(request, tmp_path, monkeypatch):
    return stand_in_of(request.param)(tmp_path, monkeypatch)


def load(stand_in, seed=0, dtype=torch.float32):
    return load_federation(stand_in.config, seed=seed, dtype=dtype, settings=stand_in.settings)


def splits(client: ClientData) -> list[Examples]:
    return [client.support, client.validation, client.test]


def rows_of(examples: Examples) -> list[bytes]:
    return [row.numpy().tobytes() for row in examples.inputs]


def all_inputs(federation) -> torch.Tensor:
    return torch.cat([examples.inputs for client in federation.clients for examples in splits(client)])


def test_every_source_that_reads_files_has_a_stand_in_and_all_a_description():
    """A source that comes with the code needs none: it is tested as it is."""
    assert set(STAND_INS) <= set(SOURCES)
    assert all(name in STAND_INS for name, source in SOURCES.items() if source.argument)
    assert all(source.description for source in SOURCES.values())


def test_the_same_seed_gives_the_same_tensors(stand_in):
    """Loading twice, with nothing remembered, gives equal tensors in the same order."""
    first = load(stand_in)
    load_federation.cache_clear()

    second = load(stand_in)

    assert second is not first
    for left, right in zip(first.clients, second.clients, strict=True):
        assert left.client_id == right.client_id
        for one, other in zip(splits(left), splits(right), strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)


def test_another_seed_gives_other_clients(stand_in):
    """The seed of the run decides which examples the first client holds, not only how it splits them."""
    first, other = load(stand_in, seed=0).clients[0], load(stand_in, seed=1).clients[0]

    held = [{row for part in splits(client) for row in rows_of(part)} for client in (first, other)]
    assert held[0] != held[1]


def test_each_example_is_in_one_split_of_one_client(stand_in):
    """Nothing is dealt twice, and what the source has is dealt."""
    federation = load(stand_in)

    dealt = Counter(row for client in federation.clients for part in splits(client) for row in rows_of(part))

    assert max(dealt.values()) == 1
    if stand_in.num_dealt is not None:
        assert sum(dealt.values()) == stand_in.num_dealt


def test_groups_have_the_sizes_asked_for_participating_first(stand_in):
    """The federation is num-clients participating clients, then num-new-clients new ones, with different names."""
    federation = load(stand_in)

    assert [client.group for client in federation.clients] == ["participating"] * 5 + ["new"] * 3
    assert len({client.client_id for client in federation.clients}) == 8


def test_every_client_can_train_and_be_judged_and_only_participating_ones_are_validated(stand_in):
    """Support and test are never empty; new clients keep all that is not test for adaptation."""
    for client in load(stand_in).clients:
        assert len(client.support) >= 1
        assert len(client.test) >= 1
        assert (len(client.validation) >= 1) == (client.group == "participating")


def test_tensors_fit_the_task(stand_in):
    """Inputs have the task's shape and the type asked for; targets are class numbers or values."""
    federation = load(stand_in, dtype=torch.float64)

    task = federation.task
    for examples in (part for client in federation.clients for part in splits(client)):
        assert examples.inputs.dtype == torch.float64
        assert examples.inputs.shape == (len(examples), *task.input_shape)
        assert torch.isfinite(examples.inputs).all()
        if task.kind == "classification":
            assert examples.targets.dtype == torch.int64
            assert examples.targets.shape == (len(examples),)
            assert len(task.class_names) == task.num_outputs
            assert bool(((examples.targets >= 0) & (examples.targets < task.num_outputs)).all())
        else:
            assert examples.targets.dtype == torch.float64
            assert examples.targets.shape == (len(examples), task.num_outputs)


def test_pixels_are_scaled_to_one(stand_in):
    """8-bit images arrive in [0, 1], using the range."""
    federation = load(stand_in)
    if len(federation.task.input_shape) < 3:
        pytest.skip("not a source of images")  # the fixture has every source; the others have no pixels

    inputs = all_inputs(federation)

    assert inputs.min() == 0
    assert inputs.max() == 1


def test_the_task_is_described_without_making_clients(stand_in):
    """describe_task answers what the federation says."""
    described = describe_task(stand_in.config, stand_in.settings)

    assert described == load(stand_in).task


@pytest.mark.parametrize("partition_id", [0, 7])
def test_one_client_is_the_federations_client(stand_in, partition_id):
    """load_client gives what load_federation has at that place."""
    whole = load(stand_in).clients[partition_id]

    one = load_client(stand_in.config, partition_id, seed=0, dtype=torch.float32, settings=stand_in.settings)

    assert (one.client_id, one.group) == (whole.client_id, whole.group)
    for left, right in zip(splits(one), splits(whole), strict=True):
        assert torch.equal(left.inputs, right.inputs)
        assert torch.equal(left.targets, right.targets)


def test_loading_again_costs_nothing(stand_in):
    """A process that serves many clients holds one federation."""
    assert load(stand_in) is load(stand_in)


@pytest.mark.parametrize("partition_id", [-1, 8])
def test_a_partition_id_beyond_the_federation_is_refused_with_the_numbers(stand_in, partition_id):
    """More supernodes than clients is an error, not a repeated client."""
    with pytest.raises(DataError, match=rf"from 0 to 7 .*got {partition_id}"):
        load_client(stand_in.config, partition_id, seed=0, dtype=torch.float32, settings=stand_in.settings)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digitz", "Did you mean 'digits'"),
        ("npz", "write npz:PATH"),
        ("npz:", "write npz:PATH"),
        ("python", "write python:module:function"),
        ("digits:8", "write digits"),
    ],
)
def test_a_misspelled_source_is_refused_with_the_right_spelling(source, message):
    """Unknown names list the known ones; arguments are neither missing nor ignored."""
    with pytest.raises(ConfigError, match=message):
        find_source(DataConfig(source=source).source)


def test_the_digits_are_those_of_scikit_learn():
    """They are read from its file, without importing it."""
    from sklearn.datasets import load_digits

    pool = digits.load(SourceRequest(DataConfig(), 0, Settings()))

    assert np.array_equal(pool.train.inputs * 16, load_digits().images)
    assert np.array_equal(pool.train.targets, load_digits().target)
