"""Claims about checkpoints: whole or refused, never pickled, continued exactly."""

import math
import os

import pytest
import torch

from nufed.common.errors import RunError
from nufed.server.checkpoint import CHECKPOINT, checkpoint_round, load_checkpoint, save_checkpoint

PARAMS = {"head.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), "body.bias": torch.zeros(0)}
HISTORY = {"evaluations": [[0, 0.25], [10, 0.5]], "costs": {"bytes_up": 12}}


def test_a_checkpoint_comes_back_bit_for_bit_and_in_the_same_order(tmp_path):
    params = {**PARAMS, "a.double": torch.tensor([1e-300, math.pi], dtype=torch.float64)}

    save_checkpoint(tmp_path, round=7, params=params, history=HISTORY)
    loaded = load_checkpoint(tmp_path)

    assert (loaded.round, loaded.history) == (7, HISTORY)
    assert list(loaded.params) == list(params)
    assert all(torch.equal(loaded.params[name], params[name]) for name in params)
    assert loaded.params["a.double"].dtype == torch.float64


def test_the_round_is_known_without_reading_arrays(tmp_path):
    save_checkpoint(tmp_path, round=7, params=PARAMS, history={})

    assert checkpoint_round(tmp_path) == 7


def test_a_folder_without_checkpoint_has_none(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert checkpoint_round(tmp_path) is None


def test_equal_content_gives_equal_bytes(tmp_path):
    save_checkpoint(tmp_path, round=1, params=PARAMS, history=HISTORY)
    first = (tmp_path / CHECKPOINT).read_bytes()

    save_checkpoint(tmp_path, round=1, params=PARAMS, history=HISTORY)

    assert (tmp_path / CHECKPOINT).read_bytes() == first


def test_shared_and_transposed_tensors_are_saved_by_value(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)

    save_checkpoint(tmp_path, round=1, params={"a": base, "b": base, "c": base.T}, history={})

    assert torch.equal(load_checkpoint(tmp_path).params["c"], base.T)


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_a_torn_checkpoint_is_refused_with_what_to_do(tmp_path, kept):
    save_checkpoint(tmp_path, round=7, params=PARAMS, history=HISTORY)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[:kept])

    with pytest.raises(RunError, match=r"checkpoint\.safetensors.*put back a copy that is whole"):
        load_checkpoint(tmp_path)
    with pytest.raises(RunError, match=r"checkpoint\.safetensors.*put back a copy that is whole"):
        checkpoint_round(tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nufed.server.checkpoint.FORMAT", "nufed-checkpoint-0")
    save_checkpoint(tmp_path, round=7, params=PARAMS, history=HISTORY)
    monkeypatch.undo()

    with pytest.raises(RunError, match="nufed-checkpoint-0"):
        load_checkpoint(tmp_path)


def test_safetensors_of_another_program_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / CHECKPOINT, metadata={"format": "pt"})

    with pytest.raises(RunError, match="NuFed's metadata"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, round=1, params=PARAMS, history={})

    def full_disk(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        save_checkpoint(tmp_path, round=2, params=PARAMS, history={})
    monkeypatch.undo()

    assert load_checkpoint(tmp_path).round == 1
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
