"""Tensors become the bytes that NumPy writes, and bytes become tensors that own their content."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nufed.common.npy import NpyError, from_npy, to_npy

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TYPES = st.sampled_from(["float16", "float32", "float64", "int64", "int32", "uint8", "bool", "complex64"])
ARRAYS = TYPES.flatmap(lambda dtype: npst.arrays(dtype, SHAPES))


def saved(array, **options):
    stream = BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@given(ARRAYS)
def test_bytes_are_those_of_numpy_save(array):
    """Whatever the type and shape, to the last byte."""
    assert to_npy(torch.from_numpy(array)) == saved(array)


@given(ARRAYS)
def test_a_tensor_survives_the_way_there_and_back(array):
    """Type, shape and bits, NaN included."""
    back = from_npy(to_npy(torch.from_numpy(array)), str(array.dtype), array.shape)

    assert back.numpy().dtype == array.dtype
    assert back.shape == array.shape
    assert back.numpy().tobytes() == array.tobytes()


def test_views_are_written_by_their_elements():
    """A transposed or expanded tensor is written in C order."""
    tensor = torch.arange(6.0).reshape(2, 3)

    assert to_npy(tensor.T) == saved(np.ascontiguousarray(tensor.numpy().T))
    assert to_npy(tensor[:1].expand(4, 3)) == saved(np.repeat(tensor.numpy()[:1], 4, 0))


def test_the_tensor_read_can_be_changed():
    """It owns its content; the bytes stay as they are."""
    data = to_npy(torch.zeros(3))

    from_npy(data, "float32", (3,)).add_(1)

    assert data == to_npy(torch.zeros(3))


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (saved(np.zeros(3)), "float32", (3,)),
        (saved(np.zeros(3)), "float64", (4,)),
        (saved(np.zeros((3, 1))), "float64", (3,)),
        (saved(np.zeros(3))[:-1], "float64", (3,)),
        (saved(np.zeros(3)) + b"\0", "float64", (3,)),
        (saved(np.zeros(3).astype(">f8")), "float64", (3,)),
        (saved(np.array([None]), allow_pickle=True), "object", (1,)),
        (b"", "float64", (0,)),
        (saved(np.zeros(3)), "float64", (-3,)),
        (saved(np.zeros(1)), "float64", (-1, -1)),
        (saved(np.zeros(1)), "float64", (2**80,)),
        (saved(np.zeros(3)), "no type", (3,)),
    ],
)
def test_other_bytes_are_refused(data, dtype, shape):
    """Nothing is guessed of a file that is not as announced."""
    with pytest.raises(NpyError):
        from_npy(data, dtype, shape)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_of_other_writers_are_read(version, order):
    """Fortran order and the second version of the format, as numpy.save writes them of other arrays."""
    array = np.asarray(np.arange(6.0).reshape(2, 3), order=order)
    stream = BytesIO()
    np.lib.format.write_array(stream, array, version=version)

    assert from_npy(stream.getvalue(), "float64", (2, 3)).tolist() == array.tolist()
