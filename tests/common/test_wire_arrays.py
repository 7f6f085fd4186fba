"""Arrays are looked at before they are decoded: nobody makes a server take memory that it did not ask for."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

import nufed.common.model_arrays
from nufed.common.errors import WireError
from nufed.common.model_arrays import arrays_to_params, params_to_arrays

MODEL = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}


def announced(**changes):
    """Return the model's arrays, one of them announced as something else."""
    array = params_to_arrays(MODEL)["w"]
    facts = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data, **changes}
    return ArrayRecord({"w": Array(**facts), "b": Array(np.zeros(3, np.float32))})


@pytest.mark.parametrize(
    "arrays",
    [
        announced(shape=(2**40, 3)),
        announced(shape=(10**5000,)),
        announced(shape=(1,) * 10_000),
        announced(dtype="float64"),
        announced(dtype="x" * 1_000_000),
        ArrayRecord({**dict(params_to_arrays(MODEL).items()), "more": Array(np.zeros(3))}),
        params_to_arrays({"b": MODEL["b"]}),
    ],
)
def test_nothing_is_decoded_that_is_not_announced_as_the_model_sent(arrays, monkeypatch):
    monkeypatch.setattr(nufed.common.model_arrays, "from_npy", lambda *_: pytest.fail("decoded"))

    with pytest.raises(WireError) as caught:
        arrays_to_params(arrays, MODEL)

    assert len(str(caught.value)) < 400


def test_what_was_sent_is_taken():
    back = arrays_to_params(params_to_arrays(MODEL), MODEL)

    assert {name: tensor.tolist() for name, tensor in back.items()} == {
        name: tensor.tolist() for name, tensor in MODEL.items()
    }
